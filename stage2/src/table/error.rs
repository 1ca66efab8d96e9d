//! Errors of operations on translation tables.

use super::descriptor::{Descriptor, Level};
use crate::addr::{Ipa, Pa};
use core::fmt;

/// Reason for which an operation was refused. The tables are unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// Unsupported address size: `ipa_bits` must be 32 to 48 and at most `pa_bits`.
    AddressSize {
        /// Requested bits of an IPA.
        ipa_bits: u8,
        /// Bits of the machine's physical addresses.
        pa_bits: u8,
    },
    /// The range is empty or does not consist of whole frames.
    Misaligned {
        /// Start of the range.
        ipa: Ipa,
        /// Size in bytes.
        size: u64,
    },
    /// The range is not inside the guest's address space.
    IpaOutside {
        /// Start of the range.
        ipa: Ipa,
        /// Size in bytes.
        size: u64,
        /// Bits of an IPA.
        ipa_bits: u8,
    },
    /// The frames lie beyond the machine's physical addresses, or are misaligned for the leaf.
    PaOutside {
        /// Start of the frames.
        pa: Pa,
        /// Size in bytes.
        size: u64,
        /// Bits of a physical address.
        pa_bits: u8,
    },
    /// The address is already mapped.
    AlreadyMapped(Ipa),
    /// The address is not mapped.
    NotMapped(Ipa),
    /// The range starts or ends inside a leaf, which has to be demoted first.
    SplitsLeaf {
        /// Start of the leaf.
        ipa: Ipa,
        /// Level of the leaf.
        level: Level,
    },
    /// There are not enough free frames for tables.
    OutOfTables {
        /// Number of frames that the operation needs.
        needed: u64,
        /// Number of frames that could be allocated.
        available: u64,
    },
    /// The leaf is a page of 4 KiB, which cannot be demoted.
    NotDivisible(Ipa),
    /// The 512 leaves do not form one block. The address is that of the first leaf that does not fit.
    NotOneBlock(Ipa),
    /// The leaf is broken, protected or marked: migration is moving it.
    InMotion(Ipa),
    /// The leaf is not broken, or its invalidation is not complete.
    NotBroken(Ipa),
    /// This change of a valid entry needs break-before-make (Arm ARM, "Using break-before-make when updating
    /// translation table entries").
    BreakBeforeMake {
        /// First address that the entry translates.
        ipa: Ipa,
        /// Present contents.
        old: Descriptor,
        /// Requested contents.
        new: Descriptor,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AddressSize { ipa_bits, pa_bits } => write!(
                f,
                "guest address space of {ipa_bits} bits: must be 32 to 48, and at most the {pa_bits} of a PA"
            ),
            Self::Misaligned { ipa, size } => {
                write!(f, "IPA {ipa} size {size:#x}: not a multiple of 4 KiB, or empty")
            }
            Self::IpaOutside { ipa, size, ipa_bits } => {
                write!(f, "IPA {ipa} size {size:#x}: outside the guest's {ipa_bits}-bit address space")
            }
            Self::PaOutside { pa, size, pa_bits } => {
                write!(f, "PA {pa} size {size:#x}: misaligned or outside {pa_bits}-bit physical addresses")
            }
            Self::AlreadyMapped(ipa) => write!(f, "IPA {ipa}: already mapped"),
            Self::NotMapped(ipa) => write!(f, "IPA {ipa}: not mapped"),
            Self::SplitsLeaf { ipa, level } => {
                write!(f, "IPA {ipa}: the range splits a leaf of {:#x} bytes", level.size())
            }
            Self::OutOfTables { needed, available } => {
                write!(
                    f,
                    "out of memory for translation tables: {needed} frames needed, {available} available"
                )
            }
            Self::NotDivisible(ipa) => write!(f, "IPA {ipa}: a leaf of 4 KiB cannot be demoted"),
            Self::NotOneBlock(ipa) => {
                write!(f, "IPA {ipa}: cannot be merged: not contiguous, or other attributes")
            }
            Self::InMotion(ipa) => write!(f, "IPA {ipa}: being migrated"),
            Self::NotBroken(ipa) => write!(f, "IPA {ipa}: not broken and invalidated"),
            Self::BreakBeforeMake { ipa, old, new } => {
                write!(f, "IPA {ipa}: {old:?} to {new:?} needs break-before-make")
            }
        }
    }
}

impl core::error::Error for TableError {}
