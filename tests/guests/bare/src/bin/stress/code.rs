//! Code in pages of the window: written, run, changed, run again, and run by the next CPU; then the page is restored.

use crate::memory::{self, PAGE};
use crate::{Round, error};
use bare::cache;
use bare::random::mix;
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Number of pages in which each CPU runs code in a round.
const PAGES: usize = 8;
/// Number of changes of each function.
const CHANGES: u64 = 8;

/// Addresses of the functions that each CPU leaves for the next one.
static LEFT: [AtomicUsize; bare::platform::MAX_CPUS] =
    [const { AtomicUsize::new(0) }; bare::platform::MAX_CPUS];

pub(crate) fn run(round: &mut Round) {
    for turn in 0..PAGES {
        let page = round.any_of_share(0);
        let address = round.memory.address(page);
        // Anywhere in the page, including its end.
        let place = address + round.random.below(((memory::WORDS * 8 - 24) / 4) as u64) as usize / 4 * 4;
        for change in 0..CHANGES {
            let value = mix(place as u64 ^ round.number << 32 ^ change);
            write_function(place, value);
            call("own code", place, value);
        }
        if turn == 0 {
            let value = mix(place as u64);
            write_function(place, value);
            LEFT[round.cpu].store(place, Ordering::Release);
            round.barrier();
            let neighbour = LEFT[(round.cpu + 1) % round.cpus].load(Ordering::Acquire);
            // Fetched by a CPU that did not write it (Arm ARM, "Concurrent modification and execution of
            // instructions").
            bare::instruction!("isb");
            call("other's code", neighbour, mix(neighbour as u64));
            round.barrier();
        }
        memory::fill(address, round.number);
        debug_assert!(place + 24 <= address + PAGE);
    }
    round.barrier();
}

/// Writes `mov x0, value; ret`.
fn write_function(place: usize, value: u64) {
    for part in 0..4u32 {
        let bits = (value >> (16 * part)) as u32 & 0xffff;
        let opcode = if part == 0 { 0xd280_0000 } else { 0xf280_0000 };
        write_instruction(place + part as usize * 4, opcode | part << 21 | bits << 5);
    }
    write_instruction(place + 16, 0xd65f_03c0);
    cache::publish_code(place, 20);
}

fn write_instruction(place: usize, instruction: u32) {
    // SAFETY: in a page of this CPU's share, which no reference exists to.
    unsafe { (place as *mut u32).write_volatile(instruction) };
}

fn call(what: &str, place: usize, want: u64) {
    let got: u64;
    // SAFETY: `write_function` put a function there that changes x0 alone.
    unsafe { asm!("blr {}", in(reg) place, lateout("x0") got, clobber_abi("C")) };
    if got != want {
        error(format_args!("{what}: ipa {place:#x} returned {got:#x}, want {want:#x}"));
    }
}
