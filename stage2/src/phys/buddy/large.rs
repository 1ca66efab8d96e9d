//! Free blocks of at least a pageblock: lists, splitting and merging.
//!
//! Here a pageblock is named by its number in the frame table. Within a RAM range these numbers run in step with frame
//! numbers, and every pageblock's word names its RAM range. So the word of a buddy shows if it is in another range,
//! just as it shows another type or zone.

use super::{FreeLists, Taken, key};
use crate::addr::{MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::phys::frame::{Contents, FreeMap, NONE, Slot, Table};
use crate::phys::pageblock::{MigrateType, Shape};

impl FreeLists {
    /// Takes a block of `order`, at least a pageblock's, from the lists of one type, splitting a larger one if
    /// necessary. The caller writes the words of its pageblocks.
    pub(super) fn take_large(&mut self, table: &Table<'_>, list: usize, order: u8) -> Option<Taken> {
        let candidates = self.orders[list] >> order;
        if candidates == 0 {
            return None;
        }
        let mut larger = order + candidates.trailing_zeros() as u8;
        let index = self.first(list, larger);
        let map = table.free_map(index);
        let contents = map.info().contents();
        self.unlink_from(table, map, list, larger);
        while larger > order {
            larger -= 1;
            let upper = index + (1 << (larger - PAGEBLOCK_ORDER));
            self.push_large(table, Slot::of_pageblock(upper), larger, contents);
        }
        Some(Taken { slot: Slot::of_pageblock(index), contents })
    }

    /// Takes a block of `order` from free blocks of at least a pageblock of type `from`, and converts its pageblocks to
    /// `wanted`.
    pub(super) fn steal_large(
        &mut self,
        table: &Table<'_>,
        from: MigrateType,
        wanted: MigrateType,
        order: u8,
    ) -> Option<Taken> {
        let whole = order.max(PAGEBLOCK_ORDER);
        let taken = self.take_large(table, from as usize, whole)?;
        set_type(table, taken.slot, whole, wanted);
        Some(match order {
            0..PAGEBLOCK_ORDER => self.take_split(table, taken, wanted as usize, order),
            _ => taken,
        })
    }

    /// Puts a block of at least a pageblock on its list, merged with its buddies.
    pub(super) fn merge(
        &mut self,
        words: &Table<'_>,
        slot: Slot,
        number: u64,
        mut order: u8,
        mut contents: Contents,
    ) {
        let mut index = slot.pageblock();
        let Some(mut cell) = words.cell(index) else { return };
        cell.set(cell.get().with_head(Shape::Free, order));
        let mut head = cell.get();
        let list = head.list();
        // By frame number, which decides where the buddy is.
        let block = (number >> PAGEBLOCK_ORDER) as u32;
        let mut size = 1 << (u32::from(order - PAGEBLOCK_ORDER) % u32::BITS);
        while order < MAX_ORDER {
            let is_lower = block & size == 0;
            let buddy = if is_lower { index.wrapping_add(size) } else { index.wrapping_sub(size) };
            let Some(other) = words.cell(buddy).filter(|other| head.is_buddy(other.get())) else { break };
            let map = words.free_map(buddy);
            self.unlink_from(words, map, list, order);
            contents = contents.and(map.info().contents());
            let upper = if is_lower { other } else { cell };
            upper.set(upper.get().with_shape(Shape::Part));
            if !is_lower {
                (cell, index) = (other, buddy);
            }
            order += 1;
            size <<= 1;
            head = head.doubled();
        }
        cell.set(head.with_touched_as(cell.get()));
        let map = words.free_map(index);
        map.set_whole(contents);
        self.link_to(words, map, index, list, order);
    }

    /// Puts a free block of at least a pageblock on its list and writes its head.
    pub(super) fn push_large(&mut self, words: &Table<'_>, slot: Slot, order: u8, contents: Contents) {
        let word = words.word(slot).with_head(Shape::Free, order);
        words.set_word(slot, word);
        let map = words.free_map(slot.pageblock());
        map.set_whole(contents);
        self.link_to(words, map, slot.pageblock(), word.list(), order);
    }

    /// Puts pageblock `index` on a list.
    #[inline]
    pub(super) fn link(&mut self, words: &Table<'_>, index: u32, list: usize, order: u8) {
        self.link_to(words, words.free_map(index), index, list, order);
    }

    #[inline(always)]
    fn link_to(&mut self, words: &Table<'_>, map: FreeMap<'_>, index: u32, list: usize, order: u8) {
        let head = &mut self.lists[key(list, order)];
        let next = !head.first;
        head.first = !index;
        head.count += 1;
        self.orders[list] |= 1 << order;
        map.set_previous(NONE);
        map.set_next(next);
        if next != NONE {
            words.free_map(next).set_previous(index);
        }
    }

    /// Takes pageblock `index` off a list.
    #[inline]
    pub(super) fn unlink(&mut self, words: &Table<'_>, index: u32, list: usize, order: u8) {
        self.unlink_from(words, words.free_map(index), list, order);
    }

    #[inline(always)]
    fn unlink_from(&mut self, words: &Table<'_>, map: FreeMap<'_>, list: usize, order: u8) {
        let (previous, next) = (map.previous(), map.next());
        if next != NONE {
            words.free_map(next).set_previous(previous);
        }
        let head = &mut self.lists[key(list, order)];
        head.count -= 1;
        if previous != NONE {
            words.free_map(previous).set_next(next);
        } else {
            head.first = !next;
            if next == NONE {
                self.orders[list] &= !(1 << order);
            }
        }
    }
}

/// Sets the type of the pageblocks of the block of `order` at `slot`.
fn set_type(table: &Table<'_>, slot: Slot, order: u8, wanted: MigrateType) {
    for pageblock in 0..1 << (order - PAGEBLOCK_ORDER) {
        let slot = slot.add(pageblock * PAGEBLOCK_FRAMES);
        table.set_word(slot, table.word(slot).with_migrate_type(wanted));
    }
}
