//! The buddy allocator of one arena: free blocks of 4 KiB (order 0) to 1 GiB (order 18).
//!
//! **From a pageblock up** (orders 9 to 18), free blocks are on doubly linked lists, one for each order and
//! migratetype. A block merges with its buddy if that is free, of the same order, in the same RAM range and of the same
//! zone, type, isolation, designated block and pool. So free blocks never cross a boundary of any of these.
//!
//! **Inside a pageblock** (orders 0 to 8), no blocks are linked or merged: a *split* pageblock has a bit for each free
//! frame. It is on a list by its *class*, an upper bound of the order of its largest free block. A small request uses
//! the pageblock of the lowest class that may have the block, so that pageblocks with more room stay whole. Freeing
//! sets bits and compares them with the class. A pageblock that becomes wholly free is merged, except for one of each
//! type, which is *kept* split until memory is short or another one becomes free. This saves a merge and a split for a
//! caller that frees and allocates single frames alternately.
//!
//! So the cost of a request does not depend on the size of memory.
//!
//! **Isolated** pageblocks are on no list. Freeing their frames sets bits, but no request finds them until the
//! isolation ends.
//!
//! **Fallback** is for NORMAL arenas only; pageblocks of MOVABLE never change type. A request whose own lists are empty
//! takes the smallest free block of at least a pageblock of another type and converts whole pageblocks of it. If there
//! is none, it uses the split pageblock of another type with the most room: if at least half of it is free, the
//! pageblock changes type; otherwise the frames are borrowed. Unmovable requests fall back to movable pageblocks;
//! movable requests to pools, which keep their type, then to unmovable pageblocks.

use crate::addr::{MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::phys::frame::{Contents, FrameTable, Info, NONE, SMALL_ORDERS, Slot, Table};
use crate::phys::pageblock::{LIST_SLOTS, LISTS, MigrateType, Shape};
use crate::phys::zone::Zone;

mod isolation;
mod large;

/// The number of lists of each type: one for each order.
const STRIDE: usize = MAX_ORDER as usize + 1;
/// The number of pageblocks whose class a request corrects before it splits a whole pageblock.
const TRIES: u32 = 8;

/// A list of pageblocks. All zero is the empty list.
#[derive(Clone, Copy)]
struct List {
    /// The complement of the first pageblock's number; zero for none.
    first: u32,
    count: u32,
}

/// The free blocks of an arena.
pub(crate) struct FreeLists {
    /// By type and order: split pageblocks by class, then free blocks.
    lists: [List; LIST_SLOTS * STRIDE],
    /// For each type, a bit for each list that is not empty.
    orders: [u32; LIST_SLOTS],
    /// For each type, the complement of the number of the kept pageblock; zero for none.
    kept: [u32; LIST_SLOTS],
    /// The number of isolated pageblocks.
    isolated: u32,
    /// The number of changes in the arena, modulo 2^32.
    changes: u32,
}

/// A block just taken. Its entry and word are not written yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub(crate) slot: Slot,
    pub(crate) contents: Contents,
}

#[inline]
const fn key(list: usize, order: u8) -> usize {
    let key = list * STRIDE + order as usize;
    // Clamped, so that the compiler needs no bounds check.
    if key < LIST_SLOTS * STRIDE { key } else { 0 }
}

impl FreeLists {
    /// Creates lists without free blocks.
    pub(crate) const fn new() -> Self {
        Self {
            lists: [List { first: 0, count: 0 }; LIST_SLOTS * STRIDE],
            orders: [0; LIST_SLOTS],
            kept: [0; LIST_SLOTS],
            isolated: 0,
            changes: 0,
        }
    }

    /// Counts a change.
    #[inline]
    pub(crate) fn count_change(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// Returns a number that differs after every change.
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    /// Returns the number of isolated pageblocks.
    pub(crate) fn isolated(&self) -> u32 {
        self.isolated
    }

    /// Returns whether pageblock `index`, on the list of `order`, is linked in both directions.
    pub(crate) fn is_linked(&self, table: &Table<'_>, index: u32, list: usize, order: u8) -> bool {
        let map = table.free_map(index);
        let (previous, next) = (map.previous(), map.next());
        let before = match previous {
            NONE => !self.lists[key(list, order)].first == index,
            _ => table.has_pageblock(previous) && table.free_map(previous).next() == index,
        };
        before && (next == NONE || table.has_pageblock(next) && table.free_map(next).previous() == index)
    }

    /// Returns the number of free blocks of `order`, or of split pageblocks of that class, on list `list`.
    pub(crate) fn count(&self, list: usize, order: u8) -> u32 {
        self.lists[key(list, order)].count
    }

    /// Returns the first pageblock of a list that is not empty.
    #[inline]
    fn first(&self, list: usize, order: u8) -> u32 {
        !self.lists[key(list, order)].first
    }

    /// Takes a block of `order` for a request of type `wanted` in an arena of `zone`: from the lists of that type, then
    /// from other types, then from wholly free pageblocks that were kept split.
    #[inline(always)]
    pub(crate) fn take(
        &mut self,
        table: &FrameTable<'_>,
        zone: Zone,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        let taken = match order {
            0..PAGEBLOCK_ORDER => self.take_small(&table.words, wanted as usize, order),
            _ => self.take_large(&table.words, wanted as usize, order),
        };
        match taken {
            Some(taken) => Some(taken),
            None => self.take_otherwise(table, zone, wanted, order),
        }
    }

    /// Takes a block that the first pageblock on the lists does not have.
    #[cold]
    #[inline(never)]
    fn take_otherwise(
        &mut self,
        table: &FrameTable<'_>,
        zone: Zone,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        let taken = self.take_own_or_fall_back(table, zone, wanted, order);
        if taken.is_none() && self.release_kept(table) {
            return self.take_own_or_fall_back(table, zone, wanted, order);
        }
        taken
    }

    fn take_own_or_fall_back(
        &mut self,
        table: &FrameTable<'_>,
        zone: Zone,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        match self.take_from(&table.words, wanted as usize, order) {
            Some(taken) => Some(taken),
            None => self.fall_back(&table.words, zone, wanted, order),
        }
    }

    /// Takes a block of `order` from the lists of one type, splitting a pageblock for it if necessary.
    fn take_from(&mut self, table: &Table<'_>, list: usize, order: u8) -> Option<Taken> {
        if order >= PAGEBLOCK_ORDER {
            return self.take_large(table, list, order);
        }
        if let Some(taken) = self.take_small_after(table, list, order, TRIES) {
            return Some(taken);
        }
        match self.take_large(table, list, PAGEBLOCK_ORDER) {
            Some(whole) => Some(self.take_split(table, whole, list, order)),
            None => self.take_small_after(table, list, order, u32::MAX),
        }
    }

    /// Returns the first split pageblock of the lowest class that may have a free block of `order`, and its class.
    #[inline]
    fn candidate(&self, list: usize, order: u8) -> Option<(u32, u8)> {
        let classes = self.orders[list] & ((1 << SMALL_ORDERS) - 1) & u32::MAX << order;
        let class = classes.trailing_zeros() as u8;
        (classes != 0).then(|| (self.first(list, class), class))
    }

    /// Takes a block of `order` from the first candidate.
    #[inline(always)]
    fn take_small(&mut self, table: &Table<'_>, list: usize, order: u8) -> Option<Taken> {
        let (index, class) = self.candidate(list, order)?;
        let map = table.free_map(index);
        let info = map.info();
        let (offset, left) = map.take(info, order)?;
        if left == 0 {
            self.unlink(table, index, list, class);
        }
        Some(Taken { slot: Slot::of_pageblock(index).add(offset.into()), contents: info.contents() })
    }

    /// Takes a block of `order` from a split pageblock, after correcting the class of at most `tries` of them.
    fn take_small_after(&mut self, table: &Table<'_>, list: usize, order: u8, tries: u32) -> Option<Taken> {
        for _ in 0..tries {
            if let Some(taken) = self.take_small(table, list, order) {
                return Some(taken);
            }
            let (index, class) = self.candidate(list, order)?;
            self.unlink(table, index, list, class);
            if let Some(class) = table.free_map(index).largest() {
                self.push_split(table, index, list, class);
            }
        }
        None
    }

    /// Splits a pageblock just taken and takes a block of `order` from it.
    fn take_split(&mut self, table: &Table<'_>, whole: Taken, list: usize, order: u8) -> Taken {
        self.split_whole(table, whole, list);
        table.free_map(whole.slot.pageblock()).take_at(order, 0);
        whole
    }

    /// Splits a pageblock just taken.
    fn split_whole(&mut self, table: &Table<'_>, whole: Taken, list: usize) {
        let index = whole.slot.pageblock();
        table.make_split(whole.slot);
        table.free_map(index).fill(whole.contents);
        self.push_split(table, index, list, SMALL_ORDERS - 1);
    }

    /// Takes a block of `order` from pageblocks of another type.
    fn fall_back(&mut self, table: &Table<'_>, zone: Zone, wanted: MigrateType, order: u8) -> Option<Taken> {
        if zone == Zone::Movable {
            return None;
        }
        match wanted {
            MigrateType::Unmovable => self.steal(table, MigrateType::Movable, wanted, order),
            // Lent: a pool's pageblocks keep their type.
            MigrateType::Movable => self
                .take_from(table, MigrateType::Pool as usize, order)
                .or_else(|| self.steal(table, MigrateType::Unmovable, wanted, order)),
            MigrateType::Pool => None,
        }
    }

    /// Takes a block of `order` from pageblocks of type `from` for `wanted`.
    fn steal(
        &mut self,
        table: &Table<'_>,
        from: MigrateType,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        let taken = self.steal_large(table, from, wanted, order);
        if taken.is_some() || order >= PAGEBLOCK_ORDER {
            return taken;
        }
        let classes = (self.orders[from as usize] & ((1 << SMALL_ORDERS) - 1)) >> order << order;
        let class = classes.checked_ilog2()? as u8;
        let index = self.first(from as usize, class);
        if table.free_map(index).info().count() >= PAGEBLOCK_FRAMES as u32 / 2 {
            self.unlink(table, index, from as usize, class);
            let slot = Slot::of_pageblock(index);
            table.set_word(slot, table.word(slot).with_migrate_type(wanted));
            self.push_split(table, index, wanted as usize, class);
            if let Some(taken) = self.take_small_after(table, wanted as usize, order, u32::MAX) {
                return Some(taken);
            }
        }
        self.take_small_after(table, from as usize, order, u32::MAX)
    }

    /// Frees the block of `order` at `slot`, which is frame `number`, and merges it with its buddies. Its entry must no
    /// longer show it in use.
    #[inline]
    pub(crate) fn give(
        &mut self,
        table: &FrameTable<'_>,
        slot: Slot,
        number: u64,
        order: u8,
        contents: Contents,
    ) {
        match order {
            0..PAGEBLOCK_ORDER => self.give_small(table, slot, order, contents),
            _ if self.isolated == 0 => self.merge(&table.words, slot, number, order, contents),
            _ => self.give_partly_isolated(table, slot, number, order, contents),
        }
    }

    /// Frees a block below a pageblock.
    #[inline]
    fn give_small(&mut self, table: &FrameTable<'_>, slot: Slot, order: u8, contents: Contents) {
        let map = table.words.free_map(slot.pageblock());
        let before = map.give(order, slot.offset(), contents);
        // Its list changes if it had no free frame, or if the free block is now larger than its class.
        if before.count() == 0 || map.is_block_free(before.class() + 1, slot.offset()) {
            self.relist(table, slot, order, before);
        }
    }

    /// Moves the split pageblock of the block of `order` just freed at `slot` to the list of its new class. Its list
    /// was that of `before`.
    #[inline(never)]
    fn relist(&mut self, table: &FrameTable<'_>, slot: Slot, order: u8, before: Info) {
        let word = table.words.word(slot);
        if word.is_isolated() {
            return;
        }
        let index = slot.pageblock();
        let list = word.list();
        let map = table.words.free_map(index);
        let class = map.order_around(order, slot.offset());
        if before.count() == 0 {
            self.push_split(&table.words, index, list, class);
        } else if class > before.class() {
            self.unlink(&table.words, index, list, before.class());
            self.push_split(&table.words, index, list, class);
        }
        if map.info().count() == PAGEBLOCK_FRAMES as u32 {
            let kept = !self.kept[list];
            self.kept[list] = !index;
            if kept != index {
                self.merge_if_whole(table, kept, list);
            }
        }
    }

    /// Merges the wholly free pageblocks that were kept split. Returns whether there were any.
    fn release_kept(&mut self, table: &FrameTable<'_>) -> bool {
        (0..LISTS).fold(false, |any, list| {
            let kept = !core::mem::take(&mut self.kept[list]);
            self.merge_if_whole(table, kept, list) || any
        })
    }

    /// Turns pageblock `index` into a free block if it is split, wholly free and on the lists of type `list`.
    fn merge_if_whole(&mut self, table: &FrameTable<'_>, index: u32, list: usize) -> bool {
        if index == NONE {
            return false;
        }
        let slot = Slot::of_pageblock(index);
        let word = table.words.word(slot);
        let info = table.words.free_map(index).info();
        let is_whole = word.is_split() && info.count() == PAGEBLOCK_FRAMES as u32;
        if !is_whole || word.is_isolated() || word.list() != list {
            return false;
        }
        self.unlink(&table.words, index, list, info.class());
        let ram_range = table.ram_range_in(word);
        self.merge(&table.words, slot, ram_range.number(slot), PAGEBLOCK_ORDER, info.contents());
        true
    }

    /// Frees a block of at least a pageblock, some pageblocks of which may be isolated: each of these becomes a free
    /// block of its own.
    #[inline(never)]
    fn give_partly_isolated(
        &mut self,
        table: &FrameTable<'_>,
        slot: Slot,
        number: u64,
        order: u8,
        contents: Contents,
    ) {
        let words = &table.words;
        let offsets = || (0..1 << order).step_by(PAGEBLOCK_FRAMES as usize);
        if !offsets().any(|offset| words.word(slot.add(offset)).is_isolated()) {
            return self.merge(words, slot, number, order, contents);
        }
        for offset in offsets() {
            let slot = slot.add(offset);
            if words.word(slot).is_isolated() {
                Self::set_free_alone(words, slot, contents);
            } else {
                self.merge(words, slot, number + offset, PAGEBLOCK_ORDER, contents);
            }
        }
    }

    /// Turns the pageblock at `slot` into a free block that is on no list.
    fn set_free_alone(words: &Table<'_>, slot: Slot, contents: Contents) {
        words.set_word(slot, words.word(slot).with_head(Shape::Free, PAGEBLOCK_ORDER));
        words.free_map(slot.pageblock()).set_whole(contents);
    }

    /// Puts a split pageblock on the list of `class`.
    fn push_split(&mut self, words: &Table<'_>, index: u32, list: usize, class: u8) {
        let map = words.free_map(index);
        map.set_info(map.info().with_class(class));
        self.link(words, index, list, class);
    }
}
