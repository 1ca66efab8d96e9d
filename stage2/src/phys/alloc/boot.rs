//! Turning the boot memory map into arenas.

use core::fmt;
use core::sync::atomic::AtomicU32;

use super::release::count_freed;
use super::{ArenaExtent, BUILT_IN, Layout, Memory};
use crate::addr::{FRAME_SIZE, MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::controller::ControllerSet;
use crate::owner::PoolId;
use crate::phys::arena::{FrameUse, Locked};
use crate::phys::frame::{Contents, Footprint, FrameTable, MAX_FRAMES, Meta, RamRange};
use crate::phys::map::{BootMap, MovableMark, Segment};
use crate::phys::pageblock::{MigrateType, Pageblock, Shape};
use crate::phys::zone::{ARENAS, Zone};
use crate::range::FrameRange;
use crate::size::Size;

/// An error while memory is taken over at boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// Memory has been taken over already.
    Twice,
    /// The frame table is too short for the map.
    TableTooShort {
        /// The number of words needed.
        needed: u64,
        /// The number of words given.
        given: u64,
    },
    /// Some controllers have no arenas.
    TooFewArenas {
        /// The number of arenas to provide by [`Memory::extend`].
        needed: usize,
        /// The number of arenas provided.
        given: usize,
    },
    /// More RAM than the frame table can describe.
    TooMuchRam {
        /// The frames of RAM, padded to pageblocks.
        frames: u64,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice => f.write_str("memory: already taken over"),
            Self::TableTooShort { needed, given } => {
                write!(f, "frame table: {given} words given, the memory map needs {needed}")
            }
            Self::TooFewArenas { needed, given } => {
                write!(f, "memory: {needed} more arenas needed, {given} given")
            }
            Self::TooMuchRam { frames } => {
                write!(
                    f,
                    "memory map: {} of RAM; at most {MAX_FRAMES} frames of 4 KiB, 2 MiB less than 16 TiB, are supported",
                    Size(frames * FRAME_SIZE)
                )
            }
        }
    }
}

impl core::error::Error for BootError {}

pub(super) fn boot<'a>(
    memory: &Memory<'a>,
    map: &BootMap,
    words: &'a [AtomicU32],
    normal_floor: u64,
) -> Result<(), BootError> {
    if memory.layout.is_completed() {
        return Err(BootError::Twice);
    }
    let given = memory.arena_count() - BUILT_IN;
    match Memory::arenas_to_extend(map) {
        needed if needed > given => return Err(BootError::TooFewArenas { needed, given }),
        _ => {}
    }
    let footprint = Footprint::of(map);
    let Some(table) = FrameTable::new(map, words) else {
        return Err(match footprint.slots {
            frames if frames > MAX_FRAMES => BootError::TooMuchRam { frames },
            _ => BootError::TableTooShort { needed: footprint.words(), given: words.len() as u64 },
        });
    };
    let mut layout = Layout {
        controllers: map.ram().fold(ControllerSet::EMPTY, |set, (_, controller)| set.with(controller)),
        populated: [ControllerSet::EMPTY; 2],
        extents: [ArenaExtent::default(); ARENAS],
        normal_floor,
        blocks: map.blocks().iter().copied().collect(),
        pool_frames: map
            .pools()
            .iter()
            .filter(|pool| pool.block.is_none())
            .map(|pool| pool.range.frames())
            .sum(),
        table,
    };
    for ram_range in layout.table.ram_ranges() {
        write_pageblocks(&layout.table, ram_range);
    }
    for segment in map.segments() {
        let zone = zone_of(&segment);
        let extent = &mut layout.extents[zone.arena(segment.controller)];
        let populated = &mut layout.populated[zone as usize];
        *populated = populated.with(segment.controller);
        extent.present += segment.range.frames();
        extent.span = around(extent.span, segment.range);
        if let Some(ram_range) = layout.table.ram_range_of(segment.range.first()) {
            designate_pageblocks(&layout.table, ram_range, &segment);
            let mut locked = memory.arena(zone.arena(segment.controller)).lock();
            for (number, order) in blocks(segment.range) {
                reserve_block(&layout.table, ram_range, number, order);
                if segment.reservation.is_none() {
                    release_block(&layout.table, &mut locked, ram_range, number, order);
                }
            }
        }
    }
    memory.layout.call_once(|| layout);
    Ok(())
}

/// Returns the zone that a segment is present in.
const fn zone_of(segment: &Segment) -> Zone {
    match segment.movable {
        Some(_) => Zone::Movable,
        None => Zone::Normal,
    }
}

/// Returns the smallest range that contains `span` and `range`.
fn around(span: FrameRange, range: FrameRange) -> FrameRange {
    if span.is_empty() {
        return range;
    }
    FrameRange::from_numbers(span.start().min(range.start()), span.end().max(range.end())).unwrap_or(span)
}

/// Writes the word of every pageblock of `ram_range`: NORMAL, until a segment changes it.
fn write_pageblocks(table: &FrameTable<'_>, ram_range: &RamRange) {
    let word = Pageblock::new(Zone::Normal, MigrateType::Movable, None).with_ram_range(ram_range.index);
    let around = ram_range.range.aligned_around(PAGEBLOCK_FRAMES);
    for number in (around.start()..around.end()).step_by(PAGEBLOCK_FRAMES as usize) {
        table.words.set_word(ram_range.slot(number), word);
    }
}

/// Writes the words of the pageblocks of a movable segment or of one in a pool. Such segments consist of whole
/// pageblocks.
fn designate_pageblocks(table: &FrameTable<'_>, ram_range: &RamRange, segment: &Segment) {
    let (migrate_type, block) = match (segment.movable, segment.pool) {
        (Some(MovableMark::Block(block)), _) => (MigrateType::Movable, Some(block)),
        (Some(MovableMark::Amount), _) => (MigrateType::Movable, None),
        (None, Some(_)) => (MigrateType::Pool, None),
        (None, None) => return,
    };
    let pool = segment.pool.and_then(PoolId::try_new);
    let word =
        Pageblock::new(zone_of(segment), migrate_type, block).with_pool(pool).with_ram_range(ram_range.index);
    for number in (segment.range.start()..segment.range.end()).step_by(PAGEBLOCK_FRAMES as usize) {
        table.words.set_word(ram_range.slot(number), word);
    }
}

/// Splits `range` into the largest aligned blocks, in ascending order.
pub(super) fn blocks(range: FrameRange) -> impl Iterator<Item = (u64, u8)> {
    let mut number = range.start();
    core::iter::from_fn(move || {
        let left = range.end().checked_sub(number).filter(|left| *left > 0)?;
        let order = number.trailing_zeros().min(left.ilog2()).min(MAX_ORDER.into()) as u8;
        let block = (number, order);
        number += 1 << order;
        Some(block)
    })
}

/// Writes the head of a reserved block.
fn reserve_block(table: &FrameTable<'_>, ram_range: &RamRange, number: u64, order: u8) {
    let slot = ram_range.slot(number);
    let word = table.words.word(slot);
    if order >= PAGEBLOCK_ORDER {
        table.words.set_word(slot, word.with_head(Shape::Reserved, order));
        return;
    }
    if !word.is_split() {
        table.words.make_split(slot);
        table.words.free_map(slot.pageblock()).clear();
    }
    table.words.entry(slot).set_meta(Meta::reserved(order));
}

/// Hands a reserved block to the allocator. All frames become managed here: single frames at the edge of a reservation,
/// the pageblocks of a pool, and blocks of 1 GiB.
pub(super) fn release_block<'a>(
    table: &FrameTable<'a>,
    locked: &mut Locked<'_>,
    ram_range: &RamRange,
    number: u64,
    order: u8,
) {
    let slot = ram_range.slot(number);
    if order < PAGEBLOCK_ORDER {
        table.words.entry(slot).set_meta(Meta::NONE);
    }
    locked.count_released(1 << order);
    if locked.lists.has_isolated() {
        count_freed(table, slot, locked, order, FrameUse::Free);
    }
    locked.lists.give(table, slot, number, order, Contents::Dirty);
}
