//! Single frames that are at hand: what nearly all requests for one come to.
//!
//! Both ways keep what they do in registers and call nobody; what they cannot do they leave to others, unchanged.

use super::handed::Handed;
use super::{Memory, Request};
use crate::addr::Frame;
use crate::frame::{Contents, GROUP_FRAMES, Meta};
use crate::owner::Owner;
use crate::sync::{Hint, Ordering::Relaxed};
use crate::zone::ARENAS;

/// In which group the single frame was that was freed last, and of which arena: where to look first, and no more than that.
/// The number of the group's first frame, plus that of the arena, which is less than a group has frames.
pub(super) struct Recent(Hint);

impl Recent {
    /// The first group of all, in the first arena.
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self(Hint::new(0))
    }

    /// The first group of all, in the first arena.
    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self(Hint::new(0))
    }

    #[inline]
    fn set(&self, number: u64, arena: usize) {
        self.0.store(number & !(GROUP_FRAMES - 1) | arena as u64, Relaxed);
    }

    /// The arena, if frame `number` is in that group.
    #[inline]
    fn arena_of(&self, number: u64) -> Option<usize> {
        let recent = self.0.load(Relaxed);
        (recent ^ number < GROUP_FRAMES).then_some(recent as usize % ARENAS)
    }
}

const _: () = assert!(ARENAS <= GROUP_FRAMES as usize);

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
        let Some(arena) = self.recent.arena_of(frame.number()) else { return false };
        let mut locked = self.arenas[arena].lock_as_is();
        let Some((entry, at)) = locked.lists.entry_at_hand(frame.number()) else { return false };
        let owner = owner.index();
        if !entry.meta().is_plainly_used_as(0, owner) {
            return false;
        }
        entry.set_meta(Meta::NONE);
        locked.count_given(owner, 1);
        locked.lists.give_at_hand(at, contents);
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
                locked.lists.give_at_hand(at, contents);
                self.recent.set(frame.number(), place.region.arena(word.zone()));
            }
            None => locked.lists.give_small(place.table(), place.slot, 0, contents),
        }
        true
    }
}
