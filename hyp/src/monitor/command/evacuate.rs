//! `evacuate`, `restore`: taking a controller out of use, and putting it back.

use alloc::vec::Vec;
use stage2::addr::{FRAME_SIZE, Frame, Pa};
use stage2::controller::{ControllerId, ControllerSet};
use stage2::migrate::{Mobility, Reason, Request};
use stage2::owner::Owner;
use stage2::phys::frame::State;
use stage2::phys::placement::Strictness;
use stage2::range::FrameRange;

use super::backing::parts;
use super::migrate::target;
use super::names::Names;
use super::prelude::*;
use crate::monitor::machine::GuestState;
use crate::monitor::migration::Piece;
use crate::monitor::region::pieces;

/// Memory that an evacuation will not move.
struct Staying {
    /// The guest's index and the piece of its RAM, if it is a guest's.
    owner: Option<(usize, Piece)>,
    bytes: u64,
    /// True if it was reserved at boot.
    is_reserved: bool,
    why: Why,
}

/// The reason why memory stays behind a controller that is evacuated.
#[derive(Clone, Copy)]
enum Why {
    /// The reason that migration itself reports.
    Migration(Reason),
    /// The region's strict placement allows only these controllers, which take no allocations.
    Strict(ControllerSet),
    /// The other controllers have only this many bytes free.
    Full(u64),
    /// Used by Ballast or for guests' stage 2 tables.
    Own,
    /// Reserved since boot.
    Reserved,
}

/// Closes a controller to allocations and moves everything off it.
pub(super) fn evacuate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let from = target(session, arguments, 0)?;
    let (migration, machine) = (session.migration()?, session.machine);
    let name = machine.controller_name(from);
    if open(session).without(from).is_empty() {
        refuse!(session, "{name} is the only controller that takes allocations");
    }
    let (moving, staying) = predict(session, from)?;
    migration.close(from, true);
    let job = migration.submit(Request::evacuate(from)).map_err(|error| {
        migration.close(from, false);
        session.refuse(format_args!("{error}"))
    })?;
    let number = job.get();
    session.report("evacuate", |report, machine| {
        // The memory of a guest that is being filled cannot move yet.
        let starting = machine.guests().find(|(_, guest)| guest.state == GuestState::Starting);
        let wait = from_fn(|f| match &starting {
            Some((_, guest)) => write!(f, " It waits for {}, which is starting.", guest.name),
            None => Ok(()),
        });
        report.say(format_args!(
            "Job {number} moves {} off {name}, which takes no more allocations.{wait}",
            Size(moving)
        ))?;
        if !staying.is_empty() {
            let bytes = Size(staying.iter().map(|one| one.bytes).sum());
            report.say(format_args!("{bytes} will stay, so {name} will be closed, but not evacuated:"))?;
        }
        report.fields(&[("job", Count(number.into())), ("moving_bytes", Bytes(moving))])?;
        report.list("staying", "", staying.iter(), |table, one| {
            let owner = one.owner.as_ref();
            let region = owner.map(|(_, piece)| piece.name());
            let why = from_fn(|f| match one.why {
                Why::Migration(reason) => write!(f, "{reason}"),
                Why::Strict(set) => write!(f, "strict placement: {} only", Names(machine, set)),
                Why::Full(free) => write!(f, "the other controllers have {} free", Size(free)),
                Why::Own => f.write_str("in use by Ballast or as guests' stage 2 tables"),
                Why::Reserved => f.write_str("reserved since boot"),
            });
            let guest = owner.and_then(|(at, _)| machine.guest(*at));
            table.row(&[
                ("bytes=STAYS", Bytes(one.bytes)),
                ("guest=GUEST", guest.map_or(Nothing, |guest| Text(guest.name))),
                ("region=REGION", region.as_ref().map_or(Nothing, |name| Show(name))),
                ("ipa", owner.map_or(Nothing, |(_, piece)| Address(piece.ipa))),
                ("reason=BECAUSE", Show(&why)),
            ])
        })
    })
}

/// Returns the controllers that take allocations.
fn open(session: &Session<'_>) -> ControllerSet {
    session.machine.controllers().filter(|(_, controller)| !controller.is_closed).map(|(id, _)| id).collect()
}

/// Returns the bytes behind `controller` that owners of pools have claimed.
fn claimed_behind(machine: &dyn Machine, controller: ControllerId) -> u64 {
    let (Some(memory), Some(claiming)) = (machine.memory(), machine.claiming()) else { return 0 };
    let pools = claiming.claims().pools().into_iter().flat_map(|pools| pools.iter());
    let here = pools.filter(|(_, pool)| pool.controller == controller);
    here.map(|(id, _)| memory.resident_everywhere(Owner::Pool(id)) * FRAME_SIZE).sum()
}

fn is_behind(machine: &dyn Machine, frame: Frame, controller: ControllerId) -> bool {
    let mut ram = machine.memory().into_iter().flat_map(|memory| memory.ram());
    ram.any(|(range, behind)| behind == controller && range.contains(frame))
}

/// Predicts the bytes that an evacuation of `from` moves, and the memory that stays.
fn predict(session: &mut Session<'_>, from: ControllerId) -> Result<(u64, Vec<Staying>), Failure> {
    let (migration, machine) = (session.migration()?, session.machine);
    let others = open(session).without(from);
    let mut staying = Vec::new();
    let Some(controller) = machine.controller(from.index()) else { return Ok((0, staying)) };
    for at in (0..machine.guest_count()).filter(|&at| machine.guest(at).is_some()) {
        for piece in pieces(migration, at) {
            let why = match (piece.mobility, piece.placement.named()) {
                (Mobility::PinnedInPlace, _) => Why::Migration(Reason::PinnedInPlace),
                (Mobility::DmaWindow, _) => Why::Migration(Reason::DmaWindow),
                (Mobility::OptedOut, _) => Why::Migration(Reason::OptedOut),
                (Mobility::Claimed, _) => Why::Migration(Reason::Claimed),
                (Mobility::InClaim, _) => Why::Migration(Reason::InClaim),
                (Mobility::Movable, (set, Strictness::Strict)) if set.intersection(others).is_empty() => {
                    Why::Strict(set)
                }
                (Mobility::Movable, _) => continue,
            };
            let parts = parts(session, at, piece.ipa, piece.size)?;
            let base = piece.backing.or_else(|| machine.unit(at, piece.ipa).map(|(pa, _)| pa));
            let frame = base.and_then(Pa::try_new).map(Frame::containing);
            let mut bytes: u64 =
                parts.iter().filter(|part| part.controller == from.index()).map(|part| part.bytes).sum();
            if parts.iter().all(|part| part.bytes == 0)
                && piece.backing.is_some()
                && frame.is_some_and(|frame| is_behind(machine, frame, from))
            {
                // The memory is kept for the guest although the guest is off.
                bytes = piece.size;
            }
            if bytes > 0 {
                let info = frame.zip(machine.memory()).and_then(|(frame, memory)| memory.frame_info(frame));
                let is_reserved = info.is_some_and(|info| info.state == State::Reserved);
                staying.push(Staying { owner: Some((at, piece)), bytes, is_reserved, why });
            }
        }
    }
    // The allocator counts RAM that was reserved at boot for a guest as reserved, not as the guest's.
    let is_reserved = |one: &&Staying| one.is_reserved;
    let in_place: u64 = staying.iter().filter(is_reserved).map(|one| one.bytes).sum();
    let of_guests: u64 = staying.iter().map(|one| one.bytes).sum::<u64>() - in_place;
    let mut moving = controller.guest_bytes.saturating_sub(of_guests);
    let room = others.iter().filter_map(|other| machine.controller(other.index()));
    let room: u64 = room.map(|other| other.free_bytes).sum();
    if moving > room {
        staying.push(Staying { owner: None, bytes: moving - room, is_reserved: false, why: Why::Full(room) });
        moving = room;
    }
    for (bytes, why) in [
        (claimed_behind(machine, from), Why::Migration(Reason::Claimed)),
        (controller.own_bytes, Why::Own),
        (controller.reserved_bytes.saturating_sub(in_place), Why::Reserved),
    ] {
        if bytes > 0 {
            staying.push(Staying { owner: None, bytes, is_reserved: false, why });
        }
    }
    Ok((moving, staying))
}

/// Opens a controller to allocations again.
pub(super) fn restore(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let migration = session.migration()?;
    let id = arguments.controller(0).unwrap_or_default();
    let name = session.machine.controller_name(id);
    if session.machine.controller(id.index()).is_some_and(|controller| !controller.is_closed) {
        refuse!(session, "{name} takes allocations already");
    }
    // Its memory may have been replaced meanwhile.
    let ram = session.machine.memory().into_iter().flat_map(|memory| memory.ram());
    let ranges: Vec<FrameRange> = ram.filter(|(_, behind)| *behind == id).map(|(range, _)| range).collect();
    for mut rest in ranges {
        while !rest.is_empty() {
            rest = migration.forget_some(rest);
            session.io().pause();
        }
    }
    migration.close(id, false);
    let text = format_args!("{name} takes allocations again.");
    session.done("restore", text, &[("controller", Text(name))])
}
