//! Sizes and addresses in the syntax of Linux's command line.

/// An error of a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NumberError {
    /// An unexpected character, or an empty text.
    Syntax,
    /// More than 64 bits.
    Overflow,
}

/// Parses an integer: decimal, hexadecimal after `0x`, octal after `0`.
pub(super) fn integer(text: &str) -> Result<u64, NumberError> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    if digits.is_empty() {
        return Err(NumberError::Syntax);
    }
    let mut value = 0u64;
    for character in digits.chars() {
        let digit = character.to_digit(radix).ok_or(NumberError::Syntax)?;
        value = value
            .checked_mul(radix.into())
            .and_then(|value| value.checked_add(digit.into()))
            .ok_or(NumberError::Overflow)?;
    }
    Ok(value)
}

/// Parses an integer with an optional suffix: K, M, G, T, P or E, in either case.
pub(super) fn size(text: &str) -> Result<u64, NumberError> {
    // E is a suffix only for decimal and octal numbers: 0x1E is thirty, as in Linux's parser.
    let is_hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    let shift = match text.bytes().last().map(|byte| byte.to_ascii_uppercase()) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        Some(b'P') => 50,
        Some(b'E') if !is_hexadecimal => 60,
        _ => return integer(text),
    };
    let value = integer(text.get(..text.len() - 1).unwrap_or(""))?;
    if value.leading_zeros() < shift && value != 0 {
        return Err(NumberError::Overflow);
    }
    Ok(value << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_as_linux_parses_them() {
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("0X1f", 31),
            ("010", 8),
            ("010K", 8192),
            ("1k", 1 << 10),
            ("3M", 3 << 20),
            ("0x10g", 16 << 30),
            ("2T", 2 << 40),
            ("1P", 1 << 50),
            ("15E", 15 << 60),
            ("0x1E", 30),
            ("0E", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for text in
            ["", "K", "0x", "0xK", "08", "1MM", "1 M", "-1", "+1", "1.5G", "0x1g1", "\u{661}", "1\u{e9}"]
        {
            assert_eq!(size(text), Err(NumberError::Syntax), "{text}");
        }
        for text in [
            "18446744073709551616",
            "16E",
            "0x10000000000000000",
            "0x10000000000000P",
            "02000000000000000000000",
        ] {
            assert_eq!(size(text), Err(NumberError::Overflow), "{text}");
        }
    }
}
