//! Huge-unit pools: 2 MiB and 1 GiB units of RAM, kept ready for guests that were promised them.
//!
//! Words:
//! - a *unit* is a block of order 9 (2 MiB) or 18 (1 GiB). It is *at rest*, with [`Owner::Huge`] as its owner, or
//!   *lent* to a guest;
//! - the *total* of a size is what is at rest and what is lent; the *target* is how many the operator wants. What is
//!   above the target is *surplus*, at most a limit, and goes back to memory as soon as it comes back;
//! - a *promise* is a number of units that one guest, and nobody else, will get. What is promised is at rest: promises
//!   never exceed what is there.
//!
//! Always, for each size: total = at rest + lent; promised ≤ at rest; and what rests is just what memory has down as
//! [`Owner::Huge`]'s.
//!
//! # Lent units are counted, not marked
//! A lent unit is a block of the guest's like any other, and the pool knows how many of each size a guest has. So
//! migration and claims treat it as what it is, guest RAM: the target of a move is a fresh block, the source goes to
//! where frees go, into the isolated range if there is one, and the pool's totals never change, not even for a moment.
//! There is no unit that returns to a list inside the range being claimed, no deferred dissolving and no flag that an
//! abandoned move could leave behind.
//!
//! Where a guest's unit of 1 GiB is divided, the parts come back as units of 2 MiB: accounts follow when they do.
//!
//! # Units at rest in a range that is claimed
//! [`HugeUnits::vacate`] replaces them: the new unit is there before the old one goes. Isolated pageblocks are passed
//! over when a unit is taken, by the unit's whole span.
//!
//! # Locks
//! The pools' lock, then memory's arenas, one at a time.

use core::fmt;

use crate::addr::{Frame, MAX_ORDER, PAGEBLOCK_ORDER};
use crate::memory::AllocError;
use crate::owner::GuestId;

mod chain;
mod lend;
mod resize;
#[cfg(test)]
mod tests;
mod units;
mod vacate;

pub use resize::Settled;
pub use units::{HugeUnits, Totals};

/// How large a unit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum UnitSize {
    /// 2 MiB: a leaf at level 2.
    TwoMib,
    /// 1 GiB: a leaf at level 1.
    OneGib,
}

impl UnitSize {
    /// Both sizes.
    pub const ALL: [Self; 2] = [Self::TwoMib, Self::OneGib];

    /// log2 of the unit's frames.
    pub const fn order(self) -> u8 {
        match self {
            Self::TwoMib => PAGEBLOCK_ORDER,
            Self::OneGib => MAX_ORDER,
        }
    }

    /// The unit's frames.
    pub const fn frames(self) -> u64 {
        1 << self.order()
    }
}

impl fmt::Display for UnitSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoMib => "2 MiB",
            Self::OneGib => "1 GiB",
        })
    }
}

/// Why a huge unit was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnitError {
    /// None is left that is not promised to somebody else, outside isolated ranges.
    NoneLeft {
        /// The size asked for.
        size: UnitSize,
        /// At rest.
        resting: u32,
        /// Of these, promised.
        promised: u32,
    },
    /// Memory has no block for another unit.
    NoMemory {
        /// The size.
        size: UnitSize,
        /// What memory says.
        error: AllocError,
    },
    /// The pool may not grow that far.
    Limit {
        /// The size.
        size: UnitSize,
        /// The largest total that is allowed.
        limit: u32,
    },
    /// The frame is not the first of a unit of that kind.
    NoUnit {
        /// The frame.
        frame: Frame,
    },
    /// The guest has fewer units, or promises, than it gives up.
    NotTheGuests {
        /// The guest.
        guest: GuestId,
    },
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneLeft { size, resting, promised } => {
                write!(f, "no huge unit of {size} left: {resting} at rest, {promised} of them promised")
            }
            Self::NoMemory { size, error } => write!(f, "no memory for a huge unit of {size}: {error}"),
            Self::Limit { size, limit } => write!(f, "at most {limit} huge units of {size} are allowed"),
            Self::NoUnit { frame } => write!(f, "{} is no huge unit at rest", frame.pa()),
            Self::NotTheGuests { guest } => write!(f, "{guest} does not have that many huge units"),
        }
    }
}

impl core::error::Error for UnitError {}
