//! The work under way in one guest's address space.

use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE};
use crate::table::{BrokenRun, Mark};

/// A 4 KiB unit between break and make.
pub(super) const MOVING: Mark = Mark::new_truncate(1);
/// A 2 MiB unit, protected, being copied.
pub(super) const COPYING: Mark = Mark::new_truncate(2);
/// A 2 MiB unit between break and make.
pub(super) const SWITCHING: Mark = Mark::new_truncate(3);

/// The most 4 KiB units that are broken at a time.
pub const BATCH: usize = 32;

/// Who copies a 2 MiB unit at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copying {
    /// Nobody.
    Nobody,
    /// The worker.
    Worker,
    /// A CPU whose vCPU wrote to the unit.
    Helper,
}

/// A 2 MiB unit being copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Whole {
    pub(super) ipa: Ipa,
    pub(super) source: Frame,
    pub(super) target: Frame,
    /// Frames copied, from the first on.
    pub(super) copied: u16,
    pub(super) copying: Copying,
}

impl Whole {
    /// Frames still to copy.
    pub(super) const fn left(&self) -> u16 {
        PAGEBLOCK_FRAMES as u16 - self.copied
    }
}

/// An area whose 4 KiB units move into one target block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub(super) ipa: Ipa,
    /// The block that all of it came from, where it was one: released as a whole at the end.
    pub(super) source: Option<Frame>,
    pub(super) target: Frame,
    /// Units moved, from the first on.
    pub(super) next: u16,
    /// Those of them that a split has moved, as long as nobody has counted them.
    pub(super) uncounted: u16,
}

/// What is under way in a space, besides a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// Nothing.
    Nothing,
    /// A 2 MiB unit is being copied.
    Whole(Whole),
    /// A 2 MiB unit is at its target, by the hand of a helper or of the worker; the source is left over.
    Switched { ipa: Ipa, source: Frame, target: Frame },
    /// A 2 MiB unit stays where it was; the target is left over.
    GivenUp { target: Frame },
    /// Units of 4 KiB move into one block.
    Block(Block),
}

/// The units of a batch, from the break to the last make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub(super) run: BrokenRun,
    pub(super) sources: [Frame; BATCH],
    pub(super) targets: [Frame; BATCH],
    /// The units that runs begin at, a bit each.
    pub(super) starts: u64,
}

/// Whether frame `index` lies behind the one before, in the same pageblock.
#[inline(always)]
fn follows(frames: &[Frame; BATCH], index: usize) -> bool {
    let number = frames[index % BATCH].number();
    number == frames[(index - 1) % BATCH].number() + 1 && !number.is_multiple_of(PAGEBLOCK_FRAMES)
}

impl Batch {
    /// The batch of no unit.
    pub(super) const fn empty() -> Self {
        let none = [Frame::containing(crate::addr::Pa::new_truncate(0)); BATCH];
        Self { run: BrokenRun::EMPTY, sources: none, targets: none, starts: 0 }
    }

    /// The units.
    pub(super) const fn len(&self) -> usize {
        let count = self.run.leaf_count();
        if count > BATCH { BATCH } else { count }
    }

    /// The number of the unit at `ipa`.
    pub(super) const fn index_of(&self, ipa: Ipa) -> Option<usize> {
        let Some(offset) = ipa.get().checked_sub(self.run.ipa().get()) else { return None };
        let index = (offset / FRAME_SIZE) as usize;
        if index < self.len() { Some(index) } else { None }
    }

    /// The stretches of units, number of the first and count, of which both the sources and the targets lie side by
    /// side within a pageblock.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let (mut next, mut starts, count) = (0, self.starts & !1, self.len());
        core::iter::from_fn(move || {
            let (first, end) = (next, (starts.trailing_zeros() as usize).min(count));
            starts &= starts.wrapping_sub(1);
            next = end;
            (first < count).then_some((first, end - first))
        })
    }

    /// Notes where runs begin, once sources and targets are known.
    pub(super) fn note_runs(&mut self) {
        self.starts = 1;
        for index in 1..self.len() {
            if !follows(&self.sources, index) || !follows(&self.targets, index) {
                self.starts |= 1 << index;
            }
        }
    }

    /// Bits of all units.
    pub(super) const fn all(&self) -> u64 {
        (1 << self.len()) - 1
    }
}

/// The area that `ipa` lies in.
pub(super) const fn area_of(ipa: Ipa) -> Ipa {
    Ipa::new_truncate(ipa.get() & !(PAGEBLOCK_SIZE - 1))
}

/// The frame `index` frames after `frame`, inside one block.
pub(super) fn frame_at(frame: Frame, index: u64) -> Frame {
    // Blocks come from the allocator and end below the address limit.
    frame.checked_add(index).unwrap_or(frame)
}
