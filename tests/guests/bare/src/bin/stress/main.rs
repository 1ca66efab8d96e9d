//! Uses all memory of a guest in every possible way on all CPUs at once, and checks every bit, while a hypervisor moves the
//! memory.
//!
//! Memory is divided into windows. In each round, the CPUs check the contents of the window from an earlier round, fill it with
//! a pattern of address and round, increment counters by exclusives, by LSE atomics if available and under a spin lock, check
//! random pages of all memory, run code that they write, use pages as translation tables, and read and write the window with
//! the MMU and the caches off. Work rotates, so that each page is written by one CPU and checked by others.
//!
//! Prints `stress round N errors N` after each round, `stress ERROR …` for the first errors, `stress filled N MiB` when each
//! page was written once, and, with the boot argument `rounds=N`, `stress done rounds N errors N` before it powers the machine
//! off. `window=MIB` is the size of a window (default 16), `memory=MIB` limits the memory, and `only=` with a list of
//! `atomics code tables uncached` limits the work besides filling and checking.

#![no_std]
#![no_main]

mod atomics;
mod code;
mod memory;
mod tables;
mod uncached;

use bare::platform::Platform;
use bare::random::{Random, mix};
use bare::sync::Barrier;
use bare::{mrs, say, smp, timer};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use memory::Memory;

bare::entry!(main);

/// Maximum number of errors that are printed.
const PRINTED: u64 = 30;

static ERRORS: AtomicU64 = AtomicU64::new(0);
static BARRIER: Barrier = Barrier::new();
static CPU_COUNT: AtomicUsize = AtomicUsize::new(1);
static MEMORY: bare::sync::Lock<Option<Memory>> = bare::sync::Lock::new(None);

/// The parameters of each part of a round.
pub(crate) struct Round {
    /// All pages.
    pub(crate) memory: Memory,
    /// This round, from 0.
    pub(crate) number: u64,
    /// First page of this round's window.
    pub(crate) first: usize,
    /// Pages in it.
    pub(crate) pages: usize,
    /// This CPU.
    pub(crate) cpu: usize,
    /// Number of CPUs.
    pub(crate) cpus: usize,
    /// This CPU's random numbers of this round.
    pub(crate) random: Random,
}

impl Round {
    /// Returns the pages of the window for this CPU at distribution `turn` of the work.
    pub(crate) fn share(&self, turn: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, end, step) = (self.first, self.first + self.pages, self.cpus);
        let offset = (self.cpu + turn + self.number as usize) % self.cpus;
        (first + offset..end).step_by(step)
    }

    /// Returns a random page of those that [`Round::share`] returns.
    pub(crate) fn any_of_share(&mut self, turn: usize) -> usize {
        let offset = (self.cpu + turn + self.number as usize) % self.cpus;
        let pages = (self.pages - offset).div_ceil(self.cpus);
        self.first + offset + self.random.below(pages as u64) as usize * self.cpus
    }

    /// Waits for all CPUs.
    pub(crate) fn barrier(&self) {
        BARRIER.wait(self.cpus);
    }
}

/// Counts an error, and prints the first ones.
pub(crate) fn error(what: core::fmt::Arguments<'_>) {
    if ERRORS.fetch_add(1, Ordering::Relaxed) < PRINTED {
        say!("stress ERROR cpu {} {}", smp::index(), what);
    }
}

fn main(platform: &'static Platform) {
    let memory = Memory::new(platform);
    let cpus = platform.cpu_count;
    CPU_COUNT.store(cpus, Ordering::Relaxed);
    *MEMORY.lock() = Some(memory);
    say!(
        "stress start cpus {} memory {} MiB windows {} LSE {}",
        cpus,
        memory.pages() >> 8,
        memory.windows(),
        if atomics::has_lse() { "yes" } else { "no" }
    );
    if memory.window_pages() < 4 * cpus || memory.windows() == 0 {
        say!("stress FAIL too little memory");
        return;
    }
    for index in 1..cpus {
        if let Err(error) = smp::start(index, work) {
            say!("stress FAIL CPU {} does not start: {}", index, error);
            return;
        }
    }
    work(0);
}

fn work(cpu: usize) {
    let (Some(platform), Some(memory)) = (bare::boot::platform(), *MEMORY.lock()) else {
        return;
    };
    let rounds = platform.number("rounds");
    let cpus = CPU_COUNT.load(Ordering::Relaxed);
    let chosen = platform.argument("only");
    let mut number = 0;
    while rounds.is_none_or(|rounds| number < rounds) {
        let window = (number % memory.windows() as u64) as usize;
        let mut round = Round {
            memory,
            number,
            first: window * memory.window_pages(),
            pages: memory.window_pages(),
            cpu,
            cpus,
            random: Random::new(mix(number << 8 | cpu as u64)),
        };
        run(&mut round, chosen);
        number += 1;
        if cpu == 0 {
            say!("stress round {} errors {}", number, ERRORS.load(Ordering::Relaxed));
            if number == memory.windows() as u64 {
                say!("stress filled {} MiB after {} ms", memory.pages() >> 8, milliseconds());
            }
        }
    }
    BARRIER.wait(cpus);
    if cpu == 0 {
        say!("stress done rounds {} errors {}", number, ERRORS.load(Ordering::Relaxed));
    }
}

fn run(round: &mut Round, chosen: Option<&str>) {
    let does = |part: &str| chosen.is_none_or(|list| list.split(',').any(|word| word == part));
    memory::check_and_fill(round);
    if does("atomics") {
        atomics::run(round);
    }
    memory::check_anywhere(round);
    if does("code") {
        code::run(round);
    }
    if does("tables") {
        tables::run(round);
    }
    if does("uncached") {
        uncached::run(round);
    }
    round.barrier();
}

fn milliseconds() -> u64 {
    mrs!("cntvct_el0") / (timer::frequency() / 1000).max(1)
}
