//! The frame table: what is known of each frame, looked up by frame number.
//!
//! Twelve bytes a frame and four a pageblock. The caller provides the words; they need not be zero and are not all
//! written at boot: an entry counts only where its pageblock's word says that it was written
//! ([`Pageblock::is_first_valid`], [`Pageblock::is_touched`]). What a 1 TiB machine touches at boot is one word for
//! each pageblock and one entry for each free gigabyte.
//!
//! RAM has holes; the table has none. Each *region* (a RAM range behind one controller) has a run of *slots*, and a
//! frame's slot is always found through its number, never by stepping a pointer from a neighbour in another region.
//! A block never crosses a region, so inside a block slot and frame number run in step.
//!
//! An entry belongs to a *block*: its first frame is the head and carries the block's state, order and owner; all
//! others are tails. A free head keeps its list links where a head in use keeps its reverse map.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::addr::{FRAME_SHIFT, Frame, Ipa, MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::controller::ControllerId;
use crate::map::{BootMap, MAX_RAM_RANGES};
use crate::owner::{GuestId, Owner};
use crate::pageblock::Pageblock;
use crate::range::FrameRange;

/// Words in a frame's entry.
const ENTRY_WORDS: usize = 3;
/// Bytes of the frame table for each frame.
pub const FRAME_BYTES: u64 = (ENTRY_WORDS * size_of::<u32>()) as u64;
/// Frames that one table can describe: slots are 32-bit numbers, and the last is kept as "none".
pub const MAX_FRAMES: u64 = (u32::MAX as u64) & !(PAGEBLOCK_FRAMES - 1);
/// No slot, in links.
pub(crate) const NONE: u32 = u32::MAX;

/// How much memory the frame table of a map takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// Slots: frames of RAM, with each region padded to whole pageblocks.
    pub slots: u64,
}

impl Footprint {
    /// What the table of `map` takes.
    pub fn of(map: &BootMap) -> Self {
        let slots = map.ram().map(|(range, _)| range.aligned_around(PAGEBLOCK_FRAMES).frames()).sum();
        Self { slots }
    }

    /// The 32-bit words to provide.
    pub const fn words(self) -> u64 {
        self.slots * ENTRY_WORDS as u64 + self.slots / PAGEBLOCK_FRAMES
    }

    /// The bytes to provide, aligned to four.
    pub const fn bytes(self) -> u64 {
        self.words() * size_of::<u32>() as u64
    }
}

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum State {
    /// Not a head: part of the block before it.
    Tail,
    /// Free, on a list of its arena.
    Free,
    /// In use by its owner.
    Used,
    /// Reserved since boot: no allocator ever had it.
    Reserved,
    /// Taken out of use for good.
    Retired,
}

/// A head's third word: state, order, list, flags and owner.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta(u32);

const STATE: u32 = 0b111;
const ORDER_SHIFT: u32 = 3;
const ORDER: u32 = 0x1f << ORDER_SHIFT;
const LIST_SHIFT: u32 = 8;
const LIST: u32 = 0b11 << LIST_SHIFT;
const ZEROED: u32 = 1 << 10;
const MAPPED: u32 = 1 << 11;
const OWNER_SHIFT: u32 = 16;
const OWNER: u32 = 0xff << OWNER_SHIFT;

impl Meta {
    pub(crate) const TAIL: Self = Self(State::Tail as u32);

    #[inline]
    pub(crate) const fn free(order: u8, list: usize, contents: Contents) -> Self {
        Self(
            State::Free as u32 | (order as u32) << ORDER_SHIFT | (list as u32) << LIST_SHIFT | contents.bit(),
        )
    }

    #[inline]
    pub(crate) const fn used(order: u8, owner: Owner) -> Self {
        Self(State::Used as u32 | (order as u32) << ORDER_SHIFT | (owner.index() as u32) << OWNER_SHIFT)
    }

    pub(crate) const fn reserved(order: u8) -> Self {
        Self(State::Reserved as u32 | (order as u32) << ORDER_SHIFT)
    }

    pub(crate) const fn retired(order: u8) -> Self {
        Self(State::Retired as u32 | (order as u32) << ORDER_SHIFT)
    }

    #[inline]
    pub(crate) const fn state(self) -> State {
        match self.0 & STATE {
            0 => State::Tail,
            1 => State::Free,
            2 => State::Used,
            3 => State::Reserved,
            _ => State::Retired,
        }
    }

    /// The block's order. A table that was never corrupted has none above [`MAX_ORDER`].
    #[inline]
    pub(crate) const fn order(self) -> u8 {
        let order = ((self.0 & ORDER) >> ORDER_SHIFT) as u8;
        if order > MAX_ORDER { MAX_ORDER } else { order }
    }

    #[inline]
    pub(crate) const fn list(self) -> usize {
        ((self.0 & LIST) >> LIST_SHIFT) as usize
    }

    #[inline]
    pub(crate) const fn contents(self) -> Contents {
        if self.0 & ZEROED == 0 { Contents::Dirty } else { Contents::Zeroed }
    }

    pub(crate) const fn owner(self) -> Option<Owner> {
        match self.state() {
            State::Used => Owner::from_index(((self.0 & OWNER) >> OWNER_SHIFT) as usize),
            _ => None,
        }
    }

    /// Whether the block is in use with this order and owner.
    #[inline]
    pub(crate) const fn is_used_as(self, order: u8, owner: Owner) -> bool {
        (self.0 ^ Self::used(order, owner).0) & (STATE | ORDER | OWNER) == 0
    }

    /// Whether the block is free with this order.
    #[inline]
    pub(crate) const fn is_free_of(self, order: u8) -> bool {
        self.0 & (STATE | ORDER) == State::Free as u32 | (order as u32) << ORDER_SHIFT
    }

    pub(crate) const fn is_mapped(self) -> bool {
        self.0 & MAPPED != 0
    }

    pub(crate) const fn with_mapped(self) -> Self {
        Self(self.0 | MAPPED)
    }

    pub(crate) const fn without_mapped(self) -> Self {
        Self(self.0 & !MAPPED)
    }

    pub(crate) const fn with_order(self, order: u8) -> Self {
        Self(self.0 & !ORDER | (order as u32) << ORDER_SHIFT)
    }

    pub(crate) const fn with_owner(self, owner: Owner) -> Self {
        Self(self.0 & !OWNER | (owner.index() as u32) << OWNER_SHIFT)
    }
}

/// What is known of the bytes in a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Contents {
    /// Anything: it must be scrubbed before someone else can read it.
    Dirty,
    /// All zero.
    Zeroed,
}

impl Contents {
    #[inline]
    const fn bit(self) -> u32 {
        match self {
            Self::Dirty => 0,
            Self::Zeroed => ZEROED,
        }
    }

    /// What is known of two blocks together.
    #[inline]
    pub(crate) const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Zeroed, Self::Zeroed) => Self::Zeroed,
            _ => Self::Dirty,
        }
    }
}

/// Where a block appears: the guest and the intermediate address of its first frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Mapping {
    /// The guest.
    pub guest: GuestId,
    /// The address at which the guest sees the block.
    pub ipa: Ipa,
}

impl Mapping {
    /// As the two words of an entry: 36 bits of frame number and the guest above them.
    const fn to_words(self) -> (u32, u32) {
        let number = self.ipa.get() >> FRAME_SHIFT;
        (number as u32, (number >> 32) as u32 | (self.guest.index() as u32) << 8)
    }

    const fn from_words(low: u32, high: u32) -> Option<Self> {
        let number = low as u64 | ((high & 0xf) as u64) << 32;
        match (GuestId::try_new((high >> 8) as u8), Ipa::try_new(number << FRAME_SHIFT)) {
            (Some(guest), Some(ipa)) => Some(Self { guest, ipa }),
            _ => None,
        }
    }
}

/// The number of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// The slot `frames` further on.
    #[inline]
    pub(crate) const fn add(self, frames: u64) -> Self {
        Self(self.0.wrapping_add(frames as u32))
    }
}

/// A RAM range behind one controller and its slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) range: FrameRange,
    /// The slot of the first frame; congruent to its number modulo a pageblock.
    slot: u32,
    pub(crate) controller: ControllerId,
}

impl Region {
    /// The slot of frame number `number`, which need not lie in the region.
    #[inline]
    pub(crate) const fn slot(&self, number: u64) -> Slot {
        Slot(self.slot.wrapping_add(number.wrapping_sub(self.range.start()) as u32))
    }

    /// The number of the frame at `slot`.
    #[inline]
    pub(crate) const fn number(&self, slot: Slot) -> u64 {
        self.range.start() + slot.0.wrapping_sub(self.slot) as u64
    }

    /// Whether frame number `number` lies in the region.
    #[inline]
    pub(crate) const fn has(&self, number: u64) -> bool {
        number.wrapping_sub(self.range.start()) < self.range.frames()
    }
}

/// The table.
pub(crate) struct FrameTable<'a> {
    entries: &'a [[AtomicU32; ENTRY_WORDS]],
    pageblocks: &'a [AtomicU32],
    regions: heapless::Vec<Region, MAX_RAM_RANGES>,
}

impl<'a> FrameTable<'a> {
    /// A table for the RAM of `map` in `words`; `None` if there are too few or the map has more frames than slots.
    pub(crate) fn new(map: &BootMap, words: &'a [AtomicU32]) -> Option<Self> {
        let footprint = Footprint::of(map);
        if footprint.slots > MAX_FRAMES || (words.len() as u64) < footprint.words() {
            return None;
        }
        let slots = footprint.slots as usize;
        let (entries, rest) = words.split_at_checked(slots * ENTRY_WORDS)?;
        let (entries, _) = entries.as_chunks();
        let pageblocks = rest.get(..slots >> PAGEBLOCK_ORDER)?;
        let mut regions = heapless::Vec::new();
        let mut base = 0;
        for (range, controller) in map.ram() {
            let around = range.aligned_around(PAGEBLOCK_FRAMES);
            let slot = base + (range.start() - around.start()) as u32;
            regions.push(Region { range, slot, controller }).ok()?;
            base += around.frames() as u32;
        }
        Some(Self { entries, pageblocks, regions })
    }

    /// The regions in ascending order.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region that `frame` lies in.
    #[inline]
    pub(crate) fn region_of(&self, frame: Frame) -> Option<&Region> {
        let number = frame.number();
        let after = self.regions.partition_point(|region| region.range.start() <= number);
        self.regions.get(after.wrapping_sub(1)).filter(|region| region.has(number))
    }

    /// The region that `slot` lies in.
    #[inline]
    pub(crate) fn region_at(&self, slot: Slot) -> &Region {
        let after = self.regions.partition_point(|region| region.slot <= slot.0);
        &self.regions[after.wrapping_sub(1)]
    }

    #[inline]
    pub(crate) fn meta(&self, slot: Slot) -> Meta {
        Meta(self.entries[slot.0 as usize][2].load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_meta(&self, slot: Slot, meta: Meta) {
        self.entries[slot.0 as usize][2].store(meta.0, Relaxed);
    }

    /// The links of a free head: the slots before and after it on its list.
    #[inline]
    pub(crate) fn links(&self, slot: Slot) -> (u32, u32) {
        let [previous, next, _] = &self.entries[slot.0 as usize];
        (previous.load(Relaxed), next.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_previous(&self, slot: Slot, previous: u32) {
        self.entries[slot.0 as usize][0].store(previous, Relaxed);
    }

    #[inline]
    pub(crate) fn set_next(&self, slot: Slot, next: u32) {
        self.entries[slot.0 as usize][1].store(next, Relaxed);
    }

    /// Writes a free head whole.
    #[inline]
    pub(crate) fn set_free(&self, slot: Slot, meta: Meta, next: u32) {
        let [previous_word, next_word, meta_word] = &self.entries[slot.0 as usize];
        previous_word.store(NONE, Relaxed);
        next_word.store(next, Relaxed);
        meta_word.store(meta.0, Relaxed);
    }

    /// The reverse map of a head in use.
    pub(crate) fn mapping(&self, slot: Slot) -> Option<Mapping> {
        let [low, high, meta] = &self.entries[slot.0 as usize];
        let meta = Meta(meta.load(Relaxed));
        if meta.state() != State::Used || !meta.is_mapped() {
            return None;
        }
        Mapping::from_words(low.load(Relaxed), high.load(Relaxed))
    }

    /// Writes a head in use whole.
    #[inline]
    pub(crate) fn set_used(&self, slot: Slot, meta: Meta, mapping: Option<Mapping>) {
        let [low_word, high_word, meta_word] = &self.entries[slot.0 as usize];
        let meta = match mapping {
            Some(mapping) => {
                let (low, high) = mapping.to_words();
                low_word.store(low, Relaxed);
                high_word.store(high, Relaxed);
                meta.with_mapped()
            }
            None => meta.without_mapped(),
        };
        meta_word.store(meta.0, Relaxed);
    }

    /// The word of the pageblock that `slot` lies in.
    #[inline]
    pub(crate) fn pageblock(&self, slot: Slot) -> Pageblock {
        Pageblock(self.pageblocks[(slot.0 >> PAGEBLOCK_ORDER) as usize].load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_pageblock(&self, slot: Slot, word: Pageblock) {
        self.pageblocks[(slot.0 >> PAGEBLOCK_ORDER) as usize].store(word.0, Relaxed);
    }

    /// Sees to it that the entry at `slot`, about to become a head of `order`, counts.
    #[inline]
    pub(crate) fn make_valid(&self, slot: Slot, order: u8) {
        let word = self.pageblock(slot);
        if order >= PAGEBLOCK_ORDER {
            if !word.is_first_valid() {
                self.set_pageblock(slot, word.with_first_valid());
            }
        } else if !word.is_touched() {
            self.touch(slot, word);
        }
    }

    /// Makes every entry of the pageblock at `slot` count: all tails, but for the first if it counted before.
    #[cold]
    fn touch(&self, slot: Slot, word: Pageblock) {
        let start = slot.0 & !(PAGEBLOCK_FRAMES as u32 - 1);
        let skip = usize::from(word.is_first_valid());
        for [_, _, meta] in self.entries[start as usize..][..PAGEBLOCK_FRAMES as usize].iter().skip(skip) {
            meta.store(Meta::TAIL.0, Relaxed);
        }
        self.set_pageblock(slot, word.with_touched());
    }

    /// Whether the entry at `slot` counts.
    #[inline]
    pub(crate) fn is_valid(&self, slot: Slot, word: Pageblock) -> bool {
        word.is_touched() || (slot.0 & (PAGEBLOCK_FRAMES as u32 - 1) == 0 && word.is_first_valid())
    }

    /// The head of the block that frame `number` of `region` lies in, with its number. `None` only where the table is
    /// corrupted.
    pub(crate) fn head(&self, region: &Region, number: u64) -> Option<(u64, Meta)> {
        (0..=MAX_ORDER).find_map(|order| {
            let head = number & !((1 << order) - 1);
            if !region.has(head) {
                return None;
            }
            let slot = region.slot(head);
            if !self.is_valid(slot, self.pageblock(slot)) {
                return None;
            }
            let meta = self.meta(slot);
            (meta.state() != State::Tail && meta.order() >= order).then_some((head, meta))
        })
    }
}
