//! What claims ask for: memory to claim from, windows to show it in, time and scrubbing.

use super::operation::Report;
use crate::addr::{Frame, Ipa};
use crate::frame::Contents;
use crate::memory::{Glance, IsolateError, Isolated, Memory, Occupant, Requester, TakeError};
use crate::migrate::{Frames, Time};
use crate::owner::{GuestId, Owner, PoolId};
use crate::placement::Placement;
use crate::range::FrameRange;

/// The allocator, as far as claims need it.
pub trait Ground {
    /// What the pageblock of `frame` is used for.
    fn glance(&self, frame: Frame) -> Option<Glance>;

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
}

impl Ground for Memory<'_> {
    fn glance(&self, frame: Frame) -> Option<Glance> {
        Memory::glance(self, frame)
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
}

/// The windows in which guests see what they claimed.
pub trait Windows {
    /// Maps `range` of `pool` into the window of `guest`. Yields where it appears, or `None`, with nothing mapped, where
    /// there is no room, no frame for a table, or no such guest any more.
    fn show(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> Option<Ipa>;

    /// Unmaps what of `range` appears in the window of `guest`; when it returns, no access of the guest reaches it.
    /// Yields whether it did: not where a leaf reaches out of the range and there is no frame for the table that is
    /// needed to take it apart. A range that was shown as a whole can always be hidden.
    fn hide(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> bool;

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

    /// An operation begins, or is over: its state says which. Nothing of [`Claims`](super::Claims) may be called.
    fn note(&self, report: &Report) {
        let _ = report;
    }
}
