//! What stood in the way of a claim.

use core::fmt;

use crate::addr::{FRAME_SIZE, Frame};
use crate::migrate::Reason;
use crate::owner::Owner;
use crate::phys::alloc::{IsolateReason, Occupant};
use crate::phys::frame::State;
use crate::size::Size;

/// What stood in the way. The first is all zero bytes, so that a table of records costs no room in the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Cause {
    /// Nothing.
    #[default]
    Nothing,
    /// No range of that size and alignment is left in the pool; where something in the way could be named, the frame is
    /// the first such.
    NoRange(Bar),
    /// It does not belong to the pool.
    Foreign,
    /// It is claimed already.
    Claimed,
    /// It is not claimed, and so cannot be released.
    NotClaimed,
    /// It is in use, and cannot be moved.
    Fixed(Owner),
    /// It is reserved since boot.
    Reserved,
    /// It is retired.
    Retired,
    /// It is isolated for somebody else.
    Isolated,
    /// Its tenant is mapped 1:1.
    PinnedInPlace,
    /// Its tenant's configuration forbids moving.
    OptedOut,
    /// Its tenant's placement is strict, and allows no other frames.
    Placement,
    /// There are too few free frames elsewhere.
    NoFrame {
        /// So many are missing; 0 where that is not known.
        missing: u64,
    },
    /// There is no frame for a translation table.
    NoTable,
    /// It was in use again and again.
    Busy,
    /// The owner's window has no room for it, or there was no frame for a translation table.
    NoWindow,
    /// The claimant cancelled it.
    Cancelled,
    /// The claimant stopped.
    OwnerGone,
}

/// What keeps a search out of a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Bar {
    /// Nothing that could be named: the pool has no such place.
    #[default]
    Nothing,
    /// The owner has it already.
    Claimed,
    /// It is in use, and cannot be moved.
    Fixed,
    /// It is reserved since boot.
    Reserved,
    /// It is retired, or will be when it is free.
    Retired,
    /// It is isolated for somebody else.
    Isolated,
    /// It was tried before.
    Tried,
}

impl Bar {
    /// What keeps out of a block.
    pub(super) fn of(occupant: &Occupant) -> Self {
        match (occupant.state, occupant.owner) {
            (State::Reserved, _) => Self::Reserved,
            (State::Retired, _) => Self::Retired,
            (_, Some(Owner::Pool(_))) => Self::Claimed,
            _ if occupant.is_doomed => Self::Retired,
            _ => Self::Fixed,
        }
    }

    const fn word(self) -> Option<&'static str> {
        Some(match self {
            Self::Nothing => return None,
            Self::Claimed => "claimed already",
            Self::Fixed => "in use, and cannot be moved",
            Self::Reserved => "reserved since boot",
            Self::Retired => "retired",
            Self::Isolated => "being claimed",
            Self::Tried => "in the way, as tried before",
        })
    }
}

impl Cause {
    /// The names of all, by number.
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
    ];
    /// How many there are.
    pub(super) const COUNT: usize = 18;

    /// Its number, below [`Self::COUNT`].
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
        }
    }

    /// What a job of migration says.
    pub(super) const fn of_migration(reason: Reason) -> Self {
        match reason {
            Reason::PinnedInPlace => Self::PinnedInPlace,
            Reason::OptedOut => Self::OptedOut,
            Reason::Claimed => Self::Claimed,
            Reason::InClaim => Self::Isolated,
            Reason::Placement => Self::Placement,
            Reason::NoFrame => Self::NoFrame { missing: 0 },
            Reason::NoTable => Self::NoTable,
            Reason::Busy => Self::Busy,
        }
    }

    /// What isolation says.
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

    /// Whether another round of moving may help.
    pub(super) const fn is_passing(self) -> bool {
        matches!(self, Self::Nothing | Self::Busy)
    }

    /// Whether another range may do better.
    pub(super) const fn is_local(self) -> bool {
        !matches!(self, Self::NoRange(_) | Self::NoWindow | Self::Cancelled | Self::OwnerGone)
    }

    /// Whether no range that holds the frame may do: it is about that frame, and not about the range as a whole.
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
            Self::Fixed(owner) => return write!(f, "in use by {owner}, which cannot be moved"),
            Self::Reserved => "reserved since boot",
            Self::Retired => "retired",
            Self::Isolated => "being claimed",
            Self::PinnedInPlace => "its tenant is mapped 1:1",
            Self::OptedOut => "its tenant opted out of migration",
            Self::Placement => "its tenant's placement allows no other controller",
            Self::NoFrame { missing: 0 } => "no free frame for its tenant elsewhere",
            Self::NoFrame { missing } => {
                return write!(f, "{} too little free elsewhere", Size(missing * FRAME_SIZE));
            }
            Self::NoTable => "no frame for a translation table",
            Self::Busy => "in use again and again",
            Self::NoWindow => "no room in the owner's window",
            Self::Cancelled => "cancelled",
            Self::OwnerGone => "its owner stopped",
        })
    }
}

/// The frame that stood in the way, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Blocker {
    /// The frame; the first of the range where it is about no single one.
    pub frame: Frame,
    /// Why.
    pub cause: Cause,
}

impl Blocker {
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
