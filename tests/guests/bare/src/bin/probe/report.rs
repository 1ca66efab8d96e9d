//! Counts and prints checks.

use bare::say;
use core::fmt::Arguments;
use core::sync::atomic::{AtomicU32, Ordering};

static OK: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Counts a check and prints it. Used through [`check!`].
pub(crate) fn note(name: &str, holds: bool, detail: Arguments<'_>) {
    if holds {
        OK.fetch_add(1, Ordering::Relaxed);
        say!("probe {} ok", name);
    } else {
        FAILED.fetch_add(1, Ordering::Relaxed);
        say!("probe {} FAIL {}", name, detail);
    }
}

/// Prints that a check does not apply.
pub(crate) fn skip(name: &str, reason: &str) {
    say!("probe {} skip {}", name, reason);
}

/// Prints the sums.
pub(crate) fn close() {
    say!("probe done {} ok {} failed", OK.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
}

/// `check!(name, condition, format…)`: a check that holds if the condition is true.
macro_rules! check {
    ($name:expr, $holds:expr, $($detail:tt)+) => {
        $crate::report::note($name, $holds, format_args!($($detail)+))
    };
}

/// `equal!(name, got, want)`: a check that holds if both values are equal.
macro_rules! equal {
    ($name:expr, $got:expr, $want:expr) => {{
        let (got, want) = ($got, $want);
        $crate::report::note($name, got == want, format_args!("got {:x?}, want {:x?}", got, want))
    }};
}

pub(crate) use {check, equal};
