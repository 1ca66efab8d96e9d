//! The log as frames: defmt's encoding, one frame a line.
//!
//! defmt's macros call the functions below from any CPU, at any time. Each CPU puts its frame together in
//! a buffer of its own, without locks: EL2 is not interrupted while it does so, but by an exception of its
//! own, which is fatal; a line logged from there finds the buffer in use and is left out.
//!
//! What the linker has to do: keep the input sections `.defmt.*` in a section `.defmt` that takes no room in
//! memory or file, at a multiple of 64 KiB that code reaches; a line's number is the low half of its
//! symbol's address. Decoders want the number alone: `ballast` takes the rest off the symbols.

use core::fmt::{Debug, Display};
use core::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use defmt::{Debug2Format, Display2Format, Format};

use super::{Level, MESSAGE_SIZE};

/// How many CPUs have a buffer; those above share the last.
const CPUS: usize = 32;
/// [`Buffer::fill`] of a buffer that is not in use.
const IDLE: u16 = 0;

/// A frame being put together. All zeroes at first, so that it takes no room in the image.
struct Buffer {
    /// How many bytes the frame has so far, and 1; [`IDLE`] between frames.
    fill: AtomicU16,
    level: AtomicU8,
    bytes: [AtomicU8; MESSAGE_SIZE],
}

static BUFFERS: [Buffer; CPUS] = [const {
    Buffer {
        fill: AtomicU16::new(IDLE),
        level: AtomicU8::new(0),
        bytes: [const { AtomicU8::new(0) }; MESSAGE_SIZE],
    }
}; CPUS];

impl Buffer {
    fn own() -> &'static Self {
        let cpu = usize::from(super::stamp().cpu).min(CPUS - 1);
        &BUFFERS[cpu]
    }

    fn append(&self, bytes: &[u8]) {
        let fill = self.fill.load(Ordering::Relaxed);
        let Some(start) = fill.checked_sub(1) else { return };
        for (place, &byte) in self.bytes.iter().skip(start.into()).zip(bytes) {
            place.store(byte, Ordering::Relaxed);
        }
        // A frame that is too long is known by its length, and left out.
        let fill = usize::from(fill).saturating_add(bytes.len()).min(u16::MAX.into());
        self.fill.store(fill as u16, Ordering::Relaxed);
    }

    fn finish(&self) {
        let Some(len) = self.fill.swap(IDLE, Ordering::Relaxed).checked_sub(1) else { return };
        let mut frame = [0; MESSAGE_SIZE];
        let Some(frame) = frame.get_mut(..len.into()) else { return };
        for (byte, place) in frame.iter_mut().zip(&self.bytes) {
            *byte = place.load(Ordering::Relaxed);
        }
        let level = self.level.load(Ordering::Relaxed);
        let level = Level::ALL.into_iter().find(|known| *known as u8 == level).unwrap_or(Level::Info);
        super::ring().push_frame(super::stamp(), level, frame);
        super::tell();
    }
}

/// Sets the level of this CPU's next frame. For the macros.
#[doc(hidden)]
pub fn at(level: Level) {
    Buffer::own().level.store(level as u8, Ordering::Relaxed);
}

#[defmt::global_logger]
struct Frames;

// SAFETY: a CPU is not interrupted between `acquire` and `release` but by a fatal error, whose lines find
// the buffer in use; frames of different CPUs do not meet.
unsafe impl defmt::Logger for Frames {
    fn acquire() {
        // A frame within a frame: neither could be decoded. `finish` of the inner one leaves both out.
        let buffer = Buffer::own();
        let is_idle = buffer.fill.load(Ordering::Relaxed) == IDLE;
        buffer.fill.store(if is_idle { 1 } else { IDLE }, Ordering::Relaxed);
    }

    unsafe fn flush() {}

    unsafe fn release() {
        Buffer::own().finish();
    }

    unsafe fn write(bytes: &[u8]) {
        Buffer::own().append(bytes);
    }
}

defmt::timestamp!("{=u64:us}", super::stamp().time_ns / 1000);

/// Hands `frame` to `put` as defmt's own tools read it from a line (rzCOBS, which `_defmt_encoding_` names).
pub(crate) fn encode(frame: &[u8], mut put: impl FnMut(&[u8])) {
    let mut encoder = defmt::Encoder::new();
    encoder.start_frame(&mut put);
    encoder.write(frame, &mut put);
    encoder.end_frame(&mut put);
}

/// An argument of a line, on its way into a frame: in defmt's own form where it has one, else as text. For
/// the macros, which call `for_frame` behind three references: of the three traits, the first that
/// the argument's type allows is nearest.
#[doc(hidden)]
pub struct Argument<'a, T: ?Sized>(pub &'a T);

/// Has a form of its own.
#[doc(hidden)]
pub trait ByFormat<'a> {
    /// What the frame holds.
    type Output: Format;
    /// The argument for the frame.
    fn for_frame(&self) -> Self::Output;
}

impl<'a, T: Format + ?Sized> ByFormat<'a> for &&Argument<'a, T> {
    type Output = &'a T;

    fn for_frame(&self) -> &'a T {
        self.0
    }
}

/// Goes as the text of its `Display`.
#[doc(hidden)]
pub trait ByDisplay<'a> {
    /// What the frame holds.
    type Output: Format;
    /// The argument for the frame.
    fn for_frame(&self) -> Self::Output;
}

impl<'a, T: Display + ?Sized + 'a> ByDisplay<'a> for &Argument<'a, T> {
    type Output = Display2Format<'a, T>;

    fn for_frame(&self) -> Self::Output {
        Display2Format(self.0)
    }
}

/// Goes as the text of its `Debug`.
#[doc(hidden)]
pub trait ByDebug<'a> {
    /// What the frame holds.
    type Output: Format;
    /// The argument for the frame.
    fn for_frame(&self) -> Self::Output;
}

impl<'a, T: Debug + ?Sized + 'a> ByDebug<'a> for Argument<'a, T> {
    type Output = Debug2Format<'a, T>;

    fn for_frame(&self) -> Self::Output {
        Debug2Format(self.0)
    }
}
