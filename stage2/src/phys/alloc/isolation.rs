//! Isolation of pageblocks: the first step of every claim of a contiguous range.
//!
//! Frames of an isolated pageblock are not allocated, and frames freed there stay there. Isolation is a bit beside the
//! pageblock's type, so ending it restores the previous state. The same rules check and isolate **every** pageblock
//! that a range touches, also the first and the last, of which the range may contain only a part:
//!
//! - a pageblock of a pool is isolated only for that pool, a pageblock of a designated block outside any pool never,
//!   any other only for [`Requester::Anyone`];
//! - a pageblock that is isolated already is refused: one claim at a time;
//! - in the range itself, unmovable, reserved, retired and doomed frames are refused. Blocks that cross its ends are
//!   allowed: those in use are moved whole, or split first; free ones are split.
//!
//! The range must lie in one RAM range and one zone. If a pageblock is refused, those before it are open again when the
//! error is returned.

use core::fmt;

use super::reshape::pageblocks;
use super::{FrameRecord, Memory};
use crate::addr::{Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::owner::{Owner, PoolId};
use crate::phys::arena::FrameUse;
use crate::phys::frame::{Contents, MemoryKind, Meta, State};
use crate::phys::pageblock::{Isolation, Pageblock, Shape};
use crate::range::FrameRange;

/// The requester of an isolation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requester {
    /// A contiguous search, which keeps out of pools and designated blocks.
    Anyone,
    /// The owner of a pool, inside that pool.
    Pool(PoolId),
}

/// A range whose pageblocks are isolated. End the isolation with [`Memory::end_isolation`]; if it is dropped, the range
/// stays isolated for ever.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a dropped range stays isolated for ever"]
pub struct Isolated {
    range: FrameRange,
}

impl Isolated {
    /// Returns the range. Its pageblocks are isolated whole.
    pub const fn range(&self) -> FrameRange {
        self.range
    }
}

/// An error of an isolation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IsolateError {
    /// The range.
    pub range: FrameRange,
    /// The frame that is in the way, or the first frame of the pageblock that is.
    pub frame: Frame,
    /// The reason.
    pub reason: IsolateReason,
}

/// The reason why a pageblock cannot be isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IsolateReason {
    /// In another RAM range or zone than the frames before, or not RAM.
    Broken,
    /// In a pool that is not the requester's.
    InPool(PoolId),
    /// In a designated block, outside the requester's pool.
    InBlock(u8),
    /// Outside the requester's pool.
    OutsidePool,
    /// Already isolated, by another claim.
    Isolated,
    /// In use and unmovable.
    Pinned(Owner),
    /// Reserved since boot.
    Reserved,
    /// Retired, or to be retired when freed.
    Retired,
}

impl fmt::Display for IsolateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("not in the same RAM range and zone as the frames before it"),
            Self::InPool(pool) => write!(f, "in {pool}"),
            Self::InBlock(block) => write!(f, "in designated block {block}, which no pool has there"),
            Self::OutsidePool => f.write_str("outside the pool"),
            Self::Isolated => f.write_str("isolated by another claim"),
            Self::Pinned(owner) => write!(f, "in use by {owner} and cannot be moved"),
            Self::Reserved => f.write_str("reserved since boot"),
            Self::Retired => f.write_str("retired"),
        }
    }
}

impl fmt::Display for IsolateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is {}", self.range, self.frame.pa(), self.reason)
    }
}

impl core::error::Error for IsolateError {}

/// An isolated range could not be taken because not all of it is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TakeError {
    /// The first frame that is in the way.
    pub frame: Frame,
}

impl fmt::Display for TakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not free in an isolated range", self.frame.pa())
    }
}

impl core::error::Error for TakeError {}

impl Memory<'_> {
    /// Isolates every pageblock that `range` touches.
    ///
    /// # Errors
    /// Fails if the rules in the module's documentation forbid it for one of them. Nothing changes then.
    pub fn isolate(&self, range: FrameRange, requester: Requester) -> Result<Isolated, IsolateError> {
        let mut first = None;
        for part in pageblocks(range) {
            if let Err((frame, reason)) = self.isolate_part(part, requester, &mut first) {
                let done = FrameRange::from_numbers(range.start(), part.start()).unwrap_or_default();
                self.open_pageblocks(done);
                return Err(IsolateError { range, frame, reason });
            }
        }
        Ok(Isolated { range })
    }

    /// Extends an isolated range to frame number `end`, for a caller that isolates a large range in slices. The range
    /// must so far end at a pageblock boundary.
    ///
    /// # Errors
    /// As for [`Self::isolate`]. The range stays what it was then.
    pub fn isolate_on(
        &self,
        isolated: &mut Isolated,
        end: u64,
        requester: Requester,
    ) -> Result<(), IsolateError> {
        let done = isolated.range;
        let range = FrameRange::from_numbers(done.end(), end).unwrap_or_default();
        let mut first = self
            .record(done.first())
            .map(|record| (record.ram_range.index, record.table().words.word(record.slot)));
        for part in pageblocks(range) {
            let is_cut = !part.start().is_multiple_of(PAGEBLOCK_FRAMES);
            let result = match is_cut {
                true => Err((part.first(), IsolateReason::Broken)),
                false => self.isolate_part(part, requester, &mut first),
            };
            if let Err((frame, reason)) = result {
                self.open_pageblocks(FrameRange::from_numbers(done.end(), part.start()).unwrap_or_default());
                return Err(IsolateError { range, frame, reason });
            }
        }
        isolated.range = FrameRange::from_numbers(done.start(), end.max(done.end())).unwrap_or(done);
        Ok(())
    }

    /// Isolates the pageblock that contains `part`.
    fn isolate_part(
        &self,
        part: FrameRange,
        requester: Requester,
        first: &mut Option<(u8, Pageblock)>,
    ) -> Result<(), (Frame, IsolateReason)> {
        let refused = |reason| Err((part.first(), reason));
        let Some(record) = self.record(part.first()) else { return refused(IsolateReason::Broken) };
        let mut locked = record.lock_to_change();
        let word = record.table().words.word(record.slot);
        let (ram_range, zone) = (record.ram_range.index, word.zone());
        let (first_ram_range, first_word) = *first.get_or_insert((ram_range, word));
        if ram_range != first_ram_range
            || zone != first_word.zone()
            || !record.ram_range.range.contains_range(part)
        {
            return refused(IsolateReason::Broken);
        }
        if let Some(reason) = refusal(word, requester) {
            return refused(reason);
        }
        check_movable(&record, part)?;
        let free = locked.lists.isolate(record.table(), record.slot);
        locked.count_moved(FrameUse::Free, FrameUse::Isolated, free);
        Ok(())
    }

    /// Ends an isolation. Free frames of its pageblocks can be allocated again.
    pub fn end_isolation(&self, isolated: Isolated) {
        self.open_pageblocks(isolated.range);
    }

    /// Ends the isolation of the last `most` pageblocks of an isolated range, for a caller that ends a large isolation
    /// in slices. Returns the part that is still isolated.
    pub fn end_isolation_of_last(&self, isolated: Isolated, most: u64) -> Option<Isolated> {
        let Isolated { range } = isolated;
        let last = range.end().div_ceil(PAGEBLOCK_FRAMES);
        let from = (last.saturating_sub(most.max(1)) * PAGEBLOCK_FRAMES).max(range.start());
        self.open_pageblocks(FrameRange::from_numbers(from, range.end()).unwrap_or_default());
        let rest = FrameRange::from_numbers(range.start(), from).filter(|rest| !rest.is_empty());
        rest.map(|range| Isolated { range })
    }

    fn open_pageblocks(&self, range: FrameRange) {
        for part in pageblocks(range) {
            let Some(record) = self.record(part.first()) else { continue };
            let mut locked = record.lock_to_change();
            let free = locked.lists.end_isolation(record.table(), record.slot);
            locked.count_moved(FrameUse::Isolated, FrameUse::Free, free);
        }
    }

    /// Allocates `range`, a free part of an isolated range, to `owner` as unmovable blocks of at most a pageblock.
    /// Returns the state of its bytes: unless they are zero, they must be scrubbed before the owner can read them.
    /// [`Self::release_range`] frees all or part of it.
    ///
    /// # Errors
    /// Fails if a frame of it is not free, or is outside the isolated range. Nothing changes then.
    pub fn take_isolated(
        &self,
        isolated: &Isolated,
        range: FrameRange,
        owner: Owner,
    ) -> Result<Contents, TakeError> {
        if !isolated.range.contains_range(range) {
            return Err(TakeError { frame: range.first() });
        }
        if let Some(occupant) = self.occupants(range).next() {
            let number = occupant.frame.number().max(range.start());
            return Err(TakeError { frame: Frame::try_new(number).unwrap_or(occupant.frame) });
        }
        let mut contents = Contents::Zeroed;
        for part in pageblocks(range) {
            let record = self.record(part.first()).ok_or(TakeError { frame: part.first() })?;
            let mut locked = record.lock_to_change();
            let words = record.table().words;
            // Free frames of an isolated pageblock are not allocated, but the operator may have retired some since.
            if let Some(frame) = first_not_free(&record, part) {
                drop(locked);
                let done = FrameRange::from_numbers(range.start(), part.start()).unwrap_or_default();
                // Freeing cannot fail: this owner has just taken it.
                let _ = self.release_range(done, owner, contents);
                return Err(TakeError { frame });
            }
            for (number, order) in crate::phys::alloc::boot::blocks(part) {
                let slot = record.ram_range.slot(number);
                contents = contents.and(locked.lists.withdraw(record.table(), slot, order));
                if order == PAGEBLOCK_ORDER {
                    words.set_word(slot, words.word(slot).with_head(Shape::Used, order));
                }
                let meta = Meta::used(order, owner.index(), MemoryKind::Unmovable);
                words.entry(slot).set_used(meta, None);
            }
            locked.count_moved(FrameUse::Isolated, FrameUse::Used(owner.index()), part.frames());
        }
        Ok(contents)
    }
}

/// Returns the first frame of `part`, which lies in one pageblock, that is not free.
fn first_not_free(record: &FrameRecord<'_, '_>, part: FrameRange) -> Option<Frame> {
    let mut number = part.start();
    while number < part.end() {
        match record.table().head(record.ram_range, number) {
            Some(head) if head.state == State::Free => number = head.end(),
            _ => return Frame::try_new(number),
        }
    }
    None
}

/// Returns the reason why `requester` must not isolate a pageblock with this word.
pub(super) fn refusal(word: Pageblock, requester: Requester) -> Option<IsolateReason> {
    let by_owner = match (requester, word.pool(), word.block()) {
        (Requester::Pool(own), Some(pool), _) if own == pool => None,
        (Requester::Anyone, None, None) => None,
        (_, Some(pool), _) => Some(IsolateReason::InPool(pool)),
        (_, None, Some(block)) => Some(IsolateReason::InBlock(block)),
        (Requester::Pool(_), None, None) => Some(IsolateReason::OutsidePool),
    };
    by_owner.or((word.isolation() == Isolation::Isolated).then_some(IsolateReason::Isolated))
}

/// Checks that all blocks in `part`, which lies in one pageblock, can be moved.
pub(super) fn check_movable(
    record: &FrameRecord<'_, '_>,
    part: FrameRange,
) -> Result<(), (Frame, IsolateReason)> {
    let mut number = part.start();
    while number < part.end() {
        let refused = |reason| (Frame::try_new(number).unwrap_or_default(), reason);
        let head = record.table().head(record.ram_range, number).ok_or(refused(IsolateReason::Broken))?;
        let meta = record.table().words.entry(record.ram_range.slot(head.number)).meta();
        match (head.state, meta.owner()) {
            (State::Reserved, _) => return Err(refused(IsolateReason::Reserved)),
            (State::Retired, _) => return Err(refused(IsolateReason::Retired)),
            (State::Used, Some(owner)) if meta.kind() == MemoryKind::Unmovable => {
                return Err(refused(IsolateReason::Pinned(owner)));
            }
            (State::Used, _) if meta.holds_doomed() => {
                let of_part = number..head.end().min(part.end());
                let is_doomed = |number: &u64| {
                    let slot = record.ram_range.slot(*number);
                    let words = record.table().words;
                    words.word(slot).is_touched() && words.entry(slot).meta().is_doomed()
                };
                if let Some(doomed) = of_part.clone().find(is_doomed) {
                    return Err((Frame::try_new(doomed).unwrap_or_default(), IsolateReason::Retired));
                }
            }
            _ => {}
        }
        number = head.end();
    }
    Ok(())
}
