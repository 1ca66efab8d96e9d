//! `balance`: evening out the load of controllers.

use alloc::vec::Vec;
use stage2::addr::{Ipa, PAGEBLOCK_SIZE};
use stage2::controller::{ControllerId, ControllerSet, MAX_CONTROLLERS};
use stage2::migrate::{JobId, Mobility, Request, Scope};
use stage2::owner::GuestId;

use super::heat::{Sample, is_interrupted, look_at_all, wait};
use super::prelude::*;
use crate::monitor::balance::{self, By, End, Plan, Share, Shift, Side};
use crate::monitor::migration::{Heat, Look, Migration, Piece};
use crate::monitor::mux::GUESTS;
use crate::monitor::region::pieces;

/// Moves memory so that controllers carry the same load.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let migration = session.migration()?;
    if let Some(job) = jobs_under_way(migration) {
        refuse!(session, "{job} is not over: balance once it has ended, or cancel {}", job.get());
    }
    let what = arguments.word(0).unwrap_or("free");
    let by = if what == "heat" { By::Heat } else { By::Bytes };
    let (mut begun, mut all, mut done) = (Sample::default(), Sample::default(), Ok(()));
    if by == By::Heat {
        done = look_at_all(session, Look::Begin, &mut begun).and_then(|()| wait(session, 1)).map(drop);
    }
    if is_interrupted(session) || done.is_err() {
        look_at_all(session, Look::End, &mut all)?;
        refuse!(session, "interrupted: nothing was moved");
    }
    let mut shares = shares(session, by, &begun)?;
    look_at_all(session, Look::Count, &mut all)?;
    all.forget_new(&begun);
    let mut sides = sides(session, what, &all);
    let before = sides.clone();
    let plan = balance::plan(by, &mut sides, &mut shares, migration.history());
    let mut jobs: heapless::Vec<(JobId, Shift), { balance::MAX_SHIFTS }> = heapless::Vec::new();
    // The end of the range that is to move already, by guest, part and controller.
    let mut ends: heapless::Vec<(GuestId, Ipa, ControllerId, u64), { balance::MAX_SHIFTS }> =
        heapless::Vec::new();
    let mut refused = None;
    for shift in &plan.shifts {
        let (scope, limit) = match by {
            By::Bytes => (Scope::Range(shift.guest, shift.ipa, shift.size), shift.bytes),
            By::Heat => {
                let is_same = |end: &&(GuestId, Ipa, ControllerId, u64)| {
                    (end.0, end.1, end.2) == (shift.guest, shift.ipa, shift.from)
                };
                let after = ends.iter().filter(is_same).map(|end| end.3).max().unwrap_or(0);
                let Some((first, end)) = warm_range(session, shift, after)? else { continue };
                // As many as shifts.
                let _ = ends.push((shift.guest, shift.ipa, shift.from, end));
                // Cold memory in between moves too, as far as there is room.
                let light = sides.iter_mut().find(|side| side.controller == shift.to);
                let spare = light.map_or(0, |side| core::mem::take(&mut side.room));
                let range = Scope::Range(shift.guest, Ipa::new_truncate(first), end - first);
                // A limit beyond the range has no effect.
                let limit = Some(shift.bytes.saturating_add(spare)).filter(|limit| *limit < end - first);
                (range, limit.unwrap_or(u64::MAX))
            }
        };
        match migration.submit(Request::shift(scope, shift.from, shift.to, limit)) {
            Ok(job) => {
                // As many as shifts.
                let _ = jobs.push((job, *shift));
                if by == By::Heat {
                    migration.history().note(shift.from, shift.to);
                }
            }
            Err(error) => refused = Some(error),
        }
    }
    if by == By::Heat {
        look_at_all(session, Look::End, &mut all)?;
    }
    if let Some(error) = refused {
        refuse!(session, "{error}");
    }
    show(session, what, &before, &sides, &plan, &jobs)
}

/// Returns the first job that is not over.
fn jobs_under_way(migration: &dyn Migration) -> Option<JobId> {
    let mut last = JobId::new(0);
    while let Some(job) = migration.job_after(last) {
        if !job.state.is_over() {
            return Some(job.id);
        }
        last = job.id;
    }
    None
}

/// Iterates over the pieces of a guest's RAM that can move.
fn movable(migration: &dyn Migration, guest: usize) -> impl Iterator<Item = Piece> {
    pieces(migration, guest).filter(|piece| piece.mobility == Mobility::Movable)
}

fn allowed(piece: &Piece) -> ControllerSet {
    ControllerSet::ALL.iter().filter(|controller| piece.placement.allows(*controller)).collect()
}

/// Lists the movable RAM of every guest, as ranges that may lie behind the same controllers.
fn shares(session: &mut Session<'_>, by: By, begun: &Sample) -> Result<Vec<Share>, Failure> {
    let migration = session.migration()?;
    let mut shares: Vec<Share> = Vec::new();
    for at in 0..session.machine.guest_count().min(GUESTS) {
        let Some(guest) = u8::try_from(at).ok().and_then(GuestId::try_new) else { continue };
        for piece in movable(migration, at) {
            let allowed = allowed(&piece);
            // With only one allowed controller it does not move.
            if allowed.len() < 2 {
                continue;
            }
            let mut heat = Heat::default();
            look_at(session, migration, at, &piece, &mut heat, |_, _| true);
            let load = match by {
                By::Bytes => heat.resident,
                By::Heat if begun.has_seen(at, heat.life) => heat.touched,
                By::Heat => [0; MAX_CONTROLLERS],
            };
            let ipa = Ipa::new_truncate(piece.ipa);
            let goes_on = |last: &&mut Share| {
                last.guest == guest && last.allowed == allowed && last.ipa.get() + last.size == piece.ipa
            };
            match shares.last_mut().filter(goes_on) {
                Some(last) => {
                    last.size += piece.size;
                    for (at, load) in load.iter().enumerate() {
                        last.bytes[at] += heat.resident[at];
                        last.load[at] += load;
                    }
                }
                None => {
                    shares.push(Share { guest, ipa, size: piece.size, bytes: heat.resident, load, allowed })
                }
            }
        }
    }
    Ok(shares)
}

/// Scans a piece of RAM until `goes_on`, which gets the address reached and the result so far, returns `false`.
fn look_at(
    session: &mut Session<'_>,
    migration: &dyn Migration,
    guest: usize,
    piece: &Piece,
    heat: &mut Heat,
    mut goes_on: impl FnMut(u64, &Heat) -> bool,
) {
    let (mut next, end) = (Some(piece.ipa), piece.ipa + piece.size);
    while let Some(ipa) = next.filter(|ipa| *ipa < end) {
        next = migration.sample(guest, ipa, heat);
        session.io().pause();
        // The scan found nothing: there is no more memory, or the guest has stopped.
        let Some(reached) = next else { break };
        if !goes_on(reached.min(end), heat) {
            break;
        }
    }
}

/// Finds the range to shift: from the first touched unit at or above `after` up to the unit with which the touched bytes
/// reach the shift's load. Returns its first address and its end.
fn warm_range(session: &mut Session<'_>, shift: &Shift, after: u64) -> Result<Option<(u64, u64)>, Failure> {
    let migration = session.migration()?;
    let (guest, from) = (shift.guest.index(), shift.from.index());
    let (mut heat, mut first, mut end) = (Heat::default(), None, 0);
    let (start, stop) = (shift.ipa.get(), shift.ipa.get() + shift.size);
    for mut piece in movable(migration, guest).filter(|piece| (start..stop).contains(&piece.ipa)) {
        let passed = after.saturating_sub(piece.ipa).min(piece.size);
        (piece.ipa, piece.size) = (piece.ipa + passed, piece.size - passed);
        let mut at = piece.ipa;
        look_at(session, migration, guest, &piece, &mut heat, |next, heat| {
            if heat.touched[from] > 0 {
                first = first.or(Some(at));
                end = next;
            }
            at = next;
            heat.touched[from] < shift.load
        });
        if heat.touched[from] >= shift.load {
            break;
        }
    }
    // `None` only if the guest has stopped: the window is open, so flags that were set still are.
    Ok(first.map(|first| (first, end)))
}

/// Returns the loads of the controllers that take allocations, movable or not.
fn sides(session: &Session<'_>, what: &str, all: &Sample) -> heapless::Vec<Side, MAX_CONTROLLERS> {
    let machine = session.machine;
    let open = || machine.controllers().filter(|(_, side)| !side.is_closed);
    let most_free = open().map(|(_, side)| side.free_bytes).max().unwrap_or(0);
    let mut sides = heapless::Vec::new();
    for (controller, side) in open() {
        // Memory may have been freed since `most_free` was read.
        let load = match what {
            "free" => most_free.saturating_sub(side.free_bytes),
            "heat" => all.touched(controller),
            _ => all.resident(controller),
        };
        // Leaves some room for tables.
        let room = side.free_bytes.saturating_sub(4 * PAGEBLOCK_SIZE);
        // No more than there is room for.
        let _ = sides.push(Side { controller, load, room });
    }
    sides
}

/// The reason why a plan ends, in words.
struct Why<'a>(&'a dyn Machine, &'a Plan);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(machine, plan) = *self;
        let name = |controller| machine.controller_name(controller);
        match plan.end {
            End::Even => f.write_str("the controllers are balanced"),
            End::Alone => f.write_str("fewer than two controllers take allocations"),
            End::NothingMoves(from) => {
                write!(f, "nothing behind {} can move to a controller with less load", name(from))
            }
            End::NoRoom(to) => write!(f, "{} has no room", name(to)),
            End::Back(from, to) => {
                let twice = Size(2 * plan.band);
                write!(f, "moving back from {} to {} needs a difference above {twice}", name(from), name(to))
            }
            End::Full => f.write_str("the plan is full: run balance again"),
        }
    }
}

fn show(
    session: &mut Session<'_>,
    what: &str,
    before: &[Side],
    after: &[Side],
    plan: &Plan,
    jobs: &[(JobId, Shift)],
) -> Done {
    session.report("balance", |report, machine| {
        let why = Why(machine, plan);
        report.fields(&[
            ("by=Balanced by", Text(what)),
            ("even_bytes=Threshold", Bytes(plan.band)),
            ("why=Ended because", Show(&why)),
        ])?;
        report.list("controllers", "No controller takes allocations.", before.iter(), |table, side| {
            let then = after.iter().find(|then| then.controller == side.controller);
            table.row(&[
                ("controller=CONTROLLER", Text(machine.controller_name(side.controller))),
                ("load_bytes=LOAD", Bytes(side.load)),
                ("planned_bytes=PLANNED", Bytes(then.map_or(side.load, |then| then.load))),
            ])
        })?;
        report.list("shifts", "Nothing moves.", jobs.iter(), |table, (job, shift)| {
            table.row(&[
                ("job=JOB", Count(job.get().into())),
                ("guest=GUEST", Text(machine.guest_name(shift.guest))),
                ("bytes=BYTES", Bytes(if what == "heat" { shift.load } else { shift.bytes })),
                ("from=FROM", Text(machine.controller_name(shift.from))),
                ("to=TO", Text(machine.controller_name(shift.to))),
            ])
        })
    })
}
