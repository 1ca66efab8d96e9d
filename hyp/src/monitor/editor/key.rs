//! Decoding of keys: control characters and the escape sequences of terminals (ECMA-48, key codes of xterm and VT220).

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable ASCII character.
    Character(u8),
    /// Enter.
    Enter,
    /// Ctrl-C.
    Cancel,
    /// Tab.
    Tab,
    /// Left, Ctrl-B.
    Left,
    /// Right, Ctrl-F.
    Right,
    /// Up, Ctrl-P.
    Up,
    /// Down, Ctrl-N.
    Down,
    /// Ctrl-Left, Alt-B.
    WordLeft,
    /// Ctrl-Right, Alt-F.
    WordRight,
    /// Home, Ctrl-A.
    Home,
    /// End, Ctrl-E.
    End,
    /// Backspace.
    Backspace,
    /// Delete, Ctrl-D.
    Delete,
    /// Ctrl-W.
    EraseWord,
    /// Ctrl-U.
    EraseToStart,
    /// Ctrl-K.
    EraseToEnd,
    /// Ctrl-L. The multiplexer sends it too if the line must be redrawn.
    Redraw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between keys; `true` after a carriage return, whose line feed is skipped.
    Ground(bool),
    Escape,
    /// In a control sequence, with its first parameter; `true` if a second one follows.
    Sequence(u8, bool),
    /// After ESC O.
    Single,
}

/// A decoder of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys(State);

impl Keys {
    pub(super) const fn new() -> Self {
        Self(State::Ground(false))
    }

    /// Processes a byte and returns the key that it completes.
    pub(super) fn take(&mut self, byte: u8) -> Option<Key> {
        let state = core::mem::replace(&mut self.0, State::Ground(false));
        match state {
            State::Ground(after_return) => self.take_plain(byte, after_return),
            State::Escape => self.take_escaped(byte),
            State::Single => cursor_key(byte, false),
            State::Sequence(first, is_second) => self.take_sequence(byte, first, is_second),
        }
    }

    fn take_plain(&mut self, byte: u8, after_return: bool) -> Option<Key> {
        Some(match byte {
            b' '..=b'~' => Key::Character(byte),
            b'\r' => {
                self.0 = State::Ground(true);
                Key::Enter
            }
            b'\n' if after_return => return None,
            b'\n' => Key::Enter,
            0x1b => {
                self.0 = State::Escape;
                return None;
            }
            0x01 => Key::Home,
            0x02 => Key::Left,
            0x03 => Key::Cancel,
            0x04 => Key::Delete,
            0x05 => Key::End,
            0x06 => Key::Right,
            0x08 | 0x7f => Key::Backspace,
            b'\t' => Key::Tab,
            0x0b => Key::EraseToEnd,
            0x0c => Key::Redraw,
            0x0e => Key::Down,
            0x10 => Key::Up,
            0x15 => Key::EraseToStart,
            0x17 => Key::EraseWord,
            _ => return None,
        })
    }

    fn take_escaped(&mut self, byte: u8) -> Option<Key> {
        match byte {
            b'[' => {
                self.0 = State::Sequence(0, false);
                None
            }
            b'O' => {
                self.0 = State::Single;
                None
            }
            b'b' | b'B' => Some(Key::WordLeft),
            b'f' | b'F' => Some(Key::WordRight),
            0x7f | 0x08 => Some(Key::EraseWord),
            // A lone ESC before another key is dropped.
            _ => self.take_plain(byte, false),
        }
    }

    fn take_sequence(&mut self, byte: u8, first: u8, is_second: bool) -> Option<Key> {
        match byte {
            b'0'..=b'9' if is_second => self.0 = State::Sequence(first, true),
            b'0'..=b'9' => {
                let parameter = first.wrapping_mul(10).wrapping_add(byte - b'0');
                self.0 = State::Sequence(parameter, false);
            }
            b';' => self.0 = State::Sequence(first, true),
            b'~' => {
                return match first {
                    1 | 7 => Some(Key::Home),
                    3 => Some(Key::Delete),
                    4 | 8 => Some(Key::End),
                    _ => None,
                };
            }
            // A second parameter is the modifier: Ctrl, Alt or Shift.
            0x40..=0x7e => return cursor_key(byte, is_second),
            0x20..=0x3f => self.0 = State::Sequence(first, is_second),
            _ => return self.take_plain(byte, false),
        }
        None
    }
}

fn cursor_key(byte: u8, is_modified: bool) -> Option<Key> {
    Some(match (byte, is_modified) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'C', false) => Key::Right,
        (b'C', true) => Key::WordRight,
        (b'D', false) => Key::Left,
        (b'D', true) => Key::WordLeft,
        (b'H', _) => Key::Home,
        (b'F', _) => Key::End,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::new();
        bytes.iter().filter_map(|&byte| keys.take(byte)).collect()
    }

    #[test]
    fn keys_of_terminals_are_decoded() {
        assert_eq!(
            keys(b"a\r\nb\n\r"),
            [Key::Character(b'a'), Key::Enter, Key::Character(b'b'), Key::Enter, Key::Enter]
        );
        assert_eq!(keys(b"\x1b[A\x1bOB\x1b[C\x1b[D"), [Key::Up, Key::Down, Key::Right, Key::Left]);
        assert_eq!(
            keys(b"\x1b[1~\x1b[4~\x1b[3~\x1b[H\x1bOF"),
            [Key::Home, Key::End, Key::Delete, Key::Home, Key::End]
        );
        assert_eq!(keys(b"\x1b[1;5C\x1b[1;5D\x1bb"), [Key::WordRight, Key::WordLeft, Key::WordLeft]);
        assert_eq!(keys(b"\x1b[15~\x1b[200~\x1b[99999z\x00\xff\x1b\x1bx"), [Key::Character(b'x')]);
        assert_eq!(keys(b"\x1b[1\x03"), [Key::Cancel]);
    }
}
