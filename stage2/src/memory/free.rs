//! How a block is given back.

use super::{BlockError, BlockReason, Layout, Memory};
use crate::addr::{Frame, PAGEBLOCK_ORDER};
use crate::frame::{Contents, Meta, Region, State};
use crate::owner::Owner;

impl<'a> Memory<'a> {
    /// Gives a block back that is no single frame, or one about which something is unusual.
    #[inline(never)]
    pub(super) fn free_any(
        &self,
        frame: Frame,
        order: u8,
        owner: Owner,
        contents: Contents,
    ) -> Result<(), BlockError> {
        match order {
            0 => self.free_with_care(frame, 0, owner, contents),
            PAGEBLOCK_ORDER.. => self.free_whole(frame, order, owner, contents),
            _ => self.free_block(frame, order, owner, contents),
        }
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
    pub(super) fn why_not_freed(
        layout: &Layout<'a>,
        region: &Region,
        number: u64,
        owner: Owner,
    ) -> BlockReason {
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
}
