//! One zone behind one controller: its free lists under a lock, and its counters.
//!
//! The counters are written only by whoever holds the lock and may be read at any time; a reader without the lock
//! sees values that were true a moment ago, each for itself.

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

/// Adds to a counter. Only for the holder of the arena's lock: it is no atomic addition.
#[inline]
fn add(counter: &Counter, frames: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(frames as u32), Relaxed);
}

/// Takes from a counter. Only for the holder of the arena's lock.
#[inline]
fn subtract(counter: &Counter, frames: u64) {
    counter.store(counter.load(Relaxed).wrapping_sub(frames as u32), Relaxed);
}

impl Arena {
    /// An arena without frames.
    #[cfg(not(loom))]
    #[allow(clippy::new_without_default, reason = "made only where memory is handed over")]
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

    /// An arena without frames.
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

    /// Takes the lock. The counters come with it, for they may only be written under it.
    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked { lists: self.lists.lock(), counters: &self.counters }
    }

    /// Takes the lock in order to change what it guards: a walk over the arena in several steps sees that.
    pub(crate) fn lock_to_change(&self) -> Locked<'_> {
        let mut locked = self.lock();
        locked.lists.count_change();
        locked
    }

    /// Frames that the allocator was given.
    pub(crate) fn managed(&self) -> u64 {
        self.counters.managed.load(Relaxed).into()
    }

    /// Free frames of isolated pageblocks, which nobody is given.
    pub(crate) fn isolated(&self) -> u64 {
        self.counters.isolated.load(Relaxed).into()
    }

    /// Free frames, those of isolated pageblocks apart.
    #[inline]
    pub(crate) fn free(&self) -> u64 {
        self.counters.free.load(Relaxed).into()
    }

    /// Retired frames.
    pub(crate) fn retired(&self) -> u64 {
        self.counters.retired.load(Relaxed).into()
    }

    /// Frames that `owner` has here.
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

    /// Counts `frames` frames that were `from` as `to`.
    pub(crate) fn count_moved(&self, from: Standing, to: Standing, frames: u64) {
        subtract(self.counter(from), frames);
        add(self.counter(to), frames);
    }

    fn counter(&self, standing: Standing) -> &Counter {
        match standing {
            Standing::Free => &self.counters.free,
            Standing::Isolated => &self.counters.isolated,
            Standing::Retired => &self.counters.retired,
            Standing::Used(owner) => &self.counters.used[owner],
        }
    }
}

/// What a managed frame is counted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Free, and can be allocated.
    Free,
    /// Free in an isolated pageblock.
    Isolated,
    /// Retired.
    Retired,
    /// In use by the owner with this [`Owner::index`].
    Used(usize),
}

impl Standing {
    /// What a free frame of a pageblock with this isolation is counted as.
    pub(crate) const fn free_in(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Open => Self::Free,
            Isolation::Isolated => Self::Isolated,
        }
    }
}
