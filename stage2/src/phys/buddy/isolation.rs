//! Isolation of pageblocks, and taking given frames out of free blocks.

use super::FreeLists;
use crate::addr::{PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::phys::frame::{Contents, FrameTable, Slot, State, Table};
use crate::phys::pageblock::{Isolation, Shape};

impl FreeLists {
    /// Returns whether a pageblock is isolated.
    #[inline]
    pub(crate) fn has_isolated(&self) -> bool {
        self.isolated != 0
    }

    /// Isolates the pageblock at `slot`: takes it off its list, and out of a larger free block if necessary. Returns
    /// the number of its free frames.
    pub(crate) fn isolate(&mut self, table: &FrameTable<'_>, slot: Slot) -> u64 {
        let words = &table.words;
        let slot = Slot::of_pageblock(slot.pageblock());
        let word = words.word(slot);
        if word.is_isolated() {
            return 0;
        }
        if word.is_split() {
            let info = words.free_map(slot.pageblock()).info();
            if info.count() > 0 {
                self.unlink(words, slot.pageblock(), word.list(), info.class());
            }
        } else {
            self.expose(table, slot);
        }
        words.set_word(slot, words.word(slot).with_isolated(Isolation::Isolated));
        self.isolated += 1;
        Self::free_frames(words, slot)
    }

    /// Returns the number of free frames in the isolated pageblock at `slot`.
    fn free_frames(words: &Table<'_>, slot: Slot) -> u64 {
        match words.word(slot).shape() {
            Shape::Free => PAGEBLOCK_FRAMES,
            Shape::Split => words.free_map(slot.pageblock()).info().count().into(),
            Shape::Part | Shape::Used | Shape::Reserved => 0,
        }
    }

    /// Takes the free block of `order`, at most a pageblock's, at `slot` out of the allocator, isolated or not. The
    /// caller writes its entry, or its word.
    pub(crate) fn withdraw(&mut self, table: &FrameTable<'_>, slot: Slot, order: u8) -> Contents {
        let words = &table.words;
        let index = slot.pageblock();
        let map = words.free_map(index);
        let word = words.word(slot);
        if word.is_split() {
            let before = map.info();
            let left = map.take_at(order, slot.offset());
            if left == 0 && !word.is_isolated() {
                self.unlink(words, index, word.list(), before.class());
            }
            return before.contents();
        }
        if !word.is_isolated() {
            self.expose(table, Slot::of_pageblock(index));
        }
        let contents = map.info().contents();
        if order < PAGEBLOCK_ORDER {
            words.make_split(slot);
            map.fill(contents);
            map.take_at(order, slot.offset());
            if let Some(class) = map.largest().filter(|_| !word.is_isolated()) {
                self.push_split(words, index, word.list(), class);
            }
        }
        contents
    }

    /// Splits the free block that contains the pageblock at `slot`, if there is one, until the pageblock is a free
    /// block of its own, on no list.
    fn expose(&mut self, table: &FrameTable<'_>, slot: Slot) {
        let words = &table.words;
        let ram_range = table.ram_range_in(words.word(slot));
        let wanted = ram_range.number(slot);
        let Some(head) = table.head(ram_range, wanted).filter(|head| head.state == State::Free) else {
            return;
        };
        let first = ram_range.slot(head.number);
        let contents = words.free_map(first.pageblock()).info().contents();
        self.unlink(words, first.pageblock(), words.word(first).list(), head.order);
        let (mut number, mut order) = (head.number, head.order);
        while order > PAGEBLOCK_ORDER {
            order -= 1;
            let upper = number + (1 << order);
            let other = if wanted < upper { upper } else { number };
            number = if wanted < upper { number } else { upper };
            self.push_large(words, ram_range.slot(other), order, contents);
        }
        Self::set_free_alone(words, slot, contents);
    }

    /// Ends the isolation of the pageblock at `slot`. Returns the number of frames that can be allocated again.
    pub(crate) fn end_isolation(&mut self, table: &FrameTable<'_>, slot: Slot) -> u64 {
        let words = &table.words;
        let slot = Slot::of_pageblock(slot.pageblock());
        let word = words.word(slot);
        if !word.is_isolated() {
            return 0;
        }
        let frames = Self::free_frames(words, slot);
        let word = word.with_isolated(Isolation::Open);
        words.set_word(slot, word);
        self.isolated -= 1;
        let ram_range = table.ram_range_in(word);
        let map = words.free_map(slot.pageblock());
        match word.shape() {
            Shape::Free => {
                self.merge(words, slot, ram_range.number(slot), PAGEBLOCK_ORDER, map.info().contents());
            }
            Shape::Split if map.info().count() == PAGEBLOCK_FRAMES as u32 => {
                self.merge(words, slot, ram_range.number(slot), PAGEBLOCK_ORDER, map.info().contents());
            }
            Shape::Split => {
                if let Some(class) = map.largest() {
                    self.push_split(words, slot.pageblock(), word.list(), class);
                }
            }
            Shape::Part | Shape::Used | Shape::Reserved => {}
        }
        frames
    }
}
