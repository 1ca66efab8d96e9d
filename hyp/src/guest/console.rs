//! The monitor, with the real machine behind it.

/// The monitor's coroutine.
pub extern "C" fn run() -> ! {
    loop {
        crate::arch::monitor::wait(0);
    }
}
