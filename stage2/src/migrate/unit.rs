//! Units in flight in one guest's address space.

use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE};
use crate::table::{BrokenRun, Mark};

/// Mark of a 4 KiB unit between break and make.
pub(super) const MOVING: Mark = Mark::new_truncate(1);
/// Mark of a protected 2 MiB unit that is being copied.
pub(super) const COPYING: Mark = Mark::new_truncate(2);
/// Mark of a 2 MiB unit between break and make.
pub(super) const SWITCHING: Mark = Mark::new_truncate(3);

/// Maximum number of 4 KiB units that are broken at a time.
pub const BATCH: usize = 32;

/// The CPU that copies a 2 MiB unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copying {
    /// None.
    Nobody,
    /// The worker.
    Worker,
    /// A CPU whose vCPU wrote to the unit.
    Helper,
}

/// A 2 MiB unit that is being copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HugeUnit {
    pub(super) ipa: Ipa,
    pub(super) source: Frame,
    pub(super) target: Frame,
    /// Number of frames copied, from the first.
    pub(super) copied: u16,
    pub(super) copying: Copying,
}

impl HugeUnit {
    /// Returns the number of frames left to copy.
    pub(super) const fn left(&self) -> u16 {
        PAGEBLOCK_FRAMES as u16 - self.copied
    }
}

/// An area whose 4 KiB units move into one target block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub(super) ipa: Ipa,
    /// The source, if it is one block: released as a whole at the end.
    pub(super) source: Option<Frame>,
    pub(super) target: Frame,
    /// Number of units moved, from the first.
    pub(super) next: u16,
    /// Number of them that a split has moved and that are not counted yet.
    pub(super) uncounted: u16,
}

/// The work in flight in a space, besides a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// Nothing.
    Nothing,
    /// A 2 MiB unit that is being copied.
    Huge(HugeUnit),
    /// A 2 MiB unit that a helper or the worker has completed. The source is to be released.
    Switched { ipa: Ipa, source: Frame, target: Frame },
    /// A 2 MiB unit that stays at its source. The target is to be released.
    GivenUp { target: Frame },
    /// An area whose units of 4 KiB move into one block.
    Block(Block),
}

/// A batch, from the break to the last make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub(super) run: BrokenRun,
    pub(super) sources: [Frame; BATCH],
    pub(super) targets: [Frame; BATCH],
    /// The first units of runs, a bit each.
    pub(super) starts: u64,
}

/// Returns whether frame `index` directly follows the previous one in the same pageblock.
#[inline(always)]
fn follows(frames: &[Frame; BATCH], index: usize) -> bool {
    let number = frames[index % BATCH].number();
    number == frames[(index - 1) % BATCH].number() + 1 && !number.is_multiple_of(PAGEBLOCK_FRAMES)
}

impl Batch {
    /// Makes an empty batch.
    pub(super) const fn empty() -> Self {
        let none = [Frame::containing(crate::addr::Pa::new_truncate(0)); BATCH];
        Self { run: BrokenRun::EMPTY, sources: none, targets: none, starts: 0 }
    }

    /// Returns the number of units.
    pub(super) const fn len(&self) -> usize {
        let count = self.run.leaf_count();
        if count > BATCH { BATCH } else { count }
    }

    /// Returns the index of the unit at `ipa`.
    pub(super) const fn index_of(&self, ipa: Ipa) -> Option<usize> {
        let Some(offset) = ipa.get().checked_sub(self.run.ipa().get()) else { return None };
        let index = (offset / FRAME_SIZE) as usize;
        if index < self.len() { Some(index) } else { None }
    }

    /// Returns the runs, index of the first unit and count: units whose sources and targets are both contiguous within
    /// a pageblock.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let (mut next, mut starts, count) = (0, self.starts & !1, self.len());
        core::iter::from_fn(move || {
            let (first, end) = (next, (starts.trailing_zeros() as usize).min(count));
            starts &= starts.wrapping_sub(1);
            next = end;
            (first < count).then_some((first, end - first))
        })
    }

    /// Finds the starts of runs, once sources and targets are known.
    pub(super) fn note_runs(&mut self) {
        self.starts = 1;
        for index in 1..self.len() {
            if !follows(&self.sources, index) || !follows(&self.targets, index) {
                self.starts |= 1 << index;
            }
        }
    }

    /// Returns a mask of all units.
    pub(super) const fn all(&self) -> u64 {
        (1 << self.len()) - 1
    }
}

/// Returns the area of `ipa`.
pub(super) const fn area_of(ipa: Ipa) -> Ipa {
    Ipa::new_truncate(ipa.get() & !(PAGEBLOCK_SIZE - 1))
}

/// Returns the frame `index` frames after `frame` in the same block.
pub(super) fn frame_at(frame: Frame, index: u64) -> Frame {
    // Blocks come from the allocator and end below the address limit.
    frame.checked_add(index).unwrap_or(frame)
}
