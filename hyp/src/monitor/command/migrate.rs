//! `migrate`, `pin`, `unpin`, `evacuate`, `restore`, `retire`: what is to move where.

use core::fmt;

use stage2::addr::{FRAME_SIZE, Ipa};
use stage2::controller::{ControllerId, ControllerSet};
use stage2::memory::Retired;
use stage2::migrate::{JobId, Mobility, Request, Scope};
use stage2::owner::GuestId;
use stage2::placement::{ControllerList, Placement, Strictness, Turns};
use stage2::range::FrameRange;

use super::super::grammar::{Arguments, Failure};
use super::super::machine::{GuestState, Machine};
use super::super::migration::{Migration, Piece};
use super::super::region::{Region, pieces};
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::{Compact, Size};
use super::jobs::Placed;
use super::pools::claimed_behind;

/// Migration, or the refusal.
pub(super) fn migration<'a>(session: &mut Session<'a>) -> Result<&'a dyn Migration, Failure> {
    session.machine.migration().ok_or_else(|| session.refuse(format_args!("migration is not set up yet")))
}

/// The guest given for parameter 0, which must have memory: its index, name and number.
fn guest<'a>(
    session: &mut Session<'a>,
    arguments: &Arguments<'_>,
) -> Result<(usize, &'a str, GuestId), Failure> {
    let index = arguments.guest(0).unwrap_or(usize::MAX);
    let found = session.machine.guest(index).zip(u8::try_from(index).ok().and_then(GuestId::try_new));
    let Some((guest, id)) = found else { return Err(session.refuse(format_args!("the guest is gone"))) };
    if guest.state != GuestState::Running {
        let (name, state) = (guest.name, guest.state.name());
        return Err(
            session.refuse(format_args!("{name} is {state}: only the memory of running guests can move"))
        );
    }
    Ok((index, guest.name, id))
}

/// What the operator calls a controller.
pub(super) fn controller_name(machine: &dyn Machine, controller: ControllerId) -> &str {
    machine.controller(controller.index()).map_or("?", |controller| controller.name)
}

/// A controller that may be moved to: the one given for parameter `at`.
fn target(session: &mut Session<'_>, arguments: &Arguments<'_>, at: usize) -> Result<ControllerId, Failure> {
    let index = arguments.controller(at).unwrap_or(usize::MAX);
    let machine = session.machine;
    let id = u8::try_from(index).ok().and_then(ControllerId::try_new);
    let Some((id, controller)) = id.zip(machine.controller(index)) else {
        return Err(session.refuse(format_args!("the controller is gone")));
    };
    if controller.is_evacuated {
        let name = controller.name;
        return Err(session.refuse(format_args!("{name} takes no allocations: restore {name} first")));
    }
    Ok(id)
}

/// The range of IPA that a region of a guest is.
fn scope(
    session: &mut Session<'_>,
    (index, name, id): (usize, &str, GuestId),
    word: Option<&str>,
) -> Result<(Scope, u64), Failure> {
    let migration = migration(session)?;
    let region = word.and_then(Region::parse).unwrap_or(Region::All);
    let Some((ipa, size)) = region.range(migration, index) else {
        let word = word.unwrap_or("RAM");
        let list = Names(migration, index);
        return Err(session.refuse(format_args!("{name} has no {word}: it has {list}")));
    };
    if region == Region::All {
        return Ok((Scope::Guest(id), pieces(migration, index).map(|piece| piece.size).sum()));
    }
    // What of a range is no RAM of the guest's does not count.
    let end = ipa.saturating_add(size);
    let part = |piece: Piece| (piece.ipa + piece.size).min(end).saturating_sub(piece.ipa.max(ipa));
    let present = pieces(migration, index).map(part).sum();
    Ok((Scope::Range(id, Ipa::new_truncate(ipa), size), present))
}

/// What the pieces of a guest's RAM are called and where they lie.
struct Names<'a>(&'a dyn Migration, usize);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, piece) in pieces(self.0, self.1).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}@{:#x}", piece.name(), Compact(piece.size), piece.ipa)?;
        }
        Ok(())
    }
}

/// Queues `request` and says so.
fn submit(
    session: &mut Session<'_>,
    name: &str,
    request: Request,
    what: fmt::Arguments<'_>,
) -> Result<(), Failure> {
    let migration = migration(session)?;
    let job = migration.submit(request).map_err(|error| session.refuse(format_args!("{error}")))?;
    told(session, name, job, what)
}

fn told(session: &mut Session<'_>, name: &str, job: JobId, what: fmt::Arguments<'_>) -> Result<(), Failure> {
    let number = job.get();
    session.done(name, format_args!("Job {number} {what}."), "job=", &[Value::Count(number.into())])
}

/// Moves a guest's memory to a controller.
pub(super) fn migrate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let guest = guest(session, arguments)?;
    let to = target(session, arguments, 2)?;
    let (scope, size) = scope(session, guest, arguments.word(1))?;
    let (name, to_name) = (guest.1, controller_name(session.machine, to));
    let what = format_args!("moves {} of {name} to {to_name}", Size(size));
    submit(session, "migrate", Request::migrate(scope, to), what)
}

/// Ties a region of a guest's to controllers, and moves there what lies elsewhere.
pub(super) fn pin(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let guest = guest(session, arguments)?;
    let placement = placement(session, arguments)?;
    let (scope, size) = scope(session, guest, arguments.word(1))?;
    let turns = turns(session, guest.2, &placement)?;
    set_placement(session, guest, arguments.word(1), Some(placement))?;
    let (name, machine) = (guest.1, session.machine);
    let to = Placed(machine, &placement);
    if let Some((set, turns)) = turns {
        let size = Size(size);
        let what = format_args!("spreads {size} of {name} over {to}; it stays pinned");
        return submit(session, "pin", Request::spread(scope, set, turns), what);
    }
    let what = format_args!("moves to {to} what of {name} lies elsewhere; it stays pinned");
    submit(session, "pin", Request::pin(scope, placement), what)
}

/// Whose turn it is where, if `placement` wants turns: in proportion to what is free behind each and what the guest has there.
fn turns(
    session: &mut Session<'_>,
    guest: GuestId,
    placement: &Placement,
) -> Result<Option<(ControllerSet, Turns)>, Failure> {
    let Placement::Interleave(set, _) = *placement else { return Ok(None) };
    let migration = migration(session)?;
    match Turns::new(set, |controller| migration.frames_for(guest, controller)) {
        Some(turns) => Ok(Some((set, turns))),
        None => Err(session.refuse(format_args!("there is nothing free behind any of these"))),
    }
}

/// The placement that `CONTROLLER[,…]` (parameter 2) and the word behind it describe.
fn placement(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<Placement, Failure> {
    let machine = session.machine;
    let mut list: heapless::Vec<ControllerId, 16> = heapless::Vec::new();
    for word in arguments.word(2).unwrap_or("").split(',') {
        let is_it = |at: &usize| machine.controller(*at).is_some_and(|controller| controller.name == word);
        let index = (0..machine.controller_count()).find(is_it);
        let id = index.and_then(|index| ControllerId::try_new(index as u8));
        // Checked by the grammar; as many as there are.
        let _ = id.map(|id| list.push(id));
    }
    let set: ControllerSet = list.iter().copied().collect();
    Ok(match arguments.word(3) {
        Some("interleave") => Placement::Interleave(set, Strictness::Strict),
        Some("preferred") => Placement::Listed(ControllerList::new(&list), Strictness::Preferred),
        _ => Placement::Listed(ControllerList::new(&list), Strictness::Strict),
    })
}

/// Says where the pieces that `word` names are to lie.
fn set_placement(
    session: &mut Session<'_>,
    (index, name, _): (usize, &str, GuestId),
    word: Option<&str>,
    placement: Option<Placement>,
) -> Result<(), Failure> {
    let migration = migration(session)?;
    let region = word.and_then(Region::parse).unwrap_or(Region::All);
    let named = |at: &usize| migration.piece(index, *at).is_some_and(|piece| region.names(&piece));
    let count = pieces(migration, index).count();
    // What is mapped 1:1 was never pinned by `pin`: there is nothing to untie of it.
    if placement.is_some()
        && let Some(piece) = (0..count).filter(named).find_map(|at| {
            migration.piece(index, at).filter(|piece| piece.mobility == Mobility::PinnedInPlace)
        })
    {
        let (ipa, size) = (piece.ipa, Compact(piece.size));
        return Err(
            session.refuse(format_args!("{size}@{ipa:#x} of {name} is pinned 1:1: it stays where it is"))
        );
    }
    if !(0..count).any(|at| named(&at)) {
        let list = Names(migration, index);
        let word = word.unwrap_or("RAM");
        return Err(session.refuse(format_args!("{word} is no whole region of {name}: it has {list}")));
    }
    (0..count).filter(named).for_each(|at| migration.place(index, at, placement));
    Ok(())
}

/// Unties it again: the configuration says where it lies from now on.
pub(super) fn unpin(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let index = arguments.guest(0).unwrap_or(usize::MAX);
    let machine = session.machine;
    let id = u8::try_from(index).ok().and_then(GuestId::try_new);
    let Some((guest, id)) = machine.guest(index).zip(id) else {
        return Err(session.refuse(format_args!("the guest is gone")));
    };
    set_placement(session, (index, guest.name, id), arguments.word(1), None)?;
    let name = guest.name;
    let text = format_args!("What is allocated for {name} from now on lies where its configuration says.");
    session.done("unpin", text, "guest=", &[Value::Text(name)])
}

/// Moves everything off a controller, which takes no allocations from now on.
pub(super) fn evacuate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let from = target(session, arguments, 0)?;
    let migration = migration(session)?;
    let name = controller_name(session.machine, from);
    let others = (0..session.machine.controller_count())
        .filter_map(|at| session.machine.controller(at))
        .filter(|other| !other.is_evacuated && other.name != name);
    if others.count() == 0 {
        return Err(session.refuse(format_args!("{name} is the only controller that takes allocations")));
    }
    migration.close(from, true);
    match migration.submit(Request::evacuate(from)) {
        Ok(job) => {
            // What a guest is being filled with cannot move yet.
            let mut guests = (0..session.machine.guest_count()).filter_map(|at| session.machine.guest(at));
            let starting = guests.find(|guest| guest.state == GuestState::Starting).map(|guest| guest.name);
            let wait = fmt::from_fn(|f| match starting {
                Some(guest) => write!(f, "; it waits for {guest}, which is starting"),
                None => Ok(()),
            });
            let claimed = claimed_behind(session.machine, from);
            let stays = fmt::from_fn(|f| match claimed {
                0 => Ok(()),
                bytes => write!(f, "; {} that owners of pools have claimed stays", Size(bytes)),
            });
            let what = format_args!("moves all off {name}, which takes no allocations{wait}{stays}");
            told(session, "evacuate", job, what)
        }
        Err(error) => {
            migration.close(from, false);
            Err(session.refuse(format_args!("{error}")))
        }
    }
}

/// Lets a controller take allocations again.
pub(super) fn restore(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let index = arguments.controller(0).unwrap_or(usize::MAX);
    let Some(id) = u8::try_from(index).ok().and_then(ControllerId::try_new) else {
        return Err(session.refuse(format_args!("the controller is gone")));
    };
    let name = controller_name(session.machine, id);
    if session.machine.controller(index).is_some_and(|controller| !controller.is_evacuated) {
        return Err(session.refuse(format_args!("{name} takes allocations already")));
    }
    migration.close(id, false);
    session.done(
        "restore",
        format_args!("{name} takes allocations again."),
        "controller=",
        &[Value::Text(name)],
    )
}

/// Takes frames out of use for good, and moves what stands on them.
pub(super) fn retire(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let (pa, size) = (arguments.number(0).unwrap_or(0), arguments.number(1).unwrap_or(FRAME_SIZE));
    if size == 0 {
        return Err(session.refuse(format_args!("a size of 0 is nothing to retire")));
    }
    let Some(frames) = FrameRange::covering(pa, size).filter(|frames| !frames.is_empty()) else {
        return Err(
            session.refuse(format_args!("{}@{pa:#x}: physical addresses have 48 bits", Compact(size)))
        );
    };
    let (mut retired, mut rest) = (Retired::default(), frames);
    while !rest.is_empty() {
        rest = migration.retire_some(rest, &mut retired);
        session.io().pause();
    }
    let touched = retired.now + retired.doomed + retired.before;
    if touched == 0 {
        return Err(session.refuse(format_args!("{pa:#x} is no RAM that Ballast hands out")));
    }
    let job = match retired.doomed {
        0 => None,
        _ => {
            let job = migration.submit(Request::retire(frames));
            Some(job.map_err(|error| {
                session.refuse(format_args!("retired once it is free, but not moved: {error}"))
            })?)
        }
    };
    let job_number = job.map_or(Value::None, |job| Value::Count(job.get().into()));
    let bytes = |frames: u64| Value::Bytes(frames * FRAME_SIZE);
    session.report("retire", |report, _| {
        report.fields(
            "base=First|retired_bytes=Retired|doomed_bytes=Retired when free|before_bytes=Retired before|\
             untouched_bytes=Not Ballast's|job=Job that moves",
            &[
                Value::Address(frames.start() * FRAME_SIZE),
                bytes(retired.now),
                bytes(retired.doomed),
                bytes(retired.before),
                bytes(retired.untouched),
                job_number,
            ],
        )
    })
}
