//! The allocator of all physical memory.
//!
//! # Locks
//! Each arena (one zone behind one controller) has a lock. **Lock order**: the lock of a pool or of a claim first, then
//! at most **one** arena lock. No code waits for an arena while it holds another, and none calls out of this crate
//! under a lock, so nothing is printed under one. Only [`Memory::boot`] writes without a lock, before any other CPU
//! runs. The words of the frame table are atomics only because CPUs share them: all but lock-free statistics are read
//! and written under the lock of their arena. A pageblock's zone and a RAM range's controller never change after boot,
//! so they may be read to find that arena.
//!
//! # Cost
//! Allocating and freeing take one path each, which checks every block, counts every frame and merges. There is no cache
//! of frames. `stage2/FIGURES.md` has the cost beside that of the crate buddy_system_allocator, and the missed targets.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use spin::Once;

use crate::addr::{Frame, MAX_ORDER, PAGEBLOCK_ORDER};
use crate::controller::{ControllerId, ControllerSet};
use crate::phys::arena::Locked;
use crate::phys::block::{Block, MAX_BLOCKS};
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
mod forget;
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

/// The number of arenas in a [`Memory`] itself: those of four controllers. Machines with more provide the others by
/// [`Memory::extend`], so that small machines do not pay for them.
const BUILT_IN: usize = if ARENAS < 8 { ARENAS } else { 8 };

/// All physical memory of the machine.
///
/// `'a` is the lifetime of the frame table's words. `Memory::new()` is all zero bytes, so a static takes no room in the
/// image.
pub struct Memory<'a> {
    layout: Once<Layout<'a>>,
    /// Arenas of the first controllers.
    arenas: [Arena; BUILT_IN],
    /// Arenas of the other controllers.
    more_arenas: Once<&'a [Arena]>,
    /// The controllers closed to allocations, one bit each.
    closed: AtomicU64,
    /// The number of refused frees whose caller cannot handle an error.
    refused: Counter,
    /// An empty arena for controllers that the machine does not have.
    none: Arena,
}

/// The part of [`Memory`] that is fixed at boot.
struct Layout<'a> {
    table: FrameTable<'a>,
    controllers: ControllerSet,
    /// The controllers that have frames of each zone.
    populated: [ControllerSet; 2],
    /// The span and the number of present frames of each arena.
    extents: [ArenaExtent; ARENAS],
    /// The number of free frames of NORMAL that guests' RAM must leave.
    normal_floor: u64,
    blocks: heapless::Vec<Block, MAX_BLOCKS>,
    /// Frames in pools outside all blocks.
    pool_frames: u64,
}

/// The records of a frame: its RAM range, its entry, its pageblock's word and its arena.
struct FrameRecord<'m, 'a> {
    layout: &'m Layout<'a>,
    ram_range: &'m RamRange,
    slot: Slot,
    /// The word of the pageblock.
    cell: Cell<'a>,
    arena: &'m Arena,
}

impl<'m, 'a> FrameRecord<'m, 'a> {
    fn table(&self) -> &'m FrameTable<'a> {
        &self.layout.table
    }

    /// Returns whether the frame's entry is valid and may be the head of a block of `order` in use.
    fn can_head(&self, order: u8) -> bool {
        match order {
            0..PAGEBLOCK_ORDER => self.cell.get().is_split(),
            PAGEBLOCK_ORDER..=MAX_ORDER => self.slot.offset() == 0 && self.cell.get().is_used_head(order),
            _ => false,
        }
    }

    /// Locks the arena: [`Arena::lock`].
    fn lock(&self) -> Locked<'m> {
        self.arena.lock()
    }

    /// Locks the arena for a change: [`Arena::lock_to_change`].
    fn lock_to_change(&self) -> Locked<'m> {
        self.arena.lock_to_change()
    }
}

/// The span of an arena and the number of frames present in it.
#[derive(Clone, Copy, Default)]
struct ArenaExtent {
    span: FrameRange,
    present: u64,
}

impl Default for Memory<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Memory<'a> {
    /// Creates a memory without frames, for use before boot.
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

    /// Creates a memory without frames, for use before boot.
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

    /// Takes over the RAM of `map`: frames neither reserved nor carved become free. `words` is the frame table, at
    /// least [`Footprint::words`](crate::phys::frame::Footprint::words) long, with any content. `normal_floor` is the
    /// number of free frames of NORMAL that guests' RAM must leave.
    ///
    /// # Errors
    /// Fails if it was called before, if `words` is too short, or if arenas are missing. Nothing changes then.
    pub fn boot(&self, map: &BootMap, words: &'a [AtomicU32], normal_floor: u64) -> Result<(), BootError> {
        boot::boot(self, map, words, normal_floor)
    }

    /// Provides the arenas that [`Self::arenas_to_extend`] asks for. Must be called at most once, before
    /// [`Self::boot`].
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
        // Boot refuses a map with memory behind a controller without arenas.
        more.unwrap_or(&self.none)
    }

    /// Returns the number of arenas.
    fn arena_count(&self) -> usize {
        BUILT_IN + self.more_arenas.get().map_or(0, |more| more.len())
    }

    /// Returns the records of `frame`, or `None` if it is not RAM.
    #[inline]
    fn record(&self, frame: Frame) -> Option<FrameRecord<'_, 'a>> {
        let layout = self.layout.get()?;
        let ram_range = layout.table.ram_range_of(frame)?;
        let slot = ram_range.slot(frame.number());
        let cell = layout.table.words.cell(slot.pageblock())?;
        let arena = self.arena(ram_range.arena(cell.get().zone()));
        Some(FrameRecord { layout, ram_range, slot, cell, arena })
    }

    /// Returns the guest and IPA that map `frame`, from the reverse map of its block.
    pub fn mapping(&self, frame: Frame) -> Option<Mapping> {
        self.frame_info(frame)?.mapping
    }

    /// Closes `controller` to allocations. Its blocks in use stay and can be freed.
    pub fn close(&self, controller: ControllerId) {
        self.closed.fetch_or(bit(controller), Relaxed);
    }

    /// Opens `controller` to allocations again.
    pub fn open(&self, controller: ControllerId) {
        self.closed.fetch_and(!bit(controller), Relaxed);
    }

    /// Returns whether `controller` is closed to allocations.
    pub fn is_closed(&self, controller: ControllerId) -> bool {
        self.closed().contains(controller)
    }

    /// Returns the controllers closed to allocations.
    fn closed(&self) -> ControllerSet {
        ControllerSet::from_bits(self.closed.load(Relaxed))
    }
}

/// Returns the bit of `controller` in a set of controllers.
fn bit(controller: ControllerId) -> u64 {
    ControllerSet::EMPTY.with(controller).bits()
}
