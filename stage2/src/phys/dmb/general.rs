//! The general amount: memory that `movablecore=` and `kernelcore=` make movable in addition to the blocks.
//!
//! Blocks count as part of the general amount and take precedence over `kernelcore=`. If both options are given, the
//! one that keeps more for NORMAL counts. The rest is taken from the top of memory down, in whole pageblocks without
//! reservations. If that would leave NORMAL less than its floor, the amount is reduced, always with a warning.

use super::error::{Designation, DesignationError, Item, Rule, Warning};
use super::{Amount, Plan, Wishes};
use crate::addr::{FRAME_SHIFT, FRAME_SIZE, PAGEBLOCK_FRAMES};
use crate::phys::frame::Footprint;
use crate::phys::map::{BootMap, MovableMark};
use crate::range::FrameRange;
use crate::scale::scaled;

/// Returns the number of frames of NORMAL that a machine with the RAM of `map` needs for Ballast: the frame table,
/// 1/256 of RAM for the stage 2 tables of guests mapped in small units, and 8 MiB.
pub fn default_floor(map: &BootMap) -> u64 {
    let table = Footprint::of(map).bytes().div_ceil(FRAME_SIZE);
    table + map.ram_frames() / 256 + (8 << 20 >> FRAME_SHIFT)
}

/// Checks the whole plan, adds the general amount and stores it in the map.
pub(super) fn finish(
    map: &mut BootMap,
    plan: Plan,
    wishes: &Wishes<'_>,
) -> Result<Designation, DesignationError> {
    let whole = |rule| DesignationError { item: Item::Whole, rule };
    let mut marks = map.marks_to_edit();
    for (index, block) in plan.blocks.iter().enumerate() {
        marks.insert(block.range, MovableMark::Block(index as u8)).map_err(|_| whole(Rule::TooManyRanges))?;
    }
    let block_frames: u64 = plan.blocks.iter().map(|block| block.range.frames()).sum();
    let pool_frames: u64 =
        plan.pools.iter().filter(|pool| pool.block.is_none()).map(|pool| pool.range.frames()).sum();
    let left = map.unreserved_frames() - block_frames - pool_frames;
    if left < wishes.floor && block_frames + pool_frames > 0 {
        let rule = Rule::LeavesTooLittle { left: left * FRAME_SIZE, floor: wishes.floor * FRAME_SIZE };
        return Err(whole(rule));
    }

    let (wanted, kernelcore_warning) = wanted_frames(map.ram_frames(), block_frames, wishes);
    let allowed = left.saturating_sub(wishes.floor);
    let mut amount_frames = 0;
    for range in free_pageblocks_from_the_top(map, &plan) {
        let most = wanted.min(allowed).saturating_sub(amount_frames) & !(PAGEBLOCK_FRAMES - 1);
        let start = range.end() - most.min(range.frames());
        let top = FrameRange::from_numbers(start, range.end()).unwrap_or(FrameRange::EMPTY);
        marks.insert(top, MovableMark::Amount).map_err(|_| whole(Rule::TooManyRanges))?;
        amount_frames += top.frames();
    }

    let warning = if amount_frames < wanted {
        let (asked, given) = (block_frames + wanted, block_frames + amount_frames);
        Some(Warning::AmountClamped { asked, given, floor: wishes.floor })
    } else {
        kernelcore_warning
    };
    map.set_designation(marks, plan.blocks, plan.pools);
    Ok(Designation { block_frames, amount_frames, warning })
}

/// Returns the number of frames that are to become movable in addition to the blocks.
fn wanted_frames(total: u64, blocks: u64, wishes: &Wishes<'_>) -> (u64, Option<Warning>) {
    let frames = |amount| match amount {
        Amount::Bytes(bytes) => bytes.div_ceil(FRAME_SIZE),
        Amount::Percent(percent) => scaled(total, percent.into(), 100),
    };
    let (movablecore, kernelcore) = wishes.amounts();
    let movable = movablecore.map(|amount| frames(amount).next_multiple_of(PAGEBLOCK_FRAMES));
    let kernel = kernelcore.map(frames);
    if movable.is_none() && kernel.is_none() {
        return (0, None);
    }
    // `movablecore=` may ask for all of RAM: that means as much as possible, not nothing.
    let kept_by_movable = movable.map_or(0, |movable| total - movable.min(total));
    let kept = kept_by_movable.max(kernel.unwrap_or(0));
    let left = total - blocks;
    let warning = match (movable, kernel) {
        (_, Some(asked)) if asked > left => Some(Warning::KernelcoreNotMet { asked, left }),
        (Some(asked), None) if asked < blocks => Some(Warning::AmountBelowBlocks { asked, blocks }),
        _ => None,
    };
    (left.saturating_sub(kept) & !(PAGEBLOCK_FRAMES - 1), warning)
}

/// Returns the ranges of whole pageblocks that are RAM and nothing else, from the top down.
fn free_pageblocks_from_the_top(map: &BootMap, plan: &Plan) -> impl Iterator<Item = FrameRange> {
    let mut end = u64::MAX;
    core::iter::from_fn(move || {
        loop {
            let (stretch, bottom) = highest_stretch_below(map, plan, end)?;
            end = bottom;
            let whole = stretch.aligned_inside(PAGEBLOCK_FRAMES);
            if !whole.is_empty() {
                return Some(whole);
            }
        }
    })
}

/// Returns the highest range of RAM below frame number `end` without anything else in it, and the frame number to
/// continue from.
fn highest_stretch_below(map: &BootMap, plan: &Plan, end: u64) -> Option<(FrameRange, u64)> {
    let ram = map.ram().map(|(range, _)| range).filter(|range| range.start() < end).last()?;
    let end = end.min(ram.end());
    let others = || {
        let reservations = map.reservations().iter().map(|reservation| reservation.range);
        let blocks = plan.blocks.iter().map(|block| block.range);
        let pools = plan.pools.iter().map(|pool| pool.range);
        reservations.chain(blocks).chain(pools).filter(|range| !range.is_empty() && range.start() < end)
    };
    // Continue below a range that covers the top, or stop at the one that ends highest.
    if let Some(start) = others().filter(|range| range.end() >= end).map(FrameRange::start).min() {
        return Some((FrameRange::EMPTY, start.max(ram.start())));
    }
    let bottom = others().map(FrameRange::end).max().unwrap_or(0).max(ram.start());
    Some((FrameRange::from_numbers(bottom, end)?, bottom))
}
