//! The usage of pools, pageblock by pageblock.

use super::Pool;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::migrate::Frames;
use crate::phys::alloc::{Glance, Memory};
use crate::phys::placement::Placement;
use crate::range::FrameRange;

/// The maximum number of pageblocks read in one step.
const MOST: usize = 64;

/// The usage of a pool's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// All frames.
    pub frames: u64,
    /// Free frames, also those of isolated pageblocks.
    pub free: u64,
    /// Lent frames: guest RAM, which can be moved away.
    pub lent: u64,
    /// Frames claimed by the owner.
    pub claimed: u64,
    /// Fixed frames: reserved, retired, or in use by unmovable memory.
    pub fixed: u64,
    /// The first pageblock with fixed frames.
    pub first_fixed: Option<Frame>,
    /// The longest range of pageblocks without claimed or fixed frames.
    pub longest: FrameRange,
    /// Free frames elsewhere that tenants can move to.
    pub elsewhere: u64,
}

/// The usage of a pageblock of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockUse {
    /// All of it is free.
    Free,
    /// Part of it is lent, the rest free.
    PartlyLent,
    /// All of it is lent.
    Lent,
    /// The owner has claimed all or part of it.
    Claimed,
    /// A claim is emptying it.
    Isolated,
    /// Something in it can be neither claimed nor moved.
    Blocked,
}

impl BlockUse {
    /// Returns the usage of a pageblock.
    pub const fn of(glance: Glance) -> Self {
        if glance.fixed > 0 {
            Self::Blocked
        } else if glance.is_isolated {
            Self::Isolated
        } else if glance.claimed > 0 {
            Self::Claimed
        } else if glance.free as u64 == PAGEBLOCK_FRAMES {
            Self::Free
        } else if glance.free > 0 {
            Self::PartlyLent
        } else {
            Self::Lent
        }
    }

    /// Returns the character for maps.
    pub const fn symbol(self) -> char {
        match self {
            Self::Free => '.',
            Self::PartlyLent => 'l',
            Self::Lent => 'L',
            Self::Claimed => 'C',
            Self::Isolated => 'i',
            Self::Blocked => 'X',
        }
    }
}

/// A walk over a pool's pageblocks in steps, so that no step takes longer than the caller wants, whatever the size of
/// the pool.
pub struct Survey {
    range: FrameRange,
    next: u64,
    /// The start of the current range without claimed or fixed frames.
    open: u64,
    usage: Usage,
}

impl Survey {
    /// Creates a walk over `pool`.
    pub fn new(pool: &Pool) -> Self {
        let usage = Usage { frames: pool.range.frames(), ..Usage::default() };
        Self { range: pool.range, next: pool.range.start(), open: pool.range.start(), usage }
    }

    /// Reads up to `most` more pageblocks, stopping after the first split one, and passes each to `visit`. Takes about
    /// ten instructions for each, and some thousand for a split one. Returns the usage of the pool at the end of the
    /// walk, `None` before.
    pub fn advance(
        &mut self,
        memory: &Memory<'_>,
        most: usize,
        visit: &mut dyn FnMut(BlockUse),
    ) -> Option<Usage> {
        let mut glances = [Glance::default(); MOST];
        let rest = ((self.range.end() - self.next) / PAGEBLOCK_FRAMES) as usize;
        let most = most.clamp(1, MOST).min(rest);
        let count = match Frame::try_new(self.next) {
            Some(first) => memory.glances(first, &mut glances[..most]),
            None => 0,
        };
        for glance in &glances[..count] {
            self.note(*glance);
            visit(BlockUse::of(*glance));
        }
        if rest > count && count > 0 {
            return None;
        }
        let elsewhere = memory.free_frames(&Placement::Any);
        self.usage.elsewhere = elsewhere.saturating_sub(self.usage.free);
        Some(self.usage)
    }

    fn note(&mut self, glance: Glance) {
        let (usage, end) = (&mut self.usage, self.next + PAGEBLOCK_FRAMES);
        usage.free += u64::from(glance.free);
        usage.lent += u64::from(glance.lent());
        usage.claimed += u64::from(glance.claimed);
        usage.fixed += u64::from(glance.fixed);
        if glance.fixed > 0 && usage.first_fixed.is_none() {
            usage.first_fixed = Frame::try_new(self.next);
        }
        if glance.fixed + glance.claimed > 0 {
            self.open = end;
        }
        let open = FrameRange::from_numbers(self.open, end).unwrap_or_default();
        if open.frames() > usage.longest.frames() {
            usage.longest = open;
        }
        self.next = end;
    }
}

impl Usage {
    /// Returns the usage of all of `pool`.
    #[cfg(test)]
    pub(crate) fn of(memory: &Memory<'_>, pool: &Pool) -> Self {
        let mut survey = Survey::new(pool);
        loop {
            if let Some(usage) = survey.advance(memory, MOST, &mut |_| ()) {
                return usage;
            }
        }
    }

    /// Returns the number of lent frames that fit elsewhere.
    pub const fn room(&self) -> u64 {
        if self.elsewhere < self.lent { self.elsewhere } else { self.lent }
    }

    /// Returns the number of frames that can be claimed now, in one range or in several.
    pub const fn claimable(&self) -> u64 {
        self.free + self.room()
    }

    /// Returns the number of lent frames that do not fit elsewhere.
    pub const fn stuck(&self) -> u64 {
        self.lent - self.room()
    }

    /// Returns the lent part of the frames that can be lent, in per cent.
    pub const fn lent_per_cent(&self) -> u64 {
        match (self.lent * 100).checked_div(self.lent + self.free) {
            Some(per_cent) => per_cent,
            None => 0,
        }
    }
}
