//! Counts interrupts between CPUs under load: none may be lost or arrive twice.
//!
//! In each round, every CPU sends an SGI to every other one, which answers with another. It sends one to itself, makes an SPI
//! pending that the next CPU takes, and sleeps in WFI until all answers have arrived, while its timer fires. Handlers of SGIs
//! and SPIs can be interrupted by the timer. Each pair of CPUs has one outstanding interrupt, so that none can merge with an
//! earlier one.
//!
//! Prints `irqload cpu N …` for each CPU and `irqload done cpus N rounds N ipis N self N spis N timers N lost N`, and powers the
//! machine off. Boot arguments: `rounds=N` (default 2000), `forever=1` (prints a line after each number of rounds, without
//! end), `patience=S` (seconds after which a missing answer counts as lost; default 20).

#![no_std]
#![no_main]

use bare::gic::{self, register};
use bare::platform::Platform;
use bare::random::Random;
use bare::sync::Barrier;
use bare::{exception, mrs, msr, say, smp, timer};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

bare::entry!(main);

/// Sender and receiver each have an SGI number of their own.
const CPUS: usize = 7;
const SGI_REQUEST: u32 = 0;
const SGI_ANSWER: u32 = 7;
const SGI_SELF: u32 = 15;
/// First of the SPIs that have no device on any platform.
const FIRST_SPI: u32 = 40;
/// Default time in seconds after which a missing answer counts as lost.
const PATIENCE: u64 = 20;
/// The timer's period in microseconds.
const PERIOD: u64 = 500;

/// The counters of a CPU, in its own cache lines.
#[repr(C, align(256))]
struct Counts {
    requests: [AtomicU64; CPUS],
    answers: [AtomicU64; CPUS],
    own: AtomicU64,
    spis: AtomicU64,
    timers: AtomicU64,
    early: AtomicU64,
    spurious: AtomicU64,
    unknown: AtomicU64,
    lost: AtomicU64,
    sent: AtomicU64,
}

static COUNTS: [Counts; CPUS] = [const {
    Counts {
        requests: [const { AtomicU64::new(0) }; CPUS],
        answers: [const { AtomicU64::new(0) }; CPUS],
        own: AtomicU64::new(0),
        spis: AtomicU64::new(0),
        timers: AtomicU64::new(0),
        early: AtomicU64::new(0),
        spurious: AtomicU64::new(0),
        unknown: AtomicU64::new(0),
        lost: AtomicU64::new(0),
        sent: AtomicU64::new(0),
    }
}; CPUS];

static BARRIER: Barrier = Barrier::new();
static CPU_COUNT: AtomicUsize = AtomicUsize::new(1);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static PATIENCE_US: AtomicU64 = AtomicU64::new(0);

fn main(platform: &'static Platform) {
    let count = platform.cpu_count.min(CPUS);
    let rounds = platform.number("rounds").unwrap_or(2000);
    CPU_COUNT.store(count, Ordering::Relaxed);
    let patience = platform.number("patience").unwrap_or(PATIENCE);
    PATIENCE_US.store(patience * 1_000_000, Ordering::Relaxed);
    ROUNDS.store(rounds, Ordering::Release);
    say!("irqload start cpus {} rounds {}", count, rounds);
    for index in 1..count {
        if let Err(error) = smp::start(index, load) {
            say!("irqload FAIL CPU {} does not start: {}", index, error);
            return;
        }
    }
    prepare(0);
    BARRIER.wait(count);
    let mut total = 0;
    loop {
        run(0, total, rounds);
        total += rounds;
        BARRIER.wait(count);
        if platform.number("forever").is_none() {
            break;
        }
        report(count, total);
        BARRIER.wait(count);
    }
    bare::register::mask_interrupts();
    report(count, total);
}

/// Runs the other CPUs.
fn load(index: usize) {
    let count = CPU_COUNT.load(Ordering::Relaxed);
    let rounds = ROUNDS.load(Ordering::Acquire);
    let forever = bare::boot::platform().is_some_and(|platform| platform.number("forever").is_some());
    prepare(index);
    BARRIER.wait(count);
    let mut total = 0;
    loop {
        run(index, total, rounds);
        total += rounds;
        // Other CPUs may still need answers while this one waits: interrupts stay on.
        BARRIER.wait(count);
        if !forever {
            return;
        }
        BARRIER.wait(count);
    }
}

fn prepare(index: usize) {
    exception::on_irq(handle);
    for sgi in 0..16 {
        gic::enable(sgi);
    }
    gic::enable(timer::VIRTUAL_INTID);
    gic::set_priority(timer::VIRTUAL_INTID, 0x40);
    let spi = FIRST_SPI + index as u32;
    let next = (index + 1) % CPU_COUNT.load(Ordering::Relaxed);
    gic::set_bit(register::ICPENDR, spi);
    gic::set_edge(spi, 1);
    gic::route(spi, affinity(next));
    gic::enable(spi);
    timer::arm_virtual(timer::now() + timer::ticks(PERIOD));
    bare::register::unmask_interrupts();
}

fn affinity(index: usize) -> u64 {
    bare::boot::platform().map_or(0, |platform| platform.cpus()[index])
}

fn run(index: usize, before: u64, rounds: u64) {
    let count = CPU_COUNT.load(Ordering::Relaxed);
    let own = &COUNTS[index];
    let next = &COUNTS[(index + 1) % count];
    let others = || (0..count).filter(move |&other| other != index);
    let mut random = Random::new(index as u64 + 77);
    for round in before + 1..=before + rounds {
        for other in others() {
            gic::send_sgi(SGI_REQUEST + index as u32, affinity(other));
            own.sent.fetch_add(1, Ordering::Relaxed);
        }
        gic::send_sgi(SGI_SELF, affinity(index));
        gic::set_bit(register::ISPENDR, FIRST_SPI + index as u32);
        let timers = next.timers.load(Ordering::Relaxed);
        let answered = || {
            others().all(|other| own.answers[other].load(Ordering::Acquire) >= round)
                && own.own.load(Ordering::Acquire) >= round
                && next.spis.load(Ordering::Acquire) >= round
        };
        if !sleep_until(answered) {
            own.lost.fetch_add(1, Ordering::Relaxed);
            say!("irqload LOST cpu {} round {}: {}", index, round, Missing { index, round, timers });
            return;
        }
        if random.below(16) == 0 {
            timer::delay(random.below(30));
        }
    }
    // An emulator's timers may be late, but every interrupt must arrive.
    if !sleep_until(|| own.timers.load(Ordering::Relaxed) > 0) {
        say!("irqload LOST cpu {} timer", index);
    }
}

/// Sleeps in WFI until `done`, which it checks after every interrupt. Returns false after the patience has ended.
fn sleep_until(done: impl Fn() -> bool) -> bool {
    let start = timer::now();
    loop {
        bare::register::mask_interrupts();
        let ended = done();
        if !ended {
            bare::instruction!("dsb sy", "wfi");
        }
        bare::register::unmask_interrupts();
        if ended {
            return true;
        }
        if timer::now() - start > timer::ticks(PATIENCE_US.load(Ordering::Relaxed)) {
            return done();
        }
    }
}

fn handle() {
    let index = smp::index();
    let own = &COUNTS[index];
    let intid = gic::acknowledge();
    match intid {
        timer::VIRTUAL_INTID => {
            let due = mrs!("cntv_cval_el0");
            own.early.fetch_add(u64::from(timer::now() < due), Ordering::Relaxed);
            own.timers.fetch_add(1, Ordering::Relaxed);
            msr!("cntv_cval_el0", timer::now() + timer::ticks(PERIOD));
        }
        1020.. => {
            own.spurious.fetch_add(1, Ordering::Relaxed);
            return;
        }
        _ => {
            // The timer, which has a higher priority, may interrupt.
            bare::register::unmask_interrupts();
            count(own, index, intid);
            bare::register::mask_interrupts();
        }
    }
    gic::end(intid);
}

fn count(own: &Counts, index: usize, intid: u32) {
    let sender = intid.wrapping_sub(SGI_REQUEST) as usize;
    let receiver = intid.wrapping_sub(SGI_ANSWER) as usize;
    if intid == SGI_SELF {
        own.own.fetch_add(1, Ordering::Release);
    } else if intid >= FIRST_SPI && ((intid - FIRST_SPI) as usize) < CPUS {
        own.spis.fetch_add(1, Ordering::Release);
    } else if sender < CPUS {
        own.requests[sender].fetch_add(1, Ordering::Release);
        gic::send_sgi(SGI_ANSWER + index as u32, affinity(sender));
    } else if receiver < CPUS {
        own.answers[receiver].fetch_add(1, Ordering::Release);
    } else {
        own.unknown.fetch_add(1, Ordering::Relaxed);
    }
}

fn report(count: usize, rounds: u64) {
    let sum = |values: &[AtomicU64]| values.iter().map(|value| value.load(Ordering::Relaxed)).sum::<u64>();
    let (mut ipis, mut own_sum, mut spis, mut timers, mut wrong) = (0, 0, 0, 0, 0);
    for (index, counts) in COUNTS[..count].iter().enumerate() {
        let [own, spi, ticks, early, spurious, unknown, lost, sent] = [
            &counts.own,
            &counts.spis,
            &counts.timers,
            &counts.early,
            &counts.spurious,
            &counts.unknown,
            &counts.lost,
            &counts.sent,
        ]
        .map(|value| value.load(Ordering::Relaxed));
        let (requests, answers) = (sum(&counts.requests), sum(&counts.answers));
        say!(
            "irqload cpu {} sent {} received {} answered {} self {} spis {} timers {} early {} spurious {} unknown {} lost {}",
            index,
            sent,
            requests,
            answers,
            own,
            spi,
            ticks,
            early,
            spurious,
            unknown,
            lost
        );
        let expected = rounds * (count as u64 - 1);
        // Spurious interrupts are allowed; all other counts must be exact.
        wrong += [sent, requests, answers].iter().map(|value| value.abs_diff(expected)).sum::<u64>();
        wrong += own.abs_diff(rounds) + spi.abs_diff(rounds) + early + unknown + lost + u64::from(ticks == 0);
        ipis += requests + answers;
        own_sum += own;
        spis += spi;
        timers += ticks;
    }
    say!(
        "irqload done cpus {} rounds {} ipis {} self {} spis {} timers {} lost {}",
        count,
        rounds,
        ipis,
        own_sum,
        spis,
        timers,
        wrong
    );
}

/// The interrupts for which a round still waits, for a message.
struct Missing {
    index: usize,
    round: u64,
    /// Timer interrupts that the next CPU had taken when the round began.
    timers: u64,
}

impl core::fmt::Display for Missing {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let own = &COUNTS[self.index];
        let count = CPU_COUNT.load(Ordering::Relaxed);
        for other in (0..count).filter(|&other| other != self.index) {
            let answers = own.answers[other].load(Ordering::Relaxed);
            let requests = COUNTS[other].requests[self.index].load(Ordering::Relaxed);
            if answers < self.round {
                write!(formatter, "CPU {other} got {requests} requests, {answers} answers came; ")?;
            }
        }
        let next = &COUNTS[(self.index + 1) % count];
        let (spis, timers) = (next.spis.load(Ordering::Relaxed), next.timers.load(Ordering::Relaxed));
        write!(formatter, "self {}, SPIs {} taken, ", own.own.load(Ordering::Relaxed), spis)?;
        // A large number means that the interrupt is stuck, a small one that the CPU hardly ran.
        write!(formatter, "{} timer interrupts there meanwhile", timers - self.timers)
    }
}
