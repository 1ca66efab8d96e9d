//! The pages and their expected contents.
//!
//! A page holds [`WORDS`] words of a pattern, which depends on the page's address and on the round that last filled it. That
//! round follows from the number of the current one, so a stale page is detected. The last 64 bytes are counters (atomics.rs).

use crate::{Round, error};
use bare::platform::{Platform, Range};
use bare::random::mix;

/// Size of a page in bytes.
pub(crate) const PAGE: usize = 4096;
/// Number of words of the pattern in a page.
pub(crate) const WORDS: usize = (PAGE - 64) / 8;
/// Maximum number of ranges of memory.
const RANGES: usize = 16;
/// Number of random pages that each CPU checks in a round.
const SAMPLES: usize = 200;
/// Difference between consecutive words of a pattern.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The memory that is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    ranges: [Range; RANGES],
    pages: usize,
    window_pages: usize,
}

impl Memory {
    /// Returns all free memory of the platform, up to the limit of the boot arguments.
    pub(crate) fn new(platform: &Platform) -> Self {
        let mut ranges = [Range::default(); RANGES];
        let mut left = platform.number("memory").map_or(usize::MAX, |mebibytes| (mebibytes as usize) << 8);
        let mut pages = 0;
        for (slot, range) in ranges.iter_mut().zip(platform.free_ranges()) {
            let size = (range.size() / PAGE).min(left);
            *slot = Range::sized(range.start, size * PAGE);
            left -= size;
            pages += size;
        }
        let window_pages = ((platform.number("window").unwrap_or(16) as usize) << 8).clamp(1, pages.max(1));
        Self { ranges, pages: pages / window_pages * window_pages, window_pages }
    }

    /// Returns the number of pages in all windows.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the number of pages in a window.
    pub(crate) fn window_pages(&self) -> usize {
        self.window_pages
    }

    /// Returns the number of windows.
    pub(crate) fn windows(&self) -> usize {
        self.pages / self.window_pages
    }

    /// Returns the address of page `index`.
    pub(crate) fn address(&self, index: usize) -> usize {
        let mut left = index * PAGE;
        for range in &self.ranges {
            if left < range.size() {
                return range.start + left;
            }
            left -= range.size();
        }
        self.ranges[0].start
    }

    /// Returns the round that last filled page `index`, up to and including `round`, if any.
    pub(crate) fn filled_in(&self, index: usize, round: u64) -> Option<u64> {
        let (window, windows) = ((index / self.window_pages) as u64, self.windows() as u64);
        let last = round / windows * windows + window;
        if last <= round { Some(last) } else { last.checked_sub(windows) }
    }
}

/// Returns the first word of the pattern for the page at `address` in `round`.
pub(crate) fn key(address: usize, round: u64) -> u64 {
    mix(address as u64 ^ mix(round + 1))
}

/// Returns the words of a page. Only one CPU writes to it between barriers.
pub(crate) fn words(address: usize) -> *mut u64 {
    address as *mut u64
}

/// Returns word `index` of a pattern.
pub(crate) fn word(key: u64, index: usize) -> u64 {
    key.wrapping_add(STEP.wrapping_mul(index as u64))
}

/// Writes the pattern of `round` to the page at `address`.
pub(crate) fn fill(address: usize, round: u64) {
    let mut value = key(address, round);
    let page = words(address);
    for index in 0..WORDS {
        // SAFETY: free memory that no reference exists to, and this CPU's share of it.
        unsafe { page.wrapping_add(index).write_volatile(value) };
        value = value.wrapping_add(STEP);
    }
}

/// Checks the page at `address`, read at `alias`, against the pattern of `round`.
pub(crate) fn check_at(what: &str, alias: usize, address: usize, round: u64) {
    let mut value = key(address, round);
    let page = words(alias);
    for index in 0..WORDS {
        // SAFETY: as for `fill`.
        let got = unsafe { page.wrapping_add(index).read_volatile() };
        if got != value {
            // SAFETY: as before.
            let again = unsafe { page.wrapping_add(index).read_volatile() };
            error(format_args!(
                "{what}: ipa {:#x} word {index} is {got:#x}, then {again:#x}, want {value:#x} of round {round}",
                address + index * 8
            ));
            return;
        }
        value = value.wrapping_add(STEP);
    }
}

/// Checks the window's contents, then fills it again; by different CPUs for each page, if there are two.
pub(crate) fn check_and_fill(round: &Round) {
    if let Some(before) = round.number.checked_sub(1) {
        for page in round.share(0) {
            if let Some(filled) = round.memory.filled_in(page, before) {
                let address = round.memory.address(page);
                check_at("kept", address, address, filled);
            }
        }
    }
    round.barrier();
    for page in round.share(1) {
        fill(round.memory.address(page), round.number);
    }
    round.barrier();
    for page in round.share(2) {
        let address = round.memory.address(page);
        check_at("filled", address, address, round.number);
    }
}

/// Checks random pages of all memory.
pub(crate) fn check_anywhere(round: &mut Round) {
    let pages = round.memory.pages() as u64;
    for _ in 0..SAMPLES {
        let page = round.random.below(pages) as usize;
        if let Some(filled) = round.memory.filled_in(page, round.number) {
            let address = round.memory.address(page);
            check_at("sampled", address, address, filled);
        }
    }
    round.barrier();
}
