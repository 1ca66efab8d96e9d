//! Single frames that are at hand: what nearly all requests for one come to.
//!
//! Both ways keep what they do in registers and call nobody; what they cannot do they leave to others, unchanged.

use super::handed::Handed;
use super::{Memory, Request};
use crate::addr::Frame;
use crate::frame::{Contents, Meta};
use crate::owner::Owner;
use crate::pageblock::LIST_SLOTS;
use crate::sync::{Counter, Ordering::Relaxed};
use crate::zone::ARENAS;

/// Of which arena and type the single frame was that was freed last: where to look first, and no more than that. Nowhere
/// where frames are freed in no order.
pub(super) struct Recent(Counter);

impl Recent {
    const SOMEWHERE: u32 = ARENAS as u32;
    /// The list is on top, so that nothing is left but its number when the rest is shifted out.
    const LIST_SHIFT: u32 = u32::BITS - LIST_SLOTS.trailing_zeros();

    /// Nowhere.
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self(Counter::new(0))
    }

    /// Nowhere.
    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self(Counter::new(0))
    }

    #[inline]
    fn set(&self, arena: usize, list: usize) {
        self.0.store((list as u32) << Self::LIST_SHIFT | Self::SOMEWHERE | arena as u32, Relaxed);
    }

    #[inline]
    fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    /// The arena and the list.
    #[inline]
    fn get(&self) -> Option<(usize, usize)> {
        let recent = self.0.load(Relaxed);
        (recent != 0).then_some((recent as usize % ARENAS, (recent >> Self::LIST_SHIFT) as usize))
    }
}

impl Memory<'_> {
    /// Allocates a single frame that is at hand where the request looks first.
    #[inline]
    pub(super) fn allocate_at_hand(&self, request: &Request) -> Option<Handed> {
        match self.sole_place(request) {
            Some((arena, owner)) => self.allocate_at_hand_in(arena, request, owner),
            None => self.allocate_at_hand_of_some(request),
        }
    }

    /// [`Self::allocate_at_hand`], where there is more to look at.
    #[inline(never)]
    fn allocate_at_hand_of_some(&self, request: &Request) -> Option<Handed> {
        let (arena, owner) = self.first_place(request)?;
        self.allocate_at_hand_in(arena, request, owner)
    }

    #[inline(always)]
    fn allocate_at_hand_in(&self, arena: usize, request: &Request, owner: usize) -> Option<Handed> {
        let (wanted, mobility) = request.kind.needs();
        let mut locked = self.arenas[arena].lock_as_is();
        let taken = locked.lists.take_at_hand(wanted as usize)?;
        taken.entry.set_used(Meta::used(0, owner, mobility), request.mapping);
        locked.count_taken(owner, 1);
        Handed::new(taken.number, arena, taken.contents)
    }

    /// Gives a single frame back where nothing about it is unusual; else nothing is changed.
    #[inline]
    pub(super) fn free_single(&self, frame: Frame, owner: Owner, contents: Contents) -> bool {
        self.free_at_hand(frame, owner, contents) || self.free_frame(frame, owner, contents)
    }

    /// Gives a single frame back whose group is at hand where the last was freed; else nothing is changed.
    #[inline(always)]
    fn free_at_hand(&self, frame: Frame, owner: Owner, contents: Contents) -> bool {
        let Some((arena, list)) = self.recent.get() else { return false };
        // It may be another CPU's that frees elsewhere: no reason to wait.
        let Some(mut locked) = self.arenas[arena].try_lock_as_is() else { return false };
        let Some((entry, at)) = locked.lists.entry_at_hand(list, frame.number()) else { return false };
        let owner = owner.index();
        if !entry.meta().is_plainly_used_as(0, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1);
        locked.lists.give_at_hand(list, at, contents);
        true
    }

    /// Gives a single frame back, and has its group at hand after that, where nothing about it is unusual; else nothing is
    /// changed.
    #[inline(never)]
    fn free_frame(&self, frame: Frame, owner: Owner, contents: Contents) -> bool {
        let Some(place) = self.place(frame) else { return false };
        let owner = owner.index();
        let words = &place.table().words;
        let mut locked = place.arena.lock_as_is_to_change();
        let (word, entry) = (place.cell.get(), words.entry(place.slot));
        if !word.is_split_and_open() || !entry.meta().is_plainly_used_as(0, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1);
        let list = word.list();
        match locked.lists.turn_to(place.table(), list, frame.number(), place.slot) {
            Some(at) => {
                locked.lists.give_at_hand(list, at, contents);
                self.recent.set(place.region.arena(word.zone()), list);
            }
            None => {
                locked.lists.give_small(place.table(), place.slot, 0, contents);
                self.recent.clear();
            }
        }
        true
    }
}
