//! The log's ring: many writers, no lock; new lines overwrite the oldest.
//!
//! The ring is an array of slots of 128 bytes. A writer takes consecutive tickets for its line by one atomic addition. Ticket
//! *t* owns slot *t* modulo the number of slots, until the ring wraps around. Each slot has a sequence word: 0 while the slot
//! changes, *t* + 1 when it holds the part of ticket *t*. A reader copies a part and checks the sequence word before and after;
//! it counts a part that changed as lost. All accesses are atomic: a writer that is delayed for a whole round may at worst
//! garble a line.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use super::Level;

/// Number of slots: with 128 bytes each, 64 KiB.
const SLOTS: usize = 512;
/// Words of text in a slot.
const WORDS: usize = 13;
/// Bytes of text in a slot.
const PART: usize = WORDS * 8;
/// Most bytes of a line; longer lines are cut.
pub(crate) const MESSAGE_SIZE: usize = 3 * PART;
/// Number of later tickets after which a reader gives up on an unfinished part.
const PATIENCE: u64 = 64;
/// First word of a [`Ring`] that has been written to.
const MAGIC: u64 = u64::from_le_bytes(*b"BALLASTL");

/// Bits of a slot's description: length of the part in byte 0, level in byte 1, flags in byte 2, CPU in
/// bytes 4 and 5.
const FIRST: u64 = 1 << 16;
const LAST: u64 = 1 << 17;
const FRAME: u64 = 1 << 18;
const WITHDRAWN: u64 = 1 << 19;

/// Time and CPU of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Time since boot in nanoseconds.
    pub(crate) time_ns: u64,
    /// The CPU's number.
    pub(crate) cpu: u16,
}

#[derive(Debug)]
#[repr(C)]
struct Slot {
    /// Ticket and 1; 0 while the slot changes.
    sequence: AtomicU64,
    time_ns: AtomicU64,
    description: AtomicU64,
    text: [AtomicU64; WORDS],
}

/// The ring. Debuggers rely on its layout.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Ring {
    /// "BALLASTL".
    magic: AtomicU64,
    /// The next ticket, the number of slots written since boot.
    next: AtomicU64,
    slots: [Slot; SLOTS],
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

impl Ring {
    /// Makes an empty ring, all zeroes, so that it takes no room in an image.
    pub(crate) const fn new() -> Self {
        Self {
            magic: AtomicU64::new(0),
            next: AtomicU64::new(0),
            slots: [const {
                Slot {
                    sequence: AtomicU64::new(0),
                    time_ns: AtomicU64::new(0),
                    description: AtomicU64::new(0),
                    text: [const { AtomicU64::new(0) }; WORDS],
                }
            }; SLOTS],
        }
    }

    /// Adds a line of text, cut to [`MESSAGE_SIZE`].
    pub(crate) fn push(&self, stamp: Stamp, level: Level, text: &[u8]) {
        let words = Words::new();
        words.append(text.get(..MESSAGE_SIZE).unwrap_or(text));
        self.push_words(stamp, level as u8, &words, 0);
    }

    /// Adds a line as a frame. A frame of more than [`MESSAGE_SIZE`] bytes is dropped: cut, it could not be decoded.
    pub(crate) fn push_frame(&self, stamp: Stamp, level: u8, frame: &Words) {
        if frame.byte_count() <= MESSAGE_SIZE {
            self.push_words(stamp, level, frame, FRAME);
        }
    }

    #[cfg(test)]
    pub(crate) fn push_frame_bytes(&self, frame: &[u8]) {
        let words = Words::new();
        words.append(frame);
        self.push_frame(Stamp::default(), Level::Info as u8, &words);
    }

    fn push_words(&self, stamp: Stamp, level: u8, words: &Words, flags: u64) {
        self.magic.store(MAGIC, Ordering::Relaxed);
        words.seal();
        let mut rest = words.byte_count().min(MESSAGE_SIZE);
        // A short line needs no division; nearly all frames are short.
        let count = if rest <= PART { 1 } else { rest.div_ceil(PART) as u64 };
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let mut description = FIRST | flags | u64::from(level) << 8 | u64::from(stamp.cpu) << 32;
        for (ticket, part) in (first..).zip(words.words.chunks_exact(WORDS)) {
            let here = rest.min(PART);
            rest -= here;
            description |= here as u64 | if rest == 0 { LAST } else { 0 };
            self.write_slot(ticket, stamp.time_ns, description, part.get(..here.div_ceil(8)).unwrap_or(part));
            if rest == 0 {
                break;
            }
            description &= !(FIRST | 0xff);
        }
    }

    #[inline(always)]
    fn write_slot(&self, ticket: u64, time_ns: u64, description: u64, words: &[AtomicU64]) {
        let Some(slot) = self.slot(ticket) else { return };
        slot.sequence.store(0, Ordering::Relaxed);
        // Orders the stores below after the one above, for readers that see any of them.
        fence(Ordering::Release);
        slot.time_ns.store(time_ns, Ordering::Relaxed);
        slot.description.store(description, Ordering::Relaxed);
        for (place, word) in slot.text.iter().zip(words) {
            place.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        slot.sequence.store(ticket + 1, Ordering::Release);
    }

    fn slot(&self, ticket: u64) -> Option<&Slot> {
        self.slots.get(ticket as usize % SLOTS)
    }

    /// Makes a reader that begins with the oldest line in the ring.
    pub(crate) fn reader(&self) -> Reader {
        Reader { next: 0, lost_count: 0 }
    }

    /// Makes a reader that begins `count` slots, lines or parts of lines, before the end.
    pub(crate) fn reader_near_end(&self, count: u64) -> Reader {
        Reader { next: self.next.load(Ordering::Acquire).saturating_sub(count), lost_count: 0 }
    }

    /// Withdraws the lines that `cpu`, the caller's CPU, has written since slot `first`, a [`Ring::written_count`]. Readers skip
    /// them.
    pub(crate) fn withdraw(&self, first: u64, cpu: u16) {
        let end = self.next.load(Ordering::Relaxed);
        for ticket in first.max(end.saturating_sub(SLOTS as u64))..end {
            let Some(slot) = self.slot(ticket) else { return };
            let description = slot.description.load(Ordering::Relaxed);
            // Not the caller's: another CPU's, or being written.
            let is_own = (description >> 32) as u16 == cpu;
            if is_own && slot.sequence.load(Ordering::Relaxed) == ticket + 1 {
                slot.description.store(description | WITHDRAWN, Ordering::Relaxed);
            }
        }
    }

    /// Returns the number of slots written since boot.
    pub(crate) fn written_count(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

/// A line.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    stamp: Stamp,
    level: u8,
    is_frame: bool,
    text: [u8; MESSAGE_SIZE],
    text_len: usize,
}

impl Entry {
    /// Returns time and CPU.
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Returns the line's level.
    pub(crate) fn level(&self) -> Level {
        Level::ALL.into_iter().find(|level| *level as u8 == self.level).unwrap_or(Level::Error)
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.text_len).unwrap_or(&[])
    }

    /// Returns the frame, unless the line is text.
    pub(crate) fn frame(&self) -> Option<&[u8]> {
        self.is_frame.then(|| self.bytes())
    }

    /// Returns the text, up to the first invalid byte; empty for a frame.
    pub(crate) fn text(&self) -> &str {
        let bytes = if self.is_frame { &[] } else { self.bytes() };
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or(&[]);
                core::str::from_utf8(valid).unwrap_or("")
            }
        }
    }

    fn append(&mut self, part: &[u8]) {
        if let Some(place) = self.text.get_mut(self.text_len..self.text_len + part.len()) {
            place.copy_from_slice(part);
            self.text_len += part.len();
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let microseconds = self.stamp.time_ns / 1000;
        let (seconds, fraction) = (microseconds / 1_000_000, microseconds % 1_000_000);
        write!(f, "{seconds:5}.{fraction:06} {:5} {}", self.level().name(), self.text())
    }
}

/// Contents of a slot.
struct Part {
    time_ns: u64,
    description: u64,
    text: [u8; PART],
}

impl Part {
    fn bytes(&self) -> &[u8] {
        self.text.get(..self.description as usize & 0xff).unwrap_or(&self.text)
    }
}

/// A reader's position in the log.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    next: u64,
    lost_count: u64,
}

impl Reader {
    /// Returns the number of slots (lines or parts of lines) that were overwritten before this reader read them.
    pub(crate) fn lost_count(&self) -> u64 {
        self.lost_count
    }

    /// Returns the next line, or `None` if there is none yet.
    pub(crate) fn next(&mut self, ring: &Ring) -> Option<Entry> {
        self.next_before(ring, u64::MAX)
    }

    /// Returns the next line that begins before slot `limit`, a [`Ring::written_count`].
    pub(crate) fn next_before(&mut self, ring: &Ring, limit: u64) -> Option<Entry> {
        let mut entry: Option<Entry> = None;
        // Each iteration takes a ticket or ends the loop: bounded by the ring's size.
        loop {
            let end = ring.next.load(Ordering::Acquire);
            if self.next >= end || entry.is_none() && self.next >= limit {
                return None;
            }
            let oldest = end.saturating_sub(SLOTS as u64);
            if self.next < oldest {
                self.lost_count += oldest - self.next;
                self.next = oldest;
                entry = None;
            }
            let Some(part) = self.part(ring) else {
                if end - self.next <= PATIENCE {
                    // The part is being written. Start this line again at the next call.
                    self.next -= entry.map_or(0, |entry| (entry.text_len / PART) as u64);
                    return None;
                }
                self.lost_count += 1;
                self.next += 1;
                entry = None;
                continue;
            };
            self.next += 1;
            if part.description & WITHDRAWN != 0 {
                entry = None;
                continue;
            }
            if part.description & FIRST != 0 {
                let cpu = (part.description >> 32) as u16;
                let level = (part.description >> 8) as u8;
                let stamp = Stamp { time_ns: part.time_ns, cpu };
                let is_frame = part.description & FRAME != 0;
                entry = Some(Entry { stamp, level, is_frame, text: [0; MESSAGE_SIZE], text_len: 0 });
            }
            let Some(line) = &mut entry else {
                self.lost_count += 1;
                continue;
            };
            line.append(part.bytes());
            if part.description & LAST != 0 {
                return entry;
            }
        }
    }

    /// Returns the part of the next ticket, if its slot holds it.
    fn part(&self, ring: &Ring) -> Option<Part> {
        let slot = ring.slot(self.next)?;
        if slot.sequence.load(Ordering::Acquire) != self.next + 1 {
            return None;
        }
        let mut text = [0; PART];
        for (place, word) in text.chunks_mut(8).zip(&slot.text) {
            place.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let time_ns = slot.time_ns.load(Ordering::Relaxed);
        let description = slot.description.load(Ordering::Relaxed);
        // Orders the loads above before the one below.
        fence(Ordering::Acquire);
        let is_whole = slot.sequence.load(Ordering::Relaxed) == self.next + 1;
        is_whole.then_some(Part { time_ns, description, text })
    }
}

/// A line or frame that is being assembled, in words like a slot's. One writer at a time; all zeroes when empty.
#[derive(Debug)]
pub(crate) struct Words {
    /// Number of bytes, including those beyond [`MESSAGE_SIZE`].
    len: AtomicUsize,
    /// Bytes of the last word, if it is incomplete.
    open: AtomicU64,
    words: [AtomicU64; MESSAGE_SIZE / 8],
}

impl Default for Words {
    fn default() -> Self {
        Self::new()
    }
}

impl Words {
    /// Makes an empty line.
    pub(crate) const fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            open: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; MESSAGE_SIZE / 8],
        }
    }

    /// Returns the number of bytes. Bytes beyond [`MESSAGE_SIZE`] are only counted.
    pub(crate) fn byte_count(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Clears the line.
    pub(crate) fn clear(&self) {
        self.len.store(0, Ordering::Relaxed);
        self.open.store(0, Ordering::Relaxed);
    }

    /// Adds bytes.
    #[inline(always)]
    pub(crate) fn append(&self, bytes: &[u8]) {
        match *bytes {
            // Every other piece of a frame names a line or the kind of an argument.
            [low, high] => self.put(u64::from(low) | u64::from(high) << 8, 2),
            _ => self.append_many(bytes),
        }
    }

    /// Adds the eight bytes of a number.
    #[inline(always)]
    pub(crate) fn append_number(&self, number: u64) {
        self.put(number, 8);
    }

    #[inline(never)]
    fn append_many(&self, mut bytes: &[u8]) {
        while let Some((word, rest)) = bytes.split_first_chunk() {
            self.put(u64::from_le_bytes(*word), 8);
            bytes = rest;
        }
        if !bytes.is_empty() {
            let word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            self.put(word, bytes.len());
        }
    }

    /// Stores the incomplete last word with the others.
    fn seal(&self) {
        if let Some(place) = self.words.get(self.byte_count() / 8) {
            place.store(self.open.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Adds the low `count` bytes, 1 to 8, of `value`, whose other bytes are 0.
    #[inline(always)]
    fn put(&self, value: u64, count: usize) {
        let len = self.len.load(Ordering::Relaxed);
        let used = len % 8;
        let mut open = self.open.load(Ordering::Relaxed) | value << (used * 8);
        if used + count >= 8 {
            if let Some(place) = self.words.get(len / 8) {
                place.store(open, Ordering::Relaxed);
            }
            // The bytes that do not fit into that word begin the next one; there are none if it was empty.
            open = value >> 1 >> (63 - used * 8);
        }
        self.open.store(open, Ordering::Relaxed);
        self.len.store(len + count, Ordering::Relaxed);
    }
}

/// Text that is being formatted, on the stack.
pub(crate) struct Line {
    text: [u8; MESSAGE_SIZE],
    len: usize,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { text: [0; MESSAGE_SIZE], len: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or(&[])
    }
}

impl Write for Line {
    /// Appends the text that fits. Line ends and other control characters become spaces.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.text.get_mut(self.len) {
                *place = if byte < b' ' { b' ' } else { byte };
                self.len += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    fn ring() -> Box<Ring> {
        Box::new(Ring::new())
    }

    fn stamp(time_ns: u64) -> Stamp {
        Stamp { time_ns, cpu: 3 }
    }

    #[test]
    fn it_takes_64_kib() {
        assert_eq!(size_of::<Slot>(), 128);
        assert_eq!(size_of::<Ring>(), 64 * 1024 + 16);
    }

    #[test]
    fn lines_come_out_as_they_went_in() {
        let ring = ring();
        let mut reader = ring.reader();
        assert!(reader.next(&ring).is_none());
        let long = "x".repeat(250);
        ring.push(stamp(1_234_567_890), Level::Warn, long.as_bytes());
        ring.push(stamp(2), Level::Error, b"");
        let first = reader.next(&ring).unwrap();
        assert_eq!((first.text(), first.level(), first.stamp().cpu), (long.as_str(), Level::Warn, 3));
        assert!(first.to_string().starts_with("    1.234567 warn  xxx"));
        assert_eq!(reader.next(&ring).unwrap().text(), "");
        assert!(reader.next(&ring).is_none());
        assert_eq!(ring.magic.load(Ordering::Relaxed).to_le_bytes(), *b"BALLASTL");
    }

    #[test]
    fn what_is_withdrawn_is_passed_over() {
        let ring = ring();
        let push = |cpu, text: &str| ring.push(Stamp { time_ns: 0, cpu }, Level::Info, text.as_bytes());
        push(1, "before");
        let first = ring.written_count();
        push(1, "measured");
        push(2, "another CPU's");
        push(1, &"long ".repeat(50));
        ring.withdraw(first, 1);
        push(1, "after");
        let mut reader = ring.reader();
        let texts: Vec<_> =
            std::iter::from_fn(|| reader.next(&ring)).map(|entry| entry.text().to_owned()).collect();
        assert_eq!((texts.join("|").as_str(), reader.lost_count()), ("before|another CPU's|after", 0));
        // However much was written since, and twice.
        (0..2 * SLOTS).for_each(|_| push(1, "more"));
        ring.withdraw(first, 1);
        ring.withdraw(first, 1);
        assert!(ring.reader().next(&ring).is_none());
        push(1, "last");
        assert_eq!(ring.reader_near_end(5).next(&ring).unwrap().text(), "last");
    }

    #[test]
    fn too_long_lines_are_cut() {
        let ring = ring();
        ring.push(stamp(0), Level::Info, &[b'y'; 1000]);
        assert_eq!(ring.reader().next(&ring).unwrap().text().len(), MESSAGE_SIZE);
        let mut line = Line::new();
        write!(line, "a\nb{}", "z".repeat(1000)).unwrap();
        assert_eq!(line.bytes().len(), MESSAGE_SIZE);
        assert_eq!(&line.bytes()[..3], b"a b");
    }

    #[test]
    fn a_writer_that_died_is_passed_over() {
        let ring = ring();
        let mut reader = ring.reader();
        ring.next.fetch_add(1, Ordering::Relaxed);
        ring.push(stamp(0), Level::Info, b"after");
        assert!(reader.next(&ring).is_none(), "it may still finish");
        for _ in 0..PATIENCE {
            ring.push(stamp(0), Level::Info, b"later");
        }
        assert_eq!(reader.next(&ring).unwrap().text(), "after");
        assert_eq!(reader.lost_count(), 1);
    }

    #[test]
    fn a_late_reader_begins_with_the_oldest_line() {
        let ring = ring();
        let mut reader = ring.reader();
        for n in 0..2000u64 {
            ring.push(stamp(n), Level::Info, n.to_string().as_bytes());
        }
        assert_eq!(reader.next(&ring).unwrap().text(), "1488");
        assert_eq!(reader.lost_count(), 1488);
        assert!(ring.reader_near_end(0).next(&ring).is_none());
    }

    #[test]
    fn many_writers_garble_nothing() {
        let ring = ring();
        let (stop, read) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (ring, stop, read) = (&*ring, &stop, &read);
            for writer in 0..3u8 {
                scope.spawn(move || {
                    let mut n = 0usize;
                    while !stop.load(Ordering::Relaxed) {
                        // Not so far ahead that a writer held up by the PC's scheduler is overtaken.
                        if ring.written_count() < read.load(Ordering::Relaxed) + 300 {
                            let text = vec![b'a' + writer; 1 + n % 300];
                            ring.push(stamp(text.len() as u64), Level::Info, &text);
                            n += 1;
                        }
                        std::thread::yield_now();
                    }
                });
            }
            let mut reader = ring.reader();
            let mut seen = 0;
            while seen < 20_000 {
                if let Some(entry) = reader.next(ring) {
                    let text = entry.text();
                    assert_eq!(text.len() as u64, entry.stamp().time_ns);
                    assert!(text.bytes().all(|byte| byte == text.as_bytes()[0]), "{text}");
                    seen += 1;
                }
                read.store(reader.next, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    proptest! {
        /// Pieces of any lengths come out as one.
        #[test]
        fn words_hold_what_was_appended(pieces in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let (words, whole) = (Words::new(), pieces.concat());
            for piece in &pieces {
                match <[u8; 8]>::try_from(&piece[..]) {
                    Ok(number) => words.append_number(u64::from_le_bytes(number)),
                    Err(_) => words.append(piece),
                }
            }
            prop_assert_eq!(words.byte_count(), whole.len());
            let ring = ring();
            ring.push_frame(stamp(7), Level::Warn as u8, &words);
            let entry = ring.reader().next(&ring);
            if whole.len() > MESSAGE_SIZE {
                prop_assert!(entry.is_none());
            } else {
                let entry = entry.unwrap();
                prop_assert_eq!(entry.frame(), Some(&whole[..]));
                prop_assert_eq!((entry.level(), entry.stamp()), (Level::Warn, stamp(7)));
            }
            words.clear();
            words.append(b"again");
            ring.push_frame(stamp(8), Level::Info as u8, &words);
            let entry = ring.reader_near_end(1).next(&ring).unwrap();
            prop_assert_eq!(entry.frame(), Some(&b"again"[..]));
        }

        /// Reads back the last lines, of any lengths.
        #[test]
        fn it_keeps_the_newest(lengths in prop::collection::vec(0..400usize, 1..700)) {
            let ring = ring();
            for (n, &length) in lengths.iter().enumerate() {
                ring.push(stamp(n as u64), Level::Info, &vec![b'a' + (n % 26) as u8; length]);
            }
            let mut reader = ring.reader();
            let mut expected = None;
            while let Some(entry) = reader.next(&ring) {
                let n = entry.stamp().time_ns as usize;
                prop_assert!(expected.is_none_or(|expected| expected == n));
                prop_assert_eq!(entry.text().len(), lengths[n].min(MESSAGE_SIZE));
                expected = Some(n + 1);
            }
            prop_assert_eq!(expected, Some(lengths.len()));
        }
    }
}
