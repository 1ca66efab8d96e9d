//! The owners of frames in use.

use core::fmt;

/// The maximum number of guests.
pub const MAX_GUESTS: usize = 8;
/// The maximum number of pools.
pub const MAX_POOLS: usize = 19;

/// The number of a guest, below [`MAX_GUESTS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct GuestId(u8);

impl GuestId {
    /// Creates the number of a guest, or returns `None` at or above [`MAX_GUESTS`].
    pub const fn try_new(number: u8) -> Option<Self> {
        if (number as usize) < MAX_GUESTS { Some(Self(number)) } else { None }
    }

    /// Returns the number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {}", self.0)
    }
}

/// The number of a pool, below [`MAX_POOLS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct PoolId(u8);

impl PoolId {
    /// The first pool.
    pub const FIRST: Self = Self(0);

    /// Creates the number of a pool, or returns `None` at or above [`MAX_POOLS`].
    pub const fn try_new(number: u8) -> Option<Self> {
        if (number as usize) < MAX_POOLS { Some(Self(number)) } else { None }
    }

    /// Returns the number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {}", self.0)
    }
}

/// The owner of a block in use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    /// Ballast itself: heap, stacks and other memory that belongs to no guest.
    Hypervisor,
    /// RAM of a guest.
    Guest(GuestId),
    /// Stage 2 tables and other data structures of a guest.
    Tables(GuestId),
    /// Memory claimed by the owner of a pool.
    Pool(PoolId),
}

/// The number of values of [`Owner::index`].
pub(crate) const OWNERS: usize = 1 + 2 * MAX_GUESTS + MAX_POOLS;

impl Owner {
    /// Returns a number below [`OWNERS`], which the frame table stores and which indexes counters.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        const TABLES: usize = 1 + MAX_GUESTS;
        const POOLS: usize = TABLES + MAX_GUESTS;
        match self {
            Self::Hypervisor => 0,
            Self::Guest(guest) => 1 + guest.0 as usize,
            Self::Tables(guest) => TABLES + guest.0 as usize,
            Self::Pool(pool) => POOLS + pool.0 as usize,
        }
    }

    /// Returns the owner with number `index`, or `None` if there is none.
    pub(crate) const fn from_index(index: usize) -> Option<Self> {
        const TABLES: usize = 1 + MAX_GUESTS;
        const POOLS: usize = 1 + 2 * MAX_GUESTS;
        Some(match index {
            0 => Self::Hypervisor,
            1..TABLES => Self::Guest(GuestId((index - 1) as u8)),
            TABLES..POOLS => Self::Tables(GuestId((index - TABLES) as u8)),
            POOLS..OWNERS => Self::Pool(PoolId((index - POOLS) as u8)),
            _ => return None,
        })
    }

    /// Returns every possible owner.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..OWNERS).filter_map(Self::from_index)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypervisor => f.write_str("Ballast"),
            Self::Guest(guest) => guest.fmt(f),
            Self::Tables(guest) => write!(f, "tables of {guest}"),
            Self::Pool(pool) => write!(f, "owner of {pool}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owner_has_a_number_of_its_own() {
        assert_eq!(Owner::all().count(), OWNERS);
        for (index, owner) in Owner::all().enumerate() {
            assert_eq!(owner.index(), index);
        }
        assert_eq!(Owner::from_index(OWNERS), None);
    }
}
