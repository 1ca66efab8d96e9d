//! A filter that removes control sequences, which a terminal would execute.

/// The position within an escape sequence (ECMA-48, 5.4 and 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence (CSI), up to its final byte.
    Control,
    /// In a control string (OSC, DCS, APC, PM, SOS), up to BEL or ST.
    String,
    /// After ESC in a control string.
    StringEscape,
}

/// A filter of bytes for a terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    state: State,
    is_redraw: bool,
}

impl Filter {
    /// Creates a filter that passes text and tabs.
    pub(super) const fn new() -> Self {
        Self { state: State::Text, is_redraw: false }
    }

    /// Creates a filter that also passes backspace and carriage return, for redrawing a line.
    pub(super) const fn for_redraw() -> Self {
        Self { state: State::Text, is_redraw: true }
    }

    /// Tests if the next byte, `byte`, may go to the terminal.
    pub(super) fn passes(&mut self, byte: u8) -> bool {
        let (state, passes) = match (self.state, byte) {
            (State::StringEscape, b'\\') => (State::Text, false),
            (State::String, 0x1b) => (State::StringEscape, false),
            (_, 0x1b) => (State::Escape, false),
            (State::String | State::StringEscape, 0x07) => (State::Text, false),
            (State::String | State::StringEscape, _) => (State::String, false),
            (State::Text, 0x08 | b'\r') => (State::Text, self.is_redraw),
            (State::Text, b'\t') => (State::Text, true),
            (State::Text, _) => (State::Text, byte >= b' ' && byte != 0x7f),
            (State::Escape, b'[') => (State::Control, false),
            (State::Escape, b']' | b'P' | b'_' | b'^' | b'X') => (State::String, false),
            // Intermediate bytes (0x20 to 0x2f) come before an escape sequence's final byte.
            (State::Escape, 0x20..=0x2f) => (State::Escape, false),
            (State::Escape, _) => (State::Text, false),
            (State::Control, 0x40..=0x7e) => (State::Text, false),
            // A control character inside a sequence, such as a line end, cuts the sequence off.
            (State::Control, 0..0x20) => (State::Text, false),
            (State::Control, _) => (State::Control, false),
        };
        self.state = state;
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(mut filter: Filter, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().copied().filter(|&byte| filter.passes(byte)).collect()
    }

    #[test]
    fn sequences_are_removed() {
        for (given, expected) in [
            (&b"plain\ttext"[..], &b"plain\ttext"[..]),
            (b"\x1b[1;31mred\x1b[0m", b"red"),
            (b"a\x1b[6nb", b"ab"),
            (b"\x1b]0;title\x07x\x1b]0;title\x1b\\y", b"xy"),
            (b"\x1bP1;2|data\x1b\\z", b"z"),
            (b"\x1b(Bq\x1bMr", b"qr"),
            (b"be\x07ll\x00\x7f", b"bell"),
            (b"\x1b\x1b[Kx", b"x"),
            ("äß→".as_bytes(), "äß→".as_bytes()),
        ] {
            assert_eq!(shown(Filter::new(), given), expected);
        }
        assert_eq!(shown(Filter::new(), b"ab\x08\rc"), b"abc");
        assert_eq!(shown(Filter::for_redraw(), b"ab\x08\rc"), b"ab\x08\rc");
    }
}
