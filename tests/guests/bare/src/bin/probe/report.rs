//! Counting and printing of checks.

use bare::say;
use core::fmt::Arguments;
use core::sync::atomic::{AtomicU32, Ordering};

static OK: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Notes a check and prints it. Used through [`check!`].
pub(crate) fn note(name: &str, holds: bool, detail: Arguments<'_>) {
    if holds {
        OK.fetch_add(1, Ordering::Relaxed);
        say!("probe {} ok", name);
    } else {
        FAILED.fetch_add(1, Ordering::Relaxed);
        say!("probe {} FAIL {}", name, detail);
    }
}

/// Tells that a check makes no sense here.
pub(crate) fn skip(name: &str, reason: &str) {
    say!("probe {} skip {}", name, reason);
}

/// Prints the sums.
pub(crate) fn close() {
    say!("probe done {} ok {} failed", OK.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
}

/// `check!(name, condition, format…)`: the check with that name holds if the condition does.
macro_rules! check {
    ($name:expr, $holds:expr, $($detail:tt)+) => {
        $crate::report::note($name, $holds, format_args!($($detail)+))
    };
}

/// `equal!(name, got, want)`: the check holds if both are the same.
macro_rules! equal {
    ($name:expr, $got:expr, $want:expr) => {{
        let (got, want) = ($got, $want);
        $crate::report::note($name, got == want, format_args!("got {:x?}, want {:x?}", got, want))
    }};
}

pub(crate) use {check, equal};
