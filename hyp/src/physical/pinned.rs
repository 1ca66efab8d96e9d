//! Guests' RAM at its own physical address (`pinned-in-place`). It is reserved in the boot memory map before blocks, pools and
//! the frame table, and only its guest uses it, even while the guest is off. It is released if the guest is refused later.

use super::{Tell, tell_finding};
use crate::board::{Board, Extent};
use guest_dts::config::{self, Configuration, Guest, RamRegion, Severity};
use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::range::{IpaRange, PaRange};
use stage2::name::Name;
use stage2::phys::alloc::Memory;
use stage2::phys::map::{BootMap, MapError, ReservationKind};
use stage2::range::FrameRange;

/// Reserves the pinned RAM of each guest. Refuses guests whose RAM cannot lie there.
///
/// # Errors
/// The map is full.
#[inline(never)]
pub(super) fn reserve(
    map: &mut BootMap,
    board: &Board<'_>,
    configuration: &mut Configuration<'_>,
    tell: &mut Tell<'_>,
) -> Result<(), MapError> {
    let mut index = 0;
    while let Some(guest) = configuration.guests.get(index) {
        if let Some(finding) = first_conflict(map, board, configuration, guest) {
            tell_finding(tell)(Severity::Error, finding.clone());
            configuration.refuse(index, finding);
            continue;
        }
        for range in guest.reserved_ranges() {
            if let Some(frames) = FrameRange::covering(range.base().get(), range.size()) {
                map.reserve_range(frames, ReservationKind::Pinned, Name::new(guest.name))?;
            }
        }
        index += 1;
    }
    Ok(())
}

/// Releases the pinned RAM of a guest that was refused.
pub fn give_back(memory: &Memory<'_>, ranges: impl Iterator<Item = PaRange>, tell: &mut Tell<'_>) {
    for range in ranges {
        let frames = FrameRange::covering(range.base().get(), range.size());
        // It was reserved as a whole, so this does not fail.
        if let Some(Err(error)) = frames.map(|frames| memory.release_reserved(frames)) {
            tell(Severity::Warning, format_args!("pinned memory stays reserved: {error}"));
        }
    }
}

/// Returns the pinned regions of `guest`.
fn pinned<'a, 't>(guest: &'a Guest<'t>) -> impl Iterator<Item = (IpaRange, &'a RamRegion<'t>)> {
    let regions = guest.regions.iter().filter(|region| region.is_pinned_in_place);
    regions.filter_map(|region| Some((region.ipa?, region)))
}

fn first_conflict<'t>(
    map: &BootMap,
    board: &Board<'_>,
    configuration: &Configuration<'t>,
    guest: &Guest<'t>,
) -> Option<Finding<'t>> {
    pinned(guest).find_map(|(range, region)| {
        let rule = conflict(map, board, configuration, range)?;
        let value = Value::Range { base: range.base().get(), size: range.size() };
        Some(Finding::new(region.node?, Some("reg"), value, rule))
    })
}

/// Returns the rule that `range` breaks as pinned RAM, if any.
fn conflict(
    map: &BootMap,
    board: &Board<'_>,
    configuration: &Configuration<'_>,
    range: IpaRange,
) -> Option<Rule> {
    let frames = FrameRange::covering(range.base().get(), range.size())?;
    if !map.ram_at(frames.first()).is_some_and(|(ram, _)| ram.contains_range(frames)) {
        return Some(Rule::Must("lie in one range of the host's RAM: it is `pinned-in-place`"));
    }
    if let Some(reservation) = map.reservation_in(frames) {
        return Some(Rule::OverlapsWith(match reservation.kind {
            ReservationKind::Image => "Ballast's image",
            ReservationKind::Module => "a file that was loaded with Ballast",
            ReservationKind::DeviceTree => "the host's device tree",
            ReservationKind::Pinned => "a pinned region of another guest",
            _ => "memory that the host's tree reserves",
        }));
    }
    let overlaps =
        |base: u64, size| FrameRange::covering(base, size).is_some_and(|other| other.overlaps(frames));
    // The map does not list the host's blocks and pools as reservations.
    let is_reserved = board.reservations.iter().any(|reservation| match &reservation.extent {
        Extent::Static(other) => overlaps(other.base().get(), other.size()),
        Extent::Dynamic { .. } => false,
    });
    if is_reserved {
        return Some(Rule::OverlapsWith("memory that the host's tree reserves"));
    }
    let blocks = configuration.blocks.iter().map(|block| (block.node, &block.extent));
    let pools = configuration.pools.iter().map(|pool| (pool.node, &pool.extent));
    blocks.chain(pools).find_map(|(node, extent)| match extent {
        config::Extent::Static(other) if overlaps(other.base().get(), other.size()) => {
            Some(Rule::Overlaps(node.id()))
        }
        _ => None,
    })
}
