//! The pages, what each must hold, and the filling and checking of it.
//!
//! A page holds [`WORDS`] words of a pattern, keyed by the page's address and by the round that last filled it, which
//! follows from the number of the round: so that a page of long ago, though whole, is told from the last one. The last 64
//! bytes are counters (atomics.rs).

use crate::{Round, error};
use bare::platform::{Platform, Range};
use bare::random::mix;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;
/// Words of pattern in a page.
pub(crate) const WORDS: usize = (PAGE - 64) / 8;
/// Most ranges of memory.
const RANGES: usize = 16;
/// Random pages that each CPU checks in a round.
const SAMPLES: usize = 200;
/// From one word of a pattern to the next.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The memory that is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    ranges: [Range; RANGES],
    pages: usize,
    window_pages: usize,
}

impl Memory {
    /// All free memory of the platform, or as much as the boot arguments say.
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

    /// Pages in all windows.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Pages in one window.
    pub(crate) fn window_pages(&self) -> usize {
        self.window_pages
    }

    /// How many windows there are.
    pub(crate) fn windows(&self) -> usize {
        self.pages / self.window_pages
    }

    /// The address of page `index`.
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

    /// The round that last filled page `index` by the end of `round`'s filling, unless none has.
    pub(crate) fn filled_in(&self, index: usize, round: u64) -> Option<u64> {
        let (window, windows) = ((index / self.window_pages) as u64, self.windows() as u64);
        let last = round / windows * windows + window;
        if last <= round { Some(last) } else { last.checked_sub(windows) }
    }
}

/// The first word of the pattern of the page at `address`, filled in `round`.
pub(crate) fn key(address: usize, round: u64) -> u64 {
    mix(address as u64 ^ mix(round + 1))
}

/// The words of a page. Others write to it only between barriers, by themselves.
pub(crate) fn words(address: usize) -> *mut u64 {
    address as *mut u64
}

/// Word `index` of a pattern.
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

/// Checks what the last visit left in the window, then fills it anew; each page by two different CPUs, if there are two.
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
