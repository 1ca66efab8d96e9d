//! Reasons for which an operation fails.

use core::fmt;

use crate::addr::{FRAME_SIZE, Frame};
use crate::migrate::Reason;
use crate::owner::Owner;
use crate::phys::alloc::{IsolateReason, Occupant};
use crate::phys::frame::State;
use crate::size::Size;

/// Reason for which a try or an operation failed. `Nothing` is all zero bytes, so that records lie in .bss.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Cause {
    /// No failure.
    #[default]
    Nothing,
    /// The pool has no range of that size and alignment left. If the bar is not [`Bar::Nothing`], the blocker's frame is
    /// the first that bars a range.
    NoRange(Bar),
    /// The frame is outside the pool.
    Foreign,
    /// The frame is already claimed.
    Claimed,
    /// The frame is not claimed, so it cannot be released.
    NotClaimed,
    /// The frame is in use by an owner whose memory cannot be migrated.
    Fixed(Owner),
    /// The frame is reserved since boot.
    Reserved,
    /// The frame is retired.
    Retired,
    /// The frame is isolated by another operation.
    Isolated,
    /// The tenant is mapped 1:1.
    PinnedInPlace,
    /// The tenant's configuration forbids migration.
    OptedOut,
    /// The tenant's placement is strict and allows no other controller.
    Placement,
    /// There are too few free frames elsewhere.
    NoFrame {
        /// Number of missing frames; 0 if unknown.
        missing: u64,
    },
    /// There is no free frame for a translation table.
    NoTable,
    /// The frame was still in use after several rounds of migration.
    Busy,
    /// The owner's window has no room for the range, or there is no free frame for a translation table.
    NoWindow,
    /// The claimant cancelled the claim.
    Cancelled,
    /// The claimant stopped.
    OwnerGone,
    /// The tenant is a DMA window.
    DmaWindow,
}

/// Reason for which no range may touch a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Bar {
    /// No pageblock is barred: the size or the alignment does not fit the pool.
    #[default]
    Nothing,
    /// The frame is already claimed.
    Claimed,
    /// The frame is in use and cannot be migrated.
    Fixed,
    /// The frame is reserved since boot.
    Reserved,
    /// The frame is retired, or pending retirement until it is free.
    Retired,
    /// The pageblock is isolated by another operation.
    Isolated,
    /// A try failed for a frame of the pageblock.
    Tried,
}

impl Bar {
    /// Returns the bar that a block in use is.
    pub(super) fn of(occupant: &Occupant) -> Self {
        match (occupant.state, occupant.owner) {
            (State::Reserved, _) => Self::Reserved,
            (State::Retired, _) => Self::Retired,
            (_, Some(Owner::Pool(_))) => Self::Claimed,
            _ if occupant.is_doomed => Self::Retired,
            _ => Self::Fixed,
        }
    }

    /// Returns the text for the console.
    const fn word(self) -> Option<&'static str> {
        Some(match self {
            Self::Nothing => return None,
            Self::Claimed => "claimed already",
            Self::Fixed => "in use and cannot be migrated",
            Self::Reserved => "reserved since boot",
            Self::Retired => "retired",
            Self::Isolated => "being claimed",
            Self::Tried => "in the way, as an earlier try found",
        })
    }
}

impl Cause {
    /// Names of all causes, by number.
    pub const NAMES: [&str; Self::COUNT] = [
        "nothing",
        "no-range",
        "foreign",
        "claimed",
        "not-claimed",
        "fixed",
        "reserved",
        "retired",
        "isolated",
        "pinned",
        "opted-out",
        "placement",
        "no-frame",
        "no-table",
        "busy",
        "no-window",
        "cancelled",
        "owner-gone",
        "dma-window",
    ];
    /// Number of causes.
    pub(super) const COUNT: usize = 19;

    /// Returns the number of the cause, an index of [`Self::NAMES`].
    pub const fn index(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::NoRange(_) => 1,
            Self::Foreign => 2,
            Self::Claimed => 3,
            Self::NotClaimed => 4,
            Self::Fixed(_) => 5,
            Self::Reserved => 6,
            Self::Retired => 7,
            Self::Isolated => 8,
            Self::PinnedInPlace => 9,
            Self::OptedOut => 10,
            Self::Placement => 11,
            Self::NoFrame { .. } => 12,
            Self::NoTable => 13,
            Self::Busy => 14,
            Self::NoWindow => 15,
            Self::Cancelled => 16,
            Self::OwnerGone => 17,
            Self::DmaWindow => 18,
        }
    }

    /// Converts the reason for which migration left a unit in place.
    pub(super) const fn of_migration(reason: Reason) -> Self {
        match reason {
            Reason::PinnedInPlace => Self::PinnedInPlace,
            Reason::DmaWindow => Self::DmaWindow,
            Reason::OptedOut => Self::OptedOut,
            Reason::Claimed => Self::Claimed,
            Reason::InClaim => Self::Isolated,
            Reason::Placement => Self::Placement,
            Reason::NoFrame => Self::NoFrame { missing: 0 },
            Reason::NoTable => Self::NoTable,
            Reason::Busy => Self::Busy,
        }
    }

    /// Converts the reason for which a pageblock cannot be isolated.
    pub(super) const fn of_isolation(reason: IsolateReason) -> Self {
        match reason {
            IsolateReason::Pinned(Owner::Pool(_)) => Self::Claimed,
            IsolateReason::Pinned(owner) => Self::Fixed(owner),
            IsolateReason::Reserved => Self::Reserved,
            IsolateReason::Retired => Self::Retired,
            IsolateReason::Isolated => Self::Isolated,
            _ => Self::Foreign,
        }
    }

    /// Tests whether another round of migration may help.
    pub(super) const fn is_passing(self) -> bool {
        matches!(self, Self::Nothing | Self::Busy)
    }

    /// Tests whether another range may succeed.
    pub(super) const fn is_local(self) -> bool {
        !matches!(self, Self::NoRange(_) | Self::NoWindow | Self::Cancelled | Self::OwnerGone)
    }

    /// Tests whether every range with this frame would fail, because the cause concerns the frame and not the range.
    pub(super) const fn is_of_frame(self) -> bool {
        self.is_local() && !matches!(self, Self::NoFrame { .. })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::NoRange(_) => "no range of that size and alignment is left in the pool",
            Self::Foreign => "outside the pool",
            Self::Claimed => "claimed already",
            Self::NotClaimed => "not claimed",
            Self::Fixed(owner) => return write!(f, "in use by {owner}, which cannot be migrated"),
            Self::Reserved => "reserved since boot",
            Self::Retired => "retired",
            Self::Isolated => "being claimed",
            Self::PinnedInPlace => "its tenant is mapped 1:1",
            Self::DmaWindow => "its tenant is a DMA window",
            Self::OptedOut => "its tenant opted out of migration",
            Self::Placement => "its tenant's placement allows no other controller",
            Self::NoFrame { missing: 0 } => "no free frame for its tenant elsewhere",
            Self::NoFrame { missing } => {
                return write!(f, "{} more free memory is needed elsewhere", Size(missing * FRAME_SIZE));
            }
            Self::NoTable => "no frame for a translation table",
            Self::Busy => "still in use after several rounds of migration",
            Self::NoWindow => "no room in the owner's window",
            Self::Cancelled => "cancelled",
            Self::OwnerGone => "its owner stopped",
        })
    }
}

/// Frame that made an operation fail, and the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Blocker {
    /// The frame, or the first of the range if the cause concerns the range as a whole.
    pub frame: Frame,
    /// The reason.
    pub cause: Cause,
}

impl Blocker {
    /// No failure.
    pub(super) const NOTHING: Self =
        Self { frame: Frame::containing(crate::addr::Pa::new_truncate(0)), cause: Cause::Nothing };
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::NoRange(bar) => {
                self.cause.fmt(f)?;
                match bar.word() {
                    Some(word) => write!(f, ": {} is {word}", self.frame.pa()),
                    None => Ok(()),
                }
            }
            Cause::Cancelled | Cause::OwnerGone | Cause::NoFrame { missing: 1.. } => self.cause.fmt(f),
            cause => write!(f, "{}: {cause}", self.frame.pa()),
        }
    }
}
