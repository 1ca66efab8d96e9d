//! Short names for messages and reports.

use core::fmt;

/// The maximum number of bytes of a name.
pub const NAME_BYTES: usize = 31;

/// A name of at most [`NAME_BYTES`] bytes. Longer names are truncated at a character boundary.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    length: u8,
    bytes: [u8; NAME_BYTES],
}

impl Name {
    /// Creates a name from `text`, truncated to fit. Control characters become `?`, so that a name from a device tree
    /// cannot control the console.
    pub fn new(text: &str) -> Self {
        let mut name = Self { length: 0, bytes: [0; NAME_BYTES] };
        let mut used = 0;
        for character in text.chars() {
            let character = if character.is_control() { '?' } else { character };
            let end = used + character.len_utf8();
            let Some(place) = name.bytes.get_mut(used..end) else { break };
            character.encode_utf8(place);
            used = end;
        }
        name.length = used as u8;
        name
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length as usize).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or("?")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_truncated_at_a_character_boundary() {
        let name = Name::new("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\u{e9}tail");
        assert_eq!(name.as_str(), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
        assert_eq!(Name::new("initrd").as_str(), "initrd");
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(Name::new("a\x1b[2J").as_str(), "a?[2J");
    }
}
