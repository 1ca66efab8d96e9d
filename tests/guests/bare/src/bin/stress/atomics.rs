//! Counters in every page, which all CPUs increment at once: by exclusives, by LSE atomics, by pairs, under a lock. No increment
//! may be lost.

use crate::memory::PAGE;
use crate::{Round, error};
use bare::mrs;
use core::arch::asm;

/// Number of increments of each CPU in each page, for each kind.
const TIMES: u64 = 4;

/// The last 64 bytes of a page.
#[repr(C)]
struct Counters {
    exclusive: u64,
    atomic: u64,
    pair: [u64; 2],
    lock: u64,
    locked: [u64; 2],
    swapped: u64,
}

/// Returns true if the CPU has LSE atomics.
pub(crate) fn has_lse() -> bool {
    mrs!("id_aa64isar0_el1") >> 20 & 0xf >= 2
}

/// Initialises all counters of the window for the round, increments them on all CPUs, and checks the sums.
pub(crate) fn run(round: &mut Round) {
    for page in round.share(0) {
        let counters = counters(round.memory.address(page));
        let start = start(round);
        // SAFETY: the end of a page of this CPU's share; no reference to it exists anywhere.
        unsafe {
            counters.write_volatile(Counters {
                exclusive: start,
                atomic: start,
                pair: [start, !start],
                lock: 0,
                locked: [start, !start],
                swapped: start,
            });
        }
    }
    round.barrier();
    let lse = has_lse();
    // Each CPU starts at a different page, and visits all.
    let offset = round.random.below(round.pages as u64) as usize;
    for index in 0..round.pages {
        let page = round.first + (index + offset) % round.pages;
        count(counters(round.memory.address(page)), lse);
    }
    round.barrier();
    for page in round.share(1) {
        check(round, page, lse);
    }
    round.barrier();
}

fn start(round: &Round) -> u64 {
    bare::random::mix(round.number)
}

fn counters(page: usize) -> *mut Counters {
    (page + PAGE - size_of::<Counters>()) as *mut Counters
}

fn count(counters: *mut Counters, lse: bool) {
    for _ in 0..TIMES {
        // SAFETY: counters that all CPUs access in these ways only, until the barrier.
        unsafe {
            add_exclusive(&raw mut (*counters).exclusive);
            add_pair(&raw mut (*counters).pair);
            add_locked(&raw mut (*counters).lock, &raw mut (*counters).locked);
            if lse {
                add_atomic(&raw mut (*counters).atomic, &raw mut (*counters).swapped);
            }
        }
    }
}

fn check(round: &Round, page: usize, lse: bool) {
    let address = round.memory.address(page);
    // SAFETY: all CPUs are past the barrier.
    let got = unsafe { counters(address).read_volatile() };
    let start = start(round);
    let want = start.wrapping_add(TIMES * round.cpus as u64);
    let want_lse = if lse { want } else { start };
    for (what, got, want) in [
        ("exclusive", got.exclusive, want),
        ("atomic", got.atomic, want_lse),
        ("compare-and-swap", got.swapped, want_lse),
        ("pair", got.pair[0], want),
        ("pair's other", got.pair[1], !want),
        ("lock", got.lock, 0),
        ("locked", got.locked[0], want),
        ("locked other", got.locked[1], !want),
    ] {
        if got != want {
            error(format_args!(
                "counter by {what}: ipa {address:#x} holds {got:#x}, want {want:#x}, round {}",
                round.number
            ));
        }
    }
}

/// # Safety
/// `counter` must be accessible memory that is otherwise accessed atomically only.
unsafe fn add_exclusive(counter: *mut u64) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "1: ldxr {v}, [{a}]", "add {v}, {v}, #1", "stxr {s:w}, {v}, [{a}]", "cbnz {s:w}, 1b",
            a = in(reg) counter, v = out(reg) _, s = out(reg) _, options(nostack)
        );
    }
}

/// Increments the first and decrements the second atomically.
///
/// # Safety
/// As for `add_exclusive`, aligned to 16 bytes.
unsafe fn add_pair(pair: *mut [u64; 2]) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "1: ldaxp {v}, {w}, [{a}]", "add {v}, {v}, #1", "sub {w}, {w}, #1",
            "stlxp {s:w}, {v}, {w}, [{a}]", "cbnz {s:w}, 1b",
            a = in(reg) pair, v = out(reg) _, w = out(reg) _, s = out(reg) _, options(nostack)
        );
    }
}

/// Increments with plain loads and stores under a lock that is taken with exclusives.
///
/// # Safety
/// `values` must be accessed under `lock` only.
unsafe fn add_locked(lock: *mut u64, values: *mut [u64; 2]) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "1: ldaxr {v}, [{l}]", "cbnz {v}, 2f", "stxr {s:w}, {o}, [{l}]", "cbz {s:w}, 3f",
            "2: yield", "b 1b",
            "3: ldp {v}, {s}, [{a}]", "add {v}, {v}, #1", "sub {s}, {s}, #1", "stp {v}, {s}, [{a}]",
            "stlr xzr, [{l}]",
            l = in(reg) lock, a = in(reg) values, o = in(reg) 1u64, v = out(reg) _, s = out(reg) _, options(nostack)
        );
    }
}

/// # Safety
/// As for `add_exclusive`; the CPU must have LSE atomics.
unsafe fn add_atomic(counter: *mut u64, swapped: *mut u64) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            ".arch_extension lse",
            "ldaddal {o}, {v}, [{a}]",
            "ldr {v}, [{c}]",
            "1: mov {w}, {v}", "add {n}, {v}, #1", "casal {v}, {n}, [{c}]", "cmp {v}, {w}", "b.ne 1b",
            a = in(reg) counter, c = in(reg) swapped, o = in(reg) 1u64,
            v = out(reg) _, w = out(reg) _, n = out(reg) _, options(nostack)
        );
    }
}
