//! The record of a pageblock: one 32-bit word for each 2 MiB of RAM, written at boot.
//!
//! The migratetype tells what kind of allocation the pageblock serves. **Isolation is a bit of its own**, never a type,
//! so ending it restores the previous state. The word also holds the zone, the designated block, the pool, and the
//! *shape*: the head or a part of a block of at least a pageblock, or *split* into smaller blocks.

use core::fmt;

use crate::addr::{MAX_ORDER, PAGEBLOCK_ORDER};
use crate::owner::PoolId;
use crate::phys::zone::Zone;

/// The kind of allocation that a pageblock serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MigrateType {
    /// Memory that cannot be moved.
    Unmovable,
    /// Memory that can be moved.
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
/// The fields that two free blocks must share to merge across pageblocks.
const GROUP: u32 = TYPE | ISOLATED | MOVABLE_ZONE | BLOCK | POOL;
const RAM_RANGE_SHIFT: u32 = 14;
const RAM_RANGE: u32 = 0x3f << RAM_RANGE_SHIFT;
const SHAPE_SHIFT: u32 = 20;
const SHAPE: u32 = 0b111 << SHAPE_SHIFT;
const ORDER_SHIFT: u32 = 23;
/// The order minus a pageblock's.
const ORDER: u32 = 0xf << ORDER_SHIFT;
const TOUCHED: u32 = 1 << 27;

/// The number of kinds of free list: one for each type.
pub(crate) const LISTS: usize = 3;
/// The size of arrays indexed by kind of free list: as many as the type's bits can name, so that no index is too large.
pub(crate) const LIST_SLOTS: usize = TYPE as usize + 1;

/// The shape of a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// Part of a block that begins in a pageblock below.
    Part,
    /// The head of a free block.
    Free,
    /// The head of a block in use.
    Used,
    /// The head of a reserved block.
    Reserved,
    /// Smaller blocks.
    Split,
}

impl Pageblock {
    /// Creates the word of a pageblock of `zone` that serves `migrate_type`, in designated block `block` if any.
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

    pub(crate) const fn isolation(self) -> Isolation {
        if self.is_isolated() { Isolation::Isolated } else { Isolation::Open }
    }

    pub(crate) const fn with_isolated(self, isolation: Isolation) -> Self {
        match isolation {
            Isolation::Isolated => Self(self.0 | ISOLATED),
            Isolation::Open => Self(self.0 & !ISOLATED),
        }
    }

    /// Returns the designated block that contains the pageblock.
    pub(crate) const fn block(self) -> Option<u8> {
        match (self.0 & BLOCK) >> BLOCK_SHIFT {
            0 => None,
            number => Some(number as u8 - 1),
        }
    }

    /// Returns the pool that the pageblock belongs to.
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

    /// Returns the number of the free list for free frames of this pageblock.
    #[inline]
    pub(crate) const fn list(self) -> usize {
        (self.0 & TYPE) as usize
    }

    #[inline]
    pub(crate) const fn shape(self) -> Shape {
        match (self.0 & SHAPE) >> SHAPE_SHIFT {
            1 => Shape::Free,
            2 => Shape::Used,
            3 => Shape::Reserved,
            4 => Shape::Split,
            _ => Shape::Part,
        }
    }

    #[inline]
    pub(crate) const fn is_split(self) -> bool {
        self.0 & SHAPE == (Shape::Split as u32) << SHAPE_SHIFT
    }

    /// Returns whether the pageblock is split and not isolated.
    #[inline]
    pub(crate) const fn is_split_and_open(self) -> bool {
        self.0 & (SHAPE | ISOLATED) == (Shape::Split as u32) << SHAPE_SHIFT
    }

    /// Returns whether `other` has the same zone, type, designated block and pool. Ignores isolation.
    pub(crate) const fn is_like(self, other: Self) -> bool {
        (self.0 ^ other.0) & (GROUP & !ISOLATED) == 0
    }

    /// Returns the order of the block whose head this is, at least a pageblock's.
    #[inline]
    pub(crate) const fn order(self) -> u8 {
        let order = PAGEBLOCK_ORDER + ((self.0 & ORDER) >> ORDER_SHIFT) as u8;
        if order > MAX_ORDER { MAX_ORDER } else { order }
    }

    #[inline]
    pub(crate) const fn with_shape(self, shape: Shape) -> Self {
        Self(self.0 & !(SHAPE | ORDER) | (shape as u32) << SHAPE_SHIFT)
    }

    /// Returns the word as the head of a block of `order`.
    #[inline]
    pub(crate) const fn with_head(self, shape: Shape, order: u8) -> Self {
        Self(self.with_shape(shape).0 | (order.wrapping_sub(PAGEBLOCK_ORDER) as u32) << ORDER_SHIFT & ORDER)
    }

    /// Returns whether this is the head of a block of `order` in use.
    #[inline]
    pub(crate) const fn is_used_head(self, order: u8) -> bool {
        (self.0 ^ self.with_head(Shape::Used, order).0) & (SHAPE | ORDER) == 0
    }

    /// Returns whether `other`, the word at the buddy's head, is the head of a free block that may merge with this one.
    #[inline]
    pub(crate) const fn is_buddy(self, other: Self) -> bool {
        (self.0 ^ other.0) & (GROUP | RAM_RANGE | SHAPE | ORDER) == 0
    }

    /// Returns the head of a block twice as large, below the largest order.
    #[inline]
    pub(crate) const fn doubled(self) -> Self {
        Self(self.0 + (1 << ORDER_SHIFT))
    }

    /// Returns the word with the touched mark of `other`.
    #[inline]
    pub(crate) const fn with_touched_as(self, other: Self) -> Self {
        Self(self.0 & !TOUCHED | other.0 & TOUCHED)
    }

    /// Returns the number of the RAM range that contains the pageblock.
    #[inline]
    pub(crate) const fn ram_range(self) -> usize {
        ((self.0 & RAM_RANGE) >> RAM_RANGE_SHIFT) as usize
    }

    pub(crate) const fn with_ram_range(self, ram_range: u8) -> Self {
        Self(self.0 & !RAM_RANGE | (ram_range as u32) << RAM_RANGE_SHIFT & RAM_RANGE)
    }

    /// Returns whether the entries of its frames are valid.
    #[inline]
    pub(crate) const fn is_touched(self) -> bool {
        self.0 & TOUCHED != 0
    }

    #[inline]
    pub(crate) const fn with_touched(self) -> Self {
        Self(self.0 | TOUCHED)
    }
}

/// The isolation of a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// Free frames can be allocated.
    Open,
    /// Free frames cannot be allocated.
    Isolated,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p01_isolation_is_a_bit_and_does_not_change_the_type() {
        for migrate_type in MigrateType::ALL {
            let before = Pageblock::new(Zone::Normal, migrate_type, None)
                .with_pool(PoolId::try_new(18))
                .with_head(Shape::Free, 9);
            let isolated = before.with_isolated(Isolation::Isolated);
            assert_eq!(isolated.migrate_type(), migrate_type);
            assert!(isolated.with_isolated(Isolation::Open) == before);
            assert!(before.is_buddy(before) && !isolated.is_buddy(before));
        }
    }

    #[test]
    fn a_word_keeps_its_parts_apart() {
        let word =
            Pageblock::new(Zone::Movable, MigrateType::Movable, Some(18)).with_ram_range(63).with_touched();
        assert_eq!((word.zone(), word.block(), word.pool()), (Zone::Movable, Some(18), None));
        assert_eq!((word.ram_range(), word.shape(), word.is_touched()), (63, Shape::Part, true));
        let head = word.with_head(Shape::Free, 18);
        assert_eq!((head.shape(), head.order(), head.block()), (Shape::Free, 18, Some(18)));
        assert_eq!(head.with_shape(Shape::Split).with_head(Shape::Used, 9).order(), 9);
        let near = Pageblock::new(Zone::Movable, MigrateType::Movable, Some(18)).with_head(Shape::Free, 12);
        let head = |order| word.with_head(Shape::Free, order);
        let near = near.with_ram_range(63);
        assert!(head(12).is_buddy(near) && !head(13).is_buddy(near) && head(11).doubled().is_buddy(near));
        assert!(!head(12).is_buddy(near.with_ram_range(62)));
        let other = Pageblock::new(Zone::Movable, MigrateType::Movable, Some(17)).with_head(Shape::Free, 12);
        assert!(!head(12).is_buddy(other.with_ram_range(63)));
        let used = word.with_head(Shape::Used, 10);
        assert!(used.is_used_head(10) && !head(10).is_used_head(10) && !used.is_used_head(9));
    }
}
