//! What is known of a pageblock: one 32-bit word for each 2 MiB of RAM.
//!
//! The migratetype says what kind of allocation the pageblock serves; **isolation is a bit of its own**, never a
//! type, so that taking it away restores what was there whoever set it. The zone and the designated block or pool
//! that the pageblock belongs to stand beside them. Two more bits say how much of the frame table behind the
//! pageblock has been written at all: entries of memory that was never split are not touched at boot and may hold
//! anything.

use core::fmt;

use crate::owner::PoolId;
use crate::zone::Zone;

/// What kind of allocation a pageblock serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MigrateType {
    /// What stays where it is.
    Unmovable,
    /// What can be moved.
    Movable,
    /// A pool outside all designated blocks: lent to movable allocations as a last resort, claimed only by its owner.
    Pool,
}

impl MigrateType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Unmovable, Self::Movable, Self::Pool];
}

impl fmt::Display for MigrateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmovable => "Unmovable",
            Self::Movable => "Movable",
            Self::Pool => "Pool",
        })
    }
}

/// The word of a pageblock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pageblock(pub(crate) u32);

const TYPE: u32 = 0b11;
const ISOLATED: u32 = 1 << 2;
const MOVABLE_ZONE: u32 = 1 << 3;
const BLOCK_SHIFT: u32 = 4;
const BLOCK: u32 = 0x1f << BLOCK_SHIFT;
const POOL_SHIFT: u32 = 9;
const POOL: u32 = 0x1f << POOL_SHIFT;
/// What two free blocks must have in common to merge across pageblocks.
const GROUP: u32 = TYPE | ISOLATED | MOVABLE_ZONE | BLOCK | POOL;
const FIRST: u32 = 1 << 16;
const TOUCHED: u32 = 1 << 17;

/// The number of the free list for blocks in isolated pageblocks.
pub(crate) const ISOLATED_LIST: usize = 3;
/// How many kinds of free list there are: one a type, and the isolated one.
pub(crate) const LISTS: usize = 4;

impl Pageblock {
    /// A pageblock of `zone` that serves `migrate_type`, in designated block `block` if any; nothing behind it touched.
    pub(crate) const fn new(zone: Zone, migrate_type: MigrateType, block: Option<u8>) -> Self {
        let zone = match zone {
            Zone::Normal => 0,
            Zone::Movable => MOVABLE_ZONE,
        };
        let block = match block {
            Some(block) => ((block as u32 + 1) << BLOCK_SHIFT) & BLOCK,
            None => 0,
        };
        Self(migrate_type as u32 | zone | block)
    }

    #[inline]
    pub(crate) const fn zone(self) -> Zone {
        if self.0 & MOVABLE_ZONE == 0 { Zone::Normal } else { Zone::Movable }
    }

    pub(crate) const fn migrate_type(self) -> MigrateType {
        match self.0 & TYPE {
            0 => MigrateType::Unmovable,
            1 => MigrateType::Movable,
            _ => MigrateType::Pool,
        }
    }

    pub(crate) const fn with_migrate_type(self, migrate_type: MigrateType) -> Self {
        Self(self.0 & !TYPE | migrate_type as u32)
    }

    pub(crate) const fn is_isolated(self) -> bool {
        self.0 & ISOLATED != 0
    }

    pub(crate) const fn with_isolated(self, isolation: Isolation) -> Self {
        match isolation {
            Isolation::Isolated => Self(self.0 | ISOLATED),
            Isolation::Open => Self(self.0 & !ISOLATED),
        }
    }

    /// The designated block that the pageblock lies in.
    pub(crate) const fn block(self) -> Option<u8> {
        match (self.0 & BLOCK) >> BLOCK_SHIFT {
            0 => None,
            number => Some(number as u8 - 1),
        }
    }

    /// Index for counters kept a designated block: 0 outside all, else the block's number and one.
    #[inline]
    pub(crate) const fn block_index(self) -> usize {
        ((self.0 & BLOCK) >> BLOCK_SHIFT) as usize
    }

    /// The pool that the pageblock belongs to.
    pub(crate) const fn pool(self) -> Option<PoolId> {
        match (self.0 & POOL) >> POOL_SHIFT {
            0 => None,
            number => PoolId::try_new(number as u8 - 1),
        }
    }

    pub(crate) const fn with_pool(self, pool: Option<PoolId>) -> Self {
        let bits = match pool {
            Some(pool) => (pool.index() as u32 + 1) << POOL_SHIFT,
            None => 0,
        };
        Self(self.0 & !POOL | bits)
    }

    /// The free list that blocks of this pageblock belong on.
    #[inline]
    pub(crate) const fn list(self) -> usize {
        if self.is_isolated() { ISOLATED_LIST } else { (self.0 & TYPE) as usize }
    }

    /// Whether free blocks of `self` and `other` may merge.
    #[inline]
    pub(crate) const fn merges_with(self, other: Self) -> bool {
        (self.0 ^ other.0) & GROUP == 0
    }

    /// Whether the entry of the first frame holds something.
    #[inline]
    pub(crate) const fn is_first_valid(self) -> bool {
        self.0 & FIRST != 0
    }

    /// Whether the entries of all frames hold something.
    #[inline]
    pub(crate) const fn is_touched(self) -> bool {
        self.0 & TOUCHED != 0
    }

    pub(crate) const fn with_first_valid(self) -> Self {
        Self(self.0 | FIRST)
    }

    pub(crate) const fn with_touched(self) -> Self {
        Self(self.0 | FIRST | TOUCHED)
    }
}

/// Whether a pageblock is isolated: its free frames are handed to nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// Free frames may be allocated.
    Open,
    /// Free frames stay where they are.
    Isolated,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p01_isolation_is_a_bit_and_leaves_the_type_alone() {
        for migrate_type in MigrateType::ALL {
            let before = Pageblock::new(Zone::Normal, migrate_type, None).with_pool(PoolId::try_new(18));
            let isolated = before.with_isolated(Isolation::Isolated);
            assert_eq!(isolated.migrate_type(), migrate_type);
            assert_eq!(isolated.list(), ISOLATED_LIST);
            assert!(isolated.with_isolated(Isolation::Open) == before);
            assert!(!isolated.merges_with(before));
        }
    }

    #[test]
    fn a_word_keeps_its_parts_apart() {
        let word = Pageblock::new(Zone::Movable, MigrateType::Movable, Some(18)).with_touched();
        assert_eq!((word.zone(), word.block(), word.pool()), (Zone::Movable, Some(18), None));
        assert!(word.is_touched() && word.is_first_valid());
        assert!(word.merges_with(Pageblock::new(Zone::Movable, MigrateType::Movable, Some(18))));
        assert!(!word.merges_with(Pageblock::new(Zone::Movable, MigrateType::Movable, Some(17))));
    }
}
