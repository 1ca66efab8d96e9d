//! An arena: the free lists of one zone behind one controller, their lock, and its counters.
//!
//! Only the holder of the lock writes the counters. They may be read at any time; without the lock, a reader gets
//! values of a moment ago, each for itself.

use crate::owner::{OWNERS, Owner};
use crate::phys::buddy::FreeLists;
use crate::phys::pageblock::Isolation;
use crate::sync::Ordering::Relaxed;
use crate::sync::{Aside, Counter, Lock, MutexGuard, aside};

/// The allocator of one zone behind one controller.
pub struct Arena {
    lists: Lock<FreeLists>,
    counters: Counters,
}

/// An arena's counters, in frames.
pub(crate) struct Counters {
    managed: Counter,
    free: Counter,
    isolated: Counter,
    retired: Counter,
    used: Aside<[Counter; OWNERS]>,
}

/// Adds to a counter. Not an atomic addition: only for the holder of the arena's lock.
#[inline]
fn add(counter: &Counter, frames: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(frames as u32), Relaxed);
}

/// Subtracts from a counter. Only for the holder of the arena's lock.
#[inline]
fn subtract(counter: &Counter, frames: u64) {
    counter.store(counter.load(Relaxed).wrapping_sub(frames as u32), Relaxed);
}

impl Arena {
    /// Creates an arena without frames.
    #[cfg(not(loom))]
    #[allow(clippy::new_without_default, reason = "only boot creates arenas")]
    pub const fn new() -> Self {
        let counters = Counters {
            managed: Counter::new(0),
            free: Counter::new(0),
            isolated: Counter::new(0),
            retired: Counter::new(0),
            used: aside([const { Counter::new(0) }; OWNERS]),
        };
        Self { lists: Lock::new(FreeLists::new()), counters }
    }

    /// Creates an arena without frames.
    #[cfg(loom)]
    pub fn new() -> Self {
        let counters = Counters {
            managed: Counter::new(0),
            free: Counter::new(0),
            isolated: Counter::new(0),
            retired: Counter::new(0),
            used: aside(core::array::from_fn(|_| Counter::new(0))),
        };
        Self { lists: Lock::new(FreeLists::new()), counters }
    }

    /// Locks the arena. The guard carries the counters, which may be written only under the lock.
    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked { lists: self.lists.lock(), counters: &self.counters }
    }

    /// Locks the arena to change what the lock protects, and counts a change, so that a walk over the arena in several
    /// steps notices it.
    pub(crate) fn lock_to_change(&self) -> Locked<'_> {
        let mut locked = self.lock();
        locked.lists.count_change();
        locked
    }

    /// Returns the number of frames that the allocator manages.
    pub(crate) fn managed(&self) -> u64 {
        self.counters.managed.load(Relaxed).into()
    }

    /// Returns the number of free frames of isolated pageblocks, which cannot be allocated.
    pub(crate) fn isolated(&self) -> u64 {
        self.counters.isolated.load(Relaxed).into()
    }

    /// Returns the number of free frames, without those of isolated pageblocks.
    #[inline]
    pub(crate) fn free(&self) -> u64 {
        self.counters.free.load(Relaxed).into()
    }

    /// Returns the number of retired frames.
    pub(crate) fn retired(&self) -> u64 {
        self.counters.retired.load(Relaxed).into()
    }

    /// Returns the number of frames of `owner`.
    #[inline]
    pub(crate) fn used(&self, owner: Owner) -> u64 {
        self.counters.used[owner.index()].load(Relaxed).into()
    }
}

/// A locked arena.
pub(crate) struct Locked<'m> {
    pub(crate) lists: MutexGuard<'m, FreeLists>,
    counters: &'m Counters,
}

impl Locked<'_> {
    /// Counts `frames` free frames as used by the owner with index `owner`.
    #[inline]
    pub(crate) fn count_taken(&self, owner: usize, frames: u64) {
        subtract(&self.counters.free, frames);
        add(&self.counters.used[owner], frames);
    }

    /// Counts `frames` frames of the owner with index `owner` as free.
    #[inline]
    pub(crate) fn count_given(&self, owner: usize, frames: u64) {
        add(&self.counters.free, frames);
        subtract(&self.counters.used[owner], frames);
    }

    /// Counts `frames` reserved frames as managed and free.
    pub(crate) fn count_released(&self, frames: u64) {
        add(&self.counters.managed, frames);
        add(&self.counters.free, frames);
    }

    /// Counts `frames` frames as `to` instead of `from`.
    pub(crate) fn count_moved(&self, from: FrameUse, to: FrameUse, frames: u64) {
        subtract(self.counter(from), frames);
        add(self.counter(to), frames);
    }

    fn counter(&self, standing: FrameUse) -> &Counter {
        match standing {
            FrameUse::Free => &self.counters.free,
            FrameUse::Isolated => &self.counters.isolated,
            FrameUse::Retired => &self.counters.retired,
            FrameUse::Used(owner) => &self.counters.used[owner],
        }
    }
}

/// The counter of a managed frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameUse {
    /// Free, and can be allocated.
    Free,
    /// Free in an isolated pageblock.
    Isolated,
    /// Retired.
    Retired,
    /// In use by the owner with this [`Owner::index`].
    Used(usize),
}

impl FrameUse {
    /// Returns the counter of a free frame in a pageblock with this isolation.
    pub(crate) const fn free_in(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Open => Self::Free,
            Isolation::Isolated => Self::Isolated,
        }
    }
}
