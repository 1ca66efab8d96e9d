//! A guest whose RAM is migrated.
//!
//! Prints `tenant ready` and sleeps without end. Boot arguments: `write=1` (writes to every page of its RAM repeatedly);
//! `wait=N` (all CPUs wait repeatedly by WFIT for N microseconds, and it regularly prints `tenant waits N late N of N`: the
//! number of waits, the largest delay after a deadline, and the length of a wait, in ticks).

#![no_std]
#![no_main]

use bare::platform::Platform;
use bare::{boot, mrs, say, smp, timer};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

bare::entry!(main);

const PAGE: usize = 4096;

fn main(platform: &'static Platform) {
    if let Some(microseconds) = platform.number("wait") {
        if mrs!("id_aa64isar2_el1") & 0xf == 0 {
            say!("tenant FAIL no WFIT");
            return;
        }
        smp::start_all(wait);
        say!("tenant ready");
        report_waits(timer::ticks(microseconds));
    }
    say!("tenant ready");
    let mut round = 0;
    while platform.number("write") == Some(1) {
        round += 1;
        for range in platform.free_ranges() {
            for address in (range.start..range.end).step_by(PAGE) {
                // SAFETY: free RAM without other users.
                unsafe { (address as *mut u64).write_volatile(round) };
            }
        }
    }
    loop {
        bare::instruction!("wfi");
    }
}

/// Number of waits, and the largest delay after a deadline in ticks.
static WAITS: AtomicU64 = AtomicU64::new(0);
static LATE: AtomicU64 = AtomicU64::new(0);

/// Runs the other CPUs while CPU 0 reports.
fn wait(_index: usize) {
    let microseconds = boot::platform().and_then(|platform| platform.number("wait")).unwrap_or(1000);
    loop {
        wait_once(timer::ticks(microseconds));
    }
}

fn report_waits(length: u64) -> ! {
    loop {
        (0..20).for_each(|_| wait_once(length));
        let (waits, late) = (WAITS.load(Ordering::Relaxed), LATE.load(Ordering::Relaxed));
        say!("tenant waits {} late {} of {}", waits, late, length);
    }
}

/// Waits for `length` ticks by WFIT, which may end early, and records the delay of the end.
fn wait_once(length: u64) {
    let deadline = timer::now() + length;
    let mut now = timer::now();
    while now < deadline {
        // SAFETY: WFIT x0; a hint with a register that changes nothing.
        unsafe { asm!(".inst 0xd5031020", in("x0") deadline, options(nostack, nomem)) };
        now = timer::now();
    }
    WAITS.fetch_add(1, Ordering::Relaxed);
    LATE.fetch_max(now - deadline, Ordering::Relaxed);
}
