//! The buddy allocator of one arena: free blocks of 4 KiB (order 0) to 1 GiB (order 18).
//!
//! One list for each order and kind (unmovable, movable, pool, isolated), doubly linked through the frame table, and
//! a bit mask of orders that have blocks for each kind: taking a block, giving one back and unlinking a buddy cost the
//! same whatever the size of the map.
//!
//! **Merging.** A block merges with its buddy when that is free, of the same order, in the same region and, from a
//! pageblock up, of the same zone, type, isolation, designated block and pool. So free blocks never reach over the
//! edge of any of these.
//!
//! **Fallback** is for NORMAL arenas only; blocks of MOVABLE never change type. A request that finds its own lists
//! empty takes the smallest block of at least a pageblock of another type and makes whole pageblocks of it its own.
//! Where there is none, it takes the largest smaller block; if that is half a pageblock, the pageblock changes type
//! with all its free blocks, otherwise the frames are borrowed. Unmovable requests fall back to movable pageblocks,
//! movable ones to pools, then to unmovable pageblocks, and nothing ever takes an isolated block.

use crate::addr::{MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::frame::{Contents, FrameTable, Meta, NONE, Region, Slot};
use crate::pageblock::{LISTS, MigrateType};
use crate::zone::Zone;

/// How many orders there are.
pub(crate) const ORDERS: usize = MAX_ORDER as usize + 1;

/// A list of free blocks. All zero is the empty list.
#[derive(Clone, Copy)]
struct FreeList {
    /// The complement of the first block's slot; zero for none.
    first: u32,
    count: u32,
}

/// The free blocks of an arena.
pub(crate) struct FreeLists {
    lists: [[FreeList; ORDERS]; LISTS],
    /// For each kind a bit for each order that has blocks.
    orders: [u32; LISTS],
}

/// A block just taken from the lists; its entry still says that it is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub(crate) slot: Slot,
    pub(crate) contents: Contents,
}

impl FreeLists {
    /// No free blocks.
    pub(crate) const fn new() -> Self {
        Self { lists: [[FreeList { first: 0, count: 0 }; ORDERS]; LISTS], orders: [0; LISTS] }
    }

    /// How many blocks of `order` list `list` has.
    pub(crate) fn count(&self, list: usize, order: u8) -> u32 {
        self.lists[list][order as usize].count
    }

    /// The first block of `order` on list `list`.
    pub(crate) fn first(&self, list: usize, order: u8) -> Option<Slot> {
        let slot = !self.lists[list][order as usize].first;
        (slot != NONE).then_some(Slot(slot))
    }

    /// The largest order that has a block on list `list`.
    pub(crate) fn largest(&self, list: usize) -> Option<u8> {
        self.orders[list].checked_ilog2().map(|order| order as u8)
    }

    /// Takes a block of `order` for a request of type `wanted` in an arena of `zone`.
    #[inline]
    pub(crate) fn take(
        &mut self,
        table: &FrameTable<'_>,
        zone: Zone,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        match self.take_from(table, wanted as usize, order) {
            Some(taken) => Some(taken),
            None => self.fall_back(table, zone, wanted, order),
        }
    }

    /// Takes a block of `order` from list `list`, splitting a larger one if need be.
    #[inline]
    fn take_from(&mut self, table: &FrameTable<'_>, list: usize, order: u8) -> Option<Taken> {
        let candidates = self.orders[list] >> order;
        if candidates == 0 {
            return None;
        }
        let found = order + candidates.trailing_zeros() as u8;
        let slot = self.first(list, found)?;
        let contents = table.meta(slot).contents();
        self.unlink(table, slot, list, found);
        self.split(table, slot, found, order, list, contents);
        Some(Taken { slot, contents })
    }

    /// Puts all but the first block of `to` of the unlinked block of order `from` at `slot` on list `list`.
    #[inline]
    fn split(
        &mut self,
        table: &FrameTable<'_>,
        slot: Slot,
        from: u8,
        to: u8,
        list: usize,
        contents: Contents,
    ) {
        let mut order = from;
        while order > to {
            order -= 1;
            let upper = slot.add(1 << order);
            table.make_valid(upper, order);
            self.push(table, upper, order, list, contents);
        }
    }

    #[cold]
    fn fall_back(
        &mut self,
        table: &FrameTable<'_>,
        zone: Zone,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        if zone == Zone::Movable {
            return None;
        }
        let others: &[MigrateType] = match wanted {
            MigrateType::Unmovable => &[MigrateType::Movable],
            MigrateType::Movable => &[MigrateType::Pool, MigrateType::Unmovable],
            MigrateType::Pool => &[],
        };
        others.iter().find_map(|&from| {
            if from == MigrateType::Pool {
                // Lent, not given: a pool's pageblocks keep their type.
                return self.take_from(table, from as usize, order);
            }
            self.steal(table, from, wanted, order)
        })
    }

    /// Takes a block of `order` from pageblocks of type `from` for `wanted`.
    fn steal(
        &mut self,
        table: &FrameTable<'_>,
        from: MigrateType,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        let list = from as usize;
        let whole = order.max(PAGEBLOCK_ORDER);
        let candidates = self.orders[list] >> whole;
        if candidates != 0 {
            let found = whole + candidates.trailing_zeros() as u8;
            let slot = self.first(list, found)?;
            let contents = table.meta(slot).contents();
            self.unlink(table, slot, list, found);
            self.split(table, slot, found, whole, list, contents);
            for pageblock in 0..1 << (whole - PAGEBLOCK_ORDER) {
                let slot = slot.add(pageblock * PAGEBLOCK_FRAMES);
                table.set_pageblock(slot, table.pageblock(slot).with_migrate_type(wanted));
            }
            self.split(table, slot, whole, order, wanted as usize, contents);
            return Some(Taken { slot, contents });
        }
        let smaller = (self.orders[list] & ((1 << PAGEBLOCK_ORDER) - 1)) >> order << order;
        let found = smaller.checked_ilog2()? as u8;
        if found == PAGEBLOCK_ORDER - 1 {
            let slot = self.first(list, found)?;
            self.retype_pageblock(table, slot, wanted);
            return self.take_from(table, wanted as usize, order);
        }
        let slot = self.first(list, found)?;
        let contents = table.meta(slot).contents();
        self.unlink(table, slot, list, found);
        self.split(table, slot, found, order, list, contents);
        Some(Taken { slot, contents })
    }

    /// Makes the split pageblock at `slot` serve `wanted` and moves its free blocks to the right lists.
    fn retype_pageblock(&mut self, table: &FrameTable<'_>, slot: Slot, wanted: MigrateType) {
        table.set_pageblock(slot, table.pageblock(slot).with_migrate_type(wanted));
        self.relist_pageblock(table, slot);
    }

    /// Moves the free blocks inside the split pageblock at `slot` to the list that its word names. Returns how many
    /// frames moved.
    pub(crate) fn relist_pageblock(&mut self, table: &FrameTable<'_>, slot: Slot) -> u64 {
        let first = slot.0 & !(PAGEBLOCK_FRAMES as u32 - 1);
        let list = table.pageblock(slot).list();
        let (mut offset, mut moved) = (0, 0);
        while offset < PAGEBLOCK_FRAMES {
            let slot = Slot(first).add(offset);
            let meta = table.meta(slot);
            let order = meta.order();
            if meta.is_free_of(order) && meta.list() != list {
                self.unlink(table, slot, meta.list(), order);
                self.push(table, slot, order, list, meta.contents());
                moved += 1 << order;
            }
            offset += 1 << order;
        }
        moved
    }

    /// Gives the block of `order` at frame `number` of `region` back, merging it as far as it goes.
    #[inline]
    pub(crate) fn give(
        &mut self,
        table: &FrameTable<'_>,
        region: &Region,
        number: u64,
        order: u8,
        contents: Contents,
    ) {
        let (mut number, mut order, mut contents) = (number, order, contents);
        let word = table.pageblock(region.slot(number));
        while order < MAX_ORDER {
            let buddy = number ^ 1 << order;
            if !region.has(buddy) {
                break;
            }
            let slot = region.slot(buddy);
            if order >= PAGEBLOCK_ORDER {
                let other = table.pageblock(slot);
                if !word.merges_with(other) || !other.is_first_valid() {
                    break;
                }
            }
            let meta = table.meta(slot);
            if !meta.is_free_of(order) {
                break;
            }
            self.unlink(table, slot, meta.list(), order);
            contents = contents.and(meta.contents());
            table.set_meta(region.slot(number.max(buddy)), Meta::TAIL);
            number = number.min(buddy);
            order += 1;
        }
        self.push(table, region.slot(number), order, word.list(), contents);
    }

    /// Puts a block that is on no list on list `list`.
    #[inline]
    pub(crate) fn push(
        &mut self,
        table: &FrameTable<'_>,
        slot: Slot,
        order: u8,
        list: usize,
        contents: Contents,
    ) {
        let head = &mut self.lists[list][order as usize];
        let next = !head.first;
        table.set_free(slot, Meta::free(order, list, contents), next);
        if next != NONE {
            table.set_previous(Slot(next), slot.0);
        }
        head.first = !slot.0;
        head.count += 1;
        self.orders[list] |= 1 << order;
    }

    /// Takes the free block at `slot` off list `list`. Its entry is left as it is.
    #[inline]
    pub(crate) fn unlink(&mut self, table: &FrameTable<'_>, slot: Slot, list: usize, order: u8) {
        let (previous, next) = table.links(slot);
        if next != NONE {
            table.set_previous(Slot(next), previous);
        }
        let head = &mut self.lists[list][order as usize];
        if previous != NONE {
            table.set_next(Slot(previous), next);
        } else {
            head.first = !next;
            if next == NONE {
                self.orders[list] &= !(1 << order);
            }
        }
        head.count -= 1;
    }
}
