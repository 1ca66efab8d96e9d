//! Ranges of physical and intermediate physical addresses that end within the address space.

use core::fmt;

use stage2::addr::{ADDRESS_LIMIT, Ipa, Pa};

use crate::finding::Size;

macro_rules! range {
    ($(#[$doc:meta])* $name:ident, $address:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name {
            base: $address,
            size: u64,
        }

        impl $name {
            /// Creates a range of `size` bytes from `base`, or returns `None` if it ends after [`ADDRESS_LIMIT`].
            pub const fn new(base: $address, size: u64) -> Option<Self> {
                if size <= ADDRESS_LIMIT - base.get() { Some(Self { base, size }) } else { None }
            }

            /// Creates a range like [`Self::new`], from a plain number as `base`.
            pub const fn from_numbers(base: u64, size: u64) -> Option<Self> {
                match $address::try_new(base) {
                    Some(base) => Self::new(base, size),
                    None => None,
                }
            }

            /// Creates the range from `base` to `end`, exclusive, or returns `None` if `end` is below `base`.
            pub const fn between(base: u64, end: u64) -> Option<Self> {
                match end.checked_sub(base) {
                    Some(size) => Self::from_numbers(base, size),
                    None => None,
                }
            }

            /// Returns the first address.
            pub const fn base(&self) -> $address {
                self.base
            }

            /// Returns the size in bytes.
            pub const fn size(&self) -> u64 {
                self.size
            }

            /// Returns the first address after the range, as a number.
            pub const fn end(&self) -> u64 {
                self.base.get() + self.size
            }

            /// Tests whether the range contains no address.
            pub const fn is_empty(&self) -> bool {
                self.size == 0
            }

            /// Tests whether all of `other` lies in the range.
            pub const fn contains(&self, other: &Self) -> bool {
                self.base.get() <= other.base.get() && other.end() <= self.end()
            }

            /// Tests whether the two ranges have an address in common.
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.base.get() < other.end()
                    && other.base.get() < self.end()
                    && self.size != 0
                    && other.size != 0
            }

            /// Tests whether base and size are multiples of `size`, a power of two.
            pub const fn is_aligned(&self, size: u64) -> bool {
                (self.base.get() | self.size) & (size - 1) == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} at {}", Size(self.size), self.base)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}..{:#x}", self.base.get(), self.end())
            }
        }
    };
}

range!(
    /// A range of physical addresses.
    PaRange,
    Pa
);
range!(
    /// A range of a guest's physical addresses (IPAs).
    IpaRange,
    Ipa
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_with_the_address_space() {
        assert!(PaRange::from_numbers(ADDRESS_LIMIT - 4096, 4096).is_some());
        assert!(PaRange::from_numbers(ADDRESS_LIMIT - 4096, 4097).is_none());
        assert!(PaRange::from_numbers(u64::MAX, 1).is_none());
        assert!(PaRange::between(2, 1).is_none());
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let range = |base, size| IpaRange::from_numbers(base, size).unwrap();
        assert!(!range(0, 10).overlaps(&range(10, 10)));
        assert!(range(0, 11).overlaps(&range(10, 10)));
        assert!(!range(5, 0).overlaps(&range(0, 10)));
        assert!(range(0, 10).contains(&range(0, 10)));
        assert!(!range(0, 10).contains(&range(5, 6)));
    }
}
