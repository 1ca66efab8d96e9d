//! The output of the serial line as a terminal shows it.

/// Returns the lines that a terminal shows after `bytes`. It follows carriage returns, backspaces and erasures, and drops
/// colours and other control sequences.
pub fn text(bytes: &str) -> String {
    let mut screen = Screen::default();
    let mut characters = bytes.chars();
    while let Some(character) = characters.next() {
        match character {
            '\r' => screen.column = 0,
            '\n' => screen.end_line(),
            '\x08' => screen.column = screen.column.saturating_sub(1),
            '\x1b' => screen.control(&mut characters),
            character if character.is_control() && character != '\t' => {}
            character => screen.put(character),
        }
    }
    screen.finish()
}

#[derive(Default)]
struct Screen {
    done: String,
    line: Vec<char>,
    column: usize,
}

impl Screen {
    fn put(&mut self, character: char) {
        while self.line.len() < self.column {
            self.line.push(' ');
        }
        if self.column == self.line.len() {
            self.line.push(character);
        } else {
            self.line[self.column] = character;
        }
        self.column += 1;
    }

    fn end_line(&mut self) {
        self.done.extend(self.line.drain(..));
        while self.done.ends_with(' ') {
            self.done.pop();
        }
        self.done.push('\n');
        self.column = 0;
    }

    /// Handles a control sequence: `ESC [`, parameters, a letter. Supports those that a line editor needs.
    fn control(&mut self, characters: &mut std::str::Chars<'_>) {
        let mut rest = characters.clone();
        if rest.next() != Some('[') {
            return;
        }
        let parameters: String =
            rest.clone().take_while(|c| c.is_ascii_digit() || ";?".contains(*c)).collect();
        rest = rest.as_str()[parameters.len()..].chars();
        let last = rest.next();
        *characters = rest;
        let count = parameters.parse().unwrap_or(1_usize);
        match last {
            Some('K') if parameters.is_empty() || parameters == "0" => self.line.truncate(self.column),
            Some('C') => self.column += count.min(1000),
            Some('D') => self.column = self.column.saturating_sub(count),
            Some('G') => self.column = count.clamp(1, 1000) - 1,
            _ => {}
        }
    }

    fn finish(mut self) -> String {
        self.done.extend(self.line);
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn a_line_drawn_again_is_one_line() {
        assert_eq!(text("ballast> gue\r\x1b[K   message\r\nballast> gue"), "   message\nballast> gue");
    }

    #[test]
    fn cursor_queries_and_colours_vanish() {
        assert_eq!(text("a:~# \x1b[6n\x1b[1;31mls\x1b[0m\r\n"), "a:~# ls\n");
    }

    #[test]
    fn backspace_and_overwriting() {
        assert_eq!(text("abc\x08\x08X\r\n"), "aXc\n");
        assert_eq!(text("ab\x1b[2C!"), "ab  !");
    }

    #[test]
    fn a_torn_sequence_does_no_harm() {
        for torn in ["\x1b", "\x1b[", "\x1b[12", "\x1b[999999999999C x"] {
            text(torn);
        }
    }
}
