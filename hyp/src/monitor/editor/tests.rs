use proptest::prelude::*;

use super::*;

/// A terminal of one row, with its text and its cursor.
#[derive(Default)]
struct Row {
    cells: Vec<char>,
    cursor: usize,
    rows: usize,
}

impl Row {
    fn show(&mut self, text: &str) {
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '\r' => self.cursor = 0,
                '\n' => {
                    self.rows += 1;
                    self.cells.clear();
                    self.cursor = 0;
                }
                '\x07' => {}
                '\x1b' => {
                    assert_eq!(characters.next(), Some('['));
                    let parameter: String = characters.by_ref().take_while(|c| c.is_ascii_digit()).collect();
                    // `take_while` took the final byte: K without a parameter, D with one.
                    match parameter.parse::<usize>() {
                        Ok(left) => self.cursor -= left,
                        Err(_) => self.cells.truncate(self.cursor),
                    }
                }
                _ => {
                    self.cells.resize(self.cells.len().max(self.cursor + 1), ' ');
                    self.cells[self.cursor] = character;
                    self.cursor += 1;
                }
            }
        }
    }

    fn text(&self) -> String {
        self.cells.iter().collect()
    }
}

struct Bench {
    editor: Editor,
    row: Row,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self { editor: Editor::new("> "), row: Row::default() };
        let mut out = String::new();
        bench.editor.begin(&mut out).unwrap();
        bench.row.show(&out);
        bench
    }

    fn keys(&mut self, bytes: &[u8]) -> Outcome {
        let mut outcome = Outcome::Pending;
        for &byte in bytes {
            let mut out = String::new();
            outcome = self.editor.take(byte, &mut out).unwrap();
            if outcome == Outcome::Done || outcome == Outcome::Cancelled {
                self.editor.begin(&mut out).unwrap();
            }
            self.row.show(&out);
        }
        outcome
    }
}

#[test]
fn typing_is_shown() {
    let mut bench = Bench::new();
    bench.keys(b"guests");
    assert_eq!(bench.editor.line(), "guests");
    assert_eq!(bench.row.text(), "> guests");
}

#[test]
fn a_line_is_edited() {
    let mut bench = Bench::new();
    bench.keys(b"start betta\x1b[D\x7f\x1b[Cx\x7f");
    assert_eq!(bench.editor.line(), "start beta");
    bench.keys(b"\x01\x1b[3~S\x05!\x17");
    assert_eq!(bench.editor.line(), "Start ");
    bench.keys(b"one two\x1bb\x1bb\x0b");
    assert_eq!(bench.editor.line(), "Start ");
    bench.keys(b"x\x15");
    assert_eq!(bench.editor.line(), "");
    assert_eq!(bench.row.text(), "> ");
}

#[test]
fn lines_are_recalled() {
    let mut bench = Bench::new();
    assert_eq!(bench.keys(b"first\r"), Outcome::Done);
    bench.keys(b"second\r\x1b[A\x1b[A");
    assert_eq!(bench.row.text(), "> first");
    bench.keys(b"\x1b[B\x1b[B");
    assert_eq!(bench.row.text(), "> ");
    assert_eq!(bench.keys(b"half\x03"), Outcome::Cancelled);
    assert_eq!(bench.editor.line(), "");
}

#[test]
fn tab_asks_for_completion() {
    let mut bench = Bench::new();
    assert_eq!(bench.keys(b"gu\t"), Outcome::Complete { is_repeated: false });
    assert_eq!(bench.editor.line_to_cursor(), "gu");
    assert_eq!(bench.keys(b"\t"), Outcome::Complete { is_repeated: true });
    bench.editor.insert("est\x1b\n", &mut String::new()).unwrap();
    assert_eq!(bench.editor.line(), "guest");
    assert_eq!(bench.keys(b"s\t"), Outcome::Complete { is_repeated: false });
}

#[test]
fn a_long_line_scrolls_and_ends() {
    let mut bench = Bench::new();
    bench.keys(&[b'a'; 300]);
    assert_eq!(bench.editor.line().len(), LINE_SIZE);
    assert!(bench.row.text().len() <= 2 + WINDOW);
    bench.keys(b"\x01");
    assert_eq!(bench.row.cursor, 2);
    bench.keys(b"\x0c");
    assert_eq!(bench.row.text().len(), 2 + WINDOW);
}

proptest! {
    /// For any input, the row shows the line, the cursor is in its place, and nothing overflows.
    #[test]
    fn the_row_shows_the_line(bytes in prop::collection::vec(
        prop_oneof![4 => any::<u8>(), 4 => b' '..0x7f, 2 => prop::sample::select(b"\x1b[OABCDHF~;135\t\r\x17".to_vec())],
        0..600,
    )) {
        let mut bench = Bench::new();
        for byte in bytes {
            bench.keys(&[byte]);
            let editor = &bench.editor;
            prop_assert!(editor.cursor <= editor.len && editor.len <= LINE_SIZE);
            let shown: String = editor.line().chars().skip(editor.start).take(WINDOW).collect();
            prop_assert_eq!(bench.row.text(), format!("> {shown}"));
            prop_assert_eq!(bench.row.cursor, 2 + editor.cursor - editor.start);
        }
    }
}
