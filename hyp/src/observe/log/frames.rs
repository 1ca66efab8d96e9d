//! The log as frames in defmt's encoding, one frame for each line.
//!
//! defmt's macros call the functions below from any CPU, at any time. Each CPU encodes its frame in a buffer of its own,
//! without locks. Only an exception from EL2, which is fatal, can interrupt that; lines that are logged then find the buffer
//! in use and are dropped.
//!
//! The linker script keeps the input sections `.defmt.*` in a section `.defmt` that takes no room in memory or file, at a
//! multiple of 64 KiB in reach of the code. A line's number is the low half of its symbol's address; the tool that writes
//! `ballast.elf` removes the high half, since decoders expect the number alone.

use core::fmt::Display;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use defmt::{Display2Format, Format};

use super::{Level, Stamp, Words};

/// [`Buffer::state`] between frames.
const IDLE: u8 = 0;
/// [`Buffer::state`] while a frame is being encoded.
const OPEN: u8 = 1;
/// [`Buffer::state`] once a frame began within a frame: neither can be decoded.
const SPOILT: u8 = 2;

/// A CPU's frame that is being encoded. All zeroes at first, so that it takes no room in the image.
pub(crate) struct Buffer {
    state: AtomicU8,
    level: AtomicU8,
    cpu: AtomicU16,
    /// Time at which the frame began.
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

// SAFETY: only a fatal error interrupts a CPU between `acquire` and `release`, and its lines find the buffer in use. Each CPU
// has a buffer of its own.
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
            // Nearly all arguments are numbers: one load instead of eight.
            // SAFETY: eight readable, aligned bytes; any value is a `u64`.
            words.append_number(unsafe { number.read() });
        } else {
            words.append(bytes);
        }
    }
}

defmt::timestamp!("{=u64:us}", Buffer::own().time_ns.load(Ordering::Relaxed) / 1000);

/// Encodes `frame` as defmt's own tools read it from a serial line (rzCOBS, which `_defmt_encoding_` names).
pub(crate) fn encode(frame: &[u8], mut put: impl FnMut(&[u8])) {
    let mut encoder = defmt::Encoder::new();
    encoder.start_frame(&mut put);
    encoder.write(frame, &mut put);
    encoder.end_frame(&mut put);
}

/// An argument of a line, for a frame: in defmt's form if its type has one, else as text. The macros call `for_frame` on two
/// references, so that method resolution finds the first of the two traits that the argument's type allows.
#[doc(hidden)]
pub(crate) struct Argument<'a, T: ?Sized>(pub &'a T);

/// Conversion of types with a form of their own in defmt.
#[doc(hidden)]
pub(crate) trait ByFormat<'a> {
    /// The argument's form in the frame.
    type Output: Format;
    /// Converts the argument for the frame.
    fn for_frame(&self) -> Self::Output;
}

impl<'a, T: Format + ?Sized> ByFormat<'a> for &Argument<'a, T> {
    type Output = &'a T;

    fn for_frame(&self) -> &'a T {
        self.0
    }
}

/// Conversion of other types to the text of their `Display`.
#[doc(hidden)]
pub(crate) trait ByDisplay<'a> {
    /// The argument's form in the frame.
    type Output: Format;
    /// Converts the argument for the frame.
    fn for_frame(&self) -> Self::Output;
}

impl<'a, T: Display + ?Sized + 'a> ByDisplay<'a> for Argument<'a, T> {
    type Output = Display2Format<'a, T>;

    fn for_frame(&self) -> Self::Output {
        Display2Format(self.0)
    }
}
