//! The line that an operator types: keys, editing, history, drawing.
//!
//! Why no crate: embedded-cli 0.2 completes the first word only, from a function without state, so no
//! guest, controller or pool; it knows neither Home, End and Delete nor Ctrl-U, Ctrl-W and Ctrl-C, and
//! hides the line, which has to be drawn again when a message came between. noline completes nothing and
//! asks the terminal where its cursor is, which hangs on a line without a terminal. Both are bound to
//! embedded-io 0.6.
//!
//! A line holds printable ASCII, which all names of guests, controllers and pools are. It is drawn in one
//! row of the screen: what does not fit scrolls sideways.

mod history;
mod key;

use core::fmt::{self, Write};

use self::history::History;
pub use self::key::Key;
use self::key::Keys;

/// Longest line.
pub const LINE_SIZE: usize = 160;
/// Columns of the line that are shown.
const WINDOW: usize = 66;
const BELL: &str = "\x07";

/// What a key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The line goes on.
    Pending,
    /// The line is done: [`Editor::line`].
    Done,
    /// The line is given up.
    Cancelled,
    /// The line up to the cursor is to be completed ([`Editor::insert`]); with `is_repeated`, the last key
    /// asked for that too.
    Complete {
        /// Whether the last key was the same.
        is_repeated: bool,
    },
}

/// A line editor.
#[derive(Debug)]
pub struct Editor {
    keys: Keys,
    text: [u8; LINE_SIZE],
    len: usize,
    cursor: usize,
    /// First column of the line that is shown.
    start: usize,
    history: History,
    was_tab: bool,
    prompt: &'static str,
}

impl Editor {
    /// An editor with an empty line and no history.
    pub const fn new(prompt: &'static str) -> Self {
        Self {
            keys: Keys::new(),
            text: [0; LINE_SIZE],
            len: 0,
            cursor: 0,
            start: 0,
            history: History::new(),
            was_tab: false,
            prompt,
        }
    }

    /// The line.
    pub fn line(&self) -> &str {
        text(self.text.get(..self.len))
    }

    /// The line up to the cursor.
    pub fn line_to_cursor(&self) -> &str {
        text(self.text.get(..self.cursor))
    }

    /// Begins a line: keeps the last one in the history, clears it, and shows the prompt.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn begin(&mut self, out: &mut dyn Write) -> fmt::Result {
        self.history.add(text(self.text.get(..self.len)));
        (self.len, self.cursor, self.start) = (0, 0, 0);
        self.draw(out)
    }

    /// Takes a byte that was typed.
    ///
    /// # Errors
    /// Those of `out`, which shows the line.
    pub fn take(&mut self, byte: u8, out: &mut dyn Write) -> Result<Outcome, fmt::Error> {
        let Some(key) = self.keys.take(byte) else { return Ok(Outcome::Pending) };
        let is_repeated = core::mem::replace(&mut self.was_tab, key == Key::Tab);
        match key {
            Key::Character(character) => {
                self.type_character(character, out)?;
                return Ok(Outcome::Pending);
            }
            Key::Enter => {
                self.cursor = self.len;
                self.draw(out)?;
                out.write_str("\n")?;
                return Ok(Outcome::Done);
            }
            Key::Cancel => {
                out.write_str("^C\n")?;
                self.len = 0;
                return Ok(Outcome::Cancelled);
            }
            Key::Tab => return Ok(Outcome::Complete { is_repeated }),
            Key::Left => self.cursor = self.cursor.saturating_sub(1),
            Key::Right => self.cursor = (self.cursor + 1).min(self.len),
            Key::WordLeft => self.cursor = self.word_start(),
            Key::WordRight => self.cursor = self.word_end(),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.len,
            Key::Backspace => self.remove(self.cursor.saturating_sub(1), self.cursor),
            Key::Delete => self.remove(self.cursor, (self.cursor + 1).min(self.len)),
            Key::EraseWord => self.remove(self.word_start(), self.cursor),
            Key::EraseToStart => self.remove(0, self.cursor),
            Key::EraseToEnd => self.remove(self.cursor, self.len),
            Key::Up => self.recall(History::older),
            Key::Down => self.recall(History::newer),
            Key::Redraw => {}
        }
        self.draw(out)?;
        Ok(Outcome::Pending)
    }

    /// Puts `text` into the line at the cursor, as if typed.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn insert(&mut self, text: &str, out: &mut dyn Write) -> fmt::Result {
        for byte in text.bytes().filter(|byte| (b' '..0x7f).contains(byte)) {
            self.type_character(byte, out)?;
        }
        Ok(())
    }

    /// Shows prompt and line on a fresh row, and puts the cursor where it belongs.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn draw(&mut self, out: &mut dyn Write) -> fmt::Result {
        if self.cursor < self.start {
            self.start = self.cursor.saturating_sub(WINDOW / 2);
        }
        if self.cursor > self.start + WINDOW {
            self.start = self.cursor - WINDOW / 2;
        }
        let end = self.len.min(self.start + WINDOW);
        let shown = text(self.text.get(self.start..end));
        write!(out, "\r\x1b[K{}{shown}", self.prompt)?;
        match end - self.cursor {
            0 => Ok(()),
            left => write!(out, "\x1b[{left}D"),
        }
    }

    fn type_character(&mut self, character: u8, out: &mut dyn Write) -> fmt::Result {
        if self.len == LINE_SIZE {
            return out.write_str(BELL);
        }
        self.text.copy_within(self.cursor..self.len, self.cursor + 1);
        if let Some(place) = self.text.get_mut(self.cursor) {
            *place = character;
        }
        self.len += 1;
        self.cursor += 1;
        if self.cursor == self.len && self.len <= self.start + WINDOW {
            return out.write_char(character.into());
        }
        self.draw(out)
    }

    /// Takes out what lies from `from` to `to`, and leaves the cursor there.
    fn remove(&mut self, from: usize, to: usize) {
        self.text.copy_within(to..self.len, from);
        self.len -= to - from;
        self.cursor = from;
    }

    fn recall(&mut self, step: fn(&mut History) -> Option<&str>) {
        let Some(line) = step(&mut self.history) else { return };
        let line = line.as_bytes();
        if let Some(place) = self.text.get_mut(..line.len()) {
            place.copy_from_slice(line);
            (self.len, self.cursor, self.start) = (line.len(), line.len(), 0);
        }
    }

    /// Where the word before the cursor starts.
    fn word_start(&self) -> usize {
        let before = self.line_to_cursor().trim_end_matches(' ');
        before.rfind(' ').map_or(0, |at| at + 1)
    }

    /// Where the word behind the cursor ends.
    fn word_end(&self) -> usize {
        let behind = text(self.text.get(self.cursor..self.len));
        let word = behind.trim_start_matches(' ');
        let skipped = behind.len() - word.len();
        self.cursor + skipped + word.find(' ').unwrap_or(word.len())
    }
}

/// Bytes that are ASCII as text.
fn text(bytes: Option<&[u8]>) -> &str {
    bytes.and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
}

#[cfg(test)]
mod tests;
