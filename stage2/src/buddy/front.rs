//! Single frames at hand.
//!
//! Of each type an arena has the free frames of one word of a free map, 32 at most, *at hand*: taken out of the map, and
//! handed out and taken back with no more than a bit set or cleared. They are free by every counter, and belong to nobody.
//! A word is put back in one step when a frame of the word beside it is freed, and before anything but a single frame is
//! looked for in vain.
//!
//! Whoever locks an arena for more than a plain allocation or free finds nothing at hand: see
//! [`Arena::lock`](crate::arena::Arena::lock). So frames at hand are never isolated, and no walk over the table meets one.

use super::{FreeLists, Taken};
use crate::addr::PAGEBLOCK_FRAMES;
use crate::frame::{Contents, FrameTable, SMALL_ORDERS, Slot};
use crate::pageblock::{LIST_SLOTS, LISTS};

/// log2 of the frames of a word.
const WORD_SHIFT: u32 = 5;

/// Free frames of one word of a free map, none of which the map has. All zero: none.
///
/// As long as it names a word, that is part of a split pageblock of the front's type that is not isolated.
#[derive(Clone, Copy)]
pub(super) struct Front {
    /// The word that the first frame's number is in, one added; zero for none.
    key: u32,
    /// The slot of the word's first frame.
    slot: u32,
    free: u32,
    /// Those of which it is known that all bytes are zero.
    zeroed: u32,
}

/// A single frame that was at hand.
#[derive(Clone, Copy)]
pub(crate) struct AtHand {
    pub(crate) slot: Slot,
    /// The frame's number.
    pub(crate) number: u64,
    pub(crate) contents: Contents,
}

/// What stands for the word of a free map that frame `number` is in.
#[inline]
const fn key_of(number: u64) -> u32 {
    // Frame numbers have 36 bits.
    (number >> WORD_SHIFT) as u32 + 1
}

impl Front {
    pub(super) const EMPTY: Self = Self { key: 0, slot: 0, free: 0, zeroed: 0 };

    const fn contents(self) -> Contents {
        if self.free == self.zeroed { Contents::Zeroed } else { Contents::Dirty }
    }

    #[inline]
    fn take(&mut self) -> Option<AtHand> {
        if self.free == 0 {
            return None;
        }
        let at = self.free.trailing_zeros();
        let contents = if self.zeroed >> at & 1 == 0 { Contents::Dirty } else { Contents::Zeroed };
        self.free &= self.free - 1;
        self.zeroed &= self.free;
        let number = u64::from(self.key - 1) << WORD_SHIFT | u64::from(at);
        Some(AtHand { slot: Slot(self.slot | at), number, contents })
    }

    #[inline]
    fn give(&mut self, slot: Slot, contents: Contents) {
        let bit = 1 << (slot.0 % (1 << WORD_SHIFT));
        self.free |= bit;
        if contents == Contents::Zeroed {
            self.zeroed |= bit;
        }
    }
}

impl FreeLists {
    /// Takes a single frame that is at hand.
    #[inline]
    pub(crate) fn take_at_hand(&mut self, list: usize) -> Option<AtHand> {
        self.fronts[list % LIST_SLOTS].take()
    }

    /// Takes a single frame from the lists of one type, and has others of its word at hand after that.
    pub(super) fn take_frame(&mut self, table: &FrameTable<'_>, list: usize) -> Option<Taken> {
        let at_hand = self.take_at_hand(list).or_else(|| {
            let classes = self.orders[list] & ((1 << SMALL_ORDERS) - 1);
            let index = if classes == 0 {
                let whole = self.take_whole(&table.words, list, SMALL_ORDERS)?;
                self.split_whole(&table.words, whole, list);
                whole.slot.pageblock()
            } else {
                self.first(list, classes.trailing_zeros() as u8)
            };
            self.fetch(table, index, list);
            self.take_at_hand(list)
        })?;
        Some(Taken { slot: at_hand.slot, contents: at_hand.contents })
    }

    /// Takes the first word with free frames of a split pageblock on `list`, none of which is at hand.
    fn fetch(&mut self, table: &FrameTable<'_>, index: u32, list: usize) {
        let map = table.words.free_map(index);
        let before = map.info();
        let (word, free, left) = map.take_word();
        if left == 0 {
            self.unlink(&table.words, index, list, before.class());
        }
        let first = Slot::of_pageblock(index).add(u64::from(word) << WORD_SHIFT);
        let key = key_of(table.frame(first).number());
        let zeroed = if before.contents() == Contents::Zeroed { free } else { 0 };
        self.fronts[list % LIST_SLOTS] = Front { key, slot: first.0, free, zeroed };
    }

    /// Where frame `number` stands, if its word is the one that `list` has frames of at hand.
    #[inline]
    pub(crate) fn slot_at_hand(&self, list: usize, number: u64) -> Option<Slot> {
        let front = &self.fronts[list % LIST_SLOTS];
        (front.key == key_of(number)).then_some(Slot(front.slot | (number as u32 % (1 << WORD_SHIFT))))
    }

    /// Gives the single frame at `slot`, of which [`Self::slot_at_hand`] says so, back.
    #[inline]
    pub(crate) fn give_at_hand(&mut self, list: usize, slot: Slot, contents: Contents) {
        self.fronts[list % LIST_SLOTS].give(slot, contents);
    }

    /// Has the word at hand that frame `number`, at `slot`, is in: a word of a split pageblock of type `list` that is not
    /// isolated. Yields whether it does so: where frames come and go in no order it is not worth the effort.
    #[inline]
    pub(crate) fn turn_to(&mut self, table: &FrameTable<'_>, list: usize, number: u64, slot: Slot) -> bool {
        let list = list % LIST_SLOTS;
        let (key, first) = (key_of(number), slot.0 & !((1 << WORD_SHIFT) - 1));
        let front = self.fronts[list];
        // Two RAM ranges may share a word, by number: each has its own in the table.
        if front.key == key && front.slot == first {
            return true;
        }
        if front.free != 0 {
            // The word before, or the one after?
            if front.key.wrapping_sub(key).wrapping_add(1) > 2 {
                return false;
            }
            self.put_back(table, list);
        }
        self.fronts[list] = Front { key, slot: first, free: 0, zeroed: 0 };
        true
    }

    /// Whether nothing is at hand, and no word is named.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.fronts.iter().fold(0, |all, front| all | front.key) == 0
    }

    /// Puts all that is at hand back.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle(&mut self, table: &FrameTable<'_>) {
        for list in 0..LISTS {
            if self.fronts[list].free != 0 {
                self.put_back(table, list);
            }
            self.fronts[list] = Front::EMPTY;
        }
    }

    #[inline(never)]
    fn put_back(&mut self, table: &FrameTable<'_>, list: usize) {
        let front = core::mem::replace(&mut self.fronts[list % LIST_SLOTS], Front::EMPTY);
        let slot = Slot(front.slot);
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
