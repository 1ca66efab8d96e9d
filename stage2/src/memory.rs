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

use crate::addr::{FRAME_SHIFT, Frame, MAX_ORDER, PAGEBLOCK_ORDER, Pa};
use crate::arena::{Arena, Locked};
use crate::buddy::Taken;
use crate::controller::{ControllerId, ControllerSet};
use crate::dmb::{Block, MAX_BLOCKS};
use crate::frame::{Contents, FrameTable, Mapping, Meta, Region, Slot, State};
use crate::map::BootMap;
use crate::owner::Owner;
use crate::pageblock::{LIST_SLOTS, MigrateType, Shape};
use crate::placement::{Placement, Strictness, most_free, next_interleaved};
use crate::range::FrameRange;
use crate::sync::{Counter, Hint, Ordering::Relaxed};
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
    /// Which word of a free map the single frame freed last was in, and which arena and type that word belongs to: where to
    /// look first, and no more than that.
    recent: Hint,
}

/// What is fixed at boot.
struct Layout<'a> {
    table: FrameTable<'a>,
    controllers: ControllerSet,
    /// The controllers that have some of each zone.
    populated: [ControllerSet; 2],
    /// For each [`Kind`] the zone to look in first, and the controllers that have some of it.
    first: [(Zone, ControllerSet); 2],
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

/// What [`Memory::recent`] says.
#[derive(Clone, Copy)]
struct Recent(u64);

impl Recent {
    const WORD_SHIFT: u32 = 8;
    const LIST_SHIFT: u32 = 6;
    /// log2 of the frames of a word of a free map.
    const FRAMES_SHIFT: u32 = 5;

    #[inline]
    const fn new(frame: Frame, arena: usize, list: usize) -> Self {
        let word = frame.number() >> Self::FRAMES_SHIFT;
        Self(word << Self::WORD_SHIFT | (list as u64) << Self::LIST_SHIFT | arena as u64)
    }

    #[inline]
    const fn is_word_of(self, frame: Frame) -> bool {
        self.0 >> Self::WORD_SHIFT == frame.number() >> Self::FRAMES_SHIFT
    }

    #[inline]
    const fn arena(self) -> usize {
        self.0 as usize % ARENAS
    }

    #[inline]
    const fn list(self) -> usize {
        (self.0 >> Self::LIST_SHIFT) as usize % LIST_SLOTS
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
            recent: Hint::new(0),
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
            recent: Hint::new(0),
        }
    }

    /// Takes over the RAM of `map`: what is neither reserved nor carved becomes free. `words` is the frame table, at
    /// least [`Footprint::words`](crate::frame::Footprint::words) long, with any content; `normal_floor` is how many
    /// free frames of NORMAL guests' RAM must leave.
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
    pub fn allocate(&self, request: &Request) -> Result<Allocation, AllocError> {
        match request.order {
            0 => self.allocate_frame(request),
            PAGEBLOCK_ORDER.. => self.allocate_whole(request),
            _ => self.allocate_block(request),
        }
    }

    #[inline(never)]
    fn allocate_frame(&self, request: &Request) -> Result<Allocation, AllocError> {
        match self.allocate_at_hand(request) {
            Some(allocation) => Ok(allocation),
            None => self.allocate_block(request),
        }
    }

    /// Allocates a single frame that is at hand where the request looks first.
    #[inline]
    fn allocate_at_hand(&self, request: &Request) -> Option<Allocation> {
        let layout = self.layout.get()?;
        let (controller, zone) = self.first_choice(layout, request)?;
        let (wanted, mobility) = request.kind.needs();
        // What NORMAL must keep is for others to look at.
        if zone == Zone::Normal && wanted == MigrateType::Movable {
            return None;
        }
        let owner = request.owner.index();
        let mut locked = self.arenas[zone.arena(controller)].lock_as_is();
        let taken = locked.lists.take_at_hand(wanted as usize)?;
        layout.table.words.entry(taken.slot).set_used(Meta::used(0, owner, mobility), request.mapping);
        locked.count_taken(owner, 1);
        locked.lists.count_change();
        let frame = Frame::containing(Pa::new_truncate(taken.number << FRAME_SHIFT));
        Some(Allocation { frame, order: 0, controller, zone, contents: taken.contents })
    }

    #[inline(never)]
    fn allocate_whole(&self, request: &Request) -> Result<Allocation, AllocError> {
        match self.allocate_ready(request) {
            Some(allocation) => Ok(allocation),
            None => self.allocate_block(request),
        }
    }

    /// Allocates a block of at least a pageblock where the request looks first, if one of just that order is free there.
    #[inline(always)]
    fn allocate_ready(&self, request: &Request) -> Option<Allocation> {
        let layout = self.layout.get()?;
        let (controller, zone) = self.first_choice(layout, request)?;
        let (wanted, mobility) = request.kind.needs();
        // What NORMAL must keep is for others to look at.
        if request.order > MAX_ORDER || zone == Zone::Normal && wanted == MigrateType::Movable {
            return None;
        }
        let (order, owner, words) = (request.order, request.owner.index(), &layout.table.words);
        let mut locked = self.arenas[zone.arena(controller)].lock_as_is();
        let taken = locked.lists.take_ready(words, wanted as usize, order)?;
        let word = words.word(taken.slot);
        words.set_word(taken.slot, word.with_head(Shape::Used, order));
        words.entry(taken.slot).set_used(Meta::used(order, owner, mobility), request.mapping);
        locked.count_taken(owner, 1 << order);
        locked.lists.count_change();
        let frame = layout.table.region_in(word).frame(taken.slot);
        Some(Allocation { frame, order, controller, zone, contents: taken.contents })
    }

    #[inline(never)]
    fn allocate_block(&self, request: &Request) -> Result<Allocation, AllocError> {
        let Some(layout) = self.layout.get() else { return Err(AllocError::NotBooted) };
        if request.order > MAX_ORDER {
            return Err(AllocError::OrderTooLarge { order: request.order });
        }
        let first = self.first_choice(layout, request);
        let found =
            match first.and_then(|(controller, zone)| self.allocate_in(layout, request, controller, zone)) {
                Some(found) => found,
                None => self.allocate_anywhere(layout, request)?,
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
    #[inline(always)]
    fn first_choice(&self, layout: &Layout<'a>, request: &Request) -> Option<(ControllerId, Zone)> {
        let (zone, populated) = layout.first[request.kind as usize];
        let candidates = populated.without_all(self.closed());
        let controller = match &request.placement {
            Placement::Any => match candidates.only() {
                Some(only) => only,
                None => self.most_free_in(zone, candidates)?,
            },
            Placement::Listed(list, _) => list.first().filter(|first| candidates.contains(*first))?,
            Placement::Interleave(..) => return None,
        };
        Some((controller, zone))
    }

    #[inline(never)]
    fn most_free_in(&self, zone: Zone, candidates: ControllerSet) -> Option<ControllerId> {
        most_free(candidates, |id| self.arenas[zone.arena(id)].free())
    }

    /// Tries everywhere that the request allows, in its order.
    #[cold]
    #[inline(never)]
    fn allocate_anywhere(&self, layout: &Layout<'a>, request: &Request) -> Result<Found, AllocError> {
        let open = layout.controllers.without_all(self.closed());
        let found = match &request.placement {
            Placement::Any => self.allocate_by_zone(layout, request, open),
            placement => self.allocate_placed(layout, request, placement, open),
        };
        found.ok_or_else(|| self.refusal(layout, request, open))
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
    #[inline(always)]
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
        let (wanted, mobility) = request.kind.needs();
        // The floor is for Ballast and for tables: no guest's RAM goes below it, whether it can move or not.
        let keeps_floor = wanted == MigrateType::Movable || matches!(request.owner, Owner::Guest(_));
        if zone == Zone::Normal && keeps_floor && !self.is_above_floor(layout, frames) {
            return None;
        }
        let owner = request.owner.index();
        let words = &layout.table.words;
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
        match order {
            0 => {}
            PAGEBLOCK_ORDER.. => return self.free_whole(frame, order, owner, contents),
            _ => return self.free_block(frame, order, owner, contents),
        }
        if self.free_at_hand(frame, owner.index(), contents) {
            return Ok(());
        }
        self.free_frame(frame, owner, contents)
    }

    /// Gives a single frame back whose word of the free map is the one that the last was in; else nothing is changed.
    #[inline]
    fn free_at_hand(&self, frame: Frame, owner: usize, contents: Contents) -> bool {
        let recent = Recent(self.recent.load(Relaxed));
        if !recent.is_word_of(frame) {
            return false;
        }
        let Some(layout) = self.layout.get() else { return false };
        let mut locked = self.arenas[recent.arena()].lock_as_is();
        let Some(slot) = locked.lists.slot_at_hand(recent.list(), frame.number()) else { return false };
        let entry = layout.table.words.entry(slot);
        if !entry.meta().is_plainly_used_as(0, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1);
        locked.lists.give_at_hand(recent.list(), slot, contents);
        locked.lists.count_change();
        true
    }

    #[inline(never)]
    fn free_frame(&self, frame: Frame, owner: Owner, contents: Contents) -> Result<(), BlockError> {
        match self.free_frame_plainly(frame, owner.index(), contents) {
            true => Ok(()),
            false => self.free_with_care(frame, 0, owner, contents),
        }
    }

    /// Gives a single frame back where nothing about it is unusual; else nothing is changed.
    #[inline(always)]
    fn free_frame_plainly(&self, frame: Frame, owner: usize, contents: Contents) -> bool {
        let Some(place) = self.place(frame) else { return false };
        let words = &place.table().words;
        let mut locked = place.arena.lock_as_is_to_change();
        let (word, entry) = (words.word(place.slot), words.entry(place.slot));
        if !word.is_split_and_open() || !entry.meta().is_plainly_used_as(0, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1);
        let list = word.list();
        if locked.lists.turn_to(place.table(), list, frame.number(), place.slot) {
            locked.lists.give_at_hand(list, place.slot, contents);
            let arena = place.region.arena(word.zone());
            self.recent.store(Recent::new(frame, arena, list).0, Relaxed);
        } else {
            locked.lists.give_small(place.table(), place.slot, 0, contents);
        }
        true
    }

    /// Frees a block of less than a pageblock.
    #[inline(never)]
    fn free_block(
        &self,
        frame: Frame,
        order: u8,
        owner: Owner,
        contents: Contents,
    ) -> Result<(), BlockError> {
        match order < PAGEBLOCK_ORDER && self.free_plainly(frame, order, owner.index(), contents) {
            true => Ok(()),
            false => self.free_with_care(frame, order, owner, contents),
        }
    }

    /// Frees a block of at least a pageblock.
    #[inline(never)]
    fn free_whole(
        &self,
        frame: Frame,
        order: u8,
        owner: Owner,
        contents: Contents,
    ) -> Result<(), BlockError> {
        match order >= PAGEBLOCK_ORDER && self.free_plainly(frame, order, owner.index(), contents) {
            true => Ok(()),
            false => self.free_with_care(frame, order, owner, contents),
        }
    }

    /// Gives a block back where nothing about it is unusual; else nothing is changed.
    #[inline(always)]
    fn free_plainly(&self, frame: Frame, order: u8, owner: usize, contents: Contents) -> bool {
        let Some(place) = self.place(frame) else { return false };
        let words = &place.table().words;
        let mut locked = place.arena.lock_as_is_to_change();
        let (word, entry) = (words.word(place.slot), words.entry(place.slot));
        let is_open_head = match order {
            0..PAGEBLOCK_ORDER => word.is_split_and_open(),
            _ => word.is_used_head(order) && !locked.lists.has_isolated(),
        };
        if !is_open_head || !entry.meta().is_plainly_used_as(order, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1 << order);
        locked.lists.give_here(place.table(), place.region, frame.number(), order, contents);
        true
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
        let words = &place.table().words;
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
        Some(Place { layout, region, slot, arena: &self.arenas[region.arena(zone)] })
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
