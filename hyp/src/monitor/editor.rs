//! The line editor: keys, editing, history, drawing.
//!
//! No crate fits. embedded-cli 0.2 completes only the first word, from a function without state, so not guests, controllers
//! or pools. It lacks Home, End, Delete, Ctrl-U, Ctrl-W and Ctrl-C, and hides the line, which must be redrawn after a
//! message. noline has no completion, and asks the terminal for the cursor's position, which hangs without a terminal.
//! Both need embedded-io 0.6.
//!
//! A line holds printable ASCII, as all names of guests, controllers and pools do. It is drawn in one row of the screen and
//! scrolls sideways.

mod history;
mod key;

use core::fmt::{self, Write};

use self::history::History;
pub use self::key::Key;
use self::key::Keys;

/// Longest line, in bytes.
pub const LINE_SIZE: usize = 160;
/// Columns of the line that are shown.
const WINDOW: usize = 66;
const BELL: &str = "\x07";

/// The effect of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The line is not complete.
    Pending,
    /// The line is complete: [`Editor::line`].
    Done,
    /// The operator gave the line up.
    Cancelled,
    /// The operator asks for completion of the line up to the cursor ([`Editor::insert`]).
    Complete {
        /// True if the key before asked for it too.
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
    /// The first character of the line that is shown.
    start: usize,
    history: History,
    was_tab: bool,
    prompt: &'static str,
}

impl Editor {
    /// Creates an editor with an empty line and no history.
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

    /// Returns the line.
    pub fn line(&self) -> &str {
        text(self.text.get(..self.len))
    }

    /// Returns the line up to the cursor.
    pub fn line_to_cursor(&self) -> &str {
        text(self.text.get(..self.cursor))
    }

    /// Begins a line: adds the last one to the history and shows the prompt.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn begin(&mut self, out: &mut dyn Write) -> fmt::Result {
        self.history.add(text(self.text.get(..self.len)));
        (self.len, self.cursor, self.start) = (0, 0, 0);
        self.draw(out)
    }

    /// Processes a byte that was typed.
    ///
    /// # Errors
    /// Those of `out`.
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

    /// Inserts `text` at the cursor, as if typed.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn insert(&mut self, text: &str, out: &mut dyn Write) -> fmt::Result {
        for byte in text.bytes().filter(|byte| (b' '..0x7f).contains(byte)) {
            self.type_character(byte, out)?;
        }
        Ok(())
    }

    /// Draws the prompt and the line, and places the cursor.
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

    /// Removes the characters from `from` to `to`, and places the cursor there.
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

    /// Returns the start of the word before the cursor.
    fn word_start(&self) -> usize {
        let before = self.line_to_cursor().trim_end_matches(' ');
        before.rfind(' ').map_or(0, |at| at + 1)
    }

    /// Returns the end of the word behind the cursor.
    fn word_end(&self) -> usize {
        let behind = text(self.text.get(self.cursor..self.len));
        let word = behind.trim_start_matches(' ');
        let skipped = behind.len() - word.len();
        self.cursor + skipped + word.find(' ').unwrap_or(word.len())
    }
}

/// Converts ASCII bytes to text.
fn text(bytes: Option<&[u8]>) -> &str {
    bytes.and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
}

#[cfg(test)]
mod tests;
