//! Isolation: the first step of every claim of a contiguous range.
//!
//! An isolated pageblock hands out no frame; what is freed in it stays there. Isolation is a bit beside the pageblock's
//! type, so that ending it restores exactly what was there. **Every** pageblock that a range touches is checked and
//! isolated by the same rules, the first and the last, of which the range may have only a part, no less than those
//! between:
//!
//! - a pageblock of a pool is isolated only by that pool, a pageblock of a designated block outside any pool by nobody,
//!   any other only by [`Requester::Anyone`];
//! - a pageblock that is isolated already is refused: one claim at a time;
//! - of the range itself, frames that cannot be moved, reserved, retired or doomed ones are refused. Blocks that reach
//!   out of the range are no reason: those in use are moved, or divided first, whole; free ones are split.
//!
//! The range lies in one RAM range and one zone. Whatever is refused, the pageblocks before it are open again when the
//! error is returned.

use core::fmt;

use super::reshape::pageblocks;
use super::{FrameRecord, Memory};
use crate::addr::{Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::owner::{Owner, PoolId};
use crate::phys::arena::Standing;
use crate::phys::frame::{Contents, MemoryKind, Meta, State};
use crate::phys::pageblock::{Isolation, Pageblock, Shape};
use crate::range::FrameRange;

/// Who asks for a range to be isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requester {
    /// Nobody in particular: a contiguous search, which keeps out of pools and designated blocks.
    Anyone,
    /// The owner of a pool, inside it.
    Pool(PoolId),
}

/// A range whose pageblocks are isolated. Given back to [`Memory::end_isolation`]; dropped, it stays isolated for ever.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "what nobody ends stays isolated"]
pub struct Isolated {
    range: FrameRange,
}

impl Isolated {
    /// What was asked for. Its pageblocks are isolated whole.
    pub const fn range(&self) -> FrameRange {
        self.range
    }
}

/// Why a range was not isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IsolateError {
    /// The range.
    pub range: FrameRange,
    /// The frame that stands in the way, or the first of the pageblock that does.
    pub frame: Frame,
    /// How.
    pub reason: IsolateReason,
}

/// What keeps a pageblock from being isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IsolateReason {
    /// Not in the same RAM range, or zone, as what comes before; or no RAM at all.
    Broken,
    /// In a pool that is not the requester's.
    InPool(PoolId),
    /// In a designated block, and in no pool of the requester's.
    InBlock(u8),
    /// In no pool of the requester's.
    OutsidePool,
    /// Isolated for somebody else.
    Isolated,
    /// In use, and cannot be moved.
    Pinned(Owner),
    /// Reserved since boot.
    Reserved,
    /// Retired, or to be retired when freed.
    Retired,
}

impl fmt::Display for IsolateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("not in the same RAM range and zone as what comes before"),
            Self::InPool(pool) => write!(f, "in {pool}"),
            Self::InBlock(block) => write!(f, "in designated block {block}, which no pool has there"),
            Self::OutsidePool => f.write_str("outside the pool"),
            Self::Isolated => f.write_str("claimed by somebody else at this time"),
            Self::Pinned(owner) => write!(f, "in use by {owner}, which cannot be moved"),
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

/// Why an isolated range was not taken: not all of it is free.
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
    /// Where one of them must not be, by the rules at the head of this module; everything is as before then.
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

    /// Isolates what follows an isolated range, up to frame number `end`: for who isolates a large range in slices. The
    /// range has to end with a pageblock so far.
    ///
    /// # Errors
    /// As [`Self::isolate`]; the range stays what it was then.
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
            .map(|record| (record.region.index, record.table().words.word(record.slot)));
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

    /// Isolates the pageblock that `part` lies in.
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
        let (region, zone) = (record.region.index, word.zone());
        let (first_region, first_word) = *first.get_or_insert((region, word));
        if region != first_region || zone != first_word.zone() || !record.region.range.contains_range(part) {
            return refused(IsolateReason::Broken);
        }
        if let Some(reason) = refusal(word, requester) {
            return refused(reason);
        }
        check_movable(&record, part)?;
        let free = locked.lists.isolate(record.table(), record.slot);
        locked.count_moved(Standing::Free, Standing::Isolated, free);
        Ok(())
    }

    /// Ends an isolation: what is free in its pageblocks can be allocated again.
    pub fn end_isolation(&self, isolated: Isolated) {
        self.open_pageblocks(isolated.range);
    }

    /// Ends the isolation of the last `most` pageblocks of an isolated range, for who ends that of a large range in slices.
    /// Yields what is isolated still.
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
            locked.count_moved(Standing::Isolated, Standing::Free, free);
        }
    }

    /// Gives `range` of an isolated range, all of which must be free, to `owner`, as blocks of at most a pageblock that
    /// cannot be moved. Returns what is known of its bytes: unless they are zero, scrub before the owner can read them.
    /// They are given back, whole or in parts, by [`Self::release_range`].
    ///
    /// # Errors
    /// Where a frame of it is not free, or does not lie in the isolated range; nothing is changed then.
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
            // Nobody takes what is free in an isolated pageblock, but the operator may have retired it since.
            if let Some(frame) = first_not_free(&record, part) {
                drop(locked);
                let done = FrameRange::from_numbers(range.start(), part.start()).unwrap_or_default();
                // Just taken, by this owner: nothing keeps it from going back.
                let _ = self.release_range(done, owner, contents);
                return Err(TakeError { frame });
            }
            for (number, order) in crate::phys::alloc::boot::blocks(part) {
                let slot = record.region.slot(number);
                contents = contents.and(locked.lists.withdraw(record.table(), slot, order));
                if order == PAGEBLOCK_ORDER {
                    words.set_word(slot, words.word(slot).with_head(Shape::Used, order));
                }
                let meta = Meta::used(order, owner.index(), MemoryKind::Unmovable);
                words.entry(slot).set_used(meta, None);
            }
            locked.count_moved(Standing::Isolated, Standing::Used(owner.index()), part.frames());
        }
        Ok(contents)
    }
}

/// The first frame of `part`, in one pageblock, that is not free.
fn first_not_free(record: &FrameRecord<'_, '_>, part: FrameRange) -> Option<Frame> {
    let mut number = part.start();
    while number < part.end() {
        match record.table().head(record.region, number) {
            Some(head) if head.state == State::Free => number = head.end(),
            _ => return Frame::try_new(number),
        }
    }
    None
}

/// Why `requester` must not isolate a pageblock with this word.
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

/// Checks that all that stands in `part`, in one pageblock, can be moved.
pub(super) fn check_movable(
    record: &FrameRecord<'_, '_>,
    part: FrameRange,
) -> Result<(), (Frame, IsolateReason)> {
    let mut number = part.start();
    while number < part.end() {
        let refused = |reason| (Frame::try_new(number).unwrap_or_default(), reason);
        let head = record.table().head(record.region, number).ok_or(refused(IsolateReason::Broken))?;
        let meta = record.table().words.entry(record.region.slot(head.number)).meta();
        match (head.state, meta.owner()) {
            (State::Reserved, _) => return Err(refused(IsolateReason::Reserved)),
            (State::Retired, _) => return Err(refused(IsolateReason::Retired)),
            (State::Used, Some(owner)) if meta.kind() == MemoryKind::Unmovable => {
                return Err(refused(IsolateReason::Pinned(owner)));
            }
            (State::Used, _) if meta.holds_doomed() => {
                let of_part = number..head.end().min(part.end());
                let is_doomed = |number: &u64| {
                    let slot = record.region.slot(*number);
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
