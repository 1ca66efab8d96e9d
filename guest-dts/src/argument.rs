//! Command lines: arguments separated by blanks, and numbers in Linux's notation.

/// Iterates over the arguments in `line`, each a name and, after the first `=`, a value. Double quotes protect
/// blanks; quotes around a whole value are removed.
pub fn arguments(line: &str) -> impl Iterator<Item = Argument<'_>> {
    let mut rest = line;
    core::iter::from_fn(move || {
        rest = rest.trim_start();
        let mut is_quoted = false;
        let end = rest.find(|character: char| {
            is_quoted ^= character == '"';
            character.is_ascii_whitespace() && !is_quoted
        });
        let (word, after) = rest.split_at_checked(end.unwrap_or(rest.len()))?;
        rest = after;
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(unquoted(value))),
            None => (word, None),
        };
        (!word.is_empty()).then_some(Argument { name, value })
    })
}

/// Returns the value of the last argument `name` in `line`; an argument without `=` has the value "".
#[inline(never)]
pub fn value<'t>(line: &'t str, name: &str) -> Option<&'t str> {
    arguments(line)
        .filter(|argument| argument.name == name)
        .last()
        .map(|argument| argument.value.unwrap_or(""))
}

/// Splits `line` before ` --`: the arguments after it are for init (Linux, `parse_args`).
#[inline(never)]
pub(crate) fn split_at_init(line: &str) -> (&str, &str) {
    let mut is_quoted = false;
    let mut word = 0;
    let bytes = line.as_bytes();
    for at in 0..=bytes.len() {
        let byte = bytes.get(at).copied().unwrap_or(b' ');
        is_quoted ^= byte == b'"';
        if !byte.is_ascii_whitespace() || is_quoted {
            continue;
        }
        if bytes.get(word..at) == Some(b"--") {
            return line.split_at_checked(word.saturating_sub(1)).unwrap_or((line, ""));
        }
        word = at + 1;
    }
    (line, "")
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

/// One argument of a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument<'t> {
    /// The text before the first `=`, or the whole argument.
    pub name: &'t str,
    /// The text after the first `=`.
    pub value: Option<&'t str>,
}

/// Parses a size: a number as [`number`] takes it and, optionally, a suffix K, M, G, T, P or E (powers of 1024) in
/// either case. Returns `None` for anything else and for sizes of more than 64 bits.
#[inline(never)]
pub fn size(text: &str) -> Option<u64> {
    let suffixes = ["kK", "mM", "gG", "tT", "pP", "eE"];
    // A hexadecimal number may end in an E that is a digit.
    let is_hex = text.starts_with("0x") || text.starts_with("0X");
    let power = suffixes.iter().position(|pair| text.ends_with(|last: char| pair.contains(last)));
    match power.filter(|&power| !(is_hex && power == 5)) {
        Some(power) => {
            let digits = text.get(..text.len().checked_sub(1)?)?;
            number(digits)?.checked_mul(1u64.checked_shl(10 * (power as u32 + 1))?)
        }
        None => number(text),
    }
}

/// Parses a number: decimal, hexadecimal after `0x`, or octal after `0`.
#[inline(never)]
pub fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text.get(1..)?, 8),
        None => (text, 10),
    };
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None; // from_str_radix would take a sign.
    }
    u64::from_str_radix(digits, radix).ok()
}

/// Parses `size@base`, both in the notation of [`size`].
pub fn size_at_base(text: &str) -> Option<(u64, u64)> {
    let (length, base) = text.split_once('@')?;
    Some((size(length)?, size(base)?))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn arguments_keep_quoted_blanks() {
        let line = "  memory=512M quiet init=\"/bin/sh -c ls\" a=b=c ";
        let found: Vec<_> = arguments(line).map(|a| (a.name, a.value)).collect();
        let expected =
            [("memory", Some("512M")), ("quiet", None), ("init", Some("/bin/sh -c ls")), ("a", Some("b=c"))];
        assert_eq!(found, expected);
        assert_eq!(value("cpus=1 cpus=2", "cpus"), Some("2"));
        assert_eq!(value("cpus", "cpus"), Some(""));
        assert_eq!(value("cpusx=1", "cpus"), None);
        assert_eq!(arguments("\"").count(), 1);
        assert_eq!(arguments("").count(), 0);
    }

    #[test]
    fn arguments_of_init_are_found() {
        assert_eq!(split_at_init("quiet -- single"), ("quiet", " -- single"));
        assert_eq!(split_at_init("quiet  --"), ("quiet ", " --"));
        assert_eq!(split_at_init("-- x"), ("", "-- x"));
        for line in ["", "quiet", "a=--", "--a", "x=\"a -- b\"", "---"] {
            assert_eq!(split_at_init(line), (line, ""));
        }
    }

    #[test]
    fn sizes_are_those_of_linux() {
        assert_eq!(size("512M"), Some(512 << 20));
        assert_eq!(size("0x10k"), Some(0x4000));
        assert_eq!(size("010"), Some(8));
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("0x1E"), Some(0x1e));
        assert_eq!(size("1e"), Some(1 << 60));
        assert_eq!(size("16E"), None);
        for bad in ["", "M", "+1", "-1", "1MM", "1 M", "0x", "08", "1.5G", "18446744073709551616"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert_eq!(size_at_base("1G@0x40000000"), Some((1 << 30, 0x4000_0000)));
        assert_eq!(size_at_base("1G"), None);
    }
}
