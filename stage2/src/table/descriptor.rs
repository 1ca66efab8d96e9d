//! A stage-2 descriptor of VMSAv8-64 as a typed view of its 64 bits.
//!
//! | bits | field | source (DDI 0487J.a) |
//! |---|---|---|
//! | 0 | valid | D8.3.1, VMSAv8-64 descriptor formats |
//! | 1 | 1: table, or page at level 3; 0: block | D8.3.1 |
//! | 5:2 | MemAttr, with HCR_EL2.FWB = 0 | D8.5, stage 2 memory region attributes |
//! | 7:6 | S2AP: bit 6 read, bit 7 write | D8.4, stage 2 data access permissions |
//! | 9:8 | SH | D8.5, shareability |
//! | 10 | AF | D8.4, the access flag |
//! | 47:12 | output address | D8.3.1 |
//! | 51 | DBM: hardware may set S2AP[1] | D8.4, hardware management of the dirty state |
//! | 54:53 | XN: 0b10 forbids execution at EL1 and EL0, with and without FEAT_XNX | D8.4 |
//! | 58:55 | for software | D8.3.1 |
//!
//! The four software bits are two fields of Ballast's own:
//! - 56:55 the [`Mark`], which belongs to whoever moves the leaf (`migrate`);
//! - 58:57 what a write-protected leaf lets the guest do once the protection ends.
//!
//! An invalid descriptor is ignored by hardware but for bit 0, so a leaf or a table that is *broken*
//! (the first half of break-before-make) keeps all its other bits: clearing bit 0 loses nothing, and
//! whoever finds it sees what it was.

use crate::addr::{FRAME_SHIFT, Frame, Pa};
use core::fmt;

/// Entries in a table.
pub const ENTRIES: usize = 512;
/// log2 of [`ENTRIES`].
pub(super) const ENTRIES_SHIFT: u32 = 9;

/// A level of lookup: 0 to 3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// 512 GiB an entry; tables only.
    L0 = 0,
    /// 1 GiB an entry.
    L1 = 1,
    /// 2 MiB an entry.
    L2 = 2,
    /// 4 KiB an entry; pages only.
    L3 = 3,
}

impl Level {
    /// The levels that a leaf can be at, largest first.
    pub const LEAVES: [Self; 3] = [Self::L1, Self::L2, Self::L3];

    /// log2 of the bytes that an entry of this level spans.
    pub const fn shift(self) -> u32 {
        FRAME_SHIFT + ENTRIES_SHIFT * (3 - self as u32)
    }

    /// The bytes that an entry of this level spans.
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }

    /// log2 of the frames that an entry of this level spans (0, 9, 18 for leaves).
    pub const fn order(self) -> u8 {
        (self.shift() - FRAME_SHIFT) as u8
    }

    /// The level that a table of this level's entries is looked up at.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// The level of the table that holds this level's table.
    pub const fn above(self) -> Option<Self> {
        match self {
            Self::L0 => None,
            Self::L1 => Some(Self::L0),
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
        }
    }

    /// Whether an entry of this level can be a leaf (4 KiB granule without FEAT_LPA2).
    pub const fn has_leaves(self) -> bool {
        !matches!(self, Self::L0)
    }
}

/// What memory a leaf maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Memory {
    /// Normal memory, Inner and Outer Write-Back, Inner Shareable: RAM.
    Normal,
    /// Device-nGnRE.
    Device,
}

/// What a guest may do to the data of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write; writes are not tracked.
    ReadWrite,
    /// Read and write; hardware marks the first write (needs VTCR_EL2.HD), which has not come yet.
    Clean,
    /// Read and write; a write was marked.
    Dirty,
}

/// Whether a guest may fetch instructions from a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Execute {
    /// It may.
    Allowed,
    /// It may not.
    Never,
}

/// The attributes of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// Memory type, cacheability and shareability.
    pub memory: Memory,
    /// Data access.
    pub access: Access,
    /// Instruction fetch.
    pub execute: Execute,
    /// The access flag. Without hardware management a first access to a leaf where it is clear faults.
    pub accessed: bool,
}

impl Attributes {
    /// A guest's RAM.
    pub const RAM: Self =
        Self { memory: Memory::Normal, access: Access::ReadWrite, execute: Execute::Allowed, accessed: true };
    /// A guest's RAM that it may only read.
    pub const ROM: Self = Self { access: Access::ReadOnly, ..Self::RAM };
    /// A device that a guest reaches directly.
    pub const DEVICE: Self =
        Self { memory: Memory::Device, access: Access::ReadWrite, execute: Execute::Never, accessed: true };
}

/// Two bits in a leaf for whoever moves it; 0 outside of a move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Mark(u8);

impl Mark {
    /// No move touches the leaf.
    pub const NONE: Self = Self(0);

    /// The mark `value`, cut to two bits.
    pub const fn new_truncate(value: u8) -> Self {
        Self(value & 3)
    }

    /// The mark as a number from 0 to 3.
    pub const fn get(self) -> u8 {
        self.0
    }
}

const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
const MEMORY_SHIFT: u32 = 2;
const MEMORY_MASK: u64 = 0b1111 << MEMORY_SHIFT;
const MEMORY_NORMAL: u64 = 0b1111 << MEMORY_SHIFT;
const MEMORY_DEVICE_NGNRE: u64 = 0b0001 << MEMORY_SHIFT;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const OUTPUT_MASK: u64 = ((1 << 48) - 1) & !0xfff;
const DIRTY_MODIFIER: u64 = 1 << 51;
const EXECUTE_NEVER: u64 = 1 << 54;
const MARK_SHIFT: u32 = 55;
const MARK_MASK: u64 = 0b11 << MARK_SHIFT;
const HELD_SHIFT: u32 = 57;
const HELD_MASK: u64 = 0b11 << HELD_SHIFT;
const HELD_WRITE: u64 = 0b01 << HELD_SHIFT;
const HELD_CLEAN: u64 = 0b10 << HELD_SHIFT;
const HELD_DIRTY: u64 = 0b11 << HELD_SHIFT;

/// The bits in which a valid leaf may be replaced by another valid leaf. Every other change (memory type,
/// shareability, output address, block size) needs break-before-make (DDI 0487J.a, D8.14.1, R_WHZWS).
const LIVE_CHANGES: u64 =
    READ | WRITE | ACCESSED | DIRTY_MODIFIER | EXECUTE_NEVER | 1 << 53 | MARK_MASK | HELD_MASK;

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing is mapped.
    Empty,
    /// A block or a page.
    Leaf,
    /// A leaf between break and make: hardware faults on it.
    BrokenLeaf,
    /// The next level's table.
    Table,
    /// A table between break and make.
    BrokenTable,
}

/// One entry of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Descriptor(u64);

impl Descriptor {
    /// The entry that maps nothing.
    pub const EMPTY: Self = Self(0);

    /// The descriptor with these bits.
    #[inline(always)]
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// All 64 bits.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A leaf at `level` to `pa`, of which the bits below the leaf's size are cut.
    pub(super) const fn leaf(level: Level, pa: Pa, attributes: Attributes) -> Self {
        let mut bits = VALID | READ | INNER_SHAREABLE;
        if matches!(level, Level::L3) {
            bits |= TABLE_OR_PAGE;
        }
        bits |= match attributes.memory {
            Memory::Normal => MEMORY_NORMAL,
            Memory::Device => MEMORY_DEVICE_NGNRE,
        };
        bits |= match attributes.access {
            Access::ReadOnly => 0,
            Access::ReadWrite => WRITE,
            Access::Clean => DIRTY_MODIFIER,
            Access::Dirty => DIRTY_MODIFIER | WRITE,
        };
        if matches!(attributes.execute, Execute::Never) {
            bits |= EXECUTE_NEVER;
        }
        if attributes.accessed {
            bits |= ACCESSED;
        }
        Self(bits | (pa.get() & !(level.size() - 1)))
    }

    /// The descriptor of the next level's table at `frame`. The attribute bits of a stage-2 table
    /// descriptor are ignored or RES0 (D8.3.1).
    pub(super) const fn table(frame: Frame) -> Self {
        Self(VALID | TABLE_OR_PAGE | frame.pa().get())
    }

    /// Whether hardware follows it.
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// What it is, in a table of `level`.
    #[inline(always)]
    pub const fn kind(self, level: Level) -> Kind {
        if self.0 == 0 {
            return Kind::Empty;
        }
        let table = self.0 & TABLE_OR_PAGE != 0 && !matches!(level, Level::L3);
        match (table, self.is_valid()) {
            (true, true) => Kind::Table,
            (true, false) => Kind::BrokenTable,
            (false, true) => Kind::Leaf,
            (false, false) => Kind::BrokenLeaf,
        }
    }

    /// The output address of a leaf.
    #[inline(always)]
    pub const fn output(self) -> Pa {
        Pa::new_truncate(self.0 & OUTPUT_MASK)
    }

    /// The frame of the table that a table descriptor leads to.
    pub(super) const fn table_frame(self) -> Frame {
        Frame::containing(self.output())
    }

    /// The same leaf with another output address.
    #[inline(always)]
    pub(super) const fn with_output(self, pa: Pa) -> Self {
        Self(self.0 & !OUTPUT_MASK | pa.get() & OUTPUT_MASK)
    }

    /// The same with bit 0 clear.
    #[inline(always)]
    pub(super) const fn broken(self) -> Self {
        Self(self.0 & !VALID)
    }

    /// The same with bit 0 set.
    #[inline(always)]
    pub(super) const fn made(self) -> Self {
        Self(self.0 | VALID)
    }

    /// The attributes of a leaf: what the guest is entitled to, whether protected at present or not.
    pub const fn attributes(self) -> Attributes {
        let whole = self.unprotected();
        Attributes {
            memory: if whole.0 & MEMORY_MASK == MEMORY_NORMAL { Memory::Normal } else { Memory::Device },
            access: match (whole.0 & WRITE != 0, whole.0 & DIRTY_MODIFIER != 0) {
                (false, false) => Access::ReadOnly,
                (true, false) => Access::ReadWrite,
                (false, true) => Access::Clean,
                (true, true) => Access::Dirty,
            },
            execute: if whole.0 & EXECUTE_NEVER == 0 { Execute::Allowed } else { Execute::Never },
            accessed: whole.is_accessed(),
        }
    }

    /// The access flag.
    #[inline(always)]
    pub const fn is_accessed(self) -> bool {
        self.0 & ACCESSED != 0
    }

    /// The same with the access flag set.
    pub(super) const fn with_accessed(self) -> Self {
        Self(self.0 | ACCESSED)
    }

    /// The same with the access flag clear.
    pub(super) const fn without_accessed(self) -> Self {
        Self(self.0 & !ACCESSED)
    }

    /// The mark.
    #[inline(always)]
    pub const fn mark(self) -> Mark {
        Mark::new_truncate((self.0 >> MARK_SHIFT) as u8)
    }

    /// The same with another mark.
    #[inline(always)]
    pub(super) const fn with_mark(self, mark: Mark) -> Self {
        Self(self.0 & !MARK_MASK | (mark.0 as u64) << MARK_SHIFT)
    }

    /// Whether a write permission that the guest is entitled to is withheld.
    #[inline(always)]
    pub const fn is_protected(self) -> bool {
        self.0 & HELD_MASK != 0
    }

    /// The same with writes withheld. DBM goes too: with it hardware would grant the write itself.
    pub(super) const fn protected(self) -> Self {
        if self.is_protected() {
            return self;
        }
        let held = match (self.0 & WRITE != 0, self.0 & DIRTY_MODIFIER != 0) {
            (false, false) => 0,
            (true, false) => HELD_WRITE,
            (false, true) => HELD_CLEAN,
            (true, true) => HELD_DIRTY,
        };
        Self(self.0 & !(WRITE | DIRTY_MODIFIER) | held)
    }

    /// The same with what was withheld given back.
    #[inline(always)]
    pub(super) const fn unprotected(self) -> Self {
        let given = match self.0 & HELD_MASK {
            HELD_WRITE => WRITE,
            HELD_CLEAN => DIRTY_MODIFIER,
            HELD_DIRTY => DIRTY_MODIFIER | WRITE,
            _ => 0,
        };
        Self(self.0 & !HELD_MASK | given)
    }

    /// The entry number `index` of the table that a leaf at `level` becomes on demotion: the same
    /// attributes, access flag, dirty state, mark and protection. `None` at level 3.
    pub(super) const fn part(self, level: Level, index: usize) -> Option<Self> {
        let Some(below) = level.below() else { return None };
        let bits = self.0 + ((index as u64) << below.shift());
        Some(Self(if matches!(below, Level::L3) { bits | TABLE_OR_PAGE } else { bits }))
    }

    /// Whether two leaves of one level may become one block, but for their addresses: equal in all that
    /// is not gathered by [`Self::gathered`].
    pub(super) const fn is_alike(self, other: Self) -> bool {
        let ignored = OUTPUT_MASK | ACCESSED;
        let (a, b) = (self.0 & !ignored, other.0 & !ignored);
        let tracked = self.0 & other.0 & DIRTY_MODIFIER != 0;
        a == b || tracked && a & !WRITE == b & !WRITE
    }

    /// This leaf, accessed or dirty if `other`, a leaf alike, is so.
    pub(super) const fn gathered(self, other: Self) -> Self {
        Self(self.0 | other.0 & (ACCESSED | WRITE))
    }

    /// This leaf of the level below `level` as a block of `level`.
    pub(super) const fn as_block(self) -> Self {
        Self(self.0 & !TABLE_OR_PAGE)
    }

    /// Whether an entry that holds `self` may be set to `next` at once; otherwise break-before-make.
    #[inline(always)]
    pub(super) const fn is_legal_change(self, next: Self) -> bool {
        if !self.is_valid() || !next.is_valid() {
            return true;
        }
        (self.0 ^ next.0) & !LIVE_CHANGES == 0
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {:#018x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pa(value: u64) -> Pa {
        Pa::try_new(value).unwrap()
    }

    #[test]
    fn bits_are_where_the_architecture_has_them() {
        // Normal write-back, read-write, inner shareable, accessed: block 0x7fd, page 0x7ff.
        assert_eq!(Descriptor::leaf(Level::L2, pa(0x4020_0000), Attributes::RAM).bits(), 0x4020_07fd);
        assert_eq!(Descriptor::leaf(Level::L3, pa(0x4020_1000), Attributes::RAM).bits(), 0x4020_17ff);
        assert_eq!(
            Descriptor::leaf(Level::L3, pa(0x0900_0000), Attributes::DEVICE).bits(),
            0x0040_0000_0900_07c7
        );
        assert_eq!(Descriptor::table(Frame::containing(pa(0x4567_8000))).bits(), 0x4567_8003);
    }

    #[test]
    fn attributes_survive_the_descriptor() {
        for memory in [Memory::Normal, Memory::Device] {
            for access in [Access::ReadOnly, Access::ReadWrite, Access::Clean, Access::Dirty] {
                for execute in [Execute::Allowed, Execute::Never] {
                    for accessed in [false, true] {
                        let attributes = Attributes { memory, access, execute, accessed };
                        let leaf = Descriptor::leaf(Level::L1, pa(0x8000_0000), attributes);
                        assert_eq!(leaf.attributes(), attributes);
                        assert_eq!(leaf.protected().attributes(), attributes);
                        assert_eq!(leaf.protected().unprotected(), leaf);
                        assert_eq!(leaf.protected().bits() & (WRITE | DIRTY_MODIFIER), 0);
                        assert_eq!(leaf.broken().made(), leaf);
                    }
                }
            }
        }
    }

    #[test]
    fn kinds_are_told_apart_when_broken() {
        let leaf = Descriptor::leaf(Level::L2, pa(0x20_0000), Attributes::RAM);
        let page = Descriptor::leaf(Level::L3, pa(0x1000), Attributes::RAM);
        let table = Descriptor::table(Frame::try_new(7).unwrap());
        assert_eq!(leaf.kind(Level::L2), Kind::Leaf);
        assert_eq!(leaf.broken().kind(Level::L2), Kind::BrokenLeaf);
        assert_eq!(page.kind(Level::L3), Kind::Leaf);
        assert_eq!(page.broken().kind(Level::L3), Kind::BrokenLeaf);
        assert_eq!(table.kind(Level::L2), Kind::Table);
        assert_eq!(table.broken().kind(Level::L2), Kind::BrokenTable);
        assert_eq!(Descriptor::EMPTY.kind(Level::L3), Kind::Empty);
    }

    #[test]
    fn only_permissions_flags_and_software_bits_change_live() {
        let leaf = Descriptor::leaf(Level::L3, pa(0x1000), Attributes::RAM);
        assert!(leaf.is_legal_change(leaf.protected()));
        assert!(leaf.is_legal_change(leaf.without_accessed().with_mark(Mark::new_truncate(3))));
        assert!(leaf.is_legal_change(Descriptor::EMPTY));
        assert!(Descriptor::EMPTY.is_legal_change(leaf));
        assert!(!leaf.is_legal_change(leaf.with_output(pa(0x2000))));
        assert!(!leaf.is_legal_change(Descriptor::leaf(Level::L3, pa(0x1000), Attributes::DEVICE)));
        let block = Descriptor::leaf(Level::L2, pa(0x20_0000), Attributes::RAM);
        assert!(!block.is_legal_change(Descriptor::table(Frame::try_new(0x200).unwrap())));
    }

    #[test]
    fn parts_keep_everything_but_the_address() {
        let attributes = Attributes { access: Access::Dirty, accessed: false, ..Attributes::RAM };
        let block = Descriptor::leaf(Level::L2, pa(0x4020_0000), attributes).with_mark(Mark::new_truncate(2));
        let part = block.part(Level::L2, 511).unwrap();
        assert_eq!(part.output(), pa(0x403f_f000));
        assert_eq!(part.attributes(), attributes);
        assert_eq!(part.mark().get(), 2);
        assert_eq!(part.kind(Level::L3), Kind::Leaf);
        let gigantic = Descriptor::leaf(Level::L1, pa(0x4000_0000), attributes);
        assert_eq!(gigantic.part(Level::L1, 1).unwrap().kind(Level::L2), Kind::Leaf);
        assert_eq!(part.part(Level::L3, 0), None);
    }
}
