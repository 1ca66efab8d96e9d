//! The log: what Ballast has to say, from any CPU, at any time, at little cost.
//!
//! `log::info!("guest {} started", name)` and its like ([`error!`], [`warn!`], [`debug!`]) write to a ring
//! of 64 KiB in memory and nowhere else: no lock, no device, no wait, so that they are allowed everywhere,
//! before the console is up and under any lock. The console takes the lines from there
//! ([`Reader`]), the command `log` prints them again, and a debugger finds them after a fatal error
//! under the symbol `BALLAST_LOG`.
//!
//! With `log=frames`, a line is not put together here at all: what goes to the ring and to the console is
//! a frame of a few bytes that names the line by a number, and the PC puts it together from the image's
//! ELF file with the stock decoder of defmt. For that, a line's format has the form that both core::fmt and
//! defmt know: `{}`, `{:?}`, `{:x}`, `{:#x}`, with the arguments behind it, not in it.
//!
//! Each module has a level of its own, set by the command line's `log=` ([`configure`]); a line above it
//! costs one load and one compare.

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

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Level {
    /// Something failed.
    Error = 1,
    /// Something is not as it should be, and Ballast goes on.
    Warn = 2,
    /// What an operator wants to know.
    Info = 3,
    /// What a developer wants to know.
    Debug = 4,
}

impl Level {
    /// All levels, most important first.
    pub(crate) const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// The level's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// The level with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// Where lines go besides the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Output {
    /// Nowhere.
    Off = 0,
    /// To the console, as text.
    Text = 1,
    /// To the console, as frames for a program on the PC ([`frames`]).
    Frames = 2,
}

/// By which serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Line {
    /// The console's, shared with everything else: frames as escape sequences that terminals swallow.
    Console = 0,
    /// A second UART of its own, where the host has one: frames as defmt's own tools read them.
    Second = 1,
}

/// The ring. Its address and layout ([`Ring`]) are what a debugger needs.
// SAFETY: nothing else has this name.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
static BALLAST_LOG: Ring = Ring::new();
static FILTER: Once<Filter> = Once::new();
static STAMP: Once<fn() -> Stamp> = Once::new();
static LISTENER: Once<fn()> = Once::new();
/// The highest level that any module has, and [`BY_MODULE`]: what is above it, or where all modules have the
/// same, is decided by one load.
static LIMIT: AtomicU8 = AtomicU8::new(Level::Info as u8);
/// Added to [`LIMIT`] if some module has a level of its own.
const BY_MODULE: u8 = 0x80;
/// [`Output`], where every line can see it at once.
static OUTPUT: AtomicU8 = AtomicU8::new(Output::Text as u8);

/// Gives the log its clock; lines before are stamped 0.
pub(crate) fn set_clock(clock: fn() -> Stamp) {
    STAMP.call_once(|| clock);
}

/// Names who is told that there is a new line. Called under any lock and on any CPU, so it only leaves a note.
pub(crate) fn set_listener(listener: fn()) {
    LISTENER.call_once(|| listener);
}

/// Sets levels and output as the command line's `log=` says: a list of `text`, `frames` or `off`, `second` for
/// the second UART, a level for all modules, and `module=level`, separated by commas. Counts once.
///
/// # Errors
/// Names the part that is none of these; nothing is changed.
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

/// Where lines go besides the ring.
pub(crate) fn output() -> Output {
    [Output::Off, Output::Frames]
        .into_iter()
        .find(|&output| OUTPUT.load(Ordering::Relaxed) == output as u8)
        .unwrap_or(Output::Text)
}

/// Whether lines are written as frames. For the macros.
#[doc(hidden)]
#[inline(always)]
pub(crate) fn is_in_frames() -> bool {
    OUTPUT.load(Ordering::Relaxed) == Output::Frames as u8
}

/// By which serial line they go.
pub(crate) fn line() -> Line {
    FILTER.get().map_or(Line::Console, Filter::line)
}

/// The ring, for reading.
pub(crate) fn ring() -> &'static Ring {
    &BALLAST_LOG
}

/// Time and CPU, once there is a clock.
fn stamp() -> Stamp {
    STAMP.get().map_or(Stamp::default(), |clock| clock())
}

/// Whether lines of `module` at `level` are kept. For the macros.
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

/// The part of a module's path that tells it from others.
fn short(module: &str) -> &str {
    module.strip_prefix("hyp::").or_else(|| module.strip_prefix("ballast::")).unwrap_or(module)
}

/// Logs that something failed.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_error {
    ($($argument:tt)*) => { $crate::__log!(Error, $($argument)*) };
}

/// Logs that something is not as it should be.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_warn {
    ($($argument:tt)*) => { $crate::__log!(Warn, $($argument)*) };
}

/// Logs what an operator wants to know.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_info {
    ($($argument:tt)*) => { $crate::__log!(Info, $($argument)*) };
}

/// Logs what a developer wants to know.
#[macro_export]
#[collapse_debuginfo(yes)]
macro_rules! log_debug {
    ($($argument:tt)*) => { $crate::__log!(Debug, $($argument)*) };
}

/// One line, if its module's level admits it.
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

/// One line as a frame.
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

/// One line, if its module's level admits it.
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
