//! DMA windows: contiguous memory that a guest's devices access. Ballast chooses their place at boot, after blocks and pools,
//! and reserves it like pinned RAM: only the guest uses it, even while the guest is off. A window that is `pinned-in-place`
//! has its place from the configuration (`pinned.rs`).

use super::{Tell, tell_finding};
use crate::board::Board;
use guest_dts::config::{Configuration, Guest, RamRegion, Severity, Strictness};
use guest_dts::finding::{Finding, Rule, Size, Value};
use guest_dts::range::PaRange;
use stage2::addr::PAGEBLOCK_SIZE;
use stage2::controller::ControllerId;
use stage2::name::Name;
use stage2::phys::dmb;
use stage2::phys::map::{BootMap, MapError, ReservationKind};
use stage2::range::FrameRange;

/// Reserves the DMA window of each guest that has one without a place. Refuses guests whose window has no room, and
/// releases their pinned RAM.
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
    while let Some(guest) = configuration.guests.get_mut(index) {
        let window = guest.dma_window().filter(|(_, window)| window.backing.is_none());
        let Some((region, window)) = window else {
            index += 1;
            continue;
        };
        let frames = match place(map, board, guest, window) {
            Ok(frames) => frames,
            Err(finding) => {
                tell_finding(tell)(Severity::Error, finding.clone());
                for range in guest.reserved_ranges() {
                    let frames = FrameRange::covering(range.base().get(), range.size());
                    frames.into_iter().for_each(|frames| map.release(frames, ReservationKind::Pinned));
                }
                configuration.refuse(index, finding);
                continue;
            }
        };
        map.reserve_range(frames, ReservationKind::Pinned, Name::new(guest.name))?;
        let (name, size) = (guest.name, Size(frames.bytes()));
        tell(Severity::Note, format_args!("guest {name}: DMA window of {size} at {}", frames.base()));
        if let Some(region) = guest.regions.get_mut(region) {
            region.backing = PaRange::new(frames.base(), frames.bytes());
        }
        index += 1;
    }
    Ok(())
}

/// Finds the place of `window`: on the first of its controllers that has room, or on any if it may be elsewhere.
fn place<'t>(
    map: &BootMap,
    board: &Board<'_>,
    guest: &Guest<'t>,
    window: &RamRegion<'t>,
) -> Result<FrameRange, Finding<'t>> {
    let finding = |name, value, rule| match window.node.or(guest.node) {
        Some(node) => Finding::new(node, Some(name), value, rule),
        None => Finding::argument("memory", value, rule),
    };
    let name = if window.ipa.is_some() { "reg" } else { "size" };
    let sized = |rule| finding(name, Value::Size(window.size), rule);
    let (wanted, count) = (&window.placement, board.ram.controllers.len());
    let mut listed: heapless::Vec<ControllerId, { guest_dts::config::CONTROLLER_LIMIT }> =
        heapless::Vec::new();
    for &number in &wanted.controllers {
        let id = board.ram.controller(number.into()).and_then(ControllerId::try_new).ok_or_else(|| {
            finding("controllers", Value::Number(number.into()), Rule::NoController { count })
        })?;
        // There is room for as many as the configuration can name.
        let _ = listed.push(id);
    }
    let may_be_elsewhere = listed.is_empty() || wanted.strictness == Strictness::Preferred;
    let all = (0..count).filter_map(|place| ControllerId::try_new(u8::try_from(place).ok()?));
    let others = all.filter(|id| may_be_elsewhere && !listed.contains(id));
    let mut longest = 0;
    for id in listed.iter().copied().chain(others) {
        match map.highest_pageblocks(id, window.size / PAGEBLOCK_SIZE) {
            Ok(frames) if map.free_normal_frames() - frames.frames() < dmb::default_floor(map) => {
                let rule = "leave enough memory outside blocks and pools for Ballast: make the window, or blocks, smaller";
                return Err(sized(Rule::Must(rule)));
            }
            Ok(frames) => return Ok(frames),
            Err(here) => longest = longest.max(here),
        }
    }
    Err(sized(Rule::NoRange { longest: longest * PAGEBLOCK_SIZE }))
}
