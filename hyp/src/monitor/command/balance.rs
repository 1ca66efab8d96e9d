//! `balance`: evening out what controllers carry.

use alloc::vec::Vec;
use core::fmt;

use stage2::addr::{Ipa, PAGEBLOCK_SIZE};
use stage2::controller::{ControllerId, ControllerSet, MAX_CONTROLLERS};
use stage2::migrate::{JobId, Mobility, Request, Scope};
use stage2::owner::GuestId;

use super::super::balance::{self, By, End, Plan, Share, Shift, Side};
use super::super::grammar::{Arguments, Failure};
use super::super::machine::Machine;
use super::super::migration::{Heat, Look, Migration, Piece};
use super::super::mux::GUESTS;
use super::super::region::pieces;
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::Size;
use super::heat::{Sample, controllers, is_interrupted, look_at_all, wait};
use super::jobs::guest_name;
use super::migrate::{controller_name, migration};

/// Shifts memory so that controllers carry alike.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    if let Some(job) = jobs_under_way(migration) {
        return Err(session.refuse(format_args!(
            "{job} is not over, and what it moves would be counted where it was: balance when it is over, or cancel {}",
            job.get()
        )));
    }
    let what = arguments.word(0).unwrap_or("free");
    let by = if what == "heat" { By::Heat } else { By::Bytes };
    let (mut begun, mut all, mut done) = (Sample::default(), Sample::default(), Ok(()));
    if by == By::Heat {
        done = look_at_all(session, Look::Begin, &mut begun).and_then(|()| wait(session, 1)).map(drop);
    }
    if is_interrupted(session) || done.is_err() {
        look_at_all(session, Look::End, &mut all)?;
        return Err(session.refuse(format_args!("interrupted: nothing is shifted")));
    }
    let mut shares = shares(session, by, &begun)?;
    look_at_all(session, Look::Count, &mut all)?;
    all.forget_new(&begun);
    let mut sides = sides(session, what, &all);
    let before = sides.clone();
    let plan = balance::plan(by, &mut sides, &mut shares, migration.history());
    let mut jobs: heapless::Vec<(JobId, Shift), { balance::MAX_SHIFTS }> = heapless::Vec::new();
    // Up to where a part of a guest behind a controller is to go already.
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
                // What is cold in between goes along, but no more than there is room for.
                let light = sides.iter_mut().find(|side| side.controller == shift.to);
                let spare = light.map_or(0, |side| core::mem::take(&mut side.room));
                let range = Scope::Range(shift.guest, Ipa::new_truncate(first), end - first);
                // A limit that the range cannot reach is none.
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
        return Err(session.refuse(format_args!("{error}")));
    }
    show(session, what, &before, &sides, &plan, &jobs)
}

/// The first job that is not over.
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

/// The pieces of a guest's RAM of which something can move.
fn movable(migration: &dyn Migration, guest: usize) -> impl Iterator<Item = Piece> {
    pieces(migration, guest).filter(|piece| piece.mobility == Mobility::Movable)
}

fn allowed(piece: &Piece) -> ControllerSet {
    ControllerSet::ALL.iter().filter(|controller| piece.placement.allows(*controller)).collect()
}

/// What can move of every guest: stretches of its RAM that may lie behind the same controllers.
fn shares(session: &mut Session<'_>, by: By, begun: &Sample) -> Result<Vec<Share>, Failure> {
    let migration = migration(session)?;
    let mut shares: Vec<Share> = Vec::new();
    for at in 0..session.machine.guest_count().min(GUESTS) {
        let Some(guest) = u8::try_from(at).ok().and_then(GuestId::try_new) else { continue };
        for piece in movable(migration, at) {
            let allowed = allowed(&piece);
            // Where it may lie behind one alone it does not move.
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

/// Looks at a piece of RAM, for as long as `goes_on` of where it has come to and what it has seen.
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
        // Nothing was seen: there is no more, or the guest has gone.
        let Some(reached) = next else { break };
        if !goes_on(reached.min(end), heat) {
            break;
        }
    }
}

/// What of the part of a guest's RAM that is to be shifted lies at `after` or above, from the first that was touched on, and
/// was touched as much as is to be shifted: its first address and its end.
fn warm_range(session: &mut Session<'_>, shift: &Shift, after: u64) -> Result<Option<(u64, u64)>, Failure> {
    let migration = migration(session)?;
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
    // `None` only where the guest has gone: the window is open, and what was touched still is.
    Ok(first.map(|first| (first, end)))
}

/// What the controllers carry that take allocations: all of it, be it movable or not.
fn sides(session: &Session<'_>, what: &str, all: &Sample) -> heapless::Vec<Side, MAX_CONTROLLERS> {
    let machine = session.machine;
    let open = |id: &ControllerId| machine.controller(id.index()).filter(|side| !side.is_closed);
    let most_free = controllers(machine).filter_map(|id| Some(open(&id)?.free_bytes)).max().unwrap_or(0);
    let mut sides = heapless::Vec::new();
    for controller in controllers(machine) {
        let Some(side) = open(&controller) else { continue };
        // Others allocate and free meanwhile: it may be more than the most of just now.
        let load = match what {
            "free" => most_free.saturating_sub(side.free_bytes),
            "heat" => all.touched(controller),
            _ => all.resident(controller),
        };
        // Something stays for tables.
        let room = side.free_bytes.saturating_sub(4 * PAGEBLOCK_SIZE);
        // No more than there is room for.
        let _ = sides.push(Side { controller, load, room });
    }
    sides
}

/// Why a plan shifts no more.
struct Why<'a>(&'a dyn Machine, &'a Plan);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(machine, plan) = *self;
        let name = |controller| controller_name(machine, controller);
        match plan.end {
            End::Even => f.write_str("they count as even"),
            End::Alone => f.write_str("fewer than two controllers take allocations"),
            End::NothingMoves(from) => {
                write!(f, "nothing behind {} can move to where there is less", name(from))
            }
            End::NoRoom(to) => write!(f, "{} has no room", name(to)),
            End::Back(from, to) => {
                let twice = Size(2 * plan.band);
                write!(f, "{} got it from {}: it goes back for more than {twice}", name(from), name(to))
            }
            End::Full => f.write_str("more in the next plan"),
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
) -> Result<(), Failure> {
    session.report("balance", |report, machine| {
        let why = Why(machine, plan);
        report.fields(
            "by=Balanced by|even_bytes=Counts as even|why=No more because",
            &[Value::Text(what), Value::Bytes(plan.band), Value::Show(&why)],
        )?;
        let columns = "controller=CONTROLLER|load_bytes=CARRIES|planned_bytes=THEN";
        report.table("controllers", columns, "No controller takes allocations.", &mut |table| {
            before.iter().try_for_each(|side| {
                let then = after.iter().find(|then| then.controller == side.controller);
                table.row(&[
                    Value::Text(controller_name(machine, side.controller)),
                    Value::Bytes(side.load),
                    Value::Bytes(then.map_or(side.load, |then| then.load)),
                ])
            })
        })?;
        let columns = "job=JOB|guest=GUEST|bytes=BYTES|from=FROM|to=TO";
        report.table("shifts", columns, "Nothing is shifted.", &mut |table| {
            jobs.iter().try_for_each(|(job, shift)| {
                let name = fmt::from_fn(|f| f.write_str(guest_name(machine, shift.guest)));
                table.row(&[
                    Value::Count(job.get().into()),
                    Value::Show(&name),
                    Value::Bytes(if what == "heat" { shift.load } else { shift.bytes }),
                    Value::Text(controller_name(machine, shift.from)),
                    Value::Text(controller_name(machine, shift.to)),
                ])
            })
        })
    })
}
