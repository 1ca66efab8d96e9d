//! Frames of the log on the line: `ESC ] 7700 ; <base64> ESC \`.
//!
//! No terminal knows command 7700; all of them skip to the terminator (ESC \).

use core::fmt::{self, Write};

/// Marks a frame in the ring of messages.
pub(super) const FRAME: u8 = 0x01;
/// The bytes before a frame on the line.
pub(super) const START: &[u8] = b"\x1b]7700;";
/// The bytes behind it.
pub(super) const END: &[u8] = b"\x1b\\";

/// The digits of base64 (RFC 4648, 4).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Returns the room that a frame of `frame_size` bytes takes in the ring of messages.
pub(super) const fn size(frame_size: usize) -> usize {
    2 + START.len() + frame_size.div_ceil(3) * 4
}

/// Passes `frame`, marked and in padded base64, to `push`. [`END`] must follow.
pub(super) fn write(frame: &[u8], mut push: impl FnMut(u8)) {
    push(FRAME);
    START.iter().for_each(|&byte| push(byte));
    encode(frame, &mut push);
}

fn encode(frame: &[u8], push: &mut dyn FnMut(u8)) {
    for group in frame.chunks(3) {
        let mut bits = 0;
        for at in 0..3 {
            bits = bits << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let digit = bits >> (18 - 6 * at) & 63;
            let is_padding = at > group.len();
            push(if is_padding { b'=' } else { DIGITS[digit as usize] });
        }
    }
}

/// A frame in base64.
pub struct Base64<'a>(pub &'a [u8]);

impl fmt::Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut result = Ok(());
        encode(self.0, &mut |byte| result = result.and(f.write_char(byte.into())));
        result
    }
}

/// A frame as the sequence that the PC's tool decodes and terminals ignore.
pub struct Sequence<'a>(pub &'a [u8]);

impl fmt::Display for Sequence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\x1b]7700;{}\x1b\\", Base64(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_base64() {
        // RFC 4648, 10.
        for (frame, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            write(frame.as_bytes(), |byte| out.push(byte));
            assert_eq!(out, [b"\x01\x1b]7700;", expected.as_bytes()].concat());
            assert!(out.len() < size(frame.len()));
        }
    }
}
