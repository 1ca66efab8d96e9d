//! Sizes and addresses in the notation of the machines' files.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes, or an address: `4096`, `512M`, `1G`, `0x4000_0000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Bytes(pub(crate) u64);

/// One MiB.
pub(crate) const MIB: u64 = 1 << 20;
/// One GiB.
pub(crate) const GIB: u64 = 1 << 30;

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a size: expected a number (decimal or 0x…) and, optionally, K, M, G or T"
            )
        };
        let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
        let (digits, shift) =
            unit.map_or((text, 0), |&(letter, shift)| (text.trim_end_matches(letter), shift));
        let digits = digits.replace('_', "");
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        let number = number.map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("`{text}` does not fit into 64 bits"))
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match whole {
            Some((letter, shift)) => write!(f, "{} {letter}iB", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in
            [("0", 0), ("512M", 512 * MIB), ("1G", GIB), ("0x4000_0000", GIB), ("0x10K", 16384)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        for text in ["", "G", "1g", "-1", "1.5G", "0x", "99999999999T"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        assert_eq!(Bytes(3 * GIB).to_string(), "3 GiB");
        assert_eq!(Bytes(1536 * MIB).to_string(), "1536 MiB");
        assert_eq!(Bytes(5).to_string(), "5 bytes");
        assert_eq!(Bytes(0).to_string(), "0 bytes");
    }
}
