//! Sizes and times in human units.

use core::fmt;

pub use stage2::size::{Compact, Size};

/// A time in nanoseconds, shown to three or four digits: `850 ns`, `12.3 ms`, `4 min 10 s`, `2 d 3 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000_000;
        let (large, small) = match seconds {
            0 => return self.fmt_short(f),
            1..60 => return write!(f, "{}.{} s", seconds, self.0 / 100_000_000 % 10),
            60..3600 => ((seconds / 60, "min"), (seconds % 60, "s")),
            3600..86_400 => ((seconds / 3600, "h"), (seconds / 60 % 60, "min")),
            _ => ((seconds / 86_400, "d"), (seconds / 3600 % 24, "h")),
        };
        write!(f, "{} {} {} {}", large.0, large.1, small.0, small.1)
    }
}

impl Time {
    /// Formats a time of less than a second.
    fn fmt_short(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (divisor, unit) = match self.0 {
            0..1_000 => return write!(f, "{} ns", self.0),
            1_000..1_000_000 => (1_000, "us"),
            _ => (1_000_000, "ms"),
        };
        let (whole, tenth) = (self.0 / divisor, self.0 % divisor * 10 / divisor);
        if whole >= 100 { write!(f, "{whole} {unit}") } else { write!(f, "{whole}.{tenth} {unit}") }
    }
}

/// A time in nanoseconds, shown in seconds with six digits: `61.000123`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000_000, self.0 / 1000 % 1_000_000)
    }
}

/// Parses a number, decimal or, behind `0x`, hexadecimal. `_` may separate digits.
pub fn parse_number(text: &str) -> Option<u64> {
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let mut value = None;
    for character in digits.chars().filter(|&character| character != '_') {
        let digit = u64::from(character.to_digit(base)?);
        value = Some(value.unwrap_or(0u64).checked_mul(base.into())?.checked_add(digit)?);
    }
    value
}

/// Parses a size: a number, an optional `K`, `M`, `G` or `T` (powers of 1024), and an optional `iB` or `B`.
pub fn parse_size(text: &str) -> Option<u64> {
    let is_digit = |character: char| character.is_ascii_alphanumeric() || character == '_';
    if !text.chars().all(is_digit) || text.is_empty() {
        return None;
    }
    let is_hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    let is_number = |character: char| match is_hexadecimal {
        true => character.is_ascii_hexdigit() || matches!(character, '_' | 'x' | 'X'),
        false => character.is_ascii_digit() || character == '_',
    };
    let end = text.find(|character: char| !is_number(character)).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let number = parse_number(number)?;
    let power = match unit.get(..1).unwrap_or("") {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        "B" if unit == "B" => 0,
        _ => return None,
    };
    if !matches!(unit.get(1..).unwrap_or(""), "" | "B" | "iB") {
        return None;
    }
    number.checked_mul(1 << (10 * power))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_shown_in_human_units() {
        for (nanoseconds, text) in [
            (0, "0 ns"),
            (850, "850 ns"),
            (12_345, "12.3 us"),
            (123_456, "123 us"),
            (12_300_000, "12.3 ms"),
            (1_500_000_000, "1.5 s"),
            (250_000_000_000, "4 min 10 s"),
            (7_500_000_000_000, "2 h 5 min"),
            (183_600_000_000_000, "2 d 3 h"),
            (u64::MAX, "213503 d 23 h"),
        ] {
            assert_eq!(Time(nanoseconds).to_string(), text);
        }
    }

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("512M", Some(512 << 20)),
            ("512MiB", Some(512 << 20)),
            ("2g", Some(2 << 30)),
            ("64KB", Some(64 << 10)),
            ("7B", Some(7)),
            ("0x20_0000", Some(2 << 20)),
            ("0x10K", Some(16 << 10)),
            ("1T", Some(1 << 40)),
            ("", None),
            ("M", None),
            ("1.5G", None),
            ("-1", None),
            ("1X", None),
            ("1Bx", None),
            ("0x", None),
            ("18446744073709551616", None),
            ("99999999999T", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,24}", value in any::<u64>()) {
            let _ = (parse_size(&text), parse_number(&text));
            prop_assert_eq!(parse_number(&value.to_string()), Some(value));
            prop_assert_eq!(parse_number(&format!("{value:#x}")), Some(value));
            let _ = (Size(value).to_string(), Time(value).to_string());
        }
    }
}
