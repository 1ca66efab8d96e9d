//! What claims ask for: memory to claim from, windows to show it in, time and scrubbing.

use super::operation::Report;
use crate::addr::{Frame, Ipa, MAX_ORDER, PAGEBLOCK_FRAMES};
use crate::controller::{ControllerId, ControllerSet};
use crate::migrate::{Frames, Region, Time};
use crate::owner::{GuestId, Owner, PoolId};
use crate::phys::alloc::{Glance, IsolateError, Isolated, Memory, Occupant, Requester, TakeError};
use crate::phys::frame::Contents;
use crate::phys::placement::Placement;
use crate::range::FrameRange;

/// The allocator, as far as claims need it.
pub trait Ground {
    /// What the pageblock of `frame` is used for.
    fn glance(&self, frame: Frame) -> Option<Glance>;

    /// What the pageblocks from that of `frame` on are used for: some of them, see [`Memory::glances`].
    fn glances(&self, frame: Frame, glances: &mut [Glance]) -> usize;

    /// The first block in `range` that is not free.
    fn occupant(&self, range: FrameRange) -> Option<Occupant>;

    /// Isolates the pageblocks that `range` touches for `pool`.
    ///
    /// # Errors
    /// What is in the way; nothing is changed then.
    fn isolate(&self, range: FrameRange, pool: PoolId) -> Result<Isolated, IsolateError>;

    /// Isolates what follows, up to frame number `end`.
    ///
    /// # Errors
    /// As [`Self::isolate`]; the isolation so far stays.
    fn isolate_on(&self, isolated: &mut Isolated, end: u64, pool: PoolId) -> Result<(), IsolateError>;

    /// Ends the isolation of the last `most` pageblocks. Yields what is isolated still.
    fn end_isolation_of_last(&self, isolated: Isolated, most: u64) -> Option<Isolated>;

    /// Gives free frames of an isolated range to the owner of `pool`.
    ///
    /// # Errors
    /// The frame that is not free; nothing is changed then.
    fn take(&self, isolated: &Isolated, range: FrameRange, pool: PoolId) -> Result<Contents, TakeError>;

    /// Gives back frames of the owner of `pool`. Yields whether they were all the owner's; nothing is changed else.
    fn give(&self, range: FrameRange, pool: PoolId, contents: Contents) -> bool;

    /// The frames that the owner of `pool` has.
    fn claimed_frames(&self, pool: PoolId) -> u64;

    /// The free frames that tenants may move to: those of isolated pageblocks do not count.
    fn free_frames(&self) -> u64;

    /// Those of them behind `controller`; together they may be less than the sum.
    fn free_frames_behind(&self, controller: ControllerId) -> u64;

    /// The controllers that memory may be allocated from.
    fn controllers(&self) -> ControllerSet;
}

impl Ground for Memory<'_> {
    fn glance(&self, frame: Frame) -> Option<Glance> {
        Memory::glance(self, frame)
    }

    fn glances(&self, frame: Frame, glances: &mut [Glance]) -> usize {
        Memory::glances(self, frame, glances)
    }

    fn occupant(&self, range: FrameRange) -> Option<Occupant> {
        self.occupants(range).next()
    }

    fn isolate(&self, range: FrameRange, pool: PoolId) -> Result<Isolated, IsolateError> {
        Memory::isolate(self, range, Requester::Pool(pool))
    }

    fn isolate_on(&self, isolated: &mut Isolated, end: u64, pool: PoolId) -> Result<(), IsolateError> {
        Memory::isolate_on(self, isolated, end, Requester::Pool(pool))
    }

    fn end_isolation_of_last(&self, isolated: Isolated, most: u64) -> Option<Isolated> {
        Memory::end_isolation_of_last(self, isolated, most)
    }

    fn take(&self, isolated: &Isolated, range: FrameRange, pool: PoolId) -> Result<Contents, TakeError> {
        self.take_isolated(isolated, range, Owner::Pool(pool))
    }

    fn give(&self, range: FrameRange, pool: PoolId, contents: Contents) -> bool {
        self.release_range(range, Owner::Pool(pool), contents).is_ok()
    }

    fn claimed_frames(&self, pool: PoolId) -> u64 {
        self.resident_everywhere(Owner::Pool(pool))
    }

    fn free_frames(&self) -> u64 {
        Frames::free_frames(self, &Placement::Any)
    }

    fn free_frames_behind(&self, controller: ControllerId) -> u64 {
        Frames::free_frames(self, &Placement::only(controller))
    }

    fn controllers(&self) -> ControllerSet {
        Memory::controllers(self).iter().filter(|controller| !self.is_closed(*controller)).collect()
    }
}

/// Most pageblocks that are shown or hidden in a turn, where they are not one leaf.
const SHOWN: u64 = 32;

/// The first part of `range` that is shown or hidden in one turn, few leaves at most; parts end where the largest leaves do,
/// so that none lies in two. Empty where `range` is.
pub fn slice_of(range: FrameRange) -> FrameRange {
    const LARGEST: u64 = 1 << MAX_ORDER;
    let start = range.start();
    let most = match start {
        _ if start.is_multiple_of(LARGEST) && range.frames() >= LARGEST => LARGEST,
        _ if start.is_multiple_of(PAGEBLOCK_FRAMES) && range.frames() >= PAGEBLOCK_FRAMES => {
            (SHOWN * PAGEBLOCK_FRAMES).min(range.frames() & !(PAGEBLOCK_FRAMES - 1))
        }
        _ => (start | (PAGEBLOCK_FRAMES - 1)) + 1 - start,
    };
    let end = (start + most).min((start | (LARGEST - 1)) + 1).min(range.end());
    FrameRange::from_numbers(start, end).unwrap_or_default()
}

/// What `slice_of` leaves of `range`.
pub(super) fn after(range: FrameRange, slice: FrameRange) -> FrameRange {
    FrameRange::from_numbers(slice.end(), range.end()).unwrap_or_default()
}

/// The windows in which guests see what they claimed.
pub trait Windows {
    /// Invalidates the instruction caches of all CPUs. They may still hold, by physical address, what tenants executed from
    /// frames that were scrubbed since, and what a guest executes from its window must not be that (Arm ARM, "Caches and
    /// memory hierarchy": IC IALLUIS, CTR_EL0.DIC).
    fn invalidate_instructions(&self);

    /// Maps `slice` of `pool`, a [`slice_of`] what is claimed, into the window of `guest`. Yields where it appears, or `None`,
    /// with nothing of it mapped, where there is no room, no frame for a table, or no such guest any more.
    fn show(&self, guest: GuestId, pool: PoolId, slice: FrameRange) -> Option<Ipa>;

    /// Takes leaves apart that reach over an end of `range`, so that it can be hidden slice by slice. Yields whether that
    /// went well: not where there is no frame for a table. A range that was shown as a whole needs none.
    fn part(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> bool;

    /// The first part of `range` of which few leaves appear in the window of `guest`: of a [`slice_of`] it the first
    /// pageblocks. At least one, however many leaves it has.
    fn slice_to_hide(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> FrameRange {
        let _ = (guest, pool);
        slice_of(range)
    }

    /// Unmaps what of `slice` appears in the window of `guest`, where no leaf reaches out of it. Yields whether that went
    /// well: then no access of the guest reaches it any more.
    #[must_use]
    fn hide(&self, guest: GuestId, pool: PoolId, slice: FrameRange) -> bool;

    /// Fills `count` frames of one pageblock from `frame` on with zeroes.
    fn scrub(&self, frame: Frame, count: u64);

    /// Cleans `count` frames of one pageblock from `frame` on to the point of coherency: who looks past the caches must
    /// see the zeroes too, and not what a tenant once left in memory.
    fn clean(&self, frame: Frame, count: u64);
}

/// All of these together.
pub trait Host: Time + Windows {
    /// The allocator's type.
    type Ground: Ground;

    /// The allocator.
    fn ground(&self) -> &Self::Ground;

    /// The region of the RAM of `guest` that holds `ipa`, or else the next one above it: says where a tenant may move.
    fn region_at(&self, guest: GuestId, ipa: Ipa) -> Option<Region>;

    /// An operation begins, or is over: its state says which. Nothing of [`Claims`](crate::claim::Claims) may be called.
    fn note(&self, report: &Report) {
        let _ = report;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_short_and_end_where_leaves_do() {
        const GIB: u64 = 1 << 18;
        let cases: &[(u64, u64, &[u64])] = &[
            (GIB, 2 * GIB, &[2 * GIB]),
            (GIB, 3 * GIB + 5, &[2 * GIB, 3 * GIB, 3 * GIB + 5]),
            (GIB - 512, GIB + 1024, &[GIB, GIB + 1024]),
            (100, 200, &[200]),
            (100, 1600, &[512, 1536, 1600]),
            (512, 512 * 70, &[512 * 33, 512 * 65, 512 * 70]),
            (7, 7, &[]),
        ];
        for (start, end, ends) in cases {
            let mut left = FrameRange::from_numbers(*start, *end).unwrap();
            let mut found = std::vec::Vec::new();
            while !left.is_empty() {
                let slice = slice_of(left);
                assert_eq!(slice.start(), left.start());
                found.push(slice.end());
                left = after(left, slice);
            }
            assert_eq!(found, *ends, "{start:#x} {end:#x}");
        }
    }
}
