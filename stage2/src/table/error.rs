//! Why a translation table was not changed.

use super::descriptor::{Descriptor, Level};
use crate::addr::{Ipa, Pa};
use core::fmt;

/// Why an operation was refused. The tables are as they were before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// No such address size: `ipa_bits` must be 32 to 48 and at most `pa_bits`.
    AddressSize {
        /// The bits of an IPA that were asked for.
        ipa_bits: u8,
        /// The bits of the machine's physical addresses.
        pa_bits: u8,
    },
    /// The range is empty or not made of whole frames.
    Misaligned {
        /// Where it starts.
        ipa: Ipa,
        /// Its bytes.
        size: u64,
    },
    /// The range does not lie in the guest's address space.
    IpaOutside {
        /// Where it starts.
        ipa: Ipa,
        /// Its bytes.
        size: u64,
        /// The bits of an IPA.
        ipa_bits: u8,
    },
    /// The frames are beyond the machine's physical addresses, or misaligned for the leaf.
    PaOutside {
        /// Where they start.
        pa: Pa,
        /// Their bytes.
        size: u64,
        /// The bits of a physical address.
        pa_bits: u8,
    },
    /// Something is mapped there already.
    AlreadyMapped(Ipa),
    /// Nothing is mapped there.
    NotMapped(Ipa),
    /// The range ends inside a leaf: demote it first.
    SplitsLeaf {
        /// Where the leaf starts.
        ipa: Ipa,
        /// Its level.
        level: Level,
    },
    /// There is no memory for table frames.
    OutOfTables {
        /// The frames that the operation needs.
        needed: u64,
        /// The frames that could be had before memory ran out.
        available: u64,
    },
    /// A leaf of 4 KiB has no parts.
    NotDivisible(Ipa),
    /// The 512 leaves below are not one block: see which is the first that stands in the way.
    NotOneBlock(Ipa),
    /// The leaf is between break and make, or marked by a move.
    InMotion(Ipa),
    /// The leaf is not between break and make, or the invalidation for it has not been completed.
    NotBroken(Ipa),
    /// A live entry may not be changed like this at once (DDI 0487J.a, D8.14.1).
    BreakBeforeMake {
        /// What the entry translates.
        ipa: Ipa,
        /// What it holds.
        old: Descriptor,
        /// What it was to hold.
        new: Descriptor,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AddressSize { ipa_bits, pa_bits } => write!(
                f,
                "no guest address space of {ipa_bits} bits where physical addresses have {pa_bits} bits"
            ),
            Self::Misaligned { ipa, size } => {
                write!(f, "IPA {ipa} size {size:#x}: not a range of whole 4 KiB frames")
            }
            Self::IpaOutside { ipa, size, ipa_bits } => {
                write!(f, "IPA {ipa} size {size:#x}: outside the guest's {ipa_bits}-bit address space")
            }
            Self::PaOutside { pa, size, pa_bits } => {
                write!(f, "PA {pa} size {size:#x}: misaligned or outside {pa_bits}-bit physical addresses")
            }
            Self::AlreadyMapped(ipa) => write!(f, "IPA {ipa}: mapped already"),
            Self::NotMapped(ipa) => write!(f, "IPA {ipa}: not mapped"),
            Self::SplitsLeaf { ipa, level } => {
                write!(f, "IPA {ipa}: the range ends inside a leaf of {:#x} bytes", level.size())
            }
            Self::OutOfTables { needed, available } => {
                write!(f, "{needed} frames are needed for translation tables, {available} could be had")
            }
            Self::NotDivisible(ipa) => write!(f, "IPA {ipa}: a leaf of 4 KiB cannot be demoted"),
            Self::NotOneBlock(ipa) => write!(f, "IPA {ipa}: not contiguous with, or not like, the others"),
            Self::InMotion(ipa) => write!(f, "IPA {ipa}: the leaf is being moved"),
            Self::NotBroken(ipa) => write!(f, "IPA {ipa}: the leaf was not broken and invalidated before"),
            Self::BreakBeforeMake { ipa, old, new } => {
                write!(f, "IPA {ipa}: {old:?} may not become {new:?} without break-before-make")
            }
        }
    }
}

impl core::error::Error for TableError {}
