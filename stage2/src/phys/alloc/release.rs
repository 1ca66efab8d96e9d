//! Freeing: whole blocks, parts of blocks, and memory reserved since boot. Doomed frames are retired on the way, and
//! frames of isolated pageblocks stay there.

use super::reshape::{cut_used, pageblocks};
use super::{BlockError, BlockReason, FrameRecord, Layout, Memory, boot};
use crate::addr::{Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::owner::Owner;
use crate::phys::arena::{FrameUse, Locked};
use crate::phys::frame::{Contents, FrameTable, Head, Meta, RamRange, Slot, State};
use crate::range::FrameRange;

impl Memory<'_> {
    /// Frees a block. `contents` tells what the caller left in it.
    ///
    /// # Errors
    /// Fails if the block is not in use with exactly this order and owner. Nothing changes then.
    pub fn free(&self, frame: Frame, order: u8, owner: Owner, contents: Contents) -> Result<(), BlockError> {
        let Some(record) = self.record(frame) else {
            return Err(BlockError { frame, order, owner, reason: BlockReason::NotRam });
        };
        let mut locked = record.lock_to_change();
        let meta = record.table().words.entry(record.slot).meta();
        let index = owner.index();
        if !record.can_head(order) || !meta.is_used_as(order, index) {
            return Err(Self::not_freed(&record, frame, order, owner));
        }
        give_used(&record, &mut locked, record.slot, frame.number(), order, index, contents);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn not_freed(record: &FrameRecord<'_, '_>, frame: Frame, order: u8, owner: Owner) -> BlockError {
        let reason = Self::why_not_freed(record.layout, record.ram_range, frame.number(), owner);
        BlockError { frame, order, owner, reason }
    }

    /// Returns the reason why a block is not in use as the caller claims.
    #[cold]
    pub(super) fn why_not_freed(
        layout: &Layout<'_>,
        ram_range: &RamRange,
        number: u64,
        owner: Owner,
    ) -> BlockReason {
        let Some(head) = layout.table.head(ram_range, number) else { return BlockReason::NotRam };
        let meta = layout.table.words.entry(ram_range.slot(head.number)).meta();
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

    /// Frees `range`, which blocks of `owner` must cover. A block that crosses an end of the range is split there.
    /// `contents` tells what the caller left in the frames.
    ///
    /// # Errors
    /// Fails if part of the range is not memory of `owner`. Nothing changes then.
    pub fn release_range(
        &self,
        range: FrameRange,
        owner: Owner,
        contents: Contents,
    ) -> Result<(), BlockError> {
        for part in pageblocks(range) {
            let record = self.record(part.first()).ok_or_else(|| not_ram(part.first(), owner))?;
            let _locked = record.lock();
            let mut number = part.start();
            while number < part.end() {
                number = owned_head(record.layout, record.ram_range, number, owner)?.end();
            }
        }
        for part in pageblocks(range) {
            let record = self.record(part.first()).ok_or_else(|| not_ram(part.first(), owner))?;
            let mut locked = record.lock_to_change();
            let mut number = part.start();
            while number < part.end() {
                let head = owned_head(record.layout, record.ram_range, number, owner)?;
                let head = cut_at_edges(record.table(), record.ram_range, head, part, number);
                let slot = record.ram_range.slot(head.number);
                give_used(&record, &mut locked, slot, head.number, head.order, owner.index(), contents);
                number = head.end();
            }
        }
        Ok(())
    }
}

impl Memory<'_> {
    /// Frees memory reserved since boot, such as a boot module that is no longer needed. `range` must consist of whole
    /// reserved blocks, as a reservation does.
    ///
    /// # Errors
    /// Fails if part of the range is not reserved, or covers only part of a block. Nothing changes then.
    pub fn release_reserved(&self, range: FrameRange) -> Result<(), BlockError> {
        let error = |frame, reason| BlockError { frame, order: 0, owner: Owner::Hypervisor, reason };
        for is_final in [false, true] {
            let mut number = range.start();
            while number < range.end() {
                let frame = Frame::try_new(number).unwrap_or_default();
                let record = self.record(frame).ok_or_else(|| error(frame, BlockReason::NotRam))?;
                let mut locked = record.lock_to_change();
                let head = record.table().head(record.ram_range, number);
                let head = head.ok_or_else(|| error(frame, BlockReason::NotRam))?;
                if head.state != State::Reserved {
                    let owner = Owner::Hypervisor;
                    return Err(error(
                        frame,
                        Self::why_not_freed(record.layout, record.ram_range, number, owner),
                    ));
                }
                if head.number != number || head.end() > range.end() {
                    let first = Frame::try_new(head.number).unwrap_or_default();
                    return Err(error(frame, BlockReason::InsideBlock { head: first, order: head.order }));
                }
                if is_final {
                    boot::release_block(record.table(), &mut locked, record.ram_range, number, head.order);
                }
                number = head.end();
            }
        }
        Ok(())
    }
}

fn not_ram(frame: Frame, owner: Owner) -> BlockError {
    BlockError { frame, order: 0, owner, reason: BlockReason::NotRam }
}

/// Returns the block of `owner` that contains frame `number` of `ram_range`.
fn owned_head(
    layout: &Layout<'_>,
    ram_range: &RamRange,
    number: u64,
    owner: Owner,
) -> Result<Head, BlockError> {
    let frame = Frame::try_new(number).unwrap_or_default();
    let error = |reason| BlockError { frame, order: 0, owner, reason };
    if !ram_range.has(number) {
        return Err(error(BlockReason::NotRam));
    }
    let head = layout.table.head(ram_range, number).ok_or_else(|| error(BlockReason::NotRam))?;
    let meta = layout.table.words.entry(ram_range.slot(head.number)).meta();
    if head.state == State::Used && meta.is_used_as(head.order, owner.index()) {
        return Ok(head);
    }
    Err(error(Memory::why_not_freed(layout, ram_range, head.number, owner)))
}

/// Splits the block `head` at the ends of `part`. Returns the piece that begins at `number`.
fn cut_at_edges(
    table: &FrameTable<'_>,
    ram_range: &RamRange,
    head: Head,
    part: FrameRange,
    number: u64,
) -> Head {
    let whole = FrameRange::from_numbers(head.number, head.end()).unwrap_or_default();
    if part.contains_range(whole) {
        return head;
    }
    let between =
        |start: u64, end: u64| boot::blocks(FrameRange::from_numbers(start, end).unwrap_or_default());
    let (start, end) = (head.number.max(part.start()), head.end().min(part.end()));
    let mut pieces = between(head.number, start).chain(between(start, end)).chain(between(end, head.end()));
    cut_used(table, ram_range, head, &mut pieces);
    table.head(ram_range, number).unwrap_or(head)
}

/// Frees the block in use at `slot`, whose owner and order have been checked.
#[inline(always)]
fn give_used(
    record: &FrameRecord<'_, '_>,
    locked: &mut Locked<'_>,
    slot: Slot,
    number: u64,
    order: u8,
    owner: usize,
    contents: Contents,
) {
    let entry = record.table().words.entry(slot);
    let meta = entry.meta();
    entry.set_meta(meta.without_block());
    if meta.holds_doomed() {
        give_doomed(record, locked, number, order, owner, contents);
    } else {
        give_plain(record.table(), slot, locked, number, order, owner, contents);
    }
}

/// Frees a block whose entry is already cleared and that holds doomed frames, which are retired.
#[cold]
#[inline(never)]
fn give_doomed(
    record: &FrameRecord<'_, '_>,
    locked: &mut Locked<'_>,
    number: u64,
    order: u8,
    owner: usize,
    contents: Contents,
) {
    let table = record.table();
    let words = &table.words;
    let slot_of = |number: u64| record.ram_range.slot(number);
    let is_doomed = |number: u64| words.entry(slot_of(number)).meta().is_doomed();
    for part in pageblocks(FrameRange::from_numbers(number, number + (1 << order)).unwrap_or_default()) {
        let slot = slot_of(part.start());
        let numbers = part.start()..part.end();
        if order >= PAGEBLOCK_ORDER {
            if !words.word(slot).is_touched() || !numbers.clone().any(is_doomed) {
                give_plain(table, slot, locked, part.start(), PAGEBLOCK_ORDER, owner, contents);
                continue;
            }
            words.make_split(slot);
            words.free_map(slot.pageblock()).clear();
        }
        for number in numbers {
            if is_doomed(number) {
                words.entry(slot_of(number)).set_meta(Meta::retired(0));
                locked.count_moved(FrameUse::Used(owner), FrameUse::Retired, 1);
            } else {
                give_plain(table, slot_of(number), locked, number, 0, owner, contents);
            }
        }
    }
}

/// Frees a block without doomed frames. Frames of isolated pageblocks become free there.
#[inline(always)]
fn give_plain(
    table: &FrameTable<'_>,
    slot: Slot,
    locked: &mut Locked<'_>,
    number: u64,
    order: u8,
    owner: usize,
    contents: Contents,
) {
    if locked.lists.has_isolated() {
        count_freed(table, slot, locked, order, FrameUse::Used(owner));
    } else {
        locked.count_given(owner, 1 << order);
    }
    locked.lists.give(table, slot, number, order, contents);
}

/// Counts the frames of a block that were `from` as free, or as isolated in isolated pageblocks.
#[inline(never)]
pub(super) fn count_freed(
    table: &FrameTable<'_>,
    slot: Slot,
    locked: &Locked<'_>,
    order: u8,
    from: FrameUse,
) {
    let frames = (1 << order).min(PAGEBLOCK_FRAMES);
    for offset in (0..1 << order).step_by(PAGEBLOCK_FRAMES as usize) {
        let isolation = table.words.word(slot.add(offset)).isolation();
        locked.count_moved(from, FrameUse::free_in(isolation), frames);
    }
}
