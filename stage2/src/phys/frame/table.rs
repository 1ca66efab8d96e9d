//! The parts of the frame table, and finding a frame in them.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use super::{ENTRY_WORDS, Footprint, FreeMap, MAX_FRAMES, Mapping, Meta, State, free_map};
use crate::addr::{FRAME_SHIFT, Frame, MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER, Pa};
use crate::controller::ControllerId;
use crate::phys::map::{BootMap, MAX_RAM_RANGES};
use crate::phys::pageblock::{Pageblock, Shape};
use crate::phys::zone::{ARENAS, Zone};
use crate::range::FrameRange;
use crate::sync::{Part, part};

/// The link to no pageblock.
pub(crate) const NONE: u32 = u32::MAX;

/// The number of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// Returns the first slot of pageblock `index`.
    #[inline]
    pub(crate) const fn of_pageblock(index: u32) -> Self {
        Self(index << PAGEBLOCK_ORDER)
    }

    /// Returns the slot `frames` after this one.
    #[inline]
    pub(crate) const fn add(self, frames: u64) -> Self {
        Self(self.0.wrapping_add(frames as u32))
    }

    /// Returns the number of its pageblock.
    #[inline]
    pub(crate) const fn pageblock(self) -> u32 {
        self.0 >> PAGEBLOCK_ORDER
    }

    /// Returns its offset in its pageblock, in frames.
    #[inline]
    pub(crate) const fn offset(self) -> u32 {
        self.0 & (PAGEBLOCK_FRAMES as u32 - 1)
    }
}

/// A range of RAM behind one controller, and its slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RamRange {
    pub(crate) range: FrameRange,
    /// The number of frames, for [`Self::has`].
    frames: u64,
    /// The slot of the first frame; congruent to its number modulo a pageblock.
    slot: u32,
    pub(crate) controller: ControllerId,
    /// The number of this range.
    pub(crate) index: u8,
    /// The number of the arena of its frames in NORMAL. The arena of its frames in MOVABLE is the next.
    arena: u8,
}

impl RamRange {
    /// Returns the slot of frame number `number`, which need not be in the range.
    #[inline]
    pub(crate) const fn slot(&self, number: u64) -> Slot {
        Slot(self.slot.wrapping_add(number.wrapping_sub(self.range.start()) as u32))
    }

    /// Returns the number of the frame at `slot`, which may be in the padding before the first frame.
    #[inline]
    pub(crate) const fn number(&self, slot: Slot) -> u64 {
        // In 64 bits: a range may have more than 2^31 frames (8 TiB).
        self.range.start().wrapping_sub(self.slot as u64).wrapping_add(slot.0 as u64)
    }

    /// Returns the frame at `slot`.
    #[inline]
    pub(crate) const fn frame(&self, slot: Slot) -> Frame {
        Frame::containing(Pa::new_truncate(self.number(slot) << FRAME_SHIFT))
    }

    /// Returns the number of the arena of its frames in `zone`.
    #[inline]
    pub(crate) const fn arena(&self, zone: Zone) -> usize {
        (self.arena as usize + zone as usize) % ARENAS
    }

    /// Returns whether frame number `number` is in the range.
    #[inline]
    pub(crate) const fn has(&self, number: u64) -> bool {
        number.wrapping_sub(self.range.start()) < self.frames
    }
}

/// An entry of the table.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a>(&'a [AtomicU32; ENTRY_WORDS]);

impl Entry<'_> {
    #[inline]
    pub(crate) fn meta(self) -> Meta {
        Meta(self.0[2].load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_meta(self, meta: Meta) {
        self.0[2].store(meta.0, Relaxed);
    }

    /// Returns the reverse map of a head in use.
    pub(crate) fn mapping(self) -> Option<Mapping> {
        let meta = self.meta();
        if meta.state() != Some(State::Used) || !meta.is_mapped() {
            return None;
        }
        Mapping::from_words(self.0[0].load(Relaxed), self.0[1].load(Relaxed))
    }

    /// Writes a head in use.
    #[inline]
    pub(crate) fn set_used(self, meta: Meta, mapping: Option<Mapping>) {
        let meta = match mapping {
            Some(mapping) => {
                let (low, high) = mapping.to_words();
                self.0[0].store(low, Relaxed);
                self.0[1].store(high, Relaxed);
                meta.0 | crate::phys::frame::MAPPED
            }
            None => meta.0 & !crate::phys::frame::MAPPED,
        };
        self.set_meta(Meta(meta));
    }
}

/// The location of a pageblock's word.
#[derive(Clone, Copy)]
pub(crate) struct Cell<'a>(&'a AtomicU32);

impl Cell<'_> {
    #[inline]
    pub(crate) fn get(self) -> Pageblock {
        Pageblock(self.0.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set(self, word: Pageblock) {
        self.0.store(word.0, Relaxed);
    }
}

/// The words of the table, without the RAM ranges.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    entries: Part<'a, [AtomicU32; ENTRY_WORDS]>,
    pageblocks: Part<'a, AtomicU32>,
    free_maps: Part<'a, [AtomicU32; free_map::WORDS]>,
}

impl<'a> Table<'a> {
    /// Returns the entry at `slot`.
    #[inline]
    pub(crate) fn entry(self, slot: Slot) -> Entry<'a> {
        Entry(&self.entries[slot.0 as usize])
    }

    /// Returns the word of the pageblock that contains `slot`.
    #[inline]
    pub(crate) fn word(self, slot: Slot) -> Pageblock {
        Pageblock(self.pageblocks[slot.pageblock() as usize].load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_word(self, slot: Slot, word: Pageblock) {
        self.pageblocks[slot.pageblock() as usize].store(word.0, Relaxed);
    }

    /// Returns the location of the word of pageblock number `index`, if it exists.
    #[inline]
    pub(crate) fn cell(self, index: u32) -> Option<Cell<'a>> {
        self.pageblocks.get(index as usize).map(Cell)
    }

    /// Returns the free map of pageblock number `index`.
    #[inline]
    pub(crate) fn free_map(self, index: u32) -> FreeMap<'a> {
        FreeMap(&self.free_maps[index as usize])
    }

    /// Returns whether pageblock number `index` exists.
    pub(crate) const fn has_pageblock(self, index: u32) -> bool {
        (index as usize) < self.pageblocks.len()
    }

    /// Marks the pageblock at `slot` as split and makes its entries valid, without heads, if they never were. The
    /// caller writes the free map.
    pub(crate) fn make_split(self, slot: Slot) {
        let word = self.word(slot);
        let first = Slot::of_pageblock(slot.pageblock());
        if !word.is_touched() {
            self.touch(first);
        }
        self.set_word(slot, word.with_shape(Shape::Split).with_touched());
    }

    /// Makes all entries of the pageblock at `slot` valid, whatever its shape. Keeps the first if the pageblock is the
    /// head of a block in use.
    pub(crate) fn touch_used(self, slot: Slot) {
        let word = self.word(slot);
        if word.is_touched() {
            return;
        }
        let first = self.entry(Slot::of_pageblock(slot.pageblock()));
        let meta = if word.shape() == Shape::Used { first.meta() } else { Meta::NONE };
        self.touch(Slot::of_pageblock(slot.pageblock()));
        first.set_meta(meta);
        self.set_word(slot, word.with_touched());
    }

    #[cold]
    fn touch(self, first: Slot) {
        for [_, _, meta] in &self.entries[first.0 as usize..][..PAGEBLOCK_FRAMES as usize] {
            meta.store(Meta::NONE.0, Relaxed);
        }
    }
}

/// A block: its first frame, order and state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    /// The number of the first frame.
    pub(crate) number: u64,
    pub(crate) order: u8,
    pub(crate) state: State,
}

impl Head {
    /// Returns the number of the frame after the last.
    pub(crate) const fn end(self) -> u64 {
        self.number + (1 << self.order)
    }
}

/// The maximum number of sections into which the frames from the first RAM range to the last are divided.
const SECTIONS: usize = 128;

/// The table and the RAM ranges that it describes.
pub(crate) struct FrameTable<'a> {
    pub(crate) words: Table<'a>,
    ram_ranges: [RamRange; MAX_RAM_RANGES],
    count: usize,
    /// log2 of the number of frames of a section.
    section_shift: u32,
    /// For each section, the first RAM range that does not end before it.
    sections: [u8; SECTIONS],
}

impl<'a> FrameTable<'a> {
    /// Creates a table for the RAM of `map` in `words`. Returns `None` if there are too few words, or if the map has
    /// more frames than there are slots.
    pub(crate) fn new(map: &BootMap, words: &'a [AtomicU32]) -> Option<Self> {
        let footprint = Footprint::of(map);
        if footprint.slots > MAX_FRAMES {
            return None;
        }
        let slots = footprint.slots as usize;
        let blocks = slots >> PAGEBLOCK_ORDER;
        let (entries, rest) = words.split_at_checked(slots * ENTRY_WORDS)?;
        let (pageblocks, rest) = rest.split_at_checked(blocks)?;
        let (free_maps, _) = rest.get(..blocks * free_map::WORDS)?.as_chunks();
        let words = Table {
            entries: part(entries.as_chunks().0),
            pageblocks: part(pageblocks),
            free_maps: part(free_maps),
        };
        let none = RamRange {
            range: FrameRange::EMPTY,
            frames: 0,
            slot: 0,
            controller: ControllerId::default(),
            index: 0,
            arena: 0,
        };
        let mut table = Self {
            words,
            ram_ranges: [none; MAX_RAM_RANGES],
            count: 0,
            section_shift: 0,
            sections: [0; SECTIONS],
        };
        let mut base = 0;
        for (place, (range, controller)) in table.ram_ranges.iter_mut().zip(map.ram()) {
            let around = range.aligned_around(PAGEBLOCK_FRAMES);
            let slot = base + (range.start() - around.start()) as u32;
            let arena = Zone::Normal.arena(controller) as u8;
            *place =
                RamRange { range, frames: range.frames(), slot, controller, index: table.count as u8, arena };
            base += around.frames() as u32;
            table.count += 1;
        }
        table.find_sections();
        Some(table)
    }

    fn find_sections(&mut self) {
        let ram_ranges = self.ram_ranges.get(..self.count).unwrap_or(&[]);
        let (Some(first), Some(last)) = (ram_ranges.first(), ram_ranges.last()) else { return };
        let span = last.range.end() - first.range.start();
        while span >> self.section_shift >= SECTIONS as u64 {
            self.section_shift += 1;
        }
        for (number, section) in self.sections.iter_mut().enumerate() {
            let start = first.range.start() + ((number as u64) << self.section_shift);
            *section = ram_ranges.partition_point(|ram_range| ram_range.range.end() <= start) as u8;
        }
    }

    /// Returns the RAM ranges in ascending order.
    pub(crate) fn ram_ranges(&self) -> &[RamRange] {
        self.ram_ranges.get(..self.count).unwrap_or(&[])
    }

    /// Returns the RAM range that contains `frame`.
    #[inline]
    pub(crate) fn ram_range_of(&self, frame: Frame) -> Option<&RamRange> {
        let number = frame.number();
        let section = number.wrapping_sub(self.ram_ranges[0].range.start()) >> self.section_shift;
        // A number outside all sections finds some range, which does not contain it.
        let first = usize::from(self.sections[section as usize % SECTIONS]) % MAX_RAM_RANGES;
        let ram_range = &self.ram_ranges[first];
        if ram_range.has(number) { Some(ram_range) } else { self.ram_range_after(first, number) }
    }

    /// Returns the RAM range that contains frame number `number`, if it is one after range `first`.
    #[cold]
    fn ram_range_after(&self, first: usize, number: u64) -> Option<&RamRange> {
        self.ram_ranges().get(first + 1..)?.iter().find(|ram_range| ram_range.has(number))
    }

    /// Returns the RAM range of the pageblock with word `word`.
    #[inline]
    pub(crate) fn ram_range_in(&self, word: Pageblock) -> &RamRange {
        &self.ram_ranges[word.ram_range() % MAX_RAM_RANGES]
    }

    /// Returns the block that contains frame `number` of `ram_range`; `None` only if the table is corrupted.
    pub(crate) fn head(&self, ram_range: &RamRange, number: u64) -> Option<Head> {
        let slot = ram_range.slot(number);
        match self.words.word(slot).shape() {
            Shape::Split => self.head_in_split(slot, number),
            Shape::Part => (PAGEBLOCK_ORDER + 1..=MAX_ORDER).find_map(|order| {
                let first = number & !((1 << order) - 1);
                ram_range
                    .has(first)
                    .then(|| self.whole_head(ram_range, first))?
                    .filter(|head| head.order >= order)
            }),
            _ => self.whole_head(ram_range, number & !(PAGEBLOCK_FRAMES - 1)),
        }
    }

    /// Returns the block of at least a pageblock whose head is frame `number`.
    fn whole_head(&self, ram_range: &RamRange, number: u64) -> Option<Head> {
        let word = self.words.word(ram_range.slot(number));
        let state = match word.shape() {
            Shape::Free => State::Free,
            Shape::Used => State::Used,
            Shape::Reserved => State::Reserved,
            Shape::Part | Shape::Split => return None,
        };
        Some(Head { number, order: word.order(), state })
    }

    fn head_in_split(&self, slot: Slot, number: u64) -> Option<Head> {
        let map = self.words.free_map(slot.pageblock());
        let start = number - u64::from(slot.offset());
        if map.is_free(slot.offset()) {
            let (offset, order) = map.block_at(slot.offset());
            return Some(Head { number: start + u64::from(offset), order, state: State::Free });
        }
        (0..PAGEBLOCK_ORDER).find_map(|order| {
            let number = number & !((1 << order) - 1);
            let offset = number - start;
            let meta = self.words.entry(Slot::of_pageblock(slot.pageblock()).add(offset)).meta();
            let state = meta.state()?;
            (meta.order() >= order).then_some(Head { number, order: meta.order(), state })
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Bases that need up to 48 bits.
    const BASES: [u64; 5] = [0x4000_0000, 1 << 40, 1 << 43, 1 << 44, 1 << 47];

    #[test]
    fn slots_and_frame_numbers_agree_in_ram_ranges_above_8_tib() {
        // The range starts in the middle of a pageblock, after another range's slots, and takes all other slots.
        for start in BASES.map(|base| (base >> FRAME_SHIFT) + 5) {
            let (slot, frames) = (3 * PAGEBLOCK_FRAMES as u32 + 5, MAX_FRAMES - 4 * PAGEBLOCK_FRAMES);
            let range = FrameRange::from_numbers(start, start + frames).unwrap();
            let ram_range =
                RamRange { range, frames, slot, controller: ControllerId::default(), index: 0, arena: 0 };
            for offset in [0, 1, (1 << 31) - 6, (1 << 31) - 5, 1 << 31, (3 << 30) + 7, frames - 1] {
                let number = start + offset;
                assert_eq!(ram_range.number(ram_range.slot(number)), number, "{start:#x} + {offset:#x}");
                assert_eq!(
                    ram_range.frame(ram_range.slot(number)).number(),
                    number,
                    "{start:#x} + {offset:#x}"
                );
                assert!(ram_range.has(number));
            }
            let padding = Slot::of_pageblock(ram_range.slot(start).pageblock());
            assert_eq!(ram_range.number(padding), start - 5, "the pageblock's first slot");
            assert!(!ram_range.has(start + frames) && !ram_range.has(start - 1));
        }
    }
}
