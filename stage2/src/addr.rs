//! Addresses and frames as types that do not mix.
//!
//! A *frame* is 4 KiB of physical memory, a *pageblock* 2 MiB. `Pa` is a physical address. `Ipa` is an intermediate
//! physical address, which a guest sees as a physical one. Neither converts into the other.

use core::fmt;

/// log2 of the size of a frame in bytes.
pub const FRAME_SHIFT: u32 = 12;
/// Size of a frame in bytes (4 KiB).
pub const FRAME_SIZE: u64 = 1 << FRAME_SHIFT;
/// log2 of the frames in a pageblock.
pub const PAGEBLOCK_ORDER: u8 = 9;
/// Frames in a pageblock (512).
pub const PAGEBLOCK_FRAMES: u64 = 1 << PAGEBLOCK_ORDER;
/// Size of a pageblock in bytes (2 MiB): the unit of migratetype, isolation and DMB alignment.
pub const PAGEBLOCK_SIZE: u64 = FRAME_SIZE << PAGEBLOCK_ORDER;
/// log2 of the frames in the largest block, 1 GiB.
pub const MAX_ORDER: u8 = 18;
/// The first address beyond 48-bit output addresses (Arm ARM, ID_AA64MMFR0_EL1.PARange).
pub const ADDRESS_LIMIT: u64 = 1 << 48;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Creates the address `value`, or returns `None` at or above [`ADDRESS_LIMIT`].
            pub const fn try_new(value: u64) -> Option<Self> {
                if value < ADDRESS_LIMIT { Some(Self(value)) } else { None }
            }

            /// Creates the address `value`, truncated to 48 bits.
            pub const fn new_truncate(value: u64) -> Self {
                Self(value & (ADDRESS_LIMIT - 1))
            }

            /// Returns the address as a number of bytes.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Returns whether the address is a multiple of `size` bytes, a power of two.
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// Returns the address `bytes` after this one, or `None` at or above [`ADDRESS_LIMIT`].
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Self::try_new(value),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A physical address.
    Pa
);
address!(
    /// An intermediate physical address, which a guest sees as a physical one.
    Ipa
);

/// The number of a frame: its physical address divided by [`FRAME_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Frame(u64);

impl Frame {
    /// Creates the frame with number `number`, or returns `None` if its address is at or above [`ADDRESS_LIMIT`].
    pub const fn try_new(number: u64) -> Option<Self> {
        if number < ADDRESS_LIMIT >> FRAME_SHIFT { Some(Self(number)) } else { None }
    }

    /// Returns the frame that contains `pa`.
    pub const fn containing(pa: Pa) -> Self {
        Self(pa.get() >> FRAME_SHIFT)
    }

    /// Returns the frame's number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Returns the address of the frame's first byte.
    pub const fn pa(self) -> Pa {
        Pa::new_truncate(self.0 << FRAME_SHIFT)
    }

    /// Returns the frame `frames` after this one, or `None` past [`ADDRESS_LIMIT`].
    pub const fn checked_add(self, frames: u64) -> Option<Self> {
        match self.0.checked_add(frames) {
            Some(number) => Self::try_new(number),
            None => None,
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stop_at_48_bits() {
        assert_eq!(Pa::try_new(ADDRESS_LIMIT), None);
        assert_eq!(Ipa::try_new(ADDRESS_LIMIT - 1).unwrap().checked_add(1), None);
        assert_eq!(Frame::try_new(ADDRESS_LIMIT >> FRAME_SHIFT), None);
    }

    #[test]
    fn a_frame_knows_its_address() {
        let pa = Pa::try_new(0x4020_1234).unwrap();
        assert_eq!(Frame::containing(pa).number(), 0x40201);
        assert_eq!(Frame::containing(pa).pa().get(), 0x4020_1000);
        assert!(Frame::containing(pa).pa().is_aligned(FRAME_SIZE));
    }
}
