//! What a pool's frames are used for, pageblock by pageblock.

use super::Pool;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::memory::{Glance, Memory};
use crate::migrate::Frames;
use crate::placement::Placement;
use crate::range::FrameRange;

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

impl Usage {
    /// Adds up what the pageblocks of `pool` are used for: about a hundred instructions for each, some thousand where
    /// it is split.
    pub fn of(memory: &Memory<'_>, pool: &Pool) -> Self {
        let mut usage = Self { frames: pool.range.frames(), ..Self::default() };
        let mut open = FrameRange::from_numbers(pool.range.start(), pool.range.start()).unwrap_or_default();
        for (part, glance) in glances(memory, pool.range) {
            usage.free += u64::from(glance.free);
            usage.lent += u64::from(glance.lent());
            usage.claimed += u64::from(glance.claimed);
            usage.fixed += u64::from(glance.fixed);
            let is_open = glance.fixed + glance.claimed == 0;
            if glance.fixed > 0 {
                usage.first_fixed.get_or_insert(part.first());
            }
            let start = if is_open { open.start() } else { part.end() };
            open = FrameRange::from_numbers(start, part.end()).unwrap_or_default();
            if open.frames() > usage.longest.frames() {
                usage.longest = open;
            }
        }
        let elsewhere = memory.free_frames(&Placement::Any);
        usage.elsewhere = elsewhere.saturating_sub(usage.free);
        usage
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

/// The pageblocks of `range`, and what they are used for.
pub(crate) fn glances<'m>(
    memory: &'m Memory<'_>,
    range: FrameRange,
) -> impl Iterator<Item = (FrameRange, Glance)> + 'm {
    (range.start()..range.end()).step_by(PAGEBLOCK_FRAMES as usize).filter_map(move |number| {
        let part = FrameRange::from_numbers(number, number + PAGEBLOCK_FRAMES)?;
        Some((part, memory.glance(part.first())?))
    })
}
