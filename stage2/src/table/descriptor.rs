//! Typed view of a stage-2 descriptor of VMSAv8-64.
//!
//! | bits | field | Arm ARM |
//! |---|---|---|
//! | 0 | valid | "VMSAv8-64 descriptor formats" |
//! | 1 | 1: table, or page at level 3; 0: block | "VMSAv8-64 descriptor formats" |
//! | 5:2 | MemAttr, with HCR_EL2.FWB = 0 | "Stage 2 memory type and Cacheability attributes when FEAT_S2FWB is disabled" |
//! | 7:6 | S2AP: bit 6 read, bit 7 write | "Data access permissions for stage 2 translations" |
//! | 9:8 | SH | "Stage 2 Shareability attributes" |
//! | 10 | AF | "The Access flag" |
//! | 47:12 | output address | "VMSAv8-64 descriptor formats" |
//! | 51 | DBM, always 0: hardware does not manage the dirty state | "Hardware management of the dirty state" |
//! | 54:53 | XN: 0b10 forbids execution at EL1 and EL0, with and without FEAT_XNX | "Instruction execution permissions" |
//! | 58:55 | reserved for software | "VMSAv8-64 descriptor formats" |
//!
//! Ballast uses three of the four software bits:
//! - 56:55: the [`Mark`], which belongs to migration;
//! - 57: the leaf is write-protected, and becomes writable when the protection ends.
//!
//! Hardware ignores bits 63:1 of an invalid descriptor. Breaking a leaf or a table clears bit 0 only, so the
//! descriptor still says what it was.

use crate::addr::{FRAME_SHIFT, Frame, Pa};
use core::fmt;

/// Number of entries in a table.
pub const ENTRIES: usize = 512;
/// Binary logarithm of [`ENTRIES`].
pub(super) const ENTRIES_SHIFT: u32 = 9;

/// Level of lookup.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// 512 GiB per entry; tables only.
    L0 = 0,
    /// 1 GiB per entry.
    L1 = 1,
    /// 2 MiB per entry.
    L2 = 2,
    /// 4 KiB per entry; pages only.
    L3 = 3,
}

impl Level {
    /// Levels that can hold a leaf, largest first.
    pub(super) const LEAVES: [Self; 3] = [Self::L1, Self::L2, Self::L3];

    /// Returns the binary logarithm of the bytes that an entry of this level spans.
    pub const fn shift(self) -> u32 {
        FRAME_SHIFT + ENTRIES_SHIFT * (3 - self as u32)
    }

    /// Returns the number of bytes that an entry of this level spans.
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }

    /// Returns the binary logarithm of the frames that an entry of this level spans: 18, 9 or 0 for leaves.
    pub const fn order(self) -> u8 {
        (self.shift() - FRAME_SHIFT) as u8
    }

    /// Returns the level of the tables that entries of this level lead to.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// Returns the level of the entries that lead to tables of this level.
    pub(super) const fn above(self) -> Option<Self> {
        match self {
            Self::L0 => None,
            Self::L1 => Some(Self::L0),
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
        }
    }

    /// Tests whether an entry of this level can be a leaf (4 KiB granule without FEAT_LPA2).
    pub(super) const fn has_leaves(self) -> bool {
        !matches!(self, Self::L0)
    }
}

/// Memory type of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Memory {
    /// RAM: Normal, Inner and Outer Write-Back, Inner Shareable.
    Normal,
    /// Device-nGnRE.
    Device,
}

/// Data access that a leaf grants to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Permission to fetch instructions from a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Execute {
    /// Instruction fetches are allowed.
    Allowed,
    /// Instruction fetches fault.
    Never,
}

/// Attributes of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// Memory type, cacheability and shareability.
    pub memory: Memory,
    /// Data access.
    pub access: Access,
    /// Instruction fetch.
    pub execute: Execute,
    /// The access flag. If it is clear and hardware does not manage it, the next access faults.
    pub accessed: bool,
}

impl Attributes {
    /// Attributes of a guest's RAM.
    pub const RAM: Self =
        Self { memory: Memory::Normal, access: Access::ReadWrite, execute: Execute::Allowed, accessed: true };
    /// Attributes of RAM that a guest may only read.
    pub const ROM: Self = Self { access: Access::ReadOnly, ..Self::RAM };
    /// Attributes of a device that a guest accesses directly.
    pub const DEVICE: Self =
        Self { memory: Memory::Device, access: Access::ReadWrite, execute: Execute::Never, accessed: true };
}

/// Two bits in a leaf that record the state of its migration; 0 if the leaf is not being moved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Mark(u8);

impl Mark {
    /// Mark of a leaf that is not being moved.
    pub const NONE: Self = Self(0);

    /// Returns the mark with the two low bits of `value`.
    pub const fn new_truncate(value: u8) -> Self {
        Self(value & 3)
    }

    /// Returns the mark as a number from 0 to 3.
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
const EXECUTE_NEVER: u64 = 1 << 54;
const MARK_SHIFT: u32 = 55;
const MARK_MASK: u64 = 0b11 << MARK_SHIFT;
const PROTECTED: u64 = 1 << 57;

/// Bits in which a valid leaf may be replaced by another valid leaf. Every other change (memory type,
/// shareability, output address, block size) needs break-before-make (Arm ARM, "Using break-before-make when
/// updating translation table entries", R_WHZWS).
const LIVE_CHANGES: u64 = READ | WRITE | ACCESSED | EXECUTE_NEVER | 1 << 53 | MARK_MASK | PROTECTED;

/// Kind of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// An entry that maps nothing.
    Empty,
    /// A block or a page.
    Leaf,
    /// A leaf between break and make: accesses fault.
    BrokenLeaf,
    /// A pointer to the next level's table.
    Table,
    /// A pointer to a table, between break and make.
    BrokenTable,
}

/// An entry of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Descriptor(u64);

impl Descriptor {
    /// The entry that maps nothing.
    pub(crate) const EMPTY: Self = Self(0);

    /// Returns the descriptor with these bits.
    #[inline(always)]
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns all 64 bits.
    #[inline(always)]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Returns a leaf of `level` that leads to `pa`, rounded down to the size of the leaf.
    pub(super) const fn leaf(level: Level, pa: Pa, attributes: Attributes) -> Self {
        let mut bits = VALID | READ | INNER_SHAREABLE;
        if matches!(level, Level::L3) {
            bits |= TABLE_OR_PAGE;
        }
        bits |= match attributes.memory {
            Memory::Normal => MEMORY_NORMAL,
            Memory::Device => MEMORY_DEVICE_NGNRE,
        };
        if matches!(attributes.access, Access::ReadWrite) {
            bits |= WRITE;
        }
        if matches!(attributes.execute, Execute::Never) {
            bits |= EXECUTE_NEVER;
        }
        if attributes.accessed {
            bits |= ACCESSED;
        }
        Self(bits | (pa.get() & !(level.size() - 1)))
    }

    /// Returns the descriptor of a table at `frame`. The attribute bits of a stage-2 table descriptor are ignored
    /// or RES0 (Arm ARM, "VMSAv8-64 descriptor formats").
    pub(super) const fn table(frame: Frame) -> Self {
        Self(VALID | TABLE_OR_PAGE | frame.pa().get())
    }

    /// Tests whether hardware follows the descriptor.
    #[inline(always)]
    pub(crate) const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Returns the kind of the descriptor in a table of `level`.
    #[inline(always)]
    pub(crate) const fn kind(self, level: Level) -> Kind {
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

    /// Returns the output address of a leaf.
    #[inline(always)]
    pub(crate) const fn output(self) -> Pa {
        Pa::new_truncate(self.0 & OUTPUT_MASK)
    }

    /// Returns the frame of the table that a table descriptor leads to.
    pub(super) const fn table_frame(self) -> Frame {
        Frame::containing(self.output())
    }

    /// Returns this leaf with another output address.
    #[inline(always)]
    pub(super) const fn with_output(self, pa: Pa) -> Self {
        Self(self.0 & !OUTPUT_MASK | pa.get() & OUTPUT_MASK)
    }

    /// Returns this descriptor with the valid bit clear.
    #[inline(always)]
    pub(super) const fn broken(self) -> Self {
        Self(self.0 & !VALID)
    }

    /// Returns this descriptor with the valid bit set.
    #[inline(always)]
    pub(super) const fn made(self) -> Self {
        Self(self.0 | VALID)
    }

    /// Returns the attributes of a leaf, as if it were not protected.
    pub const fn attributes(self) -> Attributes {
        let full = self.unprotected();
        Attributes {
            memory: if full.0 & MEMORY_MASK == MEMORY_NORMAL { Memory::Normal } else { Memory::Device },
            access: if full.0 & WRITE != 0 { Access::ReadWrite } else { Access::ReadOnly },
            execute: if full.0 & EXECUTE_NEVER == 0 { Execute::Allowed } else { Execute::Never },
            accessed: full.is_accessed(),
        }
    }

    /// Tests the access flag.
    #[inline(always)]
    pub const fn is_accessed(self) -> bool {
        self.0 & ACCESSED != 0
    }

    /// Returns this leaf with the access flag set.
    pub(super) const fn with_accessed(self) -> Self {
        Self(self.0 | ACCESSED)
    }

    /// Returns this leaf with the access flag clear.
    pub(super) const fn without_accessed(self) -> Self {
        Self(self.0 & !ACCESSED)
    }

    /// Returns the mark.
    #[inline(always)]
    pub(crate) const fn mark(self) -> Mark {
        Mark::new_truncate((self.0 >> MARK_SHIFT) as u8)
    }

    /// Returns this leaf with another mark.
    #[inline(always)]
    pub(super) const fn with_mark(self, mark: Mark) -> Self {
        Self(self.0 & !MARK_MASK | (mark.0 as u64) << MARK_SHIFT)
    }

    /// Tests whether write permission is withheld.
    #[inline(always)]
    pub(crate) const fn is_protected(self) -> bool {
        self.0 & PROTECTED != 0
    }

    /// Returns this leaf without write permission. A read-only leaf stays as it is.
    pub(super) const fn protected(self) -> Self {
        if self.0 & WRITE == 0 { self } else { Self(self.0 & !WRITE | PROTECTED) }
    }

    /// Returns this leaf with the write permission that [`Self::protected`] withheld.
    #[inline(always)]
    pub(super) const fn unprotected(self) -> Self {
        if self.is_protected() { Self(self.0 & !PROTECTED | WRITE) } else { self }
    }

    /// Returns entry `index` of the table that a leaf of `level` becomes on demotion, with the same attributes,
    /// mark and protection. `None` at level 3.
    pub(super) const fn part(self, level: Level, index: usize) -> Option<Self> {
        let Some(below) = level.below() else { return None };
        let bits = self.0 + ((index as u64) << below.shift());
        Some(Self(if matches!(below, Level::L3) { bits | TABLE_OR_PAGE } else { bits }))
    }

    /// Tests whether two leaves of one level differ in nothing but output address and access flag, so that they
    /// may become parts of one block.
    pub(super) const fn is_alike(self, other: Self) -> bool {
        (self.0 ^ other.0) & !(OUTPUT_MASK | ACCESSED) == 0
    }

    /// Returns this leaf, with the access flag set if it is set in this leaf or in `other`.
    pub(super) const fn gathered(self, other: Self) -> Self {
        Self(self.0 | other.0 & ACCESSED)
    }

    /// Returns a page, or a block, as a block of the level above.
    pub(super) const fn as_block(self) -> Self {
        Self(self.0 & !TABLE_OR_PAGE)
    }

    /// Tests whether an entry may change from `self` to `next` without break-before-make.
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
    fn descriptors_have_the_bits_of_the_architecture() {
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
            for access in [Access::ReadOnly, Access::ReadWrite] {
                for execute in [Execute::Allowed, Execute::Never] {
                    for accessed in [false, true] {
                        let attributes = Attributes { memory, access, execute, accessed };
                        let leaf = Descriptor::leaf(Level::L1, pa(0x8000_0000), attributes);
                        assert_eq!(leaf.attributes(), attributes);
                        assert_eq!(leaf.protected().attributes(), attributes);
                        assert_eq!(leaf.protected().unprotected(), leaf);
                        assert_eq!(leaf.protected().bits() & WRITE, 0);
                        assert_eq!(leaf.broken().made(), leaf);
                    }
                }
            }
        }
    }

    #[test]
    fn a_broken_descriptor_keeps_its_kind() {
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
    fn a_valid_leaf_may_change_permissions_flags_and_software_bits_only() {
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
    fn parts_differ_from_the_block_in_their_address_only() {
        let attributes = Attributes { access: Access::ReadOnly, accessed: false, ..Attributes::RAM };
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
