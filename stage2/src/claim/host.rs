//! Services that claims need from their host: the allocator, windows, time and scrubbing.

use super::operation::Report;
use crate::addr::{Frame, Ipa, MAX_ORDER, PAGEBLOCK_FRAMES};
use crate::controller::{ControllerId, ControllerSet};
use crate::migrate::{Frames, Region, Time};
use crate::owner::{GuestId, Owner, PoolId};
use crate::phys::alloc::{Glance, IsolateError, Isolated, Memory, Occupant, Requester, TakeError};
use crate::phys::frame::Contents;
use crate::phys::placement::Placement;
use crate::range::FrameRange;

/// The allocator's operations that claims use.
pub trait Ground {
    /// Returns the usage of the pageblock of `frame`.
    fn glance(&self, frame: Frame) -> Option<Glance>;

    /// Fills `glances` with the usage of consecutive pageblocks from that of `frame` on. Returns the number of pageblocks,
    /// which may be smaller than `glances`: see [`Memory::glances`].
    fn glances(&self, frame: Frame, glances: &mut [Glance]) -> usize;

    /// Returns the first block in `range` that is not free.
    fn occupant(&self, range: FrameRange) -> Option<Occupant>;

    /// Isolates the pageblocks that `range` touches for `pool`.
    ///
    /// # Errors
    /// The first frame that cannot be isolated, and the reason. Nothing has changed then.
    fn isolate(&self, range: FrameRange, pool: PoolId) -> Result<Isolated, IsolateError>;

    /// Extends an isolation up to frame number `end`.
    ///
    /// # Errors
    /// As [`Self::isolate`]. The isolation before the call stays.
    fn isolate_on(&self, isolated: &mut Isolated, end: u64, pool: PoolId) -> Result<(), IsolateError>;

    /// Ends the isolation of the last `most` pageblocks. Returns the rest of the isolation.
    fn end_isolation_of_last(&self, isolated: Isolated, most: u64) -> Option<Isolated>;

    /// Gives free frames of an isolated range to the owner of `pool`.
    ///
    /// # Errors
    /// The frame that is not free. Nothing has changed then.
    fn take(&self, isolated: &Isolated, range: FrameRange, pool: PoolId) -> Result<Contents, TakeError>;

    /// Frees frames of the owner of `pool`. Returns false, without a change, if not all of them are the owner's.
    fn give(&self, range: FrameRange, pool: PoolId, contents: Contents) -> bool;

    /// Returns the number of frames that the owner of `pool` has.
    fn claimed_frames(&self, pool: PoolId) -> u64;

    /// Returns the number of free frames that tenants can move to. Those of isolated pageblocks do not count.
    fn free_frames(&self) -> u64;

    /// Returns the number of such frames behind `controller`. The sum over all controllers may exceed
    /// [`Self::free_frames`].
    fn free_frames_behind(&self, controller: ControllerId) -> u64;

    /// Returns the controllers from which memory may be allocated.
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

/// Maximum number of pageblocks that are mapped or unmapped in a turn, unless they are one leaf.
const SHOWN: u64 = 32;

/// Returns the first slice of `range`, which is mapped or unmapped in one turn. A slice has few leaves, and none that
/// reaches into the next slice. Empty if `range` is empty.
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

/// Returns the part of `range` after `slice`.
pub(super) fn after(range: FrameRange, slice: FrameRange) -> FrameRange {
    FrameRange::from_numbers(slice.end(), range.end()).unwrap_or_default()
}

/// The windows in which guests see the ranges that they claimed.
pub trait Windows {
    /// Invalidates the instruction caches of all CPUs. They may hold instructions, by physical address, that a tenant
    /// executed from frames that have been scrubbed since; the owner must not execute them (Arm ARM, "Caches and memory
    /// hierarchy": IC IALLUIS, CTR_EL0.DIC).
    fn invalidate_instructions(&self);

    /// Maps `slice`, a [`slice_of`] a claimed range of `pool`, into the window of `guest`. Returns its IPA. `None`, with
    /// nothing mapped, if there is no room, no frame for a table, or no such guest any more.
    fn show(&self, guest: GuestId, pool: PoolId, slice: FrameRange) -> Option<Ipa>;

    /// Demotes leaves that cross an end of `range`, so that it can be unmapped slice by slice. Returns false if there is
    /// no frame for a table. A range that was shown as a whole needs none.
    fn part(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> bool;

    /// Returns the first pageblocks of the first [`slice_of`] `range` that have few leaves in the window of `guest`; at
    /// least one pageblock, however many leaves it has.
    fn slice_to_hide(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> FrameRange {
        let _ = (guest, pool);
        slice_of(range)
    }

    /// Unmaps `slice` from the window of `guest`, in which no leaf crosses an end of it. Parts that are not mapped are
    /// skipped. Returns whether it succeeded: then no access by the guest reaches the slice any more.
    #[must_use]
    fn hide(&self, guest: GuestId, pool: PoolId, slice: FrameRange) -> bool;

    /// Zeroes `count` frames of one pageblock from `frame` on.
    fn scrub(&self, frame: Frame, count: u64);

    /// Cleans `count` frames of one pageblock from `frame` on to the point of coherency, so that accesses that bypass the
    /// caches see zeroes and not a tenant's data.
    fn clean(&self, frame: Frame, count: u64);
}

/// The host of claims.
pub trait Host: Time + Windows {
    /// Type of the allocator.
    type Ground: Ground;

    /// Returns the allocator.
    fn ground(&self) -> &Self::Ground;

    /// Returns the region of the RAM of `guest` that holds `ipa`, or the next one above it. It says where a tenant may
    /// move.
    fn region_at(&self, guest: GuestId, ipa: Ipa) -> Option<Region>;

    /// Is called when an operation begins and when it is over, under the lock of the records. Must not call
    /// [`Claims`](crate::claim::Claims).
    fn note(&self, report: &Report) {
        let _ = report;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_short_and_end_at_the_end_of_a_leaf() {
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
