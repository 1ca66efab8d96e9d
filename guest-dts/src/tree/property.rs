//! Properties and the types of their values.

use core::fmt;

use super::cursor::{Cursor, Token};

/// A property of a node. It is two words long and passed by value.
#[derive(Clone, Copy)]
pub struct Property<'t> {
    cursor: Cursor<'t>,
    /// Offset of the FDT_PROP token.
    offset: u32,
}

impl<'t> Property<'t> {
    /// Returns the property's name.
    #[inline(never)]
    pub fn name(self) -> &'t str {
        match self.cursor.token(self.offset) {
            Some(Token::Property { name, .. }) => name,
            _ => "",
        }
    }

    /// Returns the value's bytes.
    #[inline(never)]
    pub fn bytes(self) -> &'t [u8] {
        match self.cursor.token(self.offset) {
            Some(Token::Property { value, .. }) => value,
            _ => &[],
        }
    }

    /// Returns the value as one cell.
    #[inline(never)]
    pub fn u32(self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes().try_into().ok()?))
    }

    /// Returns the value as one number of 64 bits (two cells).
    #[inline(never)]
    pub fn u64(self) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes().try_into().ok()?))
    }

    /// Returns the value as a number of one or two cells.
    #[inline(never)]
    pub fn number(self) -> Option<u64> {
        self.u32().map(u64::from).or_else(|| self.u64())
    }

    /// Returns the value as cells, or `None` if its length is not a multiple of 4.
    pub fn cells(self) -> Option<impl Iterator<Item = u32> + Clone + use<'t>> {
        let bytes = self.bytes();
        bytes.len().is_multiple_of(4).then(|| {
            bytes.chunks_exact(4).map(|cell| cell.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)))
        })
    }

    /// Returns the value as one string: UTF-8 with a single NUL, at its end.
    #[inline(never)]
    pub fn str(self) -> Option<&'t str> {
        let (&last, text) = self.bytes().split_last()?;
        if last != 0 || text.contains(&0) {
            return None;
        }
        core::str::from_utf8(text).ok()
    }

    /// Returns the value as a list of strings. The list ends at the first that is not terminated or not UTF-8.
    pub fn strings(self) -> Strings<'t> {
        Strings(self.bytes())
    }

    /// Tests whether the value is a list of at least one string, each terminated and UTF-8.
    pub(crate) fn is_strings(self) -> bool {
        let mut strings = self.strings();
        strings.by_ref().count() > 0 && strings.0.is_empty()
    }
}

impl PartialEq for Property<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.bytes() == other.bytes()
    }
}

impl Eq for Property<'_> {}

impl fmt::Debug for Property<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Property({}, {} bytes)", self.name(), self.bytes().len())
    }
}

/// Iterates over the strings in a value.
#[derive(Clone)]
pub struct Strings<'t>(&'t [u8]);

impl<'t> Iterator for Strings<'t> {
    type Item = &'t str;

    #[inline(never)]
    fn next(&mut self) -> Option<&'t str> {
        let length = self.0.iter().position(|&byte| byte == 0)?;
        let (string, rest) = self.0.split_at_checked(length)?;
        let string = core::str::from_utf8(string).ok()?;
        self.0 = rest.get(1..).unwrap_or_default();
        Some(string)
    }
}

/// Iterates over the properties of a node.
#[derive(Clone)]
pub struct Properties<'t> {
    cursor: Cursor<'t>,
    at: u32,
}

impl<'t> Properties<'t> {
    pub(super) fn new(cursor: Cursor<'t>, at: u32) -> Self {
        Self { cursor, at }
    }
}

impl<'t> Iterator for Properties<'t> {
    type Item = Property<'t>;

    fn next(&mut self) -> Option<Property<'t>> {
        // Validation guarantees that all properties precede the first child.
        match self.cursor.token(self.at)? {
            Token::Property { next, .. } => {
                let property = Property { cursor: self.cursor, offset: self.at };
                self.at = next;
                Some(property)
            }
            Token::Begin { .. } | Token::End { .. } => None,
        }
    }
}
