//! `retire`: taking frames out of use for good.

use alloc::vec::Vec;
use stage2::addr::{FRAME_SIZE, Frame};
use stage2::claim::{ClaimId, Kind, State as ClaimState};
use stage2::migrate::{Mobility, Request};
use stage2::owner::{GuestId, Owner, PoolId};
use stage2::phys::alloc::{Memory, Occupant, Retired};
use stage2::phys::frame::State;
use stage2::range::FrameRange;

use super::prelude::*;
use crate::monitor::region::pieces;

/// Blocks that are scanned before others may run.
const BLOCKS_AT_ONCE: u64 = 64;

/// The reason why frames cannot be retired at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A guest: migration moves it away.
    Guest(GuestId),
    /// A guest whose memory does not move: freed when it stops.
    FixedGuest(GuestId),
    /// A guest's stage 2 tables.
    Tables(GuestId),
    /// Claimed from a pool, by this claim if it is remembered.
    Claim(PoolId, Option<ClaimId>),
    /// Ballast itself, for as long as it runs.
    Ballast,
    /// Kept for a guest since boot: its DMA window, or RAM that is mapped 1:1.
    Kept(GuestId, Mobility),
    /// Reserved since boot.
    Reserved,
}

impl Holder {
    /// Tests if the frames can be retired while Ballast runs.
    const fn is_temporary(self) -> bool {
        !matches!(self, Self::Ballast | Self::Kept(..) | Self::Reserved)
    }

    /// The state's name in reports.
    const fn state(self) -> &'static str {
        match self {
            Self::Guest(_) => "moving",
            Self::FixedGuest(_) | Self::Tables(_) | Self::Claim(..) => "waiting",
            Self::Ballast | Self::Kept(..) | Self::Reserved => "never",
        }
    }

    fn name(self, machine: &dyn Machine) -> impl fmt::Display {
        from_fn(move |f| match self {
            Self::Guest(guest) | Self::FixedGuest(guest) => f.write_str(machine.guest_name(guest)),
            Self::Tables(guest) => write!(f, "stage 2 tables of {}", machine.guest_name(guest)),
            Self::Claim(pool, claim) => {
                let pools = machine.claiming().and_then(|claiming| claiming.claims().pools());
                let pool = pools.and_then(|pools| pools.get(pool)).map(|pool| pool.name);
                let pool = pool.as_ref().map_or("?", |name| name.as_str());
                match claim {
                    Some(claim) => write!(f, "claim {} of {pool}", claim.get()),
                    None => write!(f, "the owner of {pool}"),
                }
            }
            Self::Ballast => f.write_str("Ballast"),
            Self::Kept(guest, Mobility::DmaWindow) => {
                write!(f, "DMA window of {}", machine.guest_name(guest))
            }
            Self::Kept(guest, _) => f.write_str(machine.guest_name(guest)),
            Self::Reserved => f.write_str("reserved since boot"),
        })
    }

    fn until(self, machine: &dyn Machine) -> impl fmt::Display {
        from_fn(move |f| match self {
            Self::Guest(_) => f.write_str("once migrated"),
            Self::FixedGuest(guest) | Self::Tables(guest) => {
                write!(f, "once {} stops", machine.guest_name(guest))
            }
            Self::Claim(..) => f.write_str("once released"),
            Self::Ballast => f.write_str("never while Ballast runs"),
            Self::Kept(..) => f.write_str("never: kept for the guest since boot"),
            Self::Reserved => f.write_str("never: reserved by the host"),
        })
    }
}

/// Frames with the same holder.
struct Held {
    holder: Holder,
    /// The number of the first frame.
    first: u64,
    frames: u64,
}

/// Takes frames out of use for good, and moves guests' memory off them.
pub(super) fn retire(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let migration = session.migration()?;
    let memory = session.memory()?;
    let (pa, size) = (arguments.number(0).unwrap_or(0), arguments.number(1).unwrap_or(FRAME_SIZE));
    if size == 0 {
        refuse!(session, "invalid SIZE 0: must be at least 1");
    }
    let Some(frames) = FrameRange::covering(pa, size).filter(|frames| !frames.is_empty()) else {
        refuse!(session, "{}@{pa:#x} is beyond the 48 bits of physical addresses", Compact(size));
    };
    let (held, ram) = held(session, memory, frames)?;
    let never: u64 = held.iter().filter(|held| !held.holder.is_temporary()).map(|held| held.frames).sum();
    if ram == 0 {
        refuse!(session, "{pa:#x} is not RAM");
    }
    if let Some(first) = held.first().filter(|_| never == ram) {
        let address = first.first * FRAME_SIZE;
        let why = match first.holder {
            Holder::Kept(..) => {
                "it is kept for a guest while Ballast runs, as its DMA window or 1:1. Change the configuration and reboot"
            }
            Holder::Reserved => "it has been reserved since boot, so Ballast never allocates it",
            _ => {
                "Ballast itself uses it while it runs. Exclude it with a no-map node in the host's /reserved-memory \
                 and reboot"
            }
        };
        refuse!(session, "{address:#x} cannot be retired: {why}");
    }
    let (mut retired, mut rest) = (Retired::default(), frames);
    while !rest.is_empty() {
        rest = migration.retire_some(rest, &mut retired);
        session.io().pause();
    }
    let mut job = Nothing;
    if held.iter().any(|held| matches!(held.holder, Holder::Guest(_))) {
        match migration.submit(Request::retire(frames)) {
            Ok(id) => job = Count(id.get().into()),
            Err(error) => refuse!(session, "marked for retirement; could not be migrated: {error}"),
        }
    }
    session.report("retire", |report, machine| {
        report.fields(&[
            ("base=First", Address(frames.start() * FRAME_SIZE)),
            ("retired_bytes=Retired now", Frames(retired.now)),
            ("doomed_bytes=Pending: in use", Frames(retired.doomed)),
            ("before_bytes=Retired earlier", Frames(retired.before)),
            ("untouched_bytes=Not managed", Frames(retired.untouched)),
            ("never_bytes=Cannot be retired", Frames(never)),
            ("job=Moved by job", job),
        ])?;
        report.list("held", "", held.iter(), |table, held| {
            table.row(&[
                ("base=FIRST", Address(held.first * FRAME_SIZE)),
                ("size_bytes=SIZE", Frames(held.frames)),
                ("holder=USED BY", Show(&held.holder.name(machine))),
                ("state", Text(held.holder.state())),
                ("until=RETIRED", Show(&held.holder.until(machine))),
            ])
        })
    })
}

/// Lists the holders of frames in `frames`, each once, and counts the frames that are RAM.
///
/// # Errors
/// The operator interrupts.
fn held(
    session: &mut Session<'_>,
    memory: &Memory<'_>,
    frames: FrameRange,
) -> Result<(Vec<Held>, u64), Failure> {
    let mut list: Vec<Held> = Vec::new();
    for (count, occupant) in (1..).zip(memory.occupants(frames)) {
        if u64::is_multiple_of(count, BLOCKS_AT_ONCE) {
            session.pause()?;
        }
        let Some(holder) = holder(session.machine, &occupant, frames) else { continue };
        let first = occupant.frame.number().max(frames.start());
        let here = occupant.end().min(frames.end()) - first;
        match list.iter_mut().find(|held| held.holder == holder) {
            Some(held) => held.frames += here,
            None => list.push(Held { holder, first, frames: here }),
        }
    }
    let ranges = session.machine.controllers().flat_map(|(_, controller)| controller.ranges);
    let inside = ranges.filter_map(|(base, size)| FrameRange::inside(base, size));
    Ok((list, inside.map(|range| range.intersection(frames).frames()).sum()))
}

/// Returns the holder of a block; `None` if it is free or retired.
fn holder(machine: &dyn Machine, occupant: &Occupant, frames: FrameRange) -> Option<Holder> {
    match (occupant.state, occupant.owner) {
        (State::Retired | State::Free, _) => None,
        (State::Reserved, _) => Some(kept(machine, occupant.frame).unwrap_or(Holder::Reserved)),
        (State::Used, Some(Owner::Guest(guest))) => {
            let mapping = occupant.mapping.filter(|mapping| mapping.guest == guest);
            let is_fixed = mapping.is_some_and(|mapping| {
                let mut pieces =
                    machine.migration().into_iter().flat_map(|migration| pieces(migration, guest.index()));
                let here = pieces.find(|piece| mapping.ipa.get() < piece.ipa + piece.size);
                here.is_some_and(|piece| piece.mobility != Mobility::Movable)
            });
            Some(if is_fixed { Holder::FixedGuest(guest) } else { Holder::Guest(guest) })
        }
        (State::Used, Some(Owner::Tables(guest))) => Some(Holder::Tables(guest)),
        (State::Used, Some(Owner::Pool(pool))) => {
            Some(Holder::Claim(pool, claim_of(machine, occupant, frames)))
        }
        (State::Used, _) => Some(Holder::Ballast),
    }
}

/// Returns the guest that reserved `frame` is kept for, if there is one.
fn kept(machine: &dyn Machine, frame: Frame) -> Option<Holder> {
    let migration = machine.migration()?;
    let address = frame.pa().get();
    let mut all =
        (0..machine.guest_count()).flat_map(|at| pieces(migration, at).map(move |piece| (at, piece)));
    let (at, piece) = all.find(|(_, piece)| {
        let offset = piece.backing.and_then(|base| address.checked_sub(base));
        offset.is_some_and(|offset| offset < piece.size)
    })?;
    Some(Holder::Kept(GuestId::try_new(u8::try_from(at).ok()?)?, piece.mobility))
}

/// Returns the claim that holds the first frame of a block in `frames`, if it is remembered.
fn claim_of(machine: &dyn Machine, occupant: &Occupant, frames: FrameRange) -> Option<ClaimId> {
    let claims = machine.claiming()?.claims();
    let number = occupant.frame.number().max(frames.start());
    let mut last = ClaimId::new(0);
    core::iter::from_fn(|| {
        let report = claims.report_after(last)?;
        last = report.id;
        Some(report)
    })
    .filter(|report| report.kind == Kind::Claim && report.state == ClaimState::Granted)
    .filter(|report| report.range.start() <= number && number < report.range.end())
    .map(|report| report.id)
    .last()
}
