//! The frame table: what is known of each frame, looked up by frame number.
//!
//! RAM has holes; the table has none. Each *region* (a RAM range behind one controller) has a run of *slots*, and a
//! frame's slot is always found through its number, never by stepping a pointer from a neighbour in another region.
//! A block never crosses a region, so inside a block slot and frame number run in step.
//!
//! Three parts, 12.16 bytes a frame in all:
//! - an **entry** of twelve bytes for each frame: state, order, owner and reverse map of the block whose head it is;
//! - a **word** of four bytes for each pageblock ([`crate::phys::pageblock`]): zone, type, isolation, and what shape the
//!   pageblock has: part of a free block, of one in use or reserved, or *split*;
//! - a **free map** for each pageblock: list links and, for a split pageblock, a bit for each free frame.
//!
//! The caller provides the memory; it need not be zero and is not all written at boot. Words are; an entry counts only
//! where its pageblock is split or its block in use, and a free map only where its pageblock is split or heads a free
//! block. What a 1 TiB machine writes at boot is one word for each pageblock and one free map for each gigabyte.

use core::fmt;

use crate::addr::{FRAME_SHIFT, Ipa, MAX_ORDER, PAGEBLOCK_FRAMES};
use crate::owner::{GuestId, Owner};
use crate::phys::alloc::{Arena, Memory};
use crate::phys::map::BootMap;

mod free_map;
mod table;

pub(crate) use free_map::{FreeMap, Info, SMALL_ORDERS};
pub(crate) use table::{Cell, FrameTable, Head, NONE, RamRange, Slot, Table};

/// 32-bit words of a frame's entry.
const ENTRY_WORDS: usize = 3;
/// Frames that one table can describe: slots are 32-bit numbers.
pub const MAX_FRAMES: u64 = (u32::MAX as u64) & !(PAGEBLOCK_FRAMES - 1);

/// How much memory the frame table of a map takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// Slots: frames of RAM, with each region padded to whole pageblocks.
    pub slots: u64,
    /// Arenas, behind the table, that [`Memory::extend`] is to be given.
    pub arenas: usize,
}

impl Footprint {
    /// What the table of `map` takes.
    pub fn of(map: &BootMap) -> Self {
        let slots = map.ram().map(|(range, _)| range.aligned_around(PAGEBLOCK_FRAMES).frames()).sum();
        Self { slots, arenas: Memory::arenas_to_extend(map) }
    }

    /// The 32-bit words to provide.
    pub const fn words(self) -> u64 {
        self.slots * ENTRY_WORDS as u64 + self.slots / PAGEBLOCK_FRAMES * (1 + free_map::WORDS as u64)
    }

    /// Returns the bytes to provide, aligned as an [`Arena`]: the table, and the arenas behind it.
    pub const fn bytes(self) -> u64 {
        self.arena_offset() + (self.arenas * size_of::<Arena>()) as u64
    }

    /// Returns the offset of the arenas in bytes.
    pub const fn arena_offset(self) -> u64 {
        (self.words() * size_of::<u32>() as u64).next_multiple_of(align_of::<Arena>() as u64)
    }
}

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum State {
    /// Free.
    Free,
    /// In use by its owner.
    Used,
    /// Reserved since boot: no allocator ever had it.
    Reserved,
    /// Taken out of use for good.
    Retired,
}

/// A frame's third word: what its block is if it is the head, zero if it is not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta(u32);

const STATE: u32 = 0b111;
const USED: u32 = 1;
const RESERVED: u32 = 2;
const RETIRED: u32 = 3;
const ORDER_SHIFT: u32 = 3;
const ORDER: u32 = 0x1f << ORDER_SHIFT;
/// The reverse map counts.
const MAPPED: u32 = 1 << 8;
/// The contents can be moved: guest RAM that only stage 2 reaches.
const MOVABLE: u32 = 1 << 9;
/// Some frames of the block are marked [`DOOMED`].
const HOLDS_DOOMED: u32 = 1 << 11;
/// The frame, head or not, is retired when its block is freed.
const DOOMED: u32 = 1 << 12;
const OWNER_SHIFT: u32 = 16;
const OWNER: u32 = 0xff << OWNER_SHIFT;

impl Meta {
    /// No head of a block that is in use, reserved or retired.
    pub(crate) const NONE: Self = Self(0);

    /// A head in use by the owner with index `owner`; without a mapping.
    #[inline]
    pub(crate) const fn used(order: u8, owner: usize, kind: MemoryKind) -> Self {
        let movable = match kind {
            MemoryKind::Movable => MOVABLE,
            MemoryKind::Unmovable => 0,
        };
        Self(USED | (order as u32) << ORDER_SHIFT | (owner as u32) << OWNER_SHIFT | movable)
    }

    pub(crate) const fn reserved(order: u8) -> Self {
        Self(RESERVED | (order as u32) << ORDER_SHIFT)
    }

    pub(crate) const fn retired(order: u8) -> Self {
        Self(RETIRED | (order as u32) << ORDER_SHIFT)
    }

    /// What the block is; `None` where the frame is no head of this kind.
    #[inline]
    pub(crate) const fn state(self) -> Option<State> {
        match self.0 & STATE {
            USED => Some(State::Used),
            RESERVED => Some(State::Reserved),
            RETIRED => Some(State::Retired),
            _ => None,
        }
    }

    /// The block's order. A table that was never corrupted has none above [`MAX_ORDER`].
    #[inline]
    pub(crate) const fn order(self) -> u8 {
        let order = ((self.0 & ORDER) >> ORDER_SHIFT) as u8;
        if order > MAX_ORDER { MAX_ORDER } else { order }
    }

    /// Returns the kind of a block in use.
    pub(crate) const fn kind(self) -> MemoryKind {
        if self.0 & MOVABLE != 0 { MemoryKind::Movable } else { MemoryKind::Unmovable }
    }

    /// The owner of a block in use, by [`Owner::index`].
    #[inline]
    pub(crate) const fn owner_index(self) -> usize {
        ((self.0 & OWNER) >> OWNER_SHIFT) as usize
    }

    /// The owner of a block in use.
    pub(crate) const fn owner(self) -> Option<Owner> {
        if self.0 & STATE == USED { Owner::from_index(self.owner_index()) } else { None }
    }

    /// Whether the block is in use with this order and owner, and without a frame that is to be retired.
    #[inline]
    pub(crate) const fn is_plainly_used_as(self, order: u8, owner: usize) -> bool {
        let used = USED | (order as u32) << ORDER_SHIFT | (owner as u32) << OWNER_SHIFT;
        (self.0 ^ used) & (STATE | ORDER | OWNER | HOLDS_DOOMED) == 0
    }

    /// Whether the block is in use with this order and owner.
    pub(crate) const fn is_used_as(self, order: u8, owner: usize) -> bool {
        Self(self.0 & !HOLDS_DOOMED).is_plainly_used_as(order, owner)
    }

    /// Whether the frame is to be retired when its block is freed.
    pub(crate) const fn is_doomed(self) -> bool {
        self.0 & DOOMED != 0
    }

    pub(crate) const fn with_doomed(self) -> Self {
        Self(self.0 | DOOMED)
    }

    /// Whether the block holds a frame that is to be retired.
    pub(crate) const fn holds_doomed(self) -> bool {
        self.0 & HOLDS_DOOMED != 0
    }

    pub(crate) const fn with_holding_doomed(self) -> Self {
        Self(self.0 | HOLDS_DOOMED)
    }

    /// As the head of a block of `order` that holds no frame to be retired.
    pub(crate) const fn as_piece(self, order: u8) -> Self {
        Self(self.0 & !(HOLDS_DOOMED | DOOMED)).with_order(order)
    }

    /// What is left of an entry that is no head any more, or never was one.
    pub(crate) const fn without_block(self) -> Self {
        Self(self.0 & DOOMED)
    }

    pub(crate) const fn is_mapped(self) -> bool {
        self.0 & MAPPED != 0
    }

    pub(crate) const fn with_order(self, order: u8) -> Self {
        Self(self.0 & !ORDER | (order as u32) << ORDER_SHIFT)
    }
}

/// The kind of a block of memory: whether migration can move its contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MemoryKind {
    /// Ballast's own memory and tables, and guest RAM that must not move, which keeps NORMAL's floor. NORMAL only.
    Unmovable,
    /// Guest RAM that only stage 2 maps: from MOVABLE first, then from NORMAL above its floor.
    Movable,
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmovable => "unmovable",
            Self::Movable => "movable",
        })
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
    #[inline]
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

    /// The mapping of the frame `frames` further on in the block.
    pub(crate) const fn offset(self, frames: u64) -> Option<Self> {
        match self.ipa.checked_add(frames << FRAME_SHIFT) {
            Some(ipa) => Some(Self { ipa, ..self }),
            None => None,
        }
    }
}
