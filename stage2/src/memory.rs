//! All physical memory: what hyp allocates from.
//!
//! # Locks
//! One lock for each arena (zone and controller). **Lock order**: a lock of a pool or of a claim, if one is held, comes
//! first; then at most **one** arena lock. No code here ever waits for an arena while it holds another, and none
//! calls out of this crate under a lock, so no console output can happen under one. What is written outside every
//! lock: [`Memory::boot`], before any other CPU runs. The words of the frame table are atomics only so that sharing
//! them is sound; all but lock-free statistics are read and written under the lock of the arena that they belong to.
//! A pageblock's zone and a region's controller never change after boot, so they may be read to find that arena.

use core::sync::atomic::AtomicU32;

use spin::Once;

use crate::addr::{Frame, MAX_ORDER, PAGEBLOCK_ORDER};
use crate::arena::{Arena, Locked};
use crate::buddy::Taken;
use crate::controller::{ControllerId, ControllerSet};
use crate::dmb::{Block, MAX_BLOCKS};
use crate::frame::{Contents, FrameTable, Mapping, Meta, Mobility, Region, Slot, State};
use crate::map::BootMap;
use crate::owner::Owner;
use crate::pageblock::{MigrateType, Shape};
use crate::placement::{Placement, Strictness, most_free, next_interleaved};
use crate::range::FrameRange;
use crate::sync::{Counter, Ordering::Relaxed};
use crate::zone::{ARENAS, Zone};

mod adopt;
mod boot;
mod bulk;
pub mod check;
mod contiguous;
mod error;
mod free_blocks;
mod glance;
mod hand_over;
mod isolation;
mod migration;
mod occupant;
mod query;
mod release;
mod request;
mod reshape;
mod retire;
mod tenant;
#[cfg(test)]
pub(crate) mod tests;

pub use boot::BootError;
pub use contiguous::Wanted;
pub use error::{AllocError, BlockError, BlockReason, MappingError};
pub use free_blocks::{FreeBlocks, ORDERS};
pub use glance::Glance;
pub use isolation::{IsolateError, IsolateReason, Isolated, Requester, TakeError};
pub use occupant::{Occupant, Occupants};
pub use query::{ControllerTotals, FrameInfo, ZoneTotals};
pub use request::{Allocation, Kind, Request};
pub use retire::Retired;
pub use tenant::Tenant;

/// All physical memory of the machine.
///
/// `'a` is the lifetime of the frame table's words. `Memory::new()` is all zero bytes, so a static costs no room in the
/// image.
pub struct Memory<'a> {
    layout: Once<Layout<'a>>,
    arenas: [Arena; ARENAS],
    /// Controllers that take no allocations, a bit each.
    closed: Counter,
    /// Frees that were refused where nobody could be told.
    refused: Counter,
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

/// A block just taken, and where.
#[derive(Clone, Copy)]
struct Found {
    taken: Taken,
    controller: ControllerId,
    zone: Zone,
}

/// Where the books on a frame are.
struct Place<'m, 'a> {
    layout: &'m Layout<'a>,
    region: &'m Region,
    slot: Slot,
    arena: &'m Arena,
}

impl<'m, 'a> Place<'m, 'a> {
    fn table(&self) -> &'m FrameTable<'a> {
        &self.layout.table
    }

    /// [`Arena::lock`].
    fn lock(&self) -> Locked<'m> {
        self.arena.lock(self.table())
    }

    /// [`Arena::lock_to_change`].
    fn lock_to_change(&self) -> Locked<'m> {
        self.arena.lock_to_change(self.table())
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
            arenas: [const { Arena::new() }; ARENAS],
            closed: Counter::new(0),
            refused: Counter::new(0),
        }
    }

    /// Memory before boot: without a frame.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            layout: Once::new(),
            arenas: core::array::from_fn(|_| Arena::new()),
            closed: Counter::new(0),
            refused: Counter::new(0),
        }
    }

    /// Takes over the RAM of `map`: what is neither reserved nor carved becomes free. `words` is the frame table, at
    /// least [`Footprint::words`](crate::frame::Footprint::words) long, with any content; `normal_floor` is how many
    /// free frames of NORMAL movable requests must leave.
    ///
    /// # Errors
    /// Where it was called before or `words` is too short. Nothing is changed then.
    pub fn boot(&self, map: &BootMap, words: &'a [AtomicU32], normal_floor: u64) -> Result<(), BootError> {
        boot::boot(self, map, words, normal_floor)
    }

    /// Allocates a block. Its bytes are as they were left: see [`Allocation::contents`].
    ///
    /// # Errors
    /// Where no arena that the request allows has a block of that order.
    #[inline]
    pub fn allocate(&self, request: &Request) -> Result<Allocation, AllocError> {
        let Some(layout) = self.layout.get() else { return Err(AllocError::NotBooted) };
        if request.order > MAX_ORDER {
            return Err(AllocError::OrderTooLarge { order: request.order });
        }
        let open = layout.controllers.without_all(self.closed());
        let found = match self.first_choice(layout, request, open) {
            Some((controller, zone)) => self.allocate_in(layout, request, controller, zone),
            None => None,
        };
        let Some(found) = found.or_else(|| self.allocate_anywhere(layout, request, open)) else {
            return Err(self.refusal(layout, request, open));
        };
        Ok(Allocation {
            frame: layout.table.frame(found.taken.slot),
            order: request.order,
            controller: found.controller,
            zone: found.zone,
            contents: found.taken.contents,
        })
    }

    /// The controller and zone that a request is served from if they have what it needs, where that is plain to see.
    #[inline]
    fn first_choice(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        open: ControllerSet,
    ) -> Option<(ControllerId, Zone)> {
        let zone = request.kind.first_zone();
        let zone = if layout.populated[zone as usize].is_empty() { Zone::Normal } else { zone };
        let candidates = open.intersection(layout.populated[zone as usize]);
        let controller = match &request.placement {
            Placement::Any => most_free(candidates, |id| self.arenas[zone.arena(id)].free())?,
            Placement::Listed(list, _) => list.first().filter(|first| candidates.contains(*first))?,
            Placement::Interleave(..) => return None,
        };
        Some((controller, zone))
    }

    /// Tries everywhere that the request allows, in its order.
    #[cold]
    fn allocate_anywhere(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        open: ControllerSet,
    ) -> Option<Found> {
        match &request.placement {
            Placement::Any => self.allocate_by_zone(layout, request, open),
            placement => self.allocate_placed(layout, request, placement, open),
        }
    }

    /// The controllers that take no allocations.
    #[inline]
    fn closed(&self) -> ControllerSet {
        ControllerSet::from_bits(self.closed.load(Relaxed) as u16)
    }

    /// Tries the controllers that `placement` names, then, if they are only preferred, the others.
    fn allocate_placed(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        placement: &Placement,
        open: ControllerSet,
    ) -> Option<Found> {
        let (named, strictness) = placement.named();
        let mut candidates = open.intersection(named);
        let found = match placement {
            Placement::Any => None,
            Placement::Listed(list, _) => list
                .as_slice()
                .iter()
                .filter(|controller| open.contains(**controller))
                .find_map(|&controller| self.allocate_behind(layout, request, controller)),
            Placement::Interleave(..) => core::iter::from_fn(|| {
                let controller = next_interleaved(candidates, |controller| {
                    (self.free_for(request, controller), self.resident(request.owner, controller))
                })?;
                candidates = candidates.without(controller);
                Some(controller)
            })
            .find_map(|controller| self.allocate_behind(layout, request, controller)),
        };
        if found.is_none() && strictness == Strictness::Preferred {
            let mut others = open.without_all(named);
            while let Some(controller) = most_free(others, |controller| self.free_for(request, controller)) {
                let found = self.allocate_behind(layout, request, controller);
                if found.is_some() {
                    return found;
                }
                others = others.without(controller);
            }
        }
        found
    }

    /// Tries the zones one after the other, in each the controllers with the most free memory first.
    fn allocate_by_zone(&self, layout: &Layout<'a>, request: &Request, open: ControllerSet) -> Option<Found> {
        let mut zone = request.kind.first_zone();
        loop {
            let mut candidates = open.intersection(layout.populated[zone as usize]);
            while let Some(controller) =
                most_free(candidates, |controller| self.arenas[zone.arena(controller)].free())
            {
                let found = self.allocate_in_cold(layout, request, controller, zone);
                if found.is_some() {
                    return found;
                }
                candidates = candidates.without(controller);
            }
            if zone == Zone::Normal {
                return None;
            }
            zone = Zone::Normal;
        }
    }

    /// Tries the zones of one controller.
    fn allocate_behind(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        controller: ControllerId,
    ) -> Option<Found> {
        let mut zone = request.kind.first_zone();
        loop {
            let found = self.allocate_in_cold(layout, request, controller, zone);
            if found.is_some() || zone == Zone::Normal {
                return found;
            }
            zone = Zone::Normal;
        }
    }

    #[inline(never)]
    fn allocate_in_cold(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        controller: ControllerId,
        zone: Zone,
    ) -> Option<Found> {
        self.allocate_in(layout, request, controller, zone)
    }

    /// Tries one arena.
    #[inline]
    fn allocate_in(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        controller: ControllerId,
        zone: Zone,
    ) -> Option<Found> {
        let frames = 1 << request.order;
        let arena = &self.arenas[zone.arena(controller)];
        if arena.free() < frames {
            return None;
        }
        let (wanted, mobility) = match request.kind {
            Kind::Unmovable => (MigrateType::Unmovable, Mobility::Pinned),
            Kind::Movable => (MigrateType::Movable, Mobility::Movable),
        };
        if zone == Zone::Normal && wanted == MigrateType::Movable && !self.is_above_floor(layout, frames) {
            return None;
        }
        let owner = request.owner.index();
        let words = layout.table.words;
        let mut locked = arena.lock_as_is_to_change();
        let taken = locked.lists.take(&layout.table, zone, wanted, request.order)?;
        if request.order >= PAGEBLOCK_ORDER {
            let word = words.word(taken.slot);
            words.set_word(taken.slot, word.with_head(Shape::Used, request.order));
        }
        let meta = Meta::used(request.order, owner, mobility);
        words.entry(taken.slot).set_used(meta, request.mapping);
        locked.count_taken(owner, frames);
        Some(Found { taken, controller, zone })
    }

    /// Whether NORMAL keeps its floor when `frames` go. Two CPUs that ask at once may together go below it by the
    /// blocks that they take.
    fn is_above_floor(&self, layout: &Layout<'a>, frames: u64) -> bool {
        let free: u64 = layout
            .controllers
            .iter()
            .map(|controller| self.arenas[Zone::Normal.arena(controller)].free())
            .sum();
        free >= layout.normal_floor + frames
    }

    /// Free frames behind `controller` in the zones that `request` may use.
    fn free_for(&self, request: &Request, controller: ControllerId) -> u64 {
        let free = |zone: Zone| self.arenas[zone.arena(controller)].free();
        match request.kind {
            Kind::Unmovable => free(Zone::Normal),
            Kind::Movable => free(Zone::Normal) + free(Zone::Movable),
        }
    }

    #[cold]
    fn refusal(&self, layout: &Layout<'a>, request: &Request, open: ControllerSet) -> AllocError {
        let (named, strictness) = request.placement.named();
        let asked = match strictness {
            Strictness::Strict => named.intersection(layout.controllers),
            Strictness::Preferred => layout.controllers,
        };
        let tried = asked.intersection(open);
        let free = |set: ControllerSet| set.iter().map(|controller| self.free_for(request, controller)).sum();
        AllocError::NoFrames {
            order: request.order,
            kind: request.kind,
            controllers: asked,
            closed: asked.len() - tried.len(),
            free: free(tried),
            free_elsewhere: free(open) - free(tried),
        }
    }

    /// Gives a block back. `contents` says what the caller left in it.
    ///
    /// # Errors
    /// Where the block is not in use with just this order and owner; nothing is changed then.
    pub fn free(&self, frame: Frame, order: u8, owner: Owner, contents: Contents) -> Result<(), BlockError> {
        if order == 0 && self.free_frame(frame, owner.index(), contents) {
            return Ok(());
        }
        self.free_block(frame, order, owner, contents).map_err(|reason| BlockError { frame, order, owner, reason })
    }

    /// Gives a single frame back where nothing about it is unusual; else nothing is changed.
    #[inline]
    fn free_frame(&self, frame: Frame, owner: usize, contents: Contents) -> bool {
        let Some(place) = self.place(frame) else { return false };
        let words = place.table().words;
        let mut locked = place.arena.lock_as_is_to_change();
        let (word, entry) = (words.word(place.slot), words.entry(place.slot));
        if !word.is_split_and_open() || !entry.meta().is_plainly_used_as(0, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1);
        locked.lists.give_frame(place.table(), word.list(), place.slot, contents);
        true
    }

    #[inline(never)]
    fn free_block(
        &self,
        frame: Frame,
        order: u8,
        owner: Owner,
        contents: Contents,
    ) -> Result<(), BlockReason> {
        let place = self.place(frame).ok_or(BlockReason::NotRam)?;
        let words = place.table().words;
        let mut locked = place.arena.lock_as_is_to_change();
        let (word, entry) = (words.word(place.slot), words.entry(place.slot));
        let is_open_head = match order {
            0..PAGEBLOCK_ORDER => word.is_split_and_open(),
            _ => word.is_used_head(order) && !locked.lists.has_isolated(),
        };
        if is_open_head && entry.meta().is_plainly_used_as(order, owner.index()) {
            entry.set_meta(Meta::NONE);
            locked.count_given(owner.index(), 1 << order);
            locked.lists.give(place.table(), place.region, frame.number(), order, contents);
            return Ok(());
        }
        locked.settle(place.table());
        Self::free_with_care(place.layout, place.region, &mut locked, frame, order, owner, contents)
    }

    /// What is wrong with a block that is not in use as the caller says.
    #[cold]
    fn why_not_freed(layout: &Layout<'a>, region: &Region, number: u64, owner: Owner) -> BlockReason {
        let Some(head) = layout.table.head(region, number) else { return BlockReason::NotRam };
        let meta = layout.table.words.entry(region.slot(head.number)).meta();
        match head.state {
            State::Free => BlockReason::AlreadyFree,
            State::Reserved => BlockReason::Reserved,
            State::Retired => BlockReason::Retired,
            State::Used => match (meta.owner(), Frame::try_new(head.number)) {
                (_, Some(first)) if head.number != number => {
                    BlockReason::InsideBlock { head: first, order: head.order }
                }
                (Some(other), _) if other != owner => BlockReason::OtherOwner { owner: other },
                _ => BlockReason::OtherOrder { order: head.order },
            },
        }
    }

    /// Says where the block in use at `frame` appears, or that it appears nowhere.
    ///
    /// # Errors
    /// Where `frame` is not the head of a block of `owner`.
    pub fn set_mapping(
        &self,
        frame: Frame,
        owner: Owner,
        mapping: Option<Mapping>,
    ) -> Result<(), MappingError> {
        let error = MappingError { frame, owner };
        let place = self.place(frame).ok_or(error)?;
        let _locked = place.arena.lock_as_is();
        let words = place.table().words;
        let word = words.word(place.slot);
        let entry = words.entry(place.slot);
        let is_head = word.is_split() || word.shape() == Shape::Used && place.slot.offset() == 0;
        if !is_head || entry.meta().owner() != Some(owner) {
            return Err(error);
        }
        entry.set_used(entry.meta(), mapping);
        Ok(())
    }

    /// Where the books on `frame` are; `None` where it is no RAM.
    #[inline]
    fn place(&self, frame: Frame) -> Option<Place<'_, 'a>> {
        let layout = self.layout.get()?;
        let region = layout.table.region_of(frame)?;
        let slot = region.slot(frame.number());
        let zone = layout.table.words.word(slot).zone();
        Some(Place { layout, region, slot, arena: &self.arenas[zone.arena(region.controller)] })
    }

    /// Where `frame` appears: the reverse map of the block that it lies in, moved on to the frame itself.
    pub fn mapping(&self, frame: Frame) -> Option<Mapping> {
        self.frame_info(frame)?.mapping
    }

    /// Lets `controller` take no more allocations. What is there stays and can be freed.
    pub fn close(&self, controller: ControllerId) {
        self.closed.fetch_or(ControllerSet::EMPTY.with(controller).bits().into(), Relaxed);
    }

    /// Whether `controller` takes no allocations.
    pub fn is_closed(&self, controller: ControllerId) -> bool {
        self.closed().contains(controller)
    }

    /// Lets `controller` take allocations again.
    pub fn open(&self, controller: ControllerId) {
        self.closed.fetch_and(!u32::from(ControllerSet::EMPTY.with(controller).bits()), Relaxed);
    }
}
