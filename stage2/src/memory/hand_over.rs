//! Blocks in use that change their owner, and what the keepers of such blocks ask.

use super::{BlockError, BlockReason, Memory};
use crate::addr::Frame;
use crate::arena::Standing;
use crate::controller::ControllerId;
use crate::frame::{Mapping, NONE, Slot};
use crate::owner::Owner;
use crate::range::FrameRange;
use crate::zone::Zone;

use super::reshape::pageblocks;

impl Memory<'_> {
    /// Makes a block of `from` one of `to`, which will appear at `mapping`. Its bytes stay: whoever hands a block from one
    /// guest to another scrubs it. Yields the controller behind which it lies.
    ///
    /// # Errors
    /// Where the block is not in use with just this order and owner, or holds a frame that is to be retired; nothing is
    /// changed then.
    pub fn hand_over(
        &self,
        frame: Frame,
        order: u8,
        from: Owner,
        to: Owner,
        mapping: Option<Mapping>,
    ) -> Result<ControllerId, BlockError> {
        let error = |reason| BlockError { frame, order, owner: from, reason };
        let place = self.place(frame).ok_or_else(|| error(BlockReason::NotRam))?;
        let locked = place.lock_to_change();
        let words = place.table().words;
        let entry = words.entry(place.slot);
        if !place.can_head(order) || !entry.meta().is_used_as(order, from.index()) {
            return Err(error(Self::why_not_freed(place.layout, place.region, frame.number(), from)));
        }
        if entry.meta().holds_doomed() {
            return Err(error(BlockReason::Retired));
        }
        entry.set_used(entry.meta().with_owner(to), mapping);
        locked.count_moved(Standing::Used(from), Standing::Used(to), 1 << order);
        Ok(place.region.controller)
    }

    /// Whether `frame` is the head of a block in use with just this order and owner.
    ///
    /// # Errors
    /// What is wrong, if it is not.
    pub(crate) fn check_block(&self, frame: Frame, order: u8, owner: Owner) -> Result<(), BlockError> {
        let error = |reason| BlockError { frame, order, owner, reason };
        let place = self.place(frame).ok_or_else(|| error(BlockReason::NotRam))?;
        let _locked = place.lock();
        let words = place.table().words;
        if place.can_head(order) && words.entry(place.slot).meta().is_used_as(order, owner.index()) {
            return Ok(());
        }
        Err(error(Self::why_not_freed(place.layout, place.region, frame.number(), owner)))
    }

    /// Whether the block in use at `frame` holds a frame that is to be retired.
    pub(crate) fn is_doomed_block(&self, frame: Frame) -> bool {
        let Some(place) = self.place(frame) else { return false };
        let _locked = place.lock();
        place.table().words.entry(place.slot).meta().holds_doomed()
    }

    /// Whether a pageblock that `range` touches is isolated.
    pub fn is_isolated(&self, range: FrameRange) -> bool {
        pageblocks(range).any(|part| {
            self.place(part.first()).is_some_and(|place| place.table().words.word(place.slot).is_isolated())
        })
    }

    /// The zone that `frame` is present in; `None` where it is no RAM.
    pub fn zone_of(&self, frame: Frame) -> Option<Zone> {
        let place = self.place(frame)?;
        Some(place.table().words.word(place.slot).zone())
    }

    /// The blocks that the block at `frame`, in use and without a reverse map, is linked to by its owner.
    pub(crate) fn links(&self, frame: Frame) -> (Option<Frame>, Option<Frame>) {
        let Some(place) = self.place(frame) else { return (None, None) };
        let table = place.table();
        let linked = |slot| (slot != NONE).then(|| table.frame(Slot(slot)));
        let (previous, next) = table.words.entry(place.slot).links();
        (linked(previous), linked(next))
    }

    /// Links the block at `frame`, which must be in use, without a reverse map, and the caller's.
    pub(crate) fn set_links(&self, frame: Frame, previous: Option<Frame>, next: Option<Frame>) {
        let slot =
            |frame: Option<Frame>| frame.and_then(|frame| self.place(frame)).map_or(NONE, |at| at.slot.0);
        if let Some(place) = self.place(frame) {
            place.table().words.entry(place.slot).set_links(slot(previous), slot(next));
        }
    }
}
