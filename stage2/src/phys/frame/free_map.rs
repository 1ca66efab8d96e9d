//! The free frames of one pageblock, a bit each, and the pageblock's place on a list.
//!
//! Of a split pageblock everything here counts. Of the head of a free block from a pageblock up only the links and the
//! contents count.

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
const MASKS: usize = 3;
const MAP: usize = 4;
/// The orders of blocks inside a pageblock.
pub(crate) const SMALL_ORDERS: u8 = PAGEBLOCK_ORDER;
/// The order of a word of the bit map.
const WORD_ORDER: u8 = 5;
/// For each order inside a word the bits at which its blocks begin.
const STARTS: [u32; WORD_ORDER as usize] = [0xffff_ffff, 0x5555_5555, 0x1111_1111, 0x0101_0101, 0x0001_0001];

/// The free map of a pageblock.
#[derive(Clone, Copy)]
pub(crate) struct FreeMap<'a>(pub(super) &'a [AtomicU32; WORDS]);

/// The third word: how many frames are free, what is known of them, and the *class*.
///
/// The class is the order of the list that the pageblock is on: no block that can be taken from it is larger. It may be
/// too high, and is put right when that is found out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Info(u32);

const COUNT: u32 = 0x3ff;
const CLASS_SHIFT: u32 = 10;
const CLASS: u32 = 0xf << CLASS_SHIFT;
const ZEROED: u32 = 1 << 14;

/// The fourth word: which words of the bit map have a bit set (lower half) and which have all set (upper half).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Masks(u32);

/// From a bit of the lower half of the masks to that of the upper half.
const FULL_SHIFT: u32 = 16;

impl Masks {
    /// The words with free frames.
    #[inline]
    const fn some(self) -> u32 {
        self.0 & 0xffff
    }

    /// The words with all frames free.
    #[inline]
    const fn full(self) -> u32 {
        self.0 >> FULL_SHIFT
    }
}

impl Info {
    /// How many frames are free.
    #[inline]
    pub(crate) const fn count(self) -> u32 {
        self.0 & COUNT
    }

    #[inline]
    pub(crate) const fn class(self) -> u8 {
        ((self.0 & CLASS) >> CLASS_SHIFT) as u8
    }

    /// What is known of the free frames' bytes.
    #[inline]
    pub(crate) const fn contents(self) -> Contents {
        if self.0 & ZEROED == 0 { Contents::Dirty } else { Contents::Zeroed }
    }

    #[inline]
    pub(crate) const fn with_class(self, class: u8) -> Self {
        Self(self.0 & !CLASS | (class as u32) << CLASS_SHIFT)
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

    /// Makes this the map of a split pageblock with all frames free.
    pub(crate) fn fill(self, contents: Contents) {
        for index in 0..MAP_WORDS {
            self.set_word(index, u32::MAX);
        }
        self.set_masks(Masks(u32::MAX));
        let zeroed = if contents == Contents::Zeroed { ZEROED } else { 0 };
        let class = (SMALL_ORDERS as u32 - 1) << CLASS_SHIFT;
        self.set_info(Info(PAGEBLOCK_FRAMES as u32 | class | zeroed));
    }

    /// Makes this the map of a split pageblock without a free frame.
    pub(crate) fn clear(self) {
        for index in 0..MAP_WORDS {
            self.set_word(index, 0);
        }
        self.set_masks(Masks(0));
        self.set_info(Info(ZEROED));
    }

    #[inline]
    fn masks(self) -> Masks {
        Masks(self.0[MASKS].load(Relaxed))
    }

    #[inline]
    fn set_masks(self, masks: Masks) {
        self.0[MASKS].store(masks.0, Relaxed);
    }

    #[inline]
    fn word(self, index: usize) -> u32 {
        self.0[MAP + (index & (MAP_WORDS - 1))].load(Relaxed)
    }

    #[inline]
    fn set_word(self, index: usize, word: u32) {
        self.0[MAP + (index & (MAP_WORDS - 1))].store(word, Relaxed);
    }

    /// Whether the frame `offset` frames into the pageblock is free.
    #[inline]
    pub(crate) fn is_free(self, offset: u32) -> bool {
        self.word(offset as usize / 32) & 1 << (offset % 32) != 0
    }

    /// Takes a free block of `order`, the lowest there is. Returns its offset and how many frames are left.
    pub(crate) fn take(self, order: u8) -> Option<(u32, u32)> {
        let offset = self.find(order)?;
        Some((offset, self.take_at(order, offset)))
    }

    /// The lowest free block of `order`.
    fn find(self, order: u8) -> Option<u32> {
        let masks = self.masks();
        if order >= WORD_ORDER {
            let runs = runs(masks.full(), order - WORD_ORDER);
            return (runs != 0).then(|| runs.trailing_zeros() * 32);
        }
        let mut some = masks.some();
        while some != 0 {
            let index = some.trailing_zeros();
            some &= some - 1;
            let runs = runs(self.word(index as usize), order);
            if runs != 0 {
                return Some(index * 32 + runs.trailing_zeros());
            }
        }
        None
    }

    /// Takes the block of `order` at `offset`, all of which is free. Returns how many frames are left.
    #[inline]
    pub(crate) fn take_at(self, order: u8, offset: u32) -> u32 {
        let index = offset as usize / 32;
        if order < WORD_ORDER {
            let rest = self.word(index) & !(ones(order) << (offset % 32));
            self.set_word(index, rest);
            let cleared = u32::from(rest == 0) | 1 << FULL_SHIFT;
            self.set_masks(Masks(self.masks().0 & !(cleared << index)));
        } else {
            let words = self.set_words(order, offset, 0);
            self.set_masks(Masks(self.masks().0 & !(words | words << FULL_SHIFT)));
        }
        self.take_count(1 << order)
    }

    /// Writes the words of the block of `order`, at least a word. Returns them as in the lower half of the masks.
    #[inline]
    fn set_words(self, order: u8, offset: u32, word: u32) -> u32 {
        let (first, count) = (offset as usize / 32, 1 << (order - WORD_ORDER));
        (first..first + count).for_each(|index| self.set_word(index, word));
        ones(order - WORD_ORDER) << (offset / 32)
    }

    /// As [`Self::take_at`], up to a whole pageblock.
    pub(crate) fn take_at_any(self, order: u8, offset: u32) -> u32 {
        if order < SMALL_ORDERS {
            return self.take_at(order, offset);
        }
        self.clear();
        0
    }

    #[inline]
    fn take_count(self, frames: u32) -> u32 {
        let info = self.info().0 - frames;
        let left = info & COUNT;
        // With nothing left free, nothing is dirty.
        self.set_info(Info(if left == 0 { info | ZEROED } else { info }));
        left
    }

    /// Frees the block of `order` at `offset`. Returns what was known before.
    #[inline]
    pub(crate) fn give(self, order: u8, offset: u32, contents: Contents) -> Info {
        let before = self.info();
        let mut info = Info(before.0 + (1 << order));
        if contents == Contents::Dirty {
            info.0 &= !ZEROED;
        }
        self.set_info(info);
        if order < WORD_ORDER {
            self.give_bits(offset as usize / 32, ones(order) << (offset % 32));
        } else {
            let words = self.set_words(order, offset, u32::MAX);
            self.set_masks(Masks(self.masks().0 | words | words << FULL_SHIFT));
        }
        before
    }

    #[inline]
    fn give_bits(self, index: usize, bits: u32) {
        let word = self.word(index) | bits;
        self.set_word(index, word);
        let set = if word == u32::MAX { 1 | 1 << FULL_SHIFT } else { 1 };
        self.set_masks(Masks(self.masks().0 | set << index));
    }

    /// Whether all of the block of `order` that has the frame `offset` is free.
    #[inline]
    pub(crate) fn is_block_free(self, order: u8, offset: u32) -> bool {
        let (order, word, at) = match order {
            0..WORD_ORDER => (order, self.word(offset as usize / 32), offset % 32),
            _ => (order - WORD_ORDER, self.masks().full(), offset / 32),
        };
        let block = ones(order) << (at & (u32::MAX << order));
        word & block == block
    }

    /// The order of the largest free block below a pageblock that has the free block of `order` with the frame `offset`.
    pub(crate) fn order_around(self, order: u8, offset: u32) -> u8 {
        let larger = (order + 1..SMALL_ORDERS).take_while(|&order| self.is_block_free(order, offset));
        order + larger.count() as u8
    }

    /// The order of the largest block below a pageblock that can be taken; `None` where no frame is free.
    pub(crate) fn largest(self) -> Option<u8> {
        (0..SMALL_ORDERS).rev().find(|&order| self.find(order).is_some())
    }

    /// The free blocks, each as large as it can be below a pageblock: offset and order.
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

    /// The order of the largest free block below a pageblock that begins at the free frame `offset`.
    #[cfg(test)]
    fn order_at(self, offset: u32) -> u8 {
        let most = offset.trailing_zeros().min(SMALL_ORDERS as u32 - 1) as u8;
        (0..=most).rev().find(|&order| self.is_block_free(order, offset)).unwrap_or(0)
    }

    /// The largest free block below a pageblock that the free frame `offset` is part of: offset and order.
    pub(crate) fn block_at(self, offset: u32) -> (u32, u8) {
        let order = self.order_around(0, offset);
        (offset & !((1 << order) - 1), order)
    }

    /// Whether count and masks say what the bits say.
    pub(crate) fn is_consistent(self) -> bool {
        let mut count = 0;
        let mut masks = 0;
        for index in 0..MAP_WORDS {
            let word = self.word(index);
            count += word.count_ones();
            masks |= (u32::from(word != 0) | u32::from(word == u32::MAX) << FULL_SHIFT) << index;
        }
        self.info().count() == count && self.masks() == Masks(masks)
    }
}

/// The bits of `word` at which so many bits as a block of `order` has frames are set, aligned.
#[inline]
fn runs(word: u32, order: u8) -> u32 {
    let mut runs = word;
    for shift in 0..order {
        runs &= runs >> (1 << shift);
    }
    runs & STARTS[order as usize % STARTS.len()]
}

/// So many set bits as a block of `order`, inside a word, has frames.
#[inline]
const fn ones(order: u8) -> u32 {
    (1u32 << (1 << order)).wrapping_sub(1)
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
        assert_eq!(map.take(0), Some((0, 511)));
        assert_eq!(map.take(3), Some((8, 503)));
        assert_eq!(map.take(6), Some((64, 439)));
        assert_eq!(map.take(8), Some((256, 183)));
        assert_eq!(map.take(8), None);
        assert_eq!(map.info().count(), 512 - 1 - 8 - 64 - 256);
        assert_eq!(map.largest(), Some(7));
        assert!(map.is_consistent());
    }

    #[test]
    fn neighbours_grow_together() {
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
    fn nothing_is_dirty_when_nothing_is_free() {
        let words = storage();
        let map = FreeMap(&words);
        map.fill(Contents::Dirty);
        assert_eq!((map.take(8), map.take(8)), (Some((0, 256)), Some((256, 0))));
        map.give(0, 3, Contents::Zeroed);
        assert_eq!(map.info().contents(), Contents::Zeroed);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: crate::cases::cases(256, 4), failure_persistence: None, ..Default::default() })]

        /// Any sequence of takes and gives does what a plain array of frames does.
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
                    let found = map.take(order);
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
