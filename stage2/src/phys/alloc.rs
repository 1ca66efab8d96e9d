//! All physical memory: what hyp allocates from.
//!
//! # Locks
//! One lock for each arena (zone and controller). **Lock order**: a lock of a pool or of a claim, if one is held, comes
//! first; then at most **one** arena lock. No code here ever waits for an arena while it holds another, and none
//! calls out of this crate under a lock, so no console output can happen under one. What is written outside every
//! lock: [`Memory::boot`], before any other CPU runs. The words of the frame table are atomics only so that sharing
//! them is sound; all but lock-free statistics are read and written under the lock of the arena that they belong to.
//! A pageblock's zone and a region's controller never change after boot, so they may be read to find that arena.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use spin::Once;

use crate::addr::{Frame, MAX_ORDER, PAGEBLOCK_ORDER};
use crate::controller::{ControllerId, ControllerSet};
use crate::phys::arena::Locked;
use crate::phys::dmb::{Block, MAX_BLOCKS};
use crate::phys::frame::{Cell, FrameTable, Mapping, RamRange, Slot};
use crate::phys::map::BootMap;
use crate::phys::zone::{ARENAS, Zone};
use crate::range::FrameRange;
use crate::sync::Counter;

mod adopt;
mod allocate;
mod boot;
mod bulk;
pub mod check;
mod contiguous;
mod error;
mod free_blocks;
mod in_use;
mod isolation;
mod migration;
mod pageblock_usage;
mod query;
mod release;
mod request;
mod reshape;
mod retire;
mod rmap;
#[cfg(test)]
pub(crate) mod tests;

pub use crate::phys::arena::Arena;
pub use crate::phys::frame::MemoryKind;
pub use boot::BootError;
pub use contiguous::Wanted;
pub use error::{AllocError, BlockError, BlockReason};
pub use free_blocks::{FreeBlocks, ORDERS};
pub use in_use::{Occupant, Occupants};
pub use isolation::{IsolateError, IsolateReason, Isolated, Requester, TakeError};
pub use pageblock_usage::Glance;
pub use query::{ControllerTotals, FrameInfo, ZoneTotals};
pub use request::{Allocation, Request};
pub use retire::Retired;
pub use rmap::Tenant;

/// Arenas that a [`Memory`] has room for itself: those of four controllers. Other machines provide more
/// ([`Memory::extend`]), so that all do not pay for the largest.
const BUILT_IN: usize = if ARENAS < 8 { ARENAS } else { 8 };

/// All physical memory of the machine.
///
/// `'a` is the lifetime of the frame table's words. `Memory::new()` is all zero bytes, so a static costs no room in the
/// image.
pub struct Memory<'a> {
    layout: Once<Layout<'a>>,
    /// Arenas of the first controllers.
    arenas: [Arena; BUILT_IN],
    /// Arenas of the others, on machines that have them.
    more_arenas: Once<&'a [Arena]>,
    /// A bit for each controller that takes no allocations.
    closed: AtomicU64,
    /// Frees that were refused where nobody could be told.
    refused: Counter,
    /// The arena, without frames, of controllers that the machine does not have.
    none: Arena,
}

/// What is fixed at boot.
struct Layout<'a> {
    table: FrameTable<'a>,
    controllers: ControllerSet,
    /// The controllers that have some of each zone.
    populated: [ControllerSet; 2],
    /// The span and the number of present frames of each arena.
    extents: [Extent; ARENAS],
    /// Free frames of NORMAL that movable requests leave alone.
    normal_floor: u64,
    blocks: heapless::Vec<Block, MAX_BLOCKS>,
    /// Frames in pools outside all blocks.
    pool_frames: u64,
}

/// Where the books on a frame are.
struct FrameRecord<'m, 'a> {
    layout: &'m Layout<'a>,
    region: &'m RamRange,
    slot: Slot,
    /// The word of the pageblock.
    cell: Cell<'a>,
    arena: &'m Arena,
}

impl<'m, 'a> FrameRecord<'m, 'a> {
    fn table(&self) -> &'m FrameTable<'a> {
        &self.layout.table
    }

    /// Whether the frame can be the head of a block in use of `order`, any at all, so that its entry counts.
    fn can_head(&self, order: u8) -> bool {
        match order {
            0..PAGEBLOCK_ORDER => self.cell.get().is_split(),
            PAGEBLOCK_ORDER..=MAX_ORDER => self.slot.offset() == 0 && self.cell.get().is_used_head(order),
            _ => false,
        }
    }

    /// [`Arena::lock`].
    fn lock(&self) -> Locked<'m> {
        self.arena.lock()
    }

    /// [`Arena::lock_to_change`].
    fn lock_to_change(&self) -> Locked<'m> {
        self.arena.lock_to_change()
    }
}

/// Where an arena lies.
#[derive(Clone, Copy, Default)]
struct Extent {
    span: FrameRange,
    present: u64,
}

impl Default for Memory<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Memory<'a> {
    /// Memory before boot: without a frame.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            layout: Once::new(),
            arenas: [const { Arena::new() }; BUILT_IN],
            more_arenas: Once::new(),
            closed: AtomicU64::new(0),
            refused: Counter::new(0),
            none: Arena::new(),
        }
    }

    /// Memory before boot: without a frame.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            layout: Once::new(),
            arenas: core::array::from_fn(|_| Arena::new()),
            more_arenas: Once::new(),
            closed: AtomicU64::new(0),
            refused: Counter::new(0),
            none: Arena::new(),
        }
    }

    /// Takes over the RAM of `map`: what is neither reserved nor carved becomes free. `words` is the frame table, at
    /// least [`Footprint::words`](crate::phys::frame::Footprint::words) long, with any content; `normal_floor` is how many
    /// free frames of NORMAL guests' RAM must leave.
    ///
    /// # Errors
    /// Where it was called before or `words` is too short. Nothing is changed then.
    pub fn boot(&self, map: &BootMap, words: &'a [AtomicU32], normal_floor: u64) -> Result<(), BootError> {
        boot::boot(self, map, words, normal_floor)
    }

    /// Provides the arenas that [`Self::arenas_to_extend`] asks for. Call it once, before [`Self::boot`].
    pub fn extend(&self, arenas: &'a [Arena]) {
        self.more_arenas.call_once(|| arenas);
    }

    /// Returns the number of arenas that a machine with the RAM of `map` needs beside the built-in ones.
    pub fn arenas_to_extend(map: &BootMap) -> usize {
        let last = map.ram().map(|(_, controller)| Zone::Movable.arena(controller)).max();
        last.map_or(0, |last| (last + 1).saturating_sub(BUILT_IN))
    }

    /// Returns the arena with number `index`, which must be one of [`Self::arena_count`].
    #[inline]
    fn arena(&self, index: usize) -> &Arena {
        match self.arenas.get(index) {
            Some(arena) => arena,
            None => self.arena_beyond(index),
        }
    }

    fn arena_beyond(&self, index: usize) -> &Arena {
        let more = self.more_arenas.get().and_then(|more| more.get(index.wrapping_sub(BUILT_IN)));
        // Nobody has memory behind a controller without arenas: boot refuses such a map.
        more.unwrap_or(&self.none)
    }

    /// Returns the number of arenas.
    fn arena_count(&self) -> usize {
        BUILT_IN + self.more_arenas.get().map_or(0, |more| more.len())
    }

    /// Where the books on `frame` are; `None` where it is no RAM.
    #[inline]
    fn record(&self, frame: Frame) -> Option<FrameRecord<'_, 'a>> {
        let layout = self.layout.get()?;
        let region = layout.table.region_of(frame)?;
        let slot = region.slot(frame.number());
        let cell = layout.table.words.cell(slot.pageblock())?;
        let arena = self.arena(region.arena(cell.get().zone()));
        Some(FrameRecord { layout, region, slot, cell, arena })
    }

    /// Where `frame` appears: the reverse map of the block that it lies in, moved on to the frame itself.
    pub fn mapping(&self, frame: Frame) -> Option<Mapping> {
        self.frame_info(frame)?.mapping
    }

    /// Lets `controller` take no more allocations. What is there stays and can be freed.
    pub fn close(&self, controller: ControllerId) {
        self.closed.fetch_or(bit(controller), Relaxed);
    }

    /// Lets `controller` take allocations again.
    pub fn open(&self, controller: ControllerId) {
        self.closed.fetch_and(!bit(controller), Relaxed);
    }

    /// Returns whether `controller` takes no allocations.
    pub fn is_closed(&self, controller: ControllerId) -> bool {
        self.closed().contains(controller)
    }

    /// The controllers that take no allocations.
    fn closed(&self) -> ControllerSet {
        ControllerSet::from_bits(self.closed.load(Relaxed))
    }
}

/// The bit of `controller` in a set of controllers.
fn bit(controller: ControllerId) -> u64 {
    ControllerSet::EMPTY.with(controller).bits()
}
