//! Single frames at hand.
//!
//! Of each type an arena has the free frames of one word of a free map, 32 at most, *at hand*: taken out of the map, and
//! handed out and taken back with no more than a bit set or cleared. They are free by every counter, and belong to nobody.
//! A word is put back in one step when a frame of another word is freed, and before anything but a single frame is
//! looked for in vain.
//!
//! Whoever locks an arena for more than a plain allocation or free finds nothing at hand: see
//! [`Arena::lock`](crate::arena::Arena::lock). So frames at hand are never isolated, and no walk over the table meets one.

use super::{FreeLists, Taken};
use crate::addr::PAGEBLOCK_FRAMES;
use crate::frame::{Contents, FrameTable, SMALL_ORDERS, Slot, Table};
use crate::pageblock::LISTS;

/// log2 of the frames of a word.
const WORD_SHIFT: u32 = 5;

/// Free frames of one word of a free map, none of which the map has. All zero: none.
#[derive(Clone, Copy)]
pub(super) struct Front {
    /// The number of the first frame's slot, shifted.
    word: u32,
    free: u32,
    /// Those of which it is not known that all bytes are zero; bits of others may be set too.
    dirty: u32,
}

impl Front {
    pub(super) const EMPTY: Self = Self { word: 0, free: 0, dirty: 0 };

    const fn contents(self) -> Contents {
        if self.free & self.dirty == 0 { Contents::Zeroed } else { Contents::Dirty }
    }

    #[inline]
    fn take(&mut self) -> Option<Taken> {
        if self.free == 0 {
            return None;
        }
        let at = self.free.trailing_zeros();
        let is_dirty = self.dirty >> at & 1 != 0;
        self.free &= self.free - 1;
        let contents = if is_dirty { Contents::Dirty } else { Contents::Zeroed };
        Some(Taken { slot: Slot(self.word << WORD_SHIFT | at), contents })
    }

    #[inline]
    fn give(&mut self, slot: Slot, contents: Contents) {
        let bit = 1 << (slot.0 % (1 << WORD_SHIFT));
        self.free |= bit;
        match contents {
            Contents::Dirty => self.dirty |= bit,
            Contents::Zeroed => self.dirty &= !bit,
        }
    }
}

impl FreeLists {
    /// Takes a single frame that is at hand.
    #[inline]
    pub(super) fn take_at_hand(&mut self, list: usize) -> Option<Taken> {
        self.fronts[list % LISTS.next_power_of_two()].take()
    }

    /// Takes a single frame from the lists of one type, and has others of its word at hand after that.
    pub(super) fn take_frame(&mut self, table: &FrameTable<'_>, list: usize) -> Option<Taken> {
        self.take_at_hand(list).or_else(|| {
            let classes = self.orders[list] & ((1 << SMALL_ORDERS) - 1);
            let index = if classes == 0 {
                let whole = self.take_whole(table.words, list, SMALL_ORDERS)?;
                self.split_whole(table.words, whole, list);
                whole.slot.pageblock()
            } else {
                self.first(list, classes.trailing_zeros() as u8)
            };
            self.fetch(table.words, index, list);
            self.take_at_hand(list)
        })
    }

    /// Takes the first word with free frames of a split pageblock on `list`, none of which is at hand.
    fn fetch(&mut self, words: Table<'_>, index: u32, list: usize) {
        let map = words.free_map(index);
        let before = map.info();
        let (word, free, left) = map.take_word();
        if left == 0 {
            self.unlink(words, index, list, before.class());
        }
        let first = Slot::of_pageblock(index).add(u64::from(word) << WORD_SHIFT);
        let dirty = if before.contents() == Contents::Dirty { u32::MAX } else { 0 };
        self.fronts[list % LISTS.next_power_of_two()] = Front { word: first.0 >> WORD_SHIFT, free, dirty };
    }

    /// Gives the single frame at `slot` back, in a split pageblock of type `list` that is not isolated.
    #[inline]
    pub(crate) fn give_frame(&mut self, table: &FrameTable<'_>, list: usize, slot: Slot, contents: Contents) {
        let list = list % LISTS.next_power_of_two();
        if self.fronts[list].word != slot.0 >> WORD_SHIFT {
            if self.fronts[list].free != 0 {
                self.put_back(table, list);
            }
            self.fronts[list].word = slot.0 >> WORD_SHIFT;
        }
        self.fronts[list].give(slot, contents);
    }

    /// Whether nothing is at hand.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.fronts.iter().fold(0, |all, front| all | front.free) == 0
    }

    /// Puts all that is at hand back.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle(&mut self, table: &FrameTable<'_>) {
        for list in 0..LISTS {
            if self.fronts[list].free != 0 {
                self.put_back(table, list);
            }
        }
    }

    #[inline(never)]
    fn put_back(&mut self, table: &FrameTable<'_>, list: usize) {
        let front = core::mem::replace(&mut self.fronts[list % LISTS.next_power_of_two()], Front::EMPTY);
        let slot = Slot(front.word << WORD_SHIFT);
        let map = table.words.free_map(slot.pageblock());
        let before = map.give_word(slot.offset(), front.free, front.contents());
        let is_as_before = before.count() != 0
            && map.info().count() != PAGEBLOCK_FRAMES as u32
            && (before.class() == SMALL_ORDERS - 1 || !map.has_block(before.class() + 1, slot.offset()));
        if !is_as_before {
            self.relist(table, slot, map.largest_in_word(slot.offset()), before);
        }
    }
}
