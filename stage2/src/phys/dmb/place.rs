//! The rules for the location of a block, and the search for one.

use super::error::{Edge, Rule};
use super::{Block, Plan, Source};
use crate::addr::{PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE};
use crate::controller::ControllerId;
use crate::name::Name;
use crate::phys::map::BootMap;
use crate::range::FrameRange;

/// Adds a block of `size` bytes at `base`.
pub(super) fn add_static_block(
    map: &BootMap,
    plan: &mut Plan,
    size: u64,
    base: u64,
    source: Source,
    name: Name,
) -> Result<u8, Rule> {
    let (range, controller) = check_shape(map, size, base)?;
    check_free(map, plan, range)?;
    add_block(plan, Block { range, controller, source, name })
}

/// Adds `block` to the plan. Returns its index.
pub(super) fn add_block(plan: &mut Plan, block: Block) -> Result<u8, Rule> {
    let index = plan.blocks.len() as u8;
    plan.blocks.push(block).map_err(|_| Rule::TooManyBlocks)?;
    Ok(index)
}

/// Checks that `size` bytes at `base` are aligned and lie in one RAM range.
pub(super) fn check_shape(map: &BootMap, size: u64, base: u64) -> Result<(FrameRange, ControllerId), Rule> {
    if size == 0 {
        return Err(Rule::NoSize);
    }
    for (edge, value) in [(Edge::Base, base), (Edge::Size, size)] {
        if value % PAGEBLOCK_SIZE != 0 {
            return Err(Rule::Misaligned { edge, value });
        }
    }
    let range = FrameRange::covering(base, size).ok_or(Rule::BeyondAddresses { base, size })?;
    let (ram, controller) = map.ram_at(range.first()).ok_or(Rule::NotRam { range })?;
    if ram.contains_range(range) {
        return Ok((range, controller));
    }
    let past = FrameRange::from_numbers(ram.end(), range.end()).unwrap_or(FrameRange::EMPTY);
    match map.ram_at(past.first()) {
        Some((_, second)) if second != controller => {
            Err(Rule::CrossesController { range, first: controller, second })
        }
        _ => Err(Rule::CrossesHole { range, ram }),
    }
}

/// Checks that nothing else is in `range`.
pub(super) fn check_free(map: &BootMap, plan: &Plan, range: FrameRange) -> Result<(), Rule> {
    match in_the_way(map, plan, range) {
        Some((name, other)) => Err(Rule::Overlaps { range, name, other }),
        None => Ok(()),
    }
}

/// Returns the first reservation, block or pool that overlaps `range`.
pub(super) fn in_the_way(map: &BootMap, plan: &Plan, range: FrameRange) -> Option<(Name, FrameRange)> {
    let reservations = map.reservations().iter().map(|reservation| (reservation.name, reservation.range));
    let blocks = plan.blocks.iter().map(|block| (block.name, block.range));
    let pools = plan.pools.iter().map(|pool| (pool.name, pool.range));
    reservations.chain(blocks).chain(pools).find(|(_, other)| other.overlaps(range))
}

/// Returns the highest free range of `frames` frames aligned to `align` frames inside `within`. On failure, returns the
/// length of the largest free range.
pub(super) fn highest_place(
    map: &BootMap,
    plan: &Plan,
    within: &[FrameRange],
    frames: u64,
    align: u64,
) -> Result<(FrameRange, ControllerId), u64> {
    let mut best: Option<(FrameRange, ControllerId)> = None;
    let mut longest = 0;
    for (ram, controller) in map.ram() {
        for &within in within {
            // Walk down from the top: each obstacle ends the free range above it.
            let stretch = ram.intersection(within).aligned_inside(PAGEBLOCK_FRAMES);
            let mut end = stretch.end();
            while end > stretch.start() {
                let left = FrameRange::from_numbers(stretch.start(), end).unwrap_or(FrameRange::EMPTY);
                let floor = highest_obstacle(map, plan, left).map_or(left.start(), |other| other.end());
                longest = longest.max(end.saturating_sub(floor.max(left.start())));
                let start = end.checked_sub(frames).map(|start| start & !(align - 1));
                if let Some(start) = start.filter(|start| *start >= floor.max(left.start()))
                    && let Some(range) = FrameRange::from_numbers(start, start + frames)
                    && best.is_none_or(|(other, _)| range.start() > other.start())
                {
                    best = Some((range, controller));
                    break;
                }
                end = match highest_obstacle(map, plan, left) {
                    Some(other) => other.start().min(end),
                    None => break,
                };
            }
        }
    }
    best.ok_or(longest)
}

/// Returns the reservation, block or pool that overlaps `range` and ends highest.
fn highest_obstacle(map: &BootMap, plan: &Plan, range: FrameRange) -> Option<FrameRange> {
    let reservations = map.reservations().iter().map(|reservation| reservation.range);
    let blocks = plan.blocks.iter().map(|block| block.range);
    let pools = plan.pools.iter().map(|pool| pool.range);
    reservations
        .chain(blocks)
        .chain(pools)
        .filter(|other| other.overlaps(range))
        .max_by_key(|other| other.end())
}
