//! Size of a guest's address space, and the VTCR_EL2 fields that describe it.

use super::descriptor::{ENTRIES_SHIFT, Level};
use super::error::TableError;
use crate::addr::{FRAME_SHIFT, Ipa, Pa};

/// Binary logarithm of the maximum number of concatenated tables at the start level: 16 (Arm ARM,
/// "Concatenated translation tables").
const CONCATENATION_SHIFT: u32 = 4;

/// Size of a guest's address space and level at which its lookup starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    ipa_bits: u8,
    pa_bits: u8,
    start: Level,
}

impl Geometry {
    /// Returns an address space of `ipa_bits` bits on a machine whose physical addresses have `pa_bits` bits
    /// (ID_AA64MMFR0_EL1.PARange: 32, 36, 40, 42, 44, 48 or 52, of which 48 are used).
    ///
    /// The lookup starts at the lowest level that up to 16 concatenated tables allow: level 2 for 32 to 34 bits,
    /// level 1 for 35 to 43 bits, level 0 for 44 to 48 bits.
    ///
    /// # Errors
    /// [`TableError::AddressSize`] if `ipa_bits` is below 32, above 48 or above `pa_bits`, or if `pa_bits` is not a
    /// size that the architecture defines (Arm ARM, ID_AA64MMFR0_EL1.PARange).
    pub const fn new(ipa_bits: u8, pa_bits: u8) -> Result<Self, TableError> {
        let known = matches!(pa_bits, 32 | 36 | 40 | 42 | 44 | 48 | 52);
        if !known || ipa_bits < 32 || ipa_bits > 48 || ipa_bits > pa_bits {
            return Err(TableError::AddressSize { ipa_bits, pa_bits });
        }
        // The start level resolves up to 13 bits, four of them by concatenation; each level below it 9 bits.
        let resolved = ipa_bits as u32 - FRAME_SHIFT - CONCATENATION_SHIFT;
        let start = match resolved.div_ceil(ENTRIES_SHIFT) {
            0..=2 => Level::L2,
            3 => Level::L1,
            _ => Level::L0,
        };
        let pa_bits = if pa_bits > 48 { 48 } else { pa_bits };
        Ok(Self { ipa_bits, pa_bits, start })
    }

    /// Returns the bits of an IPA.
    pub const fn ipa_bits(self) -> u8 {
        self.ipa_bits
    }

    /// Returns the bits of a physical address that a leaf can lead to.
    pub(super) const fn pa_bits(self) -> u8 {
        self.pa_bits
    }

    /// Returns the level at which the lookup starts.
    pub(super) const fn start(self) -> Level {
        self.start
    }

    /// Returns the binary logarithm of the number of concatenated tables at the start level.
    pub const fn root_order(self) -> u8 {
        let entries = self.ipa_bits as u32 - self.start.shift();
        if entries > ENTRIES_SHIFT { (entries - ENTRIES_SHIFT) as u8 } else { 0 }
    }

    /// Returns the number of concatenated tables at the start level.
    pub(super) const fn root_tables(self) -> u64 {
        1 << self.root_order()
    }

    /// Returns the size of the address space in bytes.
    pub const fn ipa_limit(self) -> u64 {
        1 << self.ipa_bits
    }

    /// Returns VTCR_EL2.T0SZ, bits 5:0.
    const fn t0sz(self) -> u64 {
        64 - self.ipa_bits as u64
    }

    /// Returns VTCR_EL2.SL0, bits 7:6 (4 KiB granule: 0 starts at level 2, 1 at level 1, 2 at level 0).
    const fn sl0(self) -> u64 {
        2 - self.start as u64
    }

    /// Returns VTCR_EL2.PS, bits 18:16, encoded as ID_AA64MMFR0_EL1.PARange.
    const fn ps(self) -> u64 {
        match self.pa_bits {
            32 => 0,
            36 => 1,
            40 => 2,
            42 => 3,
            44 => 4,
            _ => 5,
        }
    }

    /// Returns VTCR_EL2 with T0SZ, SL0, PS, Write-Back Write-Allocate Inner Shareable walks, the 4 KiB granule
    /// (TG0 = 0) and bit 31, which is RES1. The caller adds VS and HA; HD stays 0.
    pub const fn vtcr(self) -> u64 {
        const IRGN0_WRITE_BACK: u64 = 0b01 << 8;
        const ORGN0_WRITE_BACK: u64 = 0b01 << 10;
        const SH0_INNER: u64 = 0b11 << 12;
        const RES1: u64 = 1 << 31;
        self.t0sz()
            | self.sl0() << 6
            | IRGN0_WRITE_BACK
            | ORGN0_WRITE_BACK
            | SH0_INNER
            | self.ps() << 16
            | RES1
    }

    /// Checks that `[ipa, ipa + size)` is a non-empty range of whole frames inside the address space.
    pub(super) const fn check_ipa(self, ipa: Ipa, size: u64) -> Result<(), TableError> {
        if size == 0 || (size | ipa.get()) & ((1 << FRAME_SHIFT) - 1) != 0 {
            return Err(TableError::Misaligned { ipa, size });
        }
        if size > self.ipa_limit() || ipa.get() > self.ipa_limit() - size {
            return Err(TableError::IpaOutside { ipa, size, ipa_bits: self.ipa_bits });
        }
        Ok(())
    }

    /// Checks that `[pa, pa + size)` starts at a frame and that leaves can lead to all of it.
    pub(super) const fn check_pa(self, pa: Pa, size: u64) -> Result<(), TableError> {
        let limit = 1 << self.pa_bits;
        if size > limit || pa.get() > limit - size || pa.get() & ((1 << FRAME_SHIFT) - 1) != 0 {
            return Err(TableError::PaOutside { pa, size, pa_bits: self.pa_bits });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_bits_start_at_level_1_with_two_tables() {
        let geometry = Geometry::new(40, 44).unwrap();
        assert_eq!((geometry.start(), geometry.root_tables()), (Level::L1, 2));
        assert_eq!((geometry.t0sz(), geometry.sl0(), geometry.ps()), (24, 1, 4));
        assert_eq!(geometry.vtcr(), 0x8004_3558);
    }

    #[test]
    fn every_size_obeys_the_limits_of_its_start_level() {
        for ipa_bits in 32..=48u8 {
            let geometry = Geometry::new(ipa_bits, 48).unwrap();
            // The pseudocode AArch64.S2InconsistentSL: least and greatest input size by start level.
            let levels = 3 - geometry.start() as u32;
            let least = levels * 9 + 12 + 1;
            assert!((least..=least + 8 + 4).contains(&u32::from(ipa_bits)), "{ipa_bits}");
            assert!(geometry.root_tables() <= 16);
        }
        assert_eq!(Geometry::new(32, 32).unwrap().root_tables(), 4);
        assert_eq!(Geometry::new(34, 36).unwrap().root_tables(), 16);
        assert_eq!(Geometry::new(35, 36).unwrap().root_tables(), 1);
        assert_eq!(Geometry::new(43, 44).unwrap().root_tables(), 16);
        assert_eq!(Geometry::new(44, 44).unwrap().start(), Level::L0);
    }

    #[test]
    fn unsupported_sizes_are_refused() {
        for (ipa_bits, pa_bits) in [(31, 40), (49, 52), (40, 36), (40, 41)] {
            assert_eq!(Geometry::new(ipa_bits, pa_bits), Err(TableError::AddressSize { ipa_bits, pa_bits }));
        }
    }

    #[test]
    fn ranges_are_checked_to_the_last_frame() {
        let geometry = Geometry::new(32, 36).unwrap();
        let ipa = Ipa::try_new(0xffff_f000).unwrap();
        assert_eq!(geometry.check_ipa(ipa, 0x1000), Ok(()));
        assert_eq!(
            geometry.check_ipa(ipa, 0x2000),
            Err(TableError::IpaOutside { ipa, size: 0x2000, ipa_bits: 32 })
        );
        assert_eq!(geometry.check_ipa(ipa, 0), Err(TableError::Misaligned { ipa, size: 0 }));
        assert!(geometry.check_ipa(ipa, !0xfff).is_err());
    }
}
