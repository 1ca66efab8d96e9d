//! The frame table: the records of each frame, looked up by frame number.
//!
//! RAM has holes; the table has none. Each *RAM range* behind one controller has a run of *slots*. A frame's slot is
//! always computed from its number, never by stepping from a neighbour, which may be in another range. A block never
//! crosses a range, so inside a block slots and frame numbers run in step.
//!
//! The table has three parts, together 12.16 bytes for each frame:
//! - an **entry** of twelve bytes for each frame: state, order, owner and reverse map of the block whose head it is;
//! - a **word** of four bytes for each pageblock ([`crate::phys::pageblock`]): zone, type, isolation and *shape*: part
//!   of a free block, of one in use or of a reserved one, or *split*;
//! - a **free map** for each pageblock: list links and, for a split pageblock, a bit for each free frame.
//!
//! The caller provides the memory. It need not be zero, and boot does not write all of it. All words are written. An
//! entry is valid only if its pageblock is split or its block in use; a free map only if its pageblock is split or
//! heads a free block. On a machine with 1 TiB, boot writes one word for each pageblock and one free map for each
//! gigabyte.

use core::fmt;

use crate::addr::{FRAME_SHIFT, Ipa, MAX_ORDER, PAGEBLOCK_FRAMES};
use crate::owner::{GuestId, Owner};
use crate::phys::alloc::{Arena, Memory};
use crate::phys::map::BootMap;

mod free_map;
mod table;

pub(crate) use free_map::{FreeMap, Info, SMALL_ORDERS};
pub(crate) use table::{Cell, FrameTable, Head, NONE, RamRange, Slot, Table};

/// The number of 32-bit words of an entry.
const ENTRY_WORDS: usize = 3;
/// The number of frames that one table can describe: slots are 32-bit numbers.
pub const MAX_FRAMES: u64 = (u32::MAX as u64) & !(PAGEBLOCK_FRAMES - 1);

/// The size of the frame table of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// The number of slots: frames of RAM, with each RAM range padded to whole pageblocks.
    pub slots: u64,
    /// The number of arenas behind the table, for [`Memory::extend`].
    pub arenas: usize,
}

impl Footprint {
    /// Returns the size of the table of `map`.
    pub fn of(map: &BootMap) -> Self {
        let slots = map.ram().map(|(range, _)| range.aligned_around(PAGEBLOCK_FRAMES).frames()).sum();
        Self { slots, arenas: Memory::arenas_to_extend(map) }
    }

    /// Returns the number of 32-bit words to provide.
    pub const fn words(self) -> u64 {
        self.slots * ENTRY_WORDS as u64 + self.slots / PAGEBLOCK_FRAMES * (1 + free_map::WORDS as u64)
    }

    /// Returns the number of bytes to provide, aligned as an [`Arena`]: the table, and the arenas behind it.
    pub const fn bytes(self) -> u64 {
        self.arena_offset() + (self.arenas * size_of::<Arena>()) as u64
    }

    /// Returns the offset of the arenas in bytes.
    pub const fn arena_offset(self) -> u64 {
        (self.words() * size_of::<u32>() as u64).next_multiple_of(align_of::<Arena>() as u64)
    }
}

/// The state of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum State {
    /// Free.
    Free,
    /// In use by its owner.
    Used,
    /// Reserved since boot, never managed by the allocator.
    Reserved,
    /// Retired: never used again.
    Retired,
}

/// The third word of an entry: the state of the block if the frame is its head, zero if it is not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta(u32);

const STATE: u32 = 0b111;
const USED: u32 = 1;
const RESERVED: u32 = 2;
const RETIRED: u32 = 3;
const ORDER_SHIFT: u32 = 3;
const ORDER: u32 = 0x1f << ORDER_SHIFT;
/// The reverse map is valid.
const MAPPED: u32 = 1 << 8;
/// The block is movable.
const MOVABLE: u32 = 1 << 9;
/// Some frames of the block are [`DOOMED`].
const HOLDS_DOOMED: u32 = 1 << 11;
/// The frame, head or not, is retired when its block is freed.
const DOOMED: u32 = 1 << 12;
const OWNER_SHIFT: u32 = 16;
const OWNER: u32 = 0xff << OWNER_SHIFT;

impl Meta {
    /// Not the head of a block in use, reserved or retired.
    pub(crate) const NONE: Self = Self(0);

    /// Returns a head in use by the owner with index `owner`, without a mapping.
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

    /// Returns the state of the block, or `None` if the frame is not the head of one in use, reserved or retired.
    #[inline]
    pub(crate) const fn state(self) -> Option<State> {
        match self.0 & STATE {
            USED => Some(State::Used),
            RESERVED => Some(State::Reserved),
            RETIRED => Some(State::Retired),
            _ => None,
        }
    }

    /// Returns the block's order. In a table that is not corrupted it is at most [`MAX_ORDER`].
    #[inline]
    pub(crate) const fn order(self) -> u8 {
        let order = ((self.0 & ORDER) >> ORDER_SHIFT) as u8;
        if order > MAX_ORDER { MAX_ORDER } else { order }
    }

    /// Returns the kind of a block in use.
    pub(crate) const fn kind(self) -> MemoryKind {
        if self.0 & MOVABLE != 0 { MemoryKind::Movable } else { MemoryKind::Unmovable }
    }

    /// Returns the [`Owner::index`] of a block in use.
    #[inline]
    pub(crate) const fn owner_index(self) -> usize {
        ((self.0 & OWNER) >> OWNER_SHIFT) as usize
    }

    /// Returns the owner of a block in use.
    pub(crate) const fn owner(self) -> Option<Owner> {
        if self.0 & STATE == USED { Owner::from_index(self.owner_index()) } else { None }
    }

    /// Returns whether the block is in use with this order and owner and holds no doomed frame.
    #[inline]
    pub(crate) const fn is_plainly_used_as(self, order: u8, owner: usize) -> bool {
        let used = USED | (order as u32) << ORDER_SHIFT | (owner as u32) << OWNER_SHIFT;
        (self.0 ^ used) & (STATE | ORDER | OWNER | HOLDS_DOOMED) == 0
    }

    /// Returns whether the block is in use with this order and owner.
    pub(crate) const fn is_used_as(self, order: u8, owner: usize) -> bool {
        Self(self.0 & !HOLDS_DOOMED).is_plainly_used_as(order, owner)
    }

    /// Returns whether the frame is retired when its block is freed.
    pub(crate) const fn is_doomed(self) -> bool {
        self.0 & DOOMED != 0
    }

    pub(crate) const fn with_doomed(self) -> Self {
        Self(self.0 | DOOMED)
    }

    /// Returns whether the block holds a doomed frame.
    pub(crate) const fn holds_doomed(self) -> bool {
        self.0 & HOLDS_DOOMED != 0
    }

    pub(crate) const fn with_holding_doomed(self) -> Self {
        Self(self.0 | HOLDS_DOOMED)
    }

    /// Returns the head of a piece of this block, of `order`, without doomed frames.
    pub(crate) const fn as_piece(self, order: u8) -> Self {
        Self(self.0 & !(HOLDS_DOOMED | DOOMED)).with_order(order)
    }

    /// Returns the entry without its block; only the doomed mark stays.
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

/// The state of the bytes in a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Contents {
    /// Any content. It must be scrubbed before anyone else can read it.
    Dirty,
    /// All zero.
    Zeroed,
}

impl Contents {
    /// Returns the state of two blocks together.
    #[inline]
    pub(crate) const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Zeroed, Self::Zeroed) => Self::Zeroed,
            _ => Self::Dirty,
        }
    }
}

/// A mapping in stage 2: the guest and the IPA of a block's first frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Mapping {
    /// The guest.
    pub guest: GuestId,
    /// The IPA at which the guest sees the block.
    pub ipa: Ipa,
}

impl Mapping {
    /// Returns the two words of an entry: 36 bits of frame number and the guest above them.
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

    /// Returns the mapping of the frame `frames` after the first.
    pub(crate) const fn offset(self, frames: u64) -> Option<Self> {
        match self.ipa.checked_add(frames << FRAME_SHIFT) {
            Some(ipa) => Some(Self { ipa, ..self }),
            None => None,
        }
    }
}
