//! The history of typed lines.

use super::LINE_SIZE;

/// The number of lines kept.
const LINES: usize = 16;

/// The last lines, without immediate repetitions.
#[derive(Debug)]
pub(super) struct History {
    lines: [[u8; LINE_SIZE]; LINES],
    lens: [u8; LINES],
    /// The number of lines added since boot.
    added: usize,
    /// The number of lines that the operator has gone back; 0 is the new line.
    back: usize,
}

const _: () = assert!(LINE_SIZE <= u8::MAX as usize);

impl History {
    pub(super) const fn new() -> Self {
        Self { lines: [[0; LINE_SIZE]; LINES], lens: [0; LINES], added: 0, back: 0 }
    }

    /// Adds `line`, unless it is empty or equal to the last one.
    pub(super) fn add(&mut self, line: &str) {
        self.back = 0;
        if line.trim().is_empty() || self.line(1) == Some(line) {
            return;
        }
        let at = self.added % LINES;
        let Some(place) = self.lines.get_mut(at).and_then(|place| place.get_mut(..line.len())) else {
            return;
        };
        place.copy_from_slice(line.as_bytes());
        if let Some(len) = self.lens.get_mut(at) {
            *len = line.len() as u8;
        }
        self.added += 1;
    }

    /// Goes back one line.
    pub(super) fn older(&mut self) -> Option<&str> {
        if self.back < LINES.min(self.added) {
            self.back += 1;
        }
        self.line(self.back)
    }

    /// Goes forward one line, at last to an empty one.
    pub(super) fn newer(&mut self) -> Option<&str> {
        self.back = self.back.saturating_sub(1);
        if self.back == 0 { Some("") } else { self.line(self.back) }
    }

    /// Returns the line `back` lines ago.
    fn line(&self, back: usize) -> Option<&str> {
        if back == 0 {
            return None;
        }
        let at = self.added.checked_sub(back)? % LINES;
        let len = usize::from(*self.lens.get(at)?);
        core::str::from_utf8(self.lines.get(at)?.get(..len)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_back_and_forth() {
        let mut history = History::new();
        assert_eq!(history.older(), None);
        for line in ["one", "two", "two", " ", "three"] {
            history.add(line);
        }
        assert_eq!(history.older(), Some("three"));
        assert_eq!(history.older(), Some("two"));
        assert_eq!(history.older(), Some("one"));
        assert_eq!(history.older(), Some("one"));
        assert_eq!(history.newer(), Some("two"));
        assert_eq!(history.newer(), Some("three"));
        assert_eq!(history.newer(), Some(""));
        assert_eq!(history.newer(), Some(""));
    }

    #[test]
    fn it_forgets_the_oldest() {
        let mut history = History::new();
        for n in 0..40 {
            history.add(&n.to_string());
        }
        let lines: Vec<_> = (0..LINES).map(|_| history.older().unwrap().to_string()).collect();
        assert_eq!(lines.first().unwrap(), "39");
        assert_eq!(lines.last().unwrap(), "24");
        assert_eq!(history.older(), Some("24"));
    }
}
