//! Separates the text for the terminal from log frames in the output of the line.
//!
//! A frame is an operating system command, `ESC ] 7700 ; <base64> ESC \` (see `hyp/src/monitor/mux/frame.rs`). All
//! other bytes are text and pass unchanged. A damaged frame, which begins like one and does not end like one, is
//! counted and dropped.

/// First bytes of a frame.
const START: &[u8] = b"\x1b]7700;";
/// Most base64 digits of a frame.
const LONGEST: usize = 1024;

/// A part of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Text, including escape sequences.
    Text(Vec<u8>),
    /// A decoded log frame.
    Frame(Vec<u8>),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// After this many bytes of [`START`].
    Start(usize),
    /// In the base64 of a frame.
    Frame(Vec<u8>),
    /// After ESC in a frame.
    FrameEscape(Vec<u8>),
}

/// A parser that takes output in portions of any size.
#[derive(Debug, Default)]
pub struct Splitter {
    state: State,
    text: Vec<u8>,
    /// Number of damaged frames: cut off, too long or not base64.
    pub bad_frame_count: u64,
}

impl Splitter {
    /// Takes `bytes` and returns the chunks that they complete.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for &byte in bytes {
            self.take_byte(byte, &mut chunks);
        }
        self.flush(&mut chunks);
        chunks
    }

    fn take_byte(&mut self, byte: u8, chunks: &mut Vec<Chunk>) {
        self.state = match std::mem::take(&mut self.state) {
            State::Text => self.take_text(byte),
            State::Start(seen) if START[seen] == byte => match seen + 1 {
                seen if seen == START.len() => State::Frame(Vec::new()),
                seen => State::Start(seen),
            },
            State::Start(seen) => {
                self.text.extend(&START[..seen]);
                self.take_text(byte)
            }
            State::Frame(base64) if byte == 0x1b => State::FrameEscape(base64),
            State::Frame(base64) if byte == 0x07 => self.end_frame(&base64, chunks),
            State::Frame(mut base64) if is_digit(byte) && base64.len() < LONGEST => {
                base64.push(byte);
                State::Frame(base64)
            }
            State::Frame(_) => self.give_up(byte),
            State::FrameEscape(base64) if byte == b'\\' => self.end_frame(&base64, chunks),
            State::FrameEscape(_) if byte == b']' => {
                self.bad_frame_count += 1;
                State::Start(2)
            }
            State::FrameEscape(_) => {
                self.text.push(0x1b);
                self.give_up(byte)
            }
        };
    }

    fn take_text(&mut self, byte: u8) -> State {
        if byte == START[0] {
            return State::Start(1);
        }
        self.text.push(byte);
        State::Text
    }

    /// Drops a damaged frame and takes `byte` as text.
    fn give_up(&mut self, byte: u8) -> State {
        self.bad_frame_count += 1;
        self.take_text(byte)
    }

    fn end_frame(&mut self, base64: &[u8], chunks: &mut Vec<Chunk>) -> State {
        match decode(base64) {
            Some(frame) => {
                self.flush(chunks);
                chunks.push(Chunk::Frame(frame));
            }
            None => self.bad_frame_count += 1,
        }
        State::Text
    }

    fn flush(&mut self, chunks: &mut Vec<Chunk>) {
        if !self.text.is_empty() {
            chunks.push(Chunk::Text(std::mem::take(&mut self.text)));
        }
    }
}

const fn is_digit(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' | b'=')
}

/// Decodes base64 with padding (RFC 4648, 4).
fn decode(base64: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| {
        Some(match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    if !base64.len().is_multiple_of(4) {
        return None;
    }
    let padding = base64.iter().rev().take_while(|&&digit| digit == b'=').count();
    let digits = &base64[..base64.len() - padding];
    if padding > 2 || digits.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            bits = bits << 6 | u32::from(value(digit)?);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(chunks: &[Chunk]) -> String {
        let bytes: Vec<u8> = chunks
            .iter()
            .flat_map(|chunk| match chunk {
                Chunk::Text(text) => text.clone(),
                Chunk::Frame(frame) => format!("<{}>", String::from_utf8_lossy(frame)).into_bytes(),
            })
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn frames_are_taken_out_of_text() {
        let mut splitter = Splitter::default();
        let chunks =
            splitter.take(b"boot\x1b]7700;Zm9vYmFy\x1b\\ing\x1b[1mx\x1b]7700;Zm8=\x07y\x1b]0;title\x07");
        assert_eq!(text(&chunks), "boot<foobar>ing\x1b[1mx<fo>y\x1b]0;title\x07");
        assert_eq!(splitter.bad_frame_count, 0);
    }

    #[test]
    fn broken_frames_are_counted() {
        let mut splitter = Splitter::default();
        let chunks =
            splitter.take(b"a\x1b]7700;Zm9\x1b\\b\x1b]7700;Zm9v\r\nc\x1b]7700;Zm\x1b]7700;Zm9v\x1b\\d");
        assert_eq!(text(&chunks), "ab\r\nc<foo>d");
        assert_eq!(splitter.bad_frame_count, 3);
        let long = [b"\x1b]7700;".as_slice(), &[b'A'; 5000], b"\x1b\\end"].concat();
        assert!(text(&splitter.take(&long)).ends_with("end"));
        assert_eq!(splitter.bad_frame_count, 4);
    }

    #[test]
    fn only_base64_is_decoded() {
        assert_eq!(decode(b"Zm9vYmE=").unwrap(), b"fooba");
        for wrong in [&b"Zm9"[..], b"====", b"Z===", b"Zm=v", b"", b"Zm9-"] {
            assert_eq!(decode(wrong), None);
        }
    }

    proptest! {
        /// Splits the input at random, which must not change the result.
        #[test]
        fn portions_do_not_matter(
            bytes in prop::collection::vec(
                prop_oneof![3 => any::<u8>(), 2 => prop::sample::select(b"\x1b]7700;ABC=\\".to_vec())], 0..300),
            cuts in prop::collection::vec(0..300usize, 0..8),
        ) {
            let mut whole = Splitter::default();
            let mut expected = whole.take(&bytes);
            let mut parts = Splitter::default();
            let mut got = Vec::new();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                got.extend(parts.take(&bytes[pair[0]..pair[1]]));
            }
            let join = |chunks: &mut Vec<Chunk>| chunks.iter().flat_map(|chunk| match chunk {
                Chunk::Text(text) => text.clone(),
                Chunk::Frame(frame) => [b"F", frame.as_slice()].concat(),
            }).collect::<Vec<u8>>();
            prop_assert_eq!(join(&mut expected), join(&mut got));
            prop_assert_eq!(whole.bad_frame_count, parts.bad_frame_count);
        }
    }
}
