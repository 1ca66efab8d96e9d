//! The log: messages from any CPU, at any time, at low cost.
//!
//! `log::info!("guest {} started", name)` and its like ([`error!`], [`warn!`], [`debug!`]) write to a ring of 64 KiB in memory,
//! without locks, devices or waiting. So they are allowed everywhere, before the console is up and under any lock. The
//! console reads the lines from the ring ([`Reader`]), the command `log` prints them again, and after a fatal error a debugger
//! finds them at the symbol `BALLAST_LOG`.
//!
//! With `log=frames`, Ballast does not format lines. A frame of a few bytes, which names the line by a number, goes to the ring
//! and the console, and a PC formats it with defmt's decoder and the image's ELF file. So a line's format uses only what both
//! core::fmt and defmt know: `{}`, `{:?}`, `{:x}`, `{:#x}`, with the arguments after the string.
//!
//! The command line's `log=` sets the level of each module ([`configure`]). A line below the level costs one load and one
//! compare.

mod filter;
#[allow(unsafe_code)]
#[cfg(all(target_os = "none", feature = "defmt"))]
pub(crate) mod frames;
mod ring;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use spin::Once;

pub(crate) use self::filter::ConfigureError;
use self::filter::Filter;
pub(crate) use self::ring::{Entry, Reader, Ring, Stamp, Words};
pub(crate) use crate::{log_debug as debug, log_error as error, log_info as info, log_warn as warn};

/// Severity of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Level {
    /// Something failed.
    Error = 1,
    /// Something is wrong, but Ballast continues.
    Warn = 2,
    /// Information for the operator.
    Info = 3,
    /// Information for developers.
    Debug = 4,
}

impl Level {
    /// All levels, most important first.
    pub(crate) const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// Returns the level's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// Returns the level with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// Destination of lines besides the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Output {
    /// The ring only.
    Off = 0,
    /// The console, as text.
    Text = 1,
    /// The console, as frames for a program on a PC ([`frames`]).
    Frames = 2,
}

/// Serial line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Line {
    /// The console's line, shared with all other output. Frames are escape sequences that terminals ignore.
    Console = 0,
    /// The host's second UART, if it has one. Frames are as defmt's own tools read them.
    Second = 1,
}

/// The ring, whose symbol and layout ([`Ring`]) debuggers use.
// SAFETY: nothing else has this name.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
static BALLAST_LOG: Ring = Ring::new();
static FILTER: Once<Filter> = Once::new();
static STAMP: Once<fn() -> Stamp> = Once::new();
static LISTENER: Once<fn()> = Once::new();
/// The highest level of any module, and [`BY_MODULE`]. One load decides about lines above it, and about all lines if all
/// modules have the same level.
static LIMIT: AtomicU8 = AtomicU8::new(Level::Info as u8);
/// Flag of [`LIMIT`]: some module has a level of its own.
const BY_MODULE: u8 = 0x80;
/// The [`Output`], in a word of its own for the macros.
static OUTPUT: AtomicU8 = AtomicU8::new(Output::Text as u8);

/// Sets the log's clock. Earlier lines have time 0.
pub(crate) fn set_clock(clock: fn() -> Stamp) {
    STAMP.call_once(|| clock);
}

/// Sets the function that is told of new lines. It is called under any lock and on any CPU, so it must only leave a note.
pub(crate) fn set_listener(listener: fn()) {
    LISTENER.call_once(|| listener);
}

/// Sets levels and output from the command line's `log=`: a list, separated by commas, of `text`, `frames` or `off`, `second`
/// for the second UART, a level for all modules, and `module=level`. Only the first call has an effect.
///
/// # Errors
/// The part that is none of these; nothing is changed.
pub(crate) fn configure(option: &str) -> Result<(), ConfigureError<'_>> {
    let filter = Filter::parse(option)?;
    FILTER.call_once(|| {
        let by_module = if filter.has_rules() { BY_MODULE } else { 0 };
        OUTPUT.store(filter.output() as u8, Ordering::Relaxed);
        LIMIT.store(filter.highest() as u8 | by_module, Ordering::Relaxed);
        filter
    });
    Ok(())
}

/// Returns the destination of lines besides the ring.
pub(crate) fn output() -> Output {
    [Output::Off, Output::Frames]
        .into_iter()
        .find(|&output| OUTPUT.load(Ordering::Relaxed) == output as u8)
        .unwrap_or(Output::Text)
}

/// Returns true if lines are written as frames. For the macros.
#[doc(hidden)]
#[inline(always)]
pub(crate) fn is_in_frames() -> bool {
    OUTPUT.load(Ordering::Relaxed) == Output::Frames as u8
}

/// Returns the serial line of the log.
pub(crate) fn line() -> Line {
    FILTER.get().map_or(Line::Console, Filter::line)
}

/// Returns the ring, for reading.
pub(crate) fn ring() -> &'static Ring {
    &BALLAST_LOG
}

/// Returns time and CPU, once there is a clock.
fn stamp() -> Stamp {
    STAMP.get().map_or(Stamp::default(), |clock| clock())
}

/// Returns true if lines of `module` at `level` are kept. For the macros.
#[doc(hidden)]
#[inline]
pub(crate) fn is_kept(level: Level, module: &str) -> bool {
    let limit = LIMIT.load(Ordering::Relaxed);
    level as u8 <= limit & !BY_MODULE && (limit & BY_MODULE == 0 || is_kept_by_module(level, module))
}

#[cold]
#[inline(never)]
fn is_kept_by_module(level: Level, module: &str) -> bool {
    FILTER.get().is_none_or(|filter| filter.keeps(level, module))
}

/// Writes one line. For the macros.
#[doc(hidden)]
#[inline(never)]
pub(crate) fn write(level: Level, module: &str, text: fmt::Arguments<'_>) {
    let mut line = ring::Line::new();
    let _ = write!(line, "{}: {text}", short(module));
    BALLAST_LOG.push(stamp(), level, line.bytes());
    tell();
}

/// Tells the listener that there is a new line.
fn tell() {
    if let Some(listener) = LISTENER.get() {
        listener();
    }
}

/// Returns a module's path without the crate's name.
fn short(module: &str) -> &str {
    module.strip_prefix("hyp::").or_else(|| module.strip_prefix("ballast::")).unwrap_or(module)
}

/// Logs an error.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_error {
    ($($argument:tt)*) => { $crate::__log!(Error, $($argument)*) };
}

/// Logs a warning.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_warn {
    ($($argument:tt)*) => { $crate::__log!(Warn, $($argument)*) };
}

/// Logs information for the operator.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_info {
    ($($argument:tt)*) => { $crate::__log!(Info, $($argument)*) };
}

/// Logs information for developers.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_debug {
    ($($argument:tt)*) => { $crate::__log!(Debug, $($argument)*) };
}

/// Writes a line, if its module's level allows it.
#[cfg(all(target_os = "none", feature = "defmt"))]
#[doc(hidden)]
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! __log {
    ($level:ident, $format:literal $(, $argument:expr)* $(,)?) => {
        if $crate::observe::log::is_kept($crate::observe::log::Level::$level, ::core::module_path!()) {
            if $crate::observe::log::is_in_frames() {
                #[allow(unused_imports, reason = "a line may need none of them")]
                use $crate::observe::log::frames::{ByDisplay as _, ByFormat as _};
                $crate::observe::log::frames::at($crate::observe::log::Level::$level);
                $crate::__frame!(
                    $level,
                    $format
                    $(, (&&$crate::observe::log::frames::Argument(&($argument))).for_frame())*
                );
            } else {
                $crate::observe::log::write(
                    $crate::observe::log::Level::$level,
                    ::core::module_path!(),
                    ::core::format_args!($format $(, $argument)*),
                );
            }
        }
    };
}

/// Writes a line as a frame.
#[cfg(all(target_os = "none", feature = "defmt"))]
#[doc(hidden)]
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! __frame {
    (Error, $($argument:tt)*) => { ::defmt::error!($($argument)*) };
    (Warn, $($argument:tt)*) => { ::defmt::warn!($($argument)*) };
    (Info, $($argument:tt)*) => { ::defmt::info!($($argument)*) };
    (Debug, $($argument:tt)*) => { ::defmt::debug!($($argument)*) };
}

/// Writes a line, if its module's level allows it.
#[cfg(not(all(target_os = "none", feature = "defmt")))]
#[doc(hidden)]
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! __log {
    ($level:ident, $($argument:tt)*) => {
        if $crate::observe::log::is_kept($crate::observe::log::Level::$level, ::core::module_path!()) {
            $crate::observe::log::write(
                $crate::observe::log::Level::$level,
                ::core::module_path!(),
                ::core::format_args!($($argument)*),
            );
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_its_module() {
        let mut reader = ring().reader();
        info!("guest {} started", "alpha");
        debug!("never seen at the default level");
        let entry = std::iter::from_fn(|| reader.next(ring()))
            .find(|entry| entry.text().contains("started"))
            .unwrap();
        assert_eq!(entry.text(), "observe::log::tests: guest alpha started");
        assert_eq!(entry.level(), Level::Info);
        assert_eq!(entry.to_string(), "    0.000000 info  observe::log::tests: guest alpha started");
    }
}
