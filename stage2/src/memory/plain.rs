//! Blocks of more than one frame where nothing about them is unusual: what nearly all requests for them come to.
//!
//! Each way is one stretch under one lock. What it cannot do it leaves to others.

use super::handed::Handed;
use super::{Kind, Memory, Request};
use crate::addr::{Frame, MAX_ORDER, PAGEBLOCK_ORDER};
use crate::frame::{Contents, Meta};
use crate::owner::Owner;
use crate::pageblock::Shape;
use crate::placement::Placement;
use crate::zone::Zone;

impl Memory<'_> {
    /// The arena that a request looks in first, and the number of its owner, where that takes next to nothing to tell.
    #[inline(always)]
    pub(super) fn sole_place(&self, request: &Request) -> Option<(usize, usize)> {
        let owner = request.owner.common_index()?;
        match (self.gates.sole_arena(request.kind), request.placement) {
            // Guests' RAM keeps the floor of NORMAL, which is for others to look at.
            (Some(arena), Placement::Any) if request.kind == Kind::Movable || owner == 0 => {
                Some((arena, owner))
            }
            _ => None,
        }
    }

    /// The arena that a request looks in first, and the number of its owner, where no floor has to be kept.
    #[inline(never)]
    pub(super) fn first_place(&self, request: &Request) -> Option<(usize, usize)> {
        let (controller, zone) = self.first_choice(self.layout.get()?, request)?;
        let is_free = zone == Zone::Movable || !request.keeps_floor();
        is_free.then(|| (zone.arena(controller), request.owner.index()))
    }

    /// Allocates a block of more than one frame out of what is free where the request looks first.
    #[inline(never)]
    pub(super) fn allocate_plainly(&self, request: &Request) -> Option<Handed> {
        match request.order {
            PAGEBLOCK_ORDER..=MAX_ORDER => self.allocate_whole(request),
            1..PAGEBLOCK_ORDER => self.allocate_part(request),
            _ => None,
        }
    }

    #[inline(always)]
    fn allocate_whole(&self, request: &Request) -> Option<Handed> {
        let (arena, owner) = self.sole_place(request).or_else(|| self.first_place(request))?;
        let table = &self.layout.get()?.table;
        let ((wanted, mobility), order) = (request.kind.needs(), request.order);
        let mut locked = self.arenas[arena].lock_as_is();
        let zone = Zone::of_arena(arena).0;
        let taken = locked.lists.take_ready(&table.words, zone, wanted, order)?;
        let cell = table.words.cell(taken.slot.pageblock())?;
        let word = cell.get().with_head(Shape::Used, order);
        cell.set(word);
        table.words.entry(taken.slot).set_used(Meta::used(order, owner, mobility), request.mapping);
        locked.count_taken(owner, 1 << order);
        locked.lists.count_change();
        Handed::new(table.region_in(word).number(taken.slot), arena, taken.contents)
    }

    #[inline(always)]
    fn allocate_part(&self, request: &Request) -> Option<Handed> {
        let (arena, owner) = self.sole_place(request).or_else(|| self.first_place(request))?;
        let table = &self.layout.get()?.table;
        let ((wanted, mobility), order) = (request.kind.needs(), request.order);
        if self.arenas[arena].free() < 1 << order {
            return None;
        }
        // Lists are put right even where nothing is found.
        let mut locked = self.arenas[arena].lock_as_is_to_change();
        let taken = locked.lists.take_part(&table.words, wanted as usize, order)?;
        table.words.entry(taken.slot).set_used(Meta::used(order, owner, mobility), request.mapping);
        locked.count_taken(owner, 1 << order);
        Handed::new(table.frame(taken.slot).number(), arena, taken.contents)
    }

    /// Gives a block of more than one frame back where nothing about it is unusual; else nothing is changed.
    #[inline(never)]
    pub(super) fn free_plainly(&self, frame: Frame, order: u8, owner: Owner, contents: Contents) -> bool {
        match order {
            PAGEBLOCK_ORDER..=MAX_ORDER => self.free_whole(frame, order, owner, contents),
            1..PAGEBLOCK_ORDER => self.free_part(frame, order, owner, contents),
            _ => false,
        }
    }

    #[inline(always)]
    fn free_whole(&self, frame: Frame, order: u8, owner: Owner, contents: Contents) -> bool {
        let Some(place) = self.place(frame) else { return false };
        let (words, owner) = (&place.table().words, owner.index());
        let mut locked = place.arena.lock_as_is_to_change();
        let (word, entry) = (place.cell.get(), words.entry(place.slot));
        // The word of a head has the order that its entry has.
        let is_head = place.slot.offset() == 0 && word.is_used();
        let is_plain = is_head && !locked.lists.has_isolated();
        if !is_plain || !entry.meta().is_plainly_used_as(order, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1 << order);
        place.cell.set(word.freed());
        let at = (place.cell, place.slot.pageblock());
        locked.lists.merge_here(words, at, frame.number(), order, contents);
        true
    }

    #[inline(always)]
    fn free_part(&self, frame: Frame, order: u8, owner: Owner, contents: Contents) -> bool {
        let Some(place) = self.place(frame) else { return false };
        let (words, owner) = (&place.table().words, owner.index());
        let mut locked = place.arena.lock_as_is_to_change();
        let entry = words.entry(place.slot);
        if !place.cell.get().is_split_and_open() || !entry.meta().is_plainly_used_as(order, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1 << order);
        locked.lists.give_small(place.table(), place.slot, order, contents);
        true
    }
}
