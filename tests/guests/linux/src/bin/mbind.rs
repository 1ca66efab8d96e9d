//! The time that Linux takes to move memory between two NUMA nodes by mbind(2) with MPOL_MF_MOVE. It is the init program of a
//! machine with two nodes.
//!
//! Prints `mbind UNIT PAGES NANOSECONDS` for units of 4 KiB and of 2 MiB (PAGES are of 4 KiB, for moves back and forth), then
//! `mbind done`, and powers off. Prints `mbind failed: …` on an error.

#![no_std]
#![no_main]

use core::fmt::{self, Write};
use linux::{Output, call, counter, frequency, number, power_off};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
/// Size of a move in bytes.
const SIZE: usize = 32 << 20;
/// Number of moves back and forth.
const ROUNDS: usize = 2;
/// Number of pages in a query of nodes.
const ASKED: usize = 512;

/// mmap: PROT_READ | PROT_WRITE; MAP_PRIVATE | MAP_ANONYMOUS.
const READ_WRITE: usize = 3;
const PRIVATE_ANONYMOUS: usize = 0x22;
/// madvise: MADV_HUGEPAGE, MADV_NOHUGEPAGE.
const ADVICE_HUGE: usize = 14;
const ADVICE_NO_HUGE: usize = 15;
/// mbind: MPOL_BIND; MPOL_MF_STRICT | MPOL_MF_MOVE.
const BIND: usize = 2;
const STRICT_MOVE: usize = 3;

core::arch::global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {main}", main = sym main);

extern "C" fn main() -> ! {
    let done = measure(PAGE, ADVICE_NO_HUGE).and_then(|()| measure(HUGE, ADVICE_HUGE));
    match done {
        Ok(()) => say(format_args!("mbind done\n")),
        Err((what, result)) => say(format_args!("mbind failed: {what}: {result}\n")),
    }
    power_off()
}

/// A failed call, with its result.
type Failure = (&'static str, isize);

fn measure(unit: usize, advice: usize) -> Result<(), Failure> {
    // SAFETY: new memory.
    let got = unsafe { call(number::MMAP, [0, SIZE + HUGE, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) };
    let start = (check("mmap", got)? as usize).next_multiple_of(HUGE);
    // SAFETY: selects the page size of the new memory.
    check("madvise", unsafe { call(number::MADVISE, [start, SIZE, advice, 0, 0, 0]) })?;
    bind(start, 0)?;
    for (index, page) in (start..start + SIZE).step_by(PAGE).enumerate() {
        // SAFETY: in the new memory.
        unsafe { (page as *mut usize).write_volatile(index) };
    }
    check_node(start, 0)?;
    let mut ticks = 0;
    for _ in 0..ROUNDS {
        for node in [1, 0] {
            let before = counter();
            bind(start, node)?;
            ticks += counter() - before;
            check_node(start, node)?;
        }
    }
    for (index, page) in (start..start + SIZE).step_by(PAGE).enumerate() {
        // SAFETY: in the new memory.
        if unsafe { (page as *const usize).read_volatile() } != index {
            return Err(("contents", index as isize));
        }
    }
    let nanoseconds = (u128::from(ticks) * 1_000_000_000 / u128::from(frequency())) as u64;
    say(format_args!("mbind {unit} {} {nanoseconds}\n", 2 * ROUNDS * SIZE / PAGE));
    Ok(())
}

/// Binds the memory to `node`, and moves it there.
fn bind(start: usize, node: usize) -> Result<(), Failure> {
    let nodes = 1usize << node;
    let bits = 8 * size_of_val(&nodes) + 1;
    let arguments = [start, SIZE, BIND, (&raw const nodes) as usize, bits, STRICT_MOVE];
    // SAFETY: the kernel reads the word of nodes.
    check("mbind", unsafe { call(number::MBIND, arguments) }).map(drop)
}

/// Returns true if all of the memory is on `node`.
fn check_node(start: usize, node: usize) -> Result<(), Failure> {
    for first in (start..start + SIZE).step_by(ASKED * PAGE) {
        let pages: [usize; ASKED] = core::array::from_fn(|index| first + index * PAGE);
        let mut found = [0i32; ASKED];
        let arguments = [0, ASKED, pages.as_ptr() as usize, 0, found.as_mut_ptr() as usize, 0];
        // SAFETY: the kernel reads the addresses and writes as many nodes.
        check("move_pages", unsafe { call(number::MOVE_PAGES, arguments) })?;
        if let Some(other) = found.iter().find(|found| **found != node as i32) {
            return Err(("node", *other as isize));
        }
    }
    Ok(())
}

fn check(what: &'static str, result: isize) -> Result<isize, Failure> {
    if (-4095..0).contains(&result) { Err((what, result)) } else { Ok(result) }
}

fn say(text: fmt::Arguments<'_>) {
    // An error of the console cannot be reported.
    let _ = Output.write_fmt(text);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say(format_args!("mbind failed: panic\n"));
    power_off()
}
