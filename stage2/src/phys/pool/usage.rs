//! What a pool's frames are used for, pageblock by pageblock.

use super::Pool;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::migrate::Frames;
use crate::phys::alloc::{Glance, Memory};
use crate::phys::placement::Placement;
use crate::range::FrameRange;

/// Most pageblocks that are looked at in a turn.
const MOST: usize = 64;

/// What a pool's frames are used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// All frames.
    pub frames: u64,
    /// Free ones, in blocks that are being claimed too.
    pub free: u64,
    /// Guests' RAM, which can be moved away.
    pub lent: u64,
    /// The owner's.
    pub claimed: u64,
    /// Reserved, retired, or in use by what cannot move.
    pub fixed: u64,
    /// The first of these frames' pageblocks.
    pub first_fixed: Option<Frame>,
    /// The longest stretch of pageblocks without claimed or fixed frames.
    pub longest: FrameRange,
    /// Free frames elsewhere that tenants may move to.
    pub elsewhere: u64,
}

/// What a pageblock of a pool is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockUse {
    /// All of it is free.
    Free,
    /// A part of it is lent, the rest free.
    PartlyLent,
    /// All of it is lent.
    Lent,
    /// The owner has a part of it, or all.
    Claimed,
    /// It is being claimed.
    Isolated,
    /// Something in it can neither be claimed nor moved.
    Blocked,
}

impl BlockUse {
    /// What a look at a pageblock says.
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

    /// The character that stands for it in a map.
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

/// A walk over a pool's pageblocks, in turns: on the largest pool too, none takes longer than the caller wants.
pub struct Survey {
    range: FrameRange,
    next: u64,
    /// Where the stretch without claimed or fixed frames began that is being looked at.
    open: u64,
    usage: Usage,
}

impl Survey {
    /// A walk over `pool`.
    pub fn new(pool: &Pool) -> Self {
        let usage = Usage { frames: pool.range.frames(), ..Usage::default() };
        Self { range: pool.range, next: pool.range.start(), open: pool.range.start(), usage }
    }

    /// Looks at up to `most` more pageblocks, at most up to the first that is split, and tells `visit` of each: some ten
    /// instructions for each, some thousand for one that is split. What is used for what; `None` while there is more.
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

    /// Lent frames that there is room for elsewhere.
    pub const fn room(&self) -> u64 {
        if self.elsewhere < self.lent { self.elsewhere } else { self.lent }
    }

    /// The frames that a claim of all that can be claimed now would get, in one piece or in several.
    pub const fn claimable(&self) -> u64 {
        self.free + self.room()
    }

    /// Lent frames for whose contents there is no room elsewhere.
    pub const fn stuck(&self) -> u64 {
        self.lent - self.room()
    }

    /// How much of what can be lent is, in per cent.
    pub const fn lent_per_cent(&self) -> u64 {
        match (self.lent * 100).checked_div(self.lent + self.free) {
            Some(per_cent) => per_cent,
            None => 0,
        }
    }
}
