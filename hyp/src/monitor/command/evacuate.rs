//! `evacuate`, `restore`: taking a controller out of use, and taking it back.

use core::fmt::{self, Write};

use alloc::vec::Vec;
use stage2::addr::{Frame, Pa};
use stage2::controller::{ControllerId, ControllerSet};
use stage2::migrate::{Mobility, Reason, Request};
use stage2::phys::frame::State;
use stage2::phys::placement::Strictness;

use super::super::grammar::{Arguments, Failure};
use super::super::machine::GuestState;
use super::super::migration::Piece;
use super::super::region::pieces;
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::Size;
use super::backing::parts;
use super::jobs::Names;
use super::migrate::{controller_name, migration, target};
use super::pools::claimed_behind;

/// Memory that an evacuation will leave behind.
struct Staying {
    /// The guest's index and the piece of its RAM, if it is a guest's.
    owner: Option<(usize, Piece)>,
    bytes: u64,
    /// True if it was reserved at boot.
    is_reserved: bool,
    why: Why,
}

/// Why memory stays behind a controller that is evacuated.
#[derive(Clone, Copy)]
enum Why {
    /// What migration itself would give as its reason.
    Migration(Reason),
    /// The region's strict placement allows nothing but these, which take no allocations.
    Strict(ControllerSet),
    /// More has to move than is free behind the other controllers: this many bytes.
    Full(u64),
    /// In use by Ballast or as guests' stage 2 tables.
    Own,
    /// Reserved since boot.
    Reserved,
}

/// Moves everything off a controller, which takes no allocations from then on.
pub(super) fn evacuate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let from = target(session, arguments, 0)?;
    let (migration, machine) = (migration(session)?, session.machine);
    let name = controller_name(machine, from);
    if open(session).without(from).is_empty() {
        return Err(session.refuse(format_args!("{name} is the only controller that takes allocations")));
    }
    let (moving, staying) = predict(session, from)?;
    migration.close(from, true);
    let job = migration.submit(Request::evacuate(from)).map_err(|error| {
        migration.close(from, false);
        session.refuse(format_args!("{error}"))
    })?;
    let number = job.get();
    if !session.style.is_json {
        // The memory of a guest that is being filled cannot move yet.
        let mut guests = (0..machine.guest_count()).filter_map(|at| machine.guest(at));
        let starting = guests.find(|guest| guest.state == GuestState::Starting).map(|guest| guest.name);
        let wait = fmt::from_fn(|f| match starting {
            Some(guest) => write!(f, " It waits for {guest}, which is starting."),
            None => Ok(()),
        });
        let moving = Size(moving);
        writeln!(session, "Job {number} moves {moving} off {name}, which takes no more allocations.{wait}")?;
        if staying.is_empty() {
            return Ok(());
        }
        let bytes = Size(staying.iter().map(|one| one.bytes).sum());
        writeln!(session, "{bytes} will stay, so {name} will be closed, but not evacuated:\n")?;
    }
    session.report("evacuate", |report, machine| {
        report.fields("job=|moving_bytes=", &[Value::Count(number.into()), Value::Bytes(moving)])?;
        let list = "bytes=STAYS|guest=GUEST|region=REGION|ipa=|reason=BECAUSE";
        report.table("staying", list, "", &mut |table| {
            for one in &staying {
                let guest = one.owner.as_ref().and_then(|(at, _)| machine.guest(*at));
                let region = one.owner.as_ref().map(|(_, piece)| piece.name());
                let ipa = one.owner.as_ref().map_or(Value::None, |(_, piece)| Value::Address(piece.ipa));
                let why = fmt::from_fn(|f| match one.why {
                    Why::Migration(reason) => write!(f, "{reason}"),
                    Why::Strict(set) => {
                        write!(f, "strict placement: {} only", Names(machine, set))
                    }
                    Why::Full(free) => write!(f, "the other controllers have {} free", Size(free)),
                    Why::Own => f.write_str("in use by Ballast or as guests' stage 2 tables"),
                    Why::Reserved => f.write_str("reserved since boot"),
                });
                table.row(&[
                    Value::Bytes(one.bytes),
                    guest.as_ref().map_or(Value::None, |guest| Value::Text(guest.name)),
                    region.as_ref().map_or(Value::None, |name| Value::Show(name)),
                    ipa,
                    Value::Show(&why),
                ])?;
            }
            Ok(())
        })
    })
}

/// Returns the controllers that take allocations.
fn open(session: &Session<'_>) -> ControllerSet {
    let is_open =
        |at: &usize| session.machine.controller(*at).is_some_and(|controller| !controller.is_closed);
    (0..session.machine.controller_count())
        .filter(is_open)
        .filter_map(|at| ControllerId::try_new(u8::try_from(at).ok()?))
        .collect()
}

/// Predicts how many bytes an evacuation of `from` moves, and what stays.
fn predict(session: &mut Session<'_>, from: ControllerId) -> Result<(u64, Vec<Staying>), Failure> {
    let (migration, machine) = (migration(session)?, session.machine);
    let others = open(session).without(from);
    let mut staying = Vec::new();
    let Some(controller) = machine.controller(from.index()) else { return Ok((0, staying)) };
    for at in (0..machine.guest_count()).filter(|&at| machine.guest(at).is_some()) {
        for piece in pieces(migration, at) {
            let why = match (piece.mobility, piece.placement.named()) {
                (Mobility::PinnedInPlace, _) => Why::Migration(Reason::PinnedInPlace),
                (Mobility::OptedOut, _) => Why::Migration(Reason::OptedOut),
                (Mobility::Claimed, _) => Why::Migration(Reason::Claimed),
                (Mobility::InClaim, _) => Why::Migration(Reason::InClaim),
                (Mobility::Movable, (set, Strictness::Strict)) if set.intersection(others).is_empty() => {
                    Why::Strict(set)
                }
                (Mobility::Movable, _) => continue,
            };
            let parts = parts(session, at, piece.ipa, piece.size)?;
            let bytes =
                parts.iter().filter(|part| part.controller == from.index()).map(|part| part.bytes).sum();
            if bytes > 0 {
                let frame =
                    machine.unit(at, piece.ipa).and_then(|(pa, _)| Pa::try_new(pa)).map(Frame::containing);
                let info = frame.zip(machine.memory()).and_then(|(frame, memory)| memory.frame_info(frame));
                let is_reserved = info.is_some_and(|info| info.state == State::Reserved);
                staying.push(Staying { owner: Some((at, piece)), bytes, is_reserved, why });
            }
        }
    }
    // RAM that was reserved at boot for a guest, at its own address, is not among the guests' by the allocator's books.
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

/// Lets a controller take allocations again.
pub(super) fn restore(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let index = arguments.controller(0).unwrap_or(usize::MAX);
    let Some(id) = u8::try_from(index).ok().and_then(ControllerId::try_new) else {
        return Err(session.refuse(format_args!("the controller is gone")));
    };
    let name = controller_name(session.machine, id);
    if session.machine.controller(index).is_some_and(|controller| !controller.is_closed) {
        return Err(session.refuse(format_args!("{name} takes allocations already")));
    }
    migration.close(id, false);
    let text = format_args!("{name} takes allocations again.");
    session.done("restore", text, "controller=", &[Value::Text(name)])
}
