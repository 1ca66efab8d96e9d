//! The log as frames: defmt's encoding, one frame a line.
//!
//! defmt's macros call the functions below from any CPU, at any time. Each CPU puts its frame together in
//! a buffer of its own, without locks: EL2 is not interrupted while it does so, but by an exception of its
//! own, which is fatal; a line logged from there finds the buffer in use and is left out.
//!
//! What the linker has to do: keep the input sections `.defmt.*` in a section `.defmt` that takes no room in
//! memory or file, at a multiple of 64 KiB that code reaches; a line's number is the low half of its
//! symbol's address. Decoders want the number alone: what writes `ballast.elf` takes the rest off.

use core::fmt::Display;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use defmt::{Display2Format, Format};

use super::{Level, Stamp, Words};

/// [`Buffer::state`] between frames.
const IDLE: u8 = 0;
/// [`Buffer::state`] while a frame is put together.
const OPEN: u8 = 1;
/// [`Buffer::state`] once a frame began within a frame: neither can be decoded.
const SPOILT: u8 = 2;

/// A frame being put together, one for each CPU. All zeroes at first, so that it takes no room in the image.
pub(crate) struct Buffer {
    state: AtomicU8,
    level: AtomicU8,
    cpu: AtomicU16,
    /// When the frame began.
    time_ns: AtomicU64,
    words: Words,
}

impl Buffer {
    pub(crate) const fn new() -> Self {
        Self {
            state: AtomicU8::new(IDLE),
            level: AtomicU8::new(0),
            cpu: AtomicU16::new(0),
            time_ns: AtomicU64::new(0),
            words: Words::new(),
        }
    }

    #[inline(always)]
    fn own() -> &'static Self {
        log_buffer()
    }

    #[inline(always)]
    fn begin(&self) {
        if self.state.load(Ordering::Relaxed) != IDLE {
            self.state.store(SPOILT, Ordering::Relaxed);
            return;
        }
        let stamp = super::stamp();
        self.cpu.store(stamp.cpu, Ordering::Relaxed);
        self.time_ns.store(stamp.time_ns, Ordering::Relaxed);
        self.words.clear();
        self.state.store(OPEN, Ordering::Relaxed);
    }

    #[inline(always)]
    fn finish(&self) {
        let state = self.state.load(Ordering::Relaxed);
        self.state.store(IDLE, Ordering::Relaxed);
        if state == OPEN {
            let stamp = Stamp {
                time_ns: self.time_ns.load(Ordering::Relaxed),
                cpu: self.cpu.load(Ordering::Relaxed),
            };
            crate::observe::log::ring().push_frame(stamp, self.level.load(Ordering::Relaxed), &self.words);
            crate::observe::log::tell();
        }
    }
}

unsafe extern "Rust" {
    /// Returns this CPU's buffer. `arch::cpu` defines the function: the log knows no CPUs, and a pointer to it would cost
    /// each part of a line an indirect call.
    safe fn log_buffer() -> &'static Buffer;
}

/// Sets the level of this CPU's next frame. For the macros.
#[doc(hidden)]
#[inline]
pub(crate) fn at(level: Level) {
    Buffer::own().level.store(level as u8, Ordering::Relaxed);
}

#[defmt::global_logger]
struct Frames;

// SAFETY: a CPU is not interrupted between `acquire` and `release` but by a fatal error, whose lines find
// the buffer in use; frames of different CPUs do not meet.
unsafe impl defmt::Logger for Frames {
    fn acquire() {
        Buffer::own().begin();
    }

    unsafe fn flush() {}

    unsafe fn release() {
        Buffer::own().finish();
    }

    unsafe fn write(bytes: &[u8]) {
        let words = &Buffer::own().words;
        let number = bytes.as_ptr().cast::<u64>();
        if bytes.len() == size_of::<u64>() && number.is_aligned() {
            // A number, as nearly all arguments are: one load instead of eight.
            // SAFETY: eight bytes that may be read, aligned for a `u64`, which any eight bytes are.
            words.append_number(unsafe { number.read() });
        } else {
            words.append(bytes);
        }
    }
}

defmt::timestamp!("{=u64:us}", Buffer::own().time_ns.load(Ordering::Relaxed) / 1000);

/// Hands `frame` to `put` as defmt's own tools read it from a line (rzCOBS, which `_defmt_encoding_` names).
pub(crate) fn encode(frame: &[u8], mut put: impl FnMut(&[u8])) {
    let mut encoder = defmt::Encoder::new();
    encoder.start_frame(&mut put);
    encoder.write(frame, &mut put);
    encoder.end_frame(&mut put);
}

/// An argument of a line, on its way into a frame: in defmt's own form where it has one, else as text. For
/// the macros, which call `for_frame` behind two references: of the two traits, the first that the argument's type allows
/// is nearest.
#[doc(hidden)]
pub(crate) struct Argument<'a, T: ?Sized>(pub &'a T);

/// Has a form of its own.
#[doc(hidden)]
pub(crate) trait ByFormat<'a> {
    /// What the frame holds.
    type Output: Format;
    /// The argument for the frame.
    fn for_frame(&self) -> Self::Output;
}

impl<'a, T: Format + ?Sized> ByFormat<'a> for &Argument<'a, T> {
    type Output = &'a T;

    fn for_frame(&self) -> &'a T {
        self.0
    }
}

/// Goes as the text of its `Display`.
#[doc(hidden)]
pub(crate) trait ByDisplay<'a> {
    /// What the frame holds.
    type Output: Format;
    /// The argument for the frame.
    fn for_frame(&self) -> Self::Output;
}

impl<'a, T: Display + ?Sized + 'a> ByDisplay<'a> for Argument<'a, T> {
    type Output = Display2Format<'a, T>;

    fn for_frame(&self) -> Self::Output {
        Display2Format(self.0)
    }
}
