//! The free frames of one pageblock, a bit each, and the pageblock's links on a list.
//!
//! All of it is valid for a split pageblock. For the head of a free block of at least a pageblock, only the links and
//! the contents are.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use super::Contents;
use crate::addr::{PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};

/// 32-bit words of a free map.
pub(super) const WORDS: usize = MAP + MAP_WORDS;
/// Words of the bit map.
const MAP_WORDS: usize = PAGEBLOCK_FRAMES as usize / 32;
const PREVIOUS: usize = 0;
const NEXT: usize = 1;
const INFO: usize = 2;
/// The word with a bit for each full word of the bit map.
const FULL: usize = 3;
const MAP: usize = 4;
/// The number of orders below a pageblock's.
pub(crate) const SMALL_ORDERS: u8 = PAGEBLOCK_ORDER;
/// The order of a word of the bit map.
const WORD_ORDER: u8 = 5;
/// For each order below a word's, the bits at which its blocks begin.
const STARTS: [u32; WORD_ORDER as usize] = [0xffff_ffff, 0x5555_5555, 0x1111_1111, 0x0101_0101, 0x0001_0001];

/// As many set bits as a block has frames, by order. Those from a word's order on are not used.
const ONES: [u32; 8] = [1, 0b11, 0xf, 0xff, 0xffff, 0, 0, 0];

/// The free map of a pageblock.
#[derive(Clone, Copy)]
pub(crate) struct FreeMap<'a>(pub(super) &'a [AtomicU32; WORDS]);

/// The summary of a free map: the number of free frames, their contents, the pageblock's *class*, and the words of the
/// bit map that are not zero.
///
/// The class is the order of the list that the pageblock is on, an upper bound of the order of its largest free block.
/// A request that finds it too high corrects it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Info(u32);

const COUNT: u32 = 0x3ff;
const CLASS_SHIFT: u32 = 10;
const CLASS: u32 = 0xf << CLASS_SHIFT;
const ZEROED: u32 = 1 << 14;
/// The shift of the bits for the words of the bit map, set if the word is not zero.
const NONZERO_SHIFT: u32 = 16;

impl Info {
    /// Returns the number of free frames.
    #[inline]
    pub(crate) const fn count(self) -> u32 {
        self.0 & COUNT
    }

    #[inline]
    pub(crate) const fn class(self) -> u8 {
        ((self.0 & CLASS) >> CLASS_SHIFT) as u8
    }

    /// Returns the state of the free frames' bytes.
    #[inline]
    pub(crate) const fn contents(self) -> Contents {
        if self.0 & ZEROED == 0 { Contents::Dirty } else { Contents::Zeroed }
    }

    #[inline]
    pub(crate) const fn with_class(self, class: u8) -> Self {
        Self(self.0 & !CLASS | (class as u32) << CLASS_SHIFT)
    }

    #[inline]
    const fn nonzero_words(self) -> u32 {
        self.0 >> NONZERO_SHIFT
    }
}

impl FreeMap<'_> {
    #[inline]
    pub(crate) fn previous(self) -> u32 {
        self.0[PREVIOUS].load(Relaxed)
    }

    #[inline]
    pub(crate) fn next(self) -> u32 {
        self.0[NEXT].load(Relaxed)
    }

    #[inline]
    pub(crate) fn set_previous(self, previous: u32) {
        self.0[PREVIOUS].store(previous, Relaxed);
    }

    #[inline]
    pub(crate) fn set_next(self, next: u32) {
        self.0[NEXT].store(next, Relaxed);
    }

    #[inline]
    pub(crate) fn info(self) -> Info {
        Info(self.0[INFO].load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_info(self, info: Info) {
        self.0[INFO].store(info.0, Relaxed);
    }

    /// Makes this the map of the head of a free block.
    #[inline]
    pub(crate) fn set_whole(self, contents: Contents) {
        self.set_info(Info(if contents == Contents::Zeroed { ZEROED } else { 0 }));
    }

    /// Marks the free frames as dirty. A split pageblock without a free frame stays as it is: what is freed next decides.
    pub(crate) fn forget(self, is_split: bool) {
        let info = self.info();
        if !is_split || info.count() != 0 {
            self.set_info(Info(info.0 & !ZEROED));
        }
    }

    /// Makes this the map of a split pageblock with all frames free.
    pub(crate) fn fill(self, contents: Contents) {
        let nonzero = self.set_words(SMALL_ORDERS, 0, u32::MAX) << NONZERO_SHIFT;
        self.set_full(nonzero >> NONZERO_SHIFT);
        let zeroed = if contents == Contents::Zeroed { ZEROED } else { 0 };
        let class = (SMALL_ORDERS as u32 - 1) << CLASS_SHIFT;
        self.set_info(Info(PAGEBLOCK_FRAMES as u32 | class | zeroed | nonzero));
    }

    /// Makes this the map of a split pageblock without a free frame.
    pub(crate) fn clear(self) {
        self.set_words(SMALL_ORDERS, 0, 0);
        self.set_full(0);
        self.set_info(Info(ZEROED));
    }

    #[inline]
    fn full(self) -> u32 {
        self.0[FULL].load(Relaxed)
    }

    #[inline]
    fn set_full(self, full: u32) {
        self.0[FULL].store(full, Relaxed);
    }

    #[inline]
    fn word(self, index: usize) -> u32 {
        self.0[MAP + (index & (MAP_WORDS - 1))].load(Relaxed)
    }

    #[inline]
    fn set_word(self, index: usize, word: u32) {
        self.0[MAP + (index & (MAP_WORDS - 1))].store(word, Relaxed);
    }

    /// Returns whether the frame at `offset` in the pageblock is free.
    #[inline]
    pub(crate) fn is_free(self, offset: u32) -> bool {
        self.word(offset as usize / 32) & 1 << (offset % 32) != 0
    }

    /// Takes the lowest free block of `order` from the map with summary `info`. Returns its offset and the number of
    /// frames left.
    #[inline(always)]
    pub(crate) fn take(self, info: Info, order: u8) -> Option<(u32, u32)> {
        let offset = self.find(info, order)?;
        Some((offset, self.take_from(info, order, offset)))
    }

    /// Returns the offset of the lowest free block of `order`.
    #[inline(always)]
    fn find(self, info: Info, order: u8) -> Option<u32> {
        let mut nonzero = info.nonzero_words();
        if order >= WORD_ORDER {
            let runs = runs(self.full(), order - WORD_ORDER);
            return (runs != 0).then(|| runs.trailing_zeros() * 32);
        }
        while nonzero != 0 {
            let index = nonzero.trailing_zeros();
            let runs = runs(self.word(index as usize), order);
            if runs != 0 {
                return Some(index * 32 + runs.trailing_zeros());
            }
            nonzero &= nonzero - 1;
        }
        None
    }

    /// Takes the free block of `order` at `offset`. Returns the number of frames left.
    pub(crate) fn take_at(self, order: u8, offset: u32) -> u32 {
        self.take_from(self.info(), order, offset)
    }

    #[inline(always)]
    fn take_from(self, info: Info, order: u8, offset: u32) -> u32 {
        let zeroed_words = if order < WORD_ORDER {
            let index = offset as usize / 32;
            let before = self.word(index);
            let rest = before & !(ones(order) << (offset % 32));
            self.set_word(index, rest);
            if before == u32::MAX {
                self.set_full(self.full() & !(1 << index));
            }
            u32::from(rest == 0) << index
        } else {
            let words = self.set_words(order, offset, 0);
            self.set_full(self.full() & !words);
            words
        };
        let info = Info((info.0 - (1 << order)) & !(zeroed_words << NONZERO_SHIFT));
        self.set_info(info);
        if info.count() == 0 {
            // With nothing free, nothing is dirty.
            self.set_info(Info(ZEROED));
        }
        info.count()
    }

    /// Writes the words of the block of `order`, at least a word's. Returns a bit for each.
    fn set_words(self, order: u8, offset: u32, word: u32) -> u32 {
        let (first, count) = (offset as usize / 32, 1 << (order - WORD_ORDER));
        (first..first + count).for_each(|index| self.set_word(index, word));
        ones(order - WORD_ORDER) << first
    }

    /// Frees the block of `order` at `offset`. Returns the summary from before.
    #[inline]
    pub(crate) fn give(self, order: u8, offset: u32, contents: Contents) -> Info {
        let before = self.info();
        let written = if order < WORD_ORDER {
            let index = offset as usize / 32;
            let word = self.word(index) | ones(order) << (offset % 32);
            self.set_word(index, word);
            if word == u32::MAX {
                self.set_full(self.full() | 1 << index);
            }
            1 << index
        } else {
            let words = self.set_words(order, offset, u32::MAX);
            self.set_full(self.full() | words);
            words
        };
        let mut info = (before.0 + (1 << order)) | (written << NONZERO_SHIFT);
        if contents == Contents::Dirty {
            info &= !ZEROED;
        }
        self.set_info(Info(info));
        before
    }

    /// Returns whether all of the block of `order`, up to a pageblock's, around the frame at `offset` is free.
    #[inline]
    pub(crate) fn is_block_free(self, order: u8, offset: u32) -> bool {
        let (order, word, at) = match order {
            0..WORD_ORDER => (order, self.word(offset as usize / 32), offset % 32),
            _ => (order - WORD_ORDER, self.full(), offset / 32),
        };
        let block = ones(order) << (at & (u32::MAX << order));
        word & block == block
    }

    /// Returns the order of the largest free block, below a pageblock, that contains the free block of `order` at
    /// `offset`.
    pub(crate) fn order_around(self, order: u8, offset: u32) -> u8 {
        let larger = (order + 1..SMALL_ORDERS).take_while(|&order| self.is_block_free(order, offset));
        order + larger.count() as u8
    }

    /// Returns the order of the largest free block below a pageblock; `None` if no frame is free.
    pub(crate) fn largest(self) -> Option<u8> {
        (0..SMALL_ORDERS).rev().find(|&order| self.find(self.info(), order).is_some())
    }

    /// Returns offset and order of the free blocks, each as large as it can be below a pageblock.
    #[cfg(test)]
    pub(crate) fn blocks(self) -> impl Iterator<Item = (u32, u8)> {
        let mut offset = 0;
        core::iter::from_fn(move || {
            while offset < PAGEBLOCK_FRAMES as u32 && !self.is_free(offset) {
                offset += 1;
            }
            if offset == PAGEBLOCK_FRAMES as u32 {
                return None;
            }
            let order = self.order_at(offset);
            let block = (offset, order);
            offset += 1 << order;
            Some(block)
        })
    }

    /// Returns the order of the largest free block, below a pageblock, that begins at the free frame at `offset`.
    #[cfg(test)]
    fn order_at(self, offset: u32) -> u8 {
        let most = offset.trailing_zeros().min(SMALL_ORDERS as u32 - 1) as u8;
        (0..=most).rev().find(|&order| self.is_block_free(order, offset)).unwrap_or(0)
    }

    /// Returns offset and order of the largest free block, below a pageblock, that contains the free frame at `offset`.
    pub(crate) fn block_at(self, offset: u32) -> (u32, u8) {
        let order = self.order_around(0, offset);
        (offset & !((1 << order) - 1), order)
    }

    /// Returns whether the summary agrees with the bit map.
    pub(crate) fn is_consistent(self) -> bool {
        let words = || (0..MAP_WORDS).map(|index| self.word(index));
        let count: u32 = words().map(u32::count_ones).sum();
        let nonzero = words().enumerate().fold(0, |bits, (index, word)| bits | u32::from(word != 0) << index);
        let full =
            words().enumerate().fold(0, |bits, (index, word)| bits | u32::from(word == u32::MAX) << index);
        (self.info().count(), self.info().nonzero_words(), self.full()) == (count, nonzero, full)
    }
}

/// Returns the bits of `word` at which a free block of `order` begins.
#[inline]
fn runs(word: u32, order: u8) -> u32 {
    let mut runs = word;
    for shift in 0..order {
        runs &= runs >> (1 << shift);
    }
    runs & STARTS[order as usize % STARTS.len()]
}

/// Returns a set bit for each frame of a block of `order`, below a word's, or for each word.
#[inline]
const fn ones(order: u8) -> u32 {
    ONES[order as usize % ONES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn storage() -> [AtomicU32; WORDS] {
        [const { AtomicU32::new(0xdead_beef) }; WORDS]
    }

    #[test]
    fn blocks_come_out_lowest_first_and_aligned() {
        let words = storage();
        let map = FreeMap(&words);
        map.fill(Contents::Zeroed);
        assert_eq!(map.take(map.info(), 0), Some((0, 511)));
        assert_eq!(map.take(map.info(), 3), Some((8, 503)));
        assert_eq!(map.take(map.info(), 6), Some((64, 439)));
        assert_eq!(map.take(map.info(), 8), Some((256, 183)));
        assert_eq!(map.take(map.info(), 8), None);
        assert_eq!(map.info().count(), 512 - 1 - 8 - 64 - 256);
        assert_eq!(map.largest(), Some(7));
        assert!(map.is_consistent());
    }

    #[test]
    fn adjacent_free_blocks_form_larger_ones() {
        let words = storage();
        let map = FreeMap(&words);
        map.clear();
        let give = |order, offset, contents| {
            map.give(order, offset, contents);
            assert!(map.is_consistent());
            map.order_around(0, offset)
        };
        assert_eq!(give(0, 5, Contents::Zeroed), 0);
        assert_eq!(give(0, 4, Contents::Zeroed), 1);
        assert_eq!(give(1, 6, Contents::Zeroed), 2);
        assert_eq!(give(2, 0, Contents::Zeroed), 3);
        assert_eq!(map.info().contents(), Contents::Zeroed);
        assert_eq!(give(3, 8, Contents::Dirty), 4);
        assert_eq!(map.info().contents(), Contents::Dirty);
        assert_eq!(give(4, 16, Contents::Zeroed), 5);
        assert_eq!(give(8, 256, Contents::Zeroed), 8);
        assert_eq!(give(5, 32, Contents::Zeroed), 6);
        assert_eq!(give(6, 64, Contents::Zeroed), 7);
        assert_eq!(give(7, 128, Contents::Zeroed), 8);
        assert_eq!(map.info().count(), 512);
    }

    #[test]
    fn an_empty_map_is_zeroed() {
        let words = storage();
        let map = FreeMap(&words);
        map.fill(Contents::Dirty);
        assert_eq!((map.take(map.info(), 8), map.take(map.info(), 8)), (Some((0, 256)), Some((256, 0))));
        map.give(0, 3, Contents::Zeroed);
        assert_eq!(map.info().contents(), Contents::Zeroed);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: crate::cases::cases(256, 4), failure_persistence: None, ..Default::default() })]

        /// Any sequence of takes and gives equals the same on an array of frames.
        #[test]
        fn a_map_equals_a_plain_array(steps in proptest::collection::vec((any::<bool>(), 0u8..9, any::<prop::sample::Index>()), 1..200)) {
            let words = storage();
            let map = FreeMap(&words);
            map.fill(Contents::Dirty);
            let mut free = [true; 512];
            let mut held: Vec<(u32, u8)> = Vec::new();
            for (takes, order, pick) in steps {
                if takes {
                    let size = 1usize << order;
                    let expected = (0..512).step_by(size).find(|&at| free[at..at + size].iter().all(|&free| free));
                    let found = map.take(map.info(), order);
                    prop_assert_eq!(found, expected.map(|at| (at as u32, free.iter().filter(|&&free| free).count() as u32 - (1 << order))));
                    if let Some(at) = expected {
                        free[at..at + size].fill(false);
                        held.push((at as u32, order));
                    }
                } else if !held.is_empty() {
                    let (at, order) = held.swap_remove(pick.index(held.len()));
                    free[at as usize..][..1 << order].fill(true);
                    let largest = (order..9).rev().find(|&order| {
                        let start = at as usize & !((1 << order) - 1);
                        free[start..start + (1 << order)].iter().all(|&free| free)
                    });
                    map.give(order, at, Contents::Dirty);
                    prop_assert_eq!(Some(map.order_around(order, at)), largest);
                }
                prop_assert!(map.is_consistent());
                let mut covered = [false; 512];
                for (at, order) in map.blocks() {
                    covered[at as usize..][..1 << order].fill(true);
                    prop_assert_eq!(map.block_at(at + (1 << order) - 1), (at, order));
                }
                prop_assert_eq!(covered, free);
            }
        }
    }
}
