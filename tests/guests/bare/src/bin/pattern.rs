//! Fills all free memory with words that encode their addresses, for tests that search for them behind the controllers.
//! `limit=MIB` limits this to the first part of RAM.
//!
//! The word at address A is A ^ [`KEY`]. Prints `pattern filled FIRST PAGES` for each range and `pattern ready`; then, by
//! the boot argument `mode=`: `check` (the default) checks all words when a byte is typed, and prints
//! `pattern checked PAGES errors N`; `idle` sleeps without end; `write` writes to one page after the other without end, always
//! the same words.

#![no_std]
#![no_main]

use bare::platform::{Platform, Range};
use bare::{console, say, timer};

bare::entry!(main);

/// The mask that is combined with addresses.
const KEY: u64 = 0x5ca1_ab1e_0000_0000;
const PAGE: usize = 4096;

fn main(platform: &'static Platform) {
    for range in ranges(platform) {
        each_word(range, |word, value| {
            // SAFETY: free memory that no reference leads to.
            unsafe { word.write_volatile(value) };
        });
        say!("pattern filled {:#x} {}", range.start, range.size() / PAGE);
    }
    say!("pattern ready");
    match platform.argument("mode") {
        Some("idle") => loop {
            // SAFETY: waits for an interrupt; none is enabled.
            unsafe { core::arch::asm!("wfi", options(nomem, nostack)) };
        },
        Some("write") => loop {
            ranges(platform).for_each(write_pages);
        },
        _ => loop {
            if console::typed().is_some() {
                check(platform);
            }
            // The hypervisor may need the CPU.
            timer::sleep(2000);
        },
    }
}

fn ranges(platform: &Platform) -> impl Iterator<Item = Range> {
    let limit = platform.number("limit").map_or(usize::MAX, |mebibytes| (mebibytes as usize) << 20);
    let end = platform.ram()[0].start.saturating_add(limit);
    platform.free_ranges().filter_map(move |range| {
        (range.start < end).then_some(Range { start: range.start, end: range.end.min(end) })
    })
}

fn each_word(range: Range, mut f: impl FnMut(*mut u64, u64)) {
    let end = range.start + range.size() / PAGE * PAGE;
    for address in (range.start..end).step_by(8) {
        f(address as *mut u64, address as u64 ^ KEY);
    }
}

fn check(platform: &Platform) {
    let (mut errors, mut pages) = (0u64, 0);
    for range in ranges(platform) {
        pages += range.size() / PAGE;
        each_word(range, |word, value| {
            // SAFETY: as above.
            errors += u64::from(unsafe { word.read_volatile() } != value);
        });
    }
    say!("pattern checked {} errors {}", pages, errors);
}

/// Writes one word of each page, in an order with steps that are not powers of two, so that consecutive pages are far apart.
fn write_pages(range: Range) {
    let pages = range.size() / PAGE;
    for index in 0..pages {
        let address = range.start + (index * 509 % pages) * PAGE + index % 512 * 8;
        // SAFETY: as above.
        unsafe { (address as *mut u64).write_volatile(address as u64 ^ KEY) };
    }
}
