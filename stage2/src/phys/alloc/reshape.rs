//! Splitting a block in use into 512 blocks, and joining 512 blocks into one.

use super::{BlockError, BlockReason, Memory};
use crate::addr::{Frame, MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::owner::Owner;
use crate::phys::frame::{FrameTable, Head, Mapping, RamRange};
use crate::phys::pageblock::Shape;
use crate::range::FrameRange;

/// log2 of the number of parts: a translation table's worth.
const PARTS_ORDER: u8 = PAGEBLOCK_ORDER;

impl Memory<'_> {
    /// Splits the block of `order` in use at `frame` into 512 blocks of order `order` − 9 with the same owner and kind,
    /// each with its part of the reverse map. `order` is 9 (2 MiB into 4 KiB) to 18 (1 GiB into 2 MiB).
    ///
    /// # Errors
    /// Fails if the block is not in use with exactly this order and owner. Nothing changes then.
    pub fn divide(&self, frame: Frame, order: u8, owner: Owner) -> Result<(), BlockError> {
        let error = |reason| BlockError { frame, order, owner, reason };
        let parts = order.checked_sub(PARTS_ORDER).filter(|_| order <= MAX_ORDER);
        let part = parts.ok_or_else(|| error(BlockReason::Shape))?;
        let record = self.record(frame).ok_or_else(|| error(BlockReason::NotRam))?;
        let (table, number) = (record.table(), frame.number());
        let _locked = record.lock_to_change();
        let meta = table.words.entry(record.slot).meta();
        if !record.can_head(order) || !meta.is_used_as(order, owner.index()) {
            return Err(error(Self::why_not_freed(record.layout, record.ram_range, number, owner)));
        }
        let Some(head) = table.head(record.ram_range, number) else { return Err(error(BlockReason::NotRam)) };
        cut_used(table, record.ram_range, head, &mut parts_of(number, part));
        Ok(())
    }

    /// Joins the 512 blocks of order `order` − 9 in use from `frame` on, all of `owner`, into one block of `order`
    /// mapped at `mapping`. `order` is 9 (4 KiB into 2 MiB) to 18 (2 MiB into 1 GiB).
    ///
    /// # Errors
    /// Fails if a part is not such a block, or if the parts differ in kind or lie in pageblocks of different zone, type
    /// or pool. The error names the part. Nothing changes then.
    pub fn unite(
        &self,
        frame: Frame,
        order: u8,
        owner: Owner,
        mapping: Option<Mapping>,
    ) -> Result<(), BlockError> {
        let error = |frame, reason| BlockError { frame, order, owner, reason };
        let number = frame.number();
        let part = order.checked_sub(PARTS_ORDER).filter(|_| order <= MAX_ORDER);
        let part = part.filter(|_| number.trailing_zeros() >= order.into());
        let part = part.ok_or_else(|| error(frame, BlockReason::Shape))?;
        let record = self.record(frame).ok_or_else(|| error(frame, BlockReason::NotRam))?;
        let (table, ram_range, words) = (record.table(), record.ram_range, record.table().words);
        if !ram_range.has(number + (1 << order) - 1) {
            return Err(error(frame, BlockReason::Shape));
        }
        let _locked = record.lock_to_change();
        let (first, mut meta) = (words.word(record.slot), words.entry(record.slot).meta());
        for (number, part) in parts_of(number, part) {
            let slot = ram_range.slot(number);
            let (word, other) = (words.word(slot), words.entry(slot).meta());
            let is_head = if part < PAGEBLOCK_ORDER { word.is_split() } else { word.is_used_head(part) };
            let refused = |reason| error(Frame::try_new(number).unwrap_or(frame), reason);
            // A part in another zone is under another lock: only its word is read.
            if !word.is_like(first) {
                return Err(refused(BlockReason::Unlike));
            }
            if !is_head || !other.is_used_as(part, owner.index()) {
                return Err(refused(Self::why_not_freed(record.layout, ram_range, number, owner)));
            }
            if other.kind() != meta.kind() {
                return Err(refused(BlockReason::Unlike));
            }
            if other.holds_doomed() {
                meta = meta.with_holding_doomed();
            }
        }
        for (number, _) in parts_of(number, part) {
            let entry = words.entry(ram_range.slot(number));
            entry.set_meta(entry.meta().without_block());
        }
        let whole = FrameRange::from_numbers(number, number + (1 << order)).unwrap_or_default();
        for part in pageblocks(whole) {
            let slot = ram_range.slot(part.start());
            words.set_word(slot, words.word(slot).with_shape(Shape::Part));
        }
        words.set_word(record.slot, first.with_head(Shape::Used, order));
        words.entry(record.slot).set_used(meta.with_order(order), mapping);
        debug_assert!(table.head(ram_range, number).is_some_and(|head| head.order == order));
        Ok(())
    }
}

/// Returns the 512 blocks of `order` from frame `number` on.
fn parts_of(number: u64, order: u8) -> impl Iterator<Item = (u64, u8)> {
    (0..1 << PARTS_ORDER).map(move |part: u64| (number + (part << order), order))
}

/// Splits `range` at pageblock boundaries.
pub(super) fn pageblocks(range: FrameRange) -> impl Iterator<Item = FrameRange> {
    let mut start = range.start();
    core::iter::from_fn(move || {
        let end = range.end().min((start | (PAGEBLOCK_FRAMES - 1)) + 1);
        let part = FrameRange::from_numbers(start, end).filter(|part| !part.is_empty());
        start = end;
        part
    })
}

/// Replaces the block in use `head` by `pieces` (frame number and order), which cover it exactly.
pub(super) fn cut_used(
    table: &FrameTable<'_>,
    ram_range: &RamRange,
    head: Head,
    pieces: &mut dyn Iterator<Item = (u64, u8)>,
) {
    let words = table.words;
    let first = words.entry(ram_range.slot(head.number));
    let (meta, mapping) = (first.meta(), first.mapping());
    let holds_doomed = meta.holds_doomed();
    first.set_meta(meta.without_block());
    for (number, order) in pieces {
        let slot = ram_range.slot(number);
        let word = words.word(slot);
        if order >= PAGEBLOCK_ORDER {
            words.set_word(slot, word.with_head(Shape::Used, order));
        } else if !word.is_split() {
            words.make_split(slot);
            words.free_map(slot.pageblock()).clear();
        }
        let mut piece = meta.as_piece(order);
        if holds_doomed {
            if is_touched(table, ram_range, number) && words.entry(slot).meta().is_doomed() {
                piece = piece.with_doomed();
            }
            if has_doomed(table, ram_range, number, order) {
                piece = piece.with_holding_doomed();
            }
        }
        words.entry(slot).set_used(piece, mapping.and_then(|mapping| mapping.offset(number - head.number)));
    }
}

fn is_touched(table: &FrameTable<'_>, ram_range: &RamRange, number: u64) -> bool {
    table.words.word(ram_range.slot(number)).is_touched()
}

/// Returns whether the block of `order` at `number` holds a doomed frame.
fn has_doomed(table: &FrameTable<'_>, ram_range: &RamRange, number: u64, order: u8) -> bool {
    let whole = FrameRange::from_numbers(number, number + (1 << order)).unwrap_or_default();
    pageblocks(whole).filter(|part| is_touched(table, ram_range, part.start())).any(|part| {
        (part.start()..part.end()).any(|number| table.words.entry(ram_range.slot(number)).meta().is_doomed())
    })
}
