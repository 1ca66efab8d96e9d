//! `migrate`, `pin`, `unpin`: the placement of a guest's memory.

use alloc::vec::Vec;
use stage2::addr::Ipa;
use stage2::controller::{ControllerId, ControllerSet};
use stage2::migrate::{Mobility, Request, Scope};
use stage2::owner::GuestId;
use stage2::phys::placement::{ControllerList, Placement, Strictness, Turns};

use super::backing::parts;
use super::names::Placed;
use super::prelude::*;
use crate::monitor::grammar::find_controller;
use crate::monitor::machine::GuestState;
use crate::monitor::migration::{Migration, Piece};
use crate::monitor::region::{Region, pieces};

/// Returns the guest given for parameter 0, which must be running: its index, name and number.
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

/// Returns the controller given for parameter `at`, which must take allocations.
pub(super) fn target(
    session: &mut Session<'_>,
    arguments: &Arguments<'_>,
    at: usize,
) -> Result<ControllerId, Failure> {
    let index = arguments.controller(at).unwrap_or(usize::MAX);
    let machine = session.machine;
    let id = u8::try_from(index).ok().and_then(ControllerId::try_new);
    let Some((id, controller)) = id.zip(machine.controller(index)) else {
        return Err(session.refuse(format_args!("the controller is gone")));
    };
    if controller.is_closed {
        let name = controller.name;
        return Err(session.refuse(format_args!("{name} takes no allocations: restore {name} first")));
    }
    Ok(id)
}

/// Returns the scope of a region of a guest, and the bytes of RAM in it.
fn scope(
    session: &mut Session<'_>,
    (index, name, id): (usize, &str, GuestId),
    word: Option<&str>,
) -> Result<(Scope, u64), Failure> {
    let migration = session.migration()?;
    let region = word.and_then(Region::parse).unwrap_or(Region::All);
    let Some((ipa, size)) = region.range(migration, index) else {
        let word = word.unwrap_or("RAM");
        let list = Names(migration, index);
        return Err(session.refuse(format_args!("{name} has no {word}: it has {list}")));
    };
    if region == Region::All {
        return Ok((Scope::Guest(id), pieces(migration, index).map(|piece| piece.size).sum()));
    }
    // A range may contain addresses without RAM.
    let end = ipa.saturating_add(size);
    let part = |piece: Piece| (piece.ipa + piece.size).min(end).saturating_sub(piece.ipa.max(ipa));
    let present = pieces(migration, index).map(part).sum();
    Ok((Scope::Range(id, Ipa::new_truncate(ipa), size), present))
}

/// The names and ranges of the pieces of a guest's RAM.
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

/// Queues `request` and reports the job.
fn submit(session: &mut Session<'_>, name: &str, request: Request, what: fmt::Arguments<'_>) -> Done {
    let migration = session.migration()?;
    let job = migration.submit(request).map_err(|error| session.refuse(format_args!("{error}")))?;
    let number = job.get();
    session.done(name, format_args!("Job {number} {what}."), &[("job", Count(number.into()))])
}

/// Moves a guest's memory to a controller.
pub(super) fn migrate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let guest = guest(session, arguments)?;
    let to = target(session, arguments, 2)?;
    let (scope, size) = scope(session, guest, arguments.word(1))?;
    let held = held(session, guest, arguments.word(1))?;
    let (name, to_name) = (guest.1, session.machine.controller_name(to));
    let excluding = touched(session.migration()?, guest.0, arguments.word(1))
        .find(|piece| piece.mobility == Mobility::Movable && !piece.placement.allows(to));
    if let Some(piece) = excluding.filter(|_| !arguments.has_flag(3)) {
        let (region, allowed) = (piece.name(), Placed(session.machine, &piece.placement));
        let by = if piece.is_pinned { "pin" } else { "the configuration" };
        return Err(session.refuse(format_args!(
            "{region} of {name} must lie behind {allowed} (strict, set by {by}). To change that: pin {name} {region} \
             {to_name}; to move it in spite of it: migrate --force"
        )));
    }
    let moving = elsewhere(session, guest.0, arguments.word(1), to)?;
    let what = from_fn(|f| {
        write!(f, "moves {} of {name} to {to_name}", Size(moving))?;
        if let Some(piece) = excluding {
            write!(f, ", against the strict placement of {}", piece.name())?;
        }
        match size.saturating_sub(held + moving) {
            0 => {}
            there => write!(f, "; {} lie there already", Size(there))?,
        }
        match held {
            0 => Ok(()),
            held => write!(f, ".\n{} of it stays, pinned 1:1", Size(held)),
        }
    });
    submit(session, "migrate", Request::migrate(scope, to), format_args!("{what}"))
}

/// Counts the bytes of a guest's region that can move and lie behind other controllers than `to`.
fn elsewhere(
    session: &mut Session<'_>,
    index: usize,
    word: Option<&str>,
    to: ControllerId,
) -> Result<u64, Failure> {
    let migration = session.migration()?;
    let region = word.and_then(Region::parse).unwrap_or(Region::All);
    let (ipa, size) = region.range(migration, index).unwrap_or((0, 0));
    let mut bytes = 0;
    for piece in touched(migration, index, word).filter(|piece| piece.mobility == Mobility::Movable) {
        let (start, end) = (piece.ipa.max(ipa), (piece.ipa + piece.size).min(ipa.saturating_add(size)));
        let parts = parts(session, index, start, end - start)?;
        bytes +=
            parts.iter().filter(|part| part.controller != to.index()).map(|part| part.bytes).sum::<u64>();
    }
    Ok(bytes)
}

/// Returns the pieces of a guest's RAM that the region `word`, or all of it without one, touches.
fn touched(migration: &dyn Migration, index: usize, word: Option<&str>) -> impl Iterator<Item = Piece> {
    let region = word.and_then(Region::parse).unwrap_or(Region::All);
    let (ipa, size) = region.range(migration, index).unwrap_or((0, 0));
    pieces(migration, index)
        .filter(move |piece| piece.ipa < ipa.saturating_add(size) && ipa < piece.ipa + piece.size)
}

/// Returns the bytes of a guest's region that are mapped 1:1.
///
/// # Errors
/// Nothing in the region can move: the guest opted out, or all of it is mapped 1:1.
fn held(
    session: &mut Session<'_>,
    (index, name, _): (usize, &str, GuestId),
    word: Option<&str>,
) -> Result<u64, Failure> {
    let migration = session.migration()?;
    let pieces = || touched(migration, index, word);
    if pieces().any(|piece| piece.mobility == Mobility::OptedOut) {
        return Err(opted_out(session, name));
    }
    let is_held = |piece: &Piece| piece.mobility == Mobility::PinnedInPlace;
    match pieces().find(is_held) {
        Some(piece) if pieces().all(|piece| is_held(&piece)) => Err(pinned_in_place(session, name, &piece)),
        _ => Ok(pieces().filter(is_held).map(|piece| piece.size).sum()),
    }
}

/// Returns the refusal to move the memory of a guest with `no-migration`.
fn opted_out(session: &mut Session<'_>, name: &str) -> Failure {
    session.refuse(format_args!(
        "{name} is configured with no-migration: its memory never moves. To allow that, remove the property from the \
         configuration and boot it"
    ))
}

/// Returns the refusal to move `piece` of a guest, which is mapped 1:1.
fn pinned_in_place(session: &mut Session<'_>, name: &str, piece: &Piece) -> Failure {
    let (ipa, size) = (piece.ipa, Compact(piece.size));
    session.refuse(format_args!("{size}@{ipa:#x} of {name} is pinned 1:1: it stays where it is"))
}

/// Pins a region of a guest to controllers, and moves the memory that lies elsewhere.
pub(super) fn pin(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let guest = guest(session, arguments)?;
    let placement = placement(session, arguments);
    let (scope, size) = scope(session, guest, arguments.word(1))?;
    held(session, guest, arguments.word(1))?;
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

/// Returns the turns of an interleaved `placement`: each controller gets a share in proportion to its free memory and the
/// memory that the guest has there already.
fn turns(
    session: &mut Session<'_>,
    guest: GuestId,
    placement: &Placement,
) -> Result<Option<(ControllerSet, Turns)>, Failure> {
    let Placement::Interleave(set, _) = *placement else { return Ok(None) };
    let migration = session.migration()?;
    match Turns::new(set, |controller| migration.frames_for(guest, controller)) {
        Some(turns) => Ok(Some((set, turns))),
        None => Err(session.refuse(format_args!("no free memory on the listed controllers"))),
    }
}

/// Returns the placement that `CONTROLLER[,…]` (parameter 2) and the mode (parameter 3) describe.
fn placement(session: &Session<'_>, arguments: &Arguments<'_>) -> Placement {
    let machine = session.machine;
    let words = arguments.word(2).unwrap_or("").split(',');
    let list: Vec<ControllerId> = words.filter_map(|name| find_controller(name, machine)).collect();
    let set: ControllerSet = list.iter().copied().collect();
    match arguments.word(3) {
        Some("interleave") => Placement::Interleave(set, Strictness::Strict),
        Some("preferred") => Placement::Listed(ControllerList::new(&list), Strictness::Preferred),
        _ => Placement::Listed(ControllerList::new(&list), Strictness::Strict),
    }
}

/// Sets the placement of the pieces that `word` names.
fn set_placement(
    session: &mut Session<'_>,
    (index, name, _): (usize, &str, GuestId),
    word: Option<&str>,
    placement: Option<Placement>,
) -> Done {
    let migration = session.migration()?;
    let region = word.and_then(Region::parse).unwrap_or(Region::All);
    let named = |at: &usize| migration.piece(index, *at).is_some_and(|piece| region.names(&piece));
    let count = pieces(migration, index).count();
    // Memory that is mapped 1:1 cannot be pinned; unpinning it does nothing.
    if placement.is_some()
        && let Some(piece) = (0..count).filter(named).find_map(|at| {
            migration.piece(index, at).filter(|piece| piece.mobility == Mobility::PinnedInPlace)
        })
    {
        return Err(pinned_in_place(session, name, &piece));
    }
    if !(0..count).any(|at| named(&at)) {
        let list = Names(migration, index);
        let word = word.unwrap_or("RAM");
        return Err(session.refuse(format_args!("{word} is no whole region of {name}: it has {list}")));
    }
    (0..count).filter(named).for_each(|at| migration.place(index, at, placement));
    Ok(())
}

/// Returns the placement of a region to the configuration.
pub(super) fn unpin(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let index = arguments.guest(0).unwrap_or(usize::MAX);
    let machine = session.machine;
    let id = u8::try_from(index).ok().and_then(GuestId::try_new);
    let Some((guest, id)) = machine.guest(index).zip(id) else {
        return Err(session.refuse(format_args!("the guest is gone")));
    };
    set_placement(session, (index, guest.name, id), arguments.word(1), None)?;
    let name = guest.name;
    let text = format_args!("What is allocated for {name} from now on lies where its configuration says.");
    session.done("unpin", text, &[("guest", Text(name))])
}
