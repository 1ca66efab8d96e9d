//! The stock of EL2's translation tables: the tables in use, the number that a mapping may take, and when to add more. Pure,
//! so that a PC can test it with small pools; `hyp_mem::mmu` uses it.
//!
//! A static pool grows by blocks of [`BLOCK`] tables in Ballast's own frames. A new block has to be mapped itself, so the last
//! [`RESERVE`] tables are kept for that. Any other mapping that finds too few tables adds blocks and tries again ([`Need`]): no
//! mapping fails while there are memory and room for a block.

use core::cell::Cell;
use stage2::addr::{FRAME_SIZE, PAGEBLOCK_SIZE};

/// Number of tables in a block.
pub(crate) const BLOCK: usize = 16;
/// Most blocks that may be added, a bit of 64 for each table.
pub(crate) const MAX_BLOCKS: usize = u64::BITS as usize / BLOCK;
/// Most tables that the mapping of one pageblock takes: one of level 1, one of level 2 ([`tables_for`]).
pub(crate) const RESERVE: usize = 2;
/// Most bits of an output address of EL2's tables (no FEAT_LPA2; Arm ARM, TCR_EL2.DS).
const ADDRESS_BITS: u8 = 48;

/// Number of tables that a mapping must find free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need(usize);

impl Need {
    /// The need of the pageblock of a new block of tables, which may use the reserve.
    pub(crate) const BLOCK: Self = Self(RESERVE);

    /// The need of a mapping that takes at most `count` tables: these and the reserve.
    pub(crate) const fn tables(count: usize) -> Self {
        Self(count + RESERVE)
    }
}

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The table with this number in the static pool.
    Pool(usize),
    /// The table at this physical address, in an added block.
    Added(u64),
}

/// All tables, and those in use.
#[derive(Debug)]
pub(crate) struct Stock {
    /// Tables in the static pool, at most 64.
    pool: usize,
    /// Tables of the static pool in use, a bit each.
    used: u64,
    /// Tables of the added blocks in use, a bit each.
    used_more: u64,
    /// Physical addresses of the added blocks, in order.
    blocks: [Cell<u64>; MAX_BLOCKS],
    /// Number of added blocks.
    block_count: Cell<usize>,
}

impl Stock {
    /// Makes a stock of a static pool of `pool` tables (at most 64), all free.
    pub(crate) const fn new(pool: usize) -> Self {
        Self {
            pool,
            used: 0,
            used_more: 0,
            blocks: [const { Cell::new(0) }; MAX_BLOCKS],
            block_count: Cell::new(0),
        }
    }

    /// Returns the number of free tables.
    pub(crate) fn free_count(&self) -> usize {
        self.pool + self.block_count.get() * BLOCK
            - (self.used.count_ones() + self.used_more.count_ones()) as usize
    }

    /// Returns true if enough tables are free for `need`.
    pub(crate) fn has(&self, need: Need) -> bool {
        self.free_count() >= need.0
    }

    /// Returns true if a block may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.block_count.get() < MAX_BLOCKS
    }

    /// Adds the block at `base`, if there is room.
    pub(crate) fn add(&self, base: u64) {
        let count = self.block_count.get();
        if let Some(place) = self.blocks.get(count) {
            place.set(base);
            self.block_count.set(count + 1);
        }
    }

    /// Takes a free table, preferably of the static pool.
    pub(crate) fn take(&mut self) -> Option<Place> {
        let index = self.used.trailing_ones() as usize;
        if index < self.pool {
            self.used |= 1 << index;
            return Some(Place::Pool(index));
        }
        let more = self.used_more.trailing_ones() as usize;
        if more >= self.block_count.get() * BLOCK {
            return None;
        }
        self.used_more |= 1 << more;
        let base = self.blocks.get(more / BLOCK)?.get();
        Some(Place::Added(base + (more % BLOCK) as u64 * FRAME_SIZE))
    }

    /// Gives a table back.
    pub(crate) fn give(&mut self, place: Place) {
        match place {
            Place::Pool(index) => self.used &= !(1 << index),
            Place::Added(pa) => {
                for (block, base) in self.blocks.iter().enumerate().take(self.block_count.get()) {
                    let index = pa.wrapping_sub(base.get()) / FRAME_SIZE;
                    if index < BLOCK as u64 {
                        self.used_more &= !(1 << (block * BLOCK + index as usize));
                    }
                }
            }
        }
    }
}

/// Returns the most tables below the root that a mapping of `bytes` bytes, not 0, from `va` to `pa` takes: one for each level
/// 0 entry that it touches, and one for each level 1 and level 2 entry that it does not fill with a block.
pub(crate) fn tables_for(va: u64, pa: u64, bytes: u64) -> usize {
    let slots = |shift: u32| {
        let (size, end) = (1_u64 << shift, va + bytes);
        let (first, last) = (va >> shift, (end - 1) >> shift);
        let touched = last - first + 1;
        // Blocks fill entries that are covered wholly, if the addresses are congruent; level 0 has no blocks (Arm ARM,
        // "VMSAv8-64 descriptor formats").
        if shift > 30 || (va ^ pa) & (size - 1) != 0 {
            return touched;
        }
        let covered = (end >> shift).saturating_sub((va + size - 1) >> shift);
        touched - covered
    };
    (slots(39) + slots(30) + slots(PAGEBLOCK_SIZE.trailing_zeros())) as usize
}

/// Returns true if a CPU with PARange `range` (Arm ARM, ID_AA64MMFR0_EL1) can address `bytes` bytes at `pa`.
pub(crate) fn is_physical(pa: u64, bytes: u64, range: u64) -> bool {
    const BITS: [u8; 6] = [32, 36, 40, 42, 44, ADDRESS_BITS];
    let bits = BITS.get(range as usize).copied().unwrap_or(ADDRESS_BITS);
    pa.checked_add(bytes).is_some_and(|end| end <= 1 << bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn mappings_take_as_many_tables_as_levels_they_do_not_fill() {
        for (va, pa, bytes, tables) in [
            (0, 0, 2 * MIB, RESERVE),
            (0, 0, 4096, 3),
            (GIB, GIB, GIB, 1),
            (GIB, 5 * MIB, GIB, 2 + 512),
            (GIB, 2 * MIB, 2 * GIB, 3),
            // Unaligned ends in two pageblocks, then in two GiB.
            (4096, 4096, 2 * MIB, 4),
            (GIB - 4096, GIB - 4096, 8192, 5),
            ((1 << 39) - 4096, (1 << 39) - 4096, 8192, 6),
            (0, 0, 4 << 39, 4),
        ] {
            assert_eq!(tables_for(va, pa, bytes), tables, "{bytes:#x} at {va:#x}");
        }
    }

    /// Maps what takes `need` tables as `hyp_mem::mmu` and `hyp_mem::pages` do: adds blocks while there are too few.
    fn map(stock: &mut Stock, need: usize, added: &mut u64, has_memory: bool) -> bool {
        while !stock.has(Need::tables(need)) {
            if !stock.has_room() || !has_memory {
                return false;
            }
            assert!(stock.has(Need::BLOCK), "nothing is left to map a block of tables with: {stock:?}");
            (0..RESERVE).for_each(|_| assert!(stock.take().is_some()));
            *added += 1;
            stock.add(*added << 30);
        }
        (0..need).for_each(|_| assert!(stock.take().is_some()));
        true
    }

    #[test]
    fn seven_free_and_a_mapping_of_two_is_no_dead_end() {
        let (mut stock, mut added) = (Stock::new(7), 0);
        for _ in 0..20 {
            assert!(map(&mut stock, 2, &mut added, true));
        }
        // Two regions of redistributors with unaligned ends, at the start, then windows.
        let (mut stock, mut added) = (Stock::new(24), 0);
        for need in [7, 4, 4, 4, 4, 2, 2, 3, 2] {
            assert!(map(&mut stock, need, &mut added, true));
        }
        assert_eq!(added, 1, "a block is added only when it is needed");
    }

    proptest! {
        #[test]
        fn no_mapping_is_refused_while_there_is_memory(
            pool in RESERVE..64_usize,
            needs in proptest::collection::vec((0..7_usize, any::<bool>()), 1..60),
        ) {
            let (mut stock, mut added) = (Stock::new(pool), 0);
            for (need, has_memory) in needs {
                let is_mapped = map(&mut stock, need, &mut added, has_memory);
                prop_assert!(is_mapped || !has_memory || !stock.has_room());
                // Want of memory for a while costs nothing.
                prop_assert!(stock.has(Need::BLOCK));
            }
        }

        #[test]
        fn tables_are_handed_out_once_and_again_when_given_back(
            pool in 0..64_usize,
            blocks in 0..=MAX_BLOCKS as u64,
            given in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let mut stock = Stock::new(pool);
            (0..blocks).for_each(|block| stock.add(GIB + block * MIB));
            let key = |place| match place { Place::Pool(index) => index as u64, Place::Added(pa) => pa };
            let mut taken: Vec<_> = core::iter::from_fn(|| stock.take()).collect();
            let all: BTreeSet<_> = taken.iter().map(|&place| key(place)).collect();
            prop_assert_eq!(all.len(), pool + blocks as usize * BLOCK);
            prop_assert_eq!(taken.len(), all.len());
            for index in given {
                if taken.is_empty() {
                    break;
                }
                stock.give(taken.swap_remove(index.index(taken.len())));
            }
            prop_assert_eq!(stock.free_count(), all.len() - taken.len());
            taken.extend(core::iter::from_fn(|| stock.take()));
            prop_assert_eq!(taken.into_iter().map(key).collect::<BTreeSet<_>>(), all);
        }
    }

    #[test]
    fn devices_may_lie_as_high_as_the_cpu_reaches() {
        // Above the linear map's 64 TiB, with 48 bits (PARange 5, and 6, of which 48 are used).
        assert!(is_physical(100 << 40, 4096, 5) && is_physical(100 << 40, 4096, 6));
        assert!(is_physical((1 << 48) - 4096, 4096, 5) && !is_physical((1 << 48) - 4096, 4097, 5));
        assert!(!is_physical(100 << 40, 4096, 4) && is_physical((1 << 44) - 4096, 4096, 4));
        assert!(!is_physical(u64::MAX, 2, 6));
    }
}
