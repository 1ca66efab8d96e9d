//! Huge units: handing a claimed range from the owner of a pool to a guest.

use super::{BlockError, BlockReason, Memory};
use crate::addr::{Frame, PAGEBLOCK_ORDER};
use crate::owner::{Owner, PoolId};
use crate::phys::arena::FrameUse;
use crate::phys::frame::{Mapping, MemoryKind, Meta};

impl Memory<'_> {
    /// Turns the frames from `frame` on, claimed by the owner of `pool`, into one movable block of `order` (9 or 18) of
    /// the guest in `mapping`.
    ///
    /// # Errors
    /// Fails if they are not claimed in whole pageblocks. Nothing changes then.
    pub fn adopt(&self, frame: Frame, order: u8, pool: PoolId, mapping: Mapping) -> Result<(), BlockError> {
        let (from, to) = (Owner::Pool(pool), Owner::Guest(mapping.guest));
        let error = |reason| BlockError { frame, order, owner: from, reason };
        if order > PAGEBLOCK_ORDER {
            self.unite(frame, order, from, None)?;
        }
        let record = self.record(frame).ok_or_else(|| error(BlockReason::NotRam))?;
        let locked = record.lock_to_change();
        let words = record.table().words;
        let entry = words.entry(record.slot);
        let is_whole = order >= PAGEBLOCK_ORDER && record.can_head(order);
        let is_claimed = is_whole && entry.meta().is_plainly_used_as(order, from.index());
        if !is_claimed {
            return Err(error(Self::why_not_freed(record.layout, record.ram_range, frame.number(), from)));
        }
        entry.set_used(Meta::used(order, to.index(), MemoryKind::Movable), Some(mapping));
        locked.count_moved(FrameUse::Used(from.index()), FrameUse::Used(to.index()), 1 << order);
        Ok(())
    }
}
