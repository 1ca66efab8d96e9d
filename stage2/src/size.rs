//! Sizes in human-readable form.

use core::fmt;

/// The names of the binary units, by their power of 1024.
const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// A size in bytes, displayed in the largest binary unit that it reaches, with one decimal unless it is exact: `512
/// MiB`, `1.5 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (1..UNITS.len()).rev().find(|&power| self.0 >> (10 * power) != 0).unwrap_or(0);
        let unit = UNITS.get(power).copied().unwrap_or("B");
        let shift = 10 * power;
        let whole = self.0 >> shift;
        let rest = self.0 - (whole << shift);
        if rest == 0 {
            return write!(f, "{whole} {unit}");
        }
        // Rounded to the nearest tenth. `rest` is below 2^40, so nothing overflows.
        let tenths = whole * 10 + ((rest * 10 + (1 << (shift - 1))) >> shift);
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// A size in command line syntax: `1G`, `512M`, or in bytes if it is not a whole number of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compact(pub u64);

impl fmt::Display for Compact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
            if self.0 != 0 && self.0 & ((1 << shift) - 1) == 0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_human_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (0x2000_0000, "512 MiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 30) + 1, "1.0 GiB"),
            (1_000_000, "976.6 KiB"),
            ((1 << 30) - 1, "1024.0 MiB"),
            (5 << 40, "5 TiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn whole_sizes_are_short() {
        for (bytes, text) in [(0, "0"), (1 << 30, "1G"), (3 << 19, "1536K"), (4097, "4097"), (1 << 45, "32T")]
        {
            assert_eq!(Compact(bytes).to_string(), text);
        }
    }
}
