//! Counts of free blocks by type and order.

use super::Memory;
use crate::addr::MAX_ORDER;
use crate::controller::ControllerId;
use crate::phys::block::Block;
use crate::phys::frame::State;
use crate::phys::pageblock::MigrateType;
use crate::phys::zone::Zone;
use crate::range::FrameRange;

use super::reshape::pageblocks;

/// The number of orders.
pub const ORDERS: usize = MAX_ORDER as usize + 1;
const TYPES: usize = MigrateType::ALL.len();

/// Counts by [`MigrateType`], in the order of [`MigrateType::ALL`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FreeBlocks {
    /// Free blocks by order, without those of isolated pageblocks.
    pub free: [[u32; ORDERS]; TYPES],
    /// Pageblocks.
    pub pageblocks: [u32; TYPES],
    /// Isolated pageblocks, also counted above.
    pub isolated_pageblocks: u32,
    /// Pageblocks of pools, also counted above.
    pub pool_pageblocks: u32,
}

impl FreeBlocks {
    /// All counts zero.
    pub const NONE: Self = Self {
        free: [[0; ORDERS]; TYPES],
        pageblocks: [0; TYPES],
        isolated_pageblocks: 0,
        pool_pageblocks: 0,
    };

    /// Returns the number of free blocks of `order`, of all types.
    pub fn of_order(&self, order: u8) -> u32 {
        self.free.iter().filter_map(|by_order| by_order.get(order as usize)).sum()
    }
}

impl Memory<'_> {
    /// Counts the free blocks of `zone` that begin in `range`, each as the largest block that can be allocated there.
    /// Holds a lock for one pageblock at a time.
    pub fn count_free_blocks(&self, zone: Zone, range: FrameRange, into: &mut FreeBlocks) {
        for part in pageblocks(range) {
            let Some(record) = self.record(part.first()) else { continue };
            let _locked = record.lock();
            let word = record.table().words.word(record.slot);
            if word.zone() != zone {
                continue;
            }
            let at = word.list();
            into.pageblocks[at] += 1;
            into.pool_pageblocks += u32::from(word.pool().is_some());
            if word.is_isolated() {
                into.isolated_pageblocks += 1;
                continue;
            }
            let mut number = part.start();
            while number < part.end() {
                let Some(head) = record.table().head(record.ram_range, number) else { break };
                if head.state == State::Free && head.number == number {
                    into.free[at][head.order as usize] += 1;
                }
                number = head.end();
            }
        }
    }

    /// Returns the ranges of RAM with their controllers, in ascending order.
    pub fn ram(&self) -> impl Iterator<Item = (FrameRange, ControllerId)> {
        let ram_ranges = self.layout.get().map_or(&[][..], |layout| layout.table.ram_ranges());
        ram_ranges.iter().map(|ram_range| (ram_range.range, ram_range.controller))
    }

    /// Returns the designated movable blocks, in the order of their designation.
    pub fn blocks(&self) -> &[Block] {
        self.layout.get().map_or(&[], |layout| &layout.blocks)
    }

    /// Returns the number of frames in pools outside all designated blocks.
    pub fn pool_frames(&self) -> u64 {
        self.layout.get().map_or(0, |layout| layout.pool_frames)
    }
}
