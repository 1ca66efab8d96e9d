//! Random operations from all CPUs at once: system registers and instructions by every encoding, hypercalls, and accesses of
//! every kind to the whole IPA space. None of it may harm the hypervisor or another guest.
//!
//! Boot arguments: `seed=N` determines the operations, `ops=N` their total number on all CPUs. Registers that the program
//! depends on (its translation, vectors, stack) are only written with their own values, calls that end a CPU or the machine are
//! not made, and its own memory is not overwritten. Prints `hostile start …`, and at the end `hostile NAME N caught N` for each
//! kind of operation and `hostile done ops N caught N rescued N`, and powers the machine off.
//!
//! With `mode=wild`, all operations are possible: it prints `hostile seed?`, reads a number and Return from the console, and
//! usually prints nothing after that.

#![no_std]
#![no_main]

mod accesses;
mod calls;
mod place;
mod registers;
mod slots;

use bare::exception::catch;
use bare::platform::{MAX_CPUS, Platform};
use bare::random::{Random, mix};
use bare::{console, exception, gic, mrs, msr, say, smp, timer};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use place::Window;
use slots::Operands;

bare::entry!(main);

/// Number of operations after which a CPU repairs its own state.
const BATCH: u64 = 32;
/// Time without progress after which a CPU counts as asleep, in microseconds.
const ASLEEP: u64 = 300_000;
/// Maximum number of interrupts in a batch.
const STORM: u64 = 64;

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Kind {
    /// MRS.
    RegisterRead,
    /// MSR.
    RegisterWrite,
    /// SYSL.
    SystemRead,
    /// SYS: maintenance, address translation.
    System,
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
    /// A load or store of one register.
    Single,
    /// A load or store with write-back of the base register, or an unprivileged one.
    Indexed,
    /// A load or store of a pair.
    Pair,
    /// Exclusives, and compare-and-swap, of one register and of pairs.
    Exclusive,
    /// Loads that acquire and stores that release.
    Ordered,
    /// Read-modify-write.
    Atomic,
    /// SIMD registers: one, pairs, structures.
    Simd,
    /// Maintenance of caches by address.
    Maintenance,
}

/// Names of the kinds, in their order.
pub(crate) const NAMES: [&str; 14] = [
    "mrs",
    "msr",
    "sysl",
    "sys",
    "hvc",
    "smc",
    "single",
    "indexed",
    "pair",
    "exclusive",
    "ordered",
    "atomic",
    "simd",
    "maintenance",
];

/// The statistics of a CPU, in its own cache lines.
#[repr(C, align(256))]
struct Counts {
    done: [AtomicU64; NAMES.len()],
    caught: [AtomicU64; NAMES.len()],
    /// Total number of operations.
    total: AtomicU64,
    /// Interrupts in this batch.
    interrupts: AtomicU64,
    is_finished: AtomicBool,
}

static COUNTS: [Counts; MAX_CPUS] = [const {
    Counts {
        done: [const { AtomicU64::new(0) }; NAMES.len()],
        caught: [const { AtomicU64::new(0) }; NAMES.len()],
        total: AtomicU64::new(0),
        interrupts: AtomicU64::new(0),
        is_finished: AtomicBool::new(false),
    }
}; MAX_CPUS];

static SEED: AtomicU64 = AtomicU64::new(0);
static SHARE: AtomicU64 = AtomicU64::new(0);
static IS_WILD: AtomicBool = AtomicBool::new(false);
static CPU_COUNT: AtomicUsize = AtomicUsize::new(1);
static RESCUES: AtomicU64 = AtomicU64::new(0);

/// A CPU at work.
pub(crate) struct Attacker {
    pub(crate) platform: &'static Platform,
    pub(crate) cpu: usize,
    pub(crate) random: Random,
    /// True if all operations are possible.
    pub(crate) is_wild: bool,
    pub(crate) window: Window,
}

fn main(platform: &'static Platform) {
    let is_wild = platform.argument("mode") == Some("wild");
    let seed = if is_wild { typed_number() } else { platform.number("seed").unwrap_or(1) };
    let ops = platform.number("ops").unwrap_or(100_000);
    let cpus = platform.cpu_count;
    say!("hostile start seed {} cpus {} ops {}", seed, cpus, ops);
    place::learn(platform);
    slots::fill(platform, &mut Random::new(mix(seed)));
    SEED.store(seed, Ordering::Relaxed);
    IS_WILD.store(is_wild, Ordering::Relaxed);
    SHARE.store(ops.div_ceil(cpus as u64), Ordering::Relaxed);
    CPU_COUNT.store(cpus, Ordering::Release);
    smp::start_all(attack);
    attack(0);
    while !(0..cpus).all(is_finished) {
        rescue_who_sleeps(platform);
    }
    // Undo the effects of random accesses to the interrupt controller and the PL011.
    bare::register::mask_interrupts();
    gic::restart(platform);
    console::open(platform.console());
    report(cpus);
}

/// Reads a number from the console.
fn typed_number() -> u64 {
    say!("hostile seed?");
    let mut number = 0u64;
    loop {
        match console::typed() {
            Some(b'\r' | b'\n') => return number,
            Some(byte @ b'0'..=b'9') => number = number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')),
            Some(_) => {}
            None => timer::sleep(1000),
        }
    }
}

fn is_finished(cpu: usize) -> bool {
    COUNTS[cpu].is_finished.load(Ordering::Acquire)
}

/// Runs a CPU.
fn attack(cpu: usize) {
    let Some(platform) = bare::boot::platform() else { return };
    exception::on_irq(take_irq);
    exception::on_fiq(take_fiq);
    let random = Random::new(mix(SEED.load(Ordering::Relaxed) ^ (cpu as u64 + 1) << 56));
    let is_wild = IS_WILD.load(Ordering::Relaxed);
    let mut attacker = Attacker { platform, cpu, random, is_wild, window: Window::of(cpu) };
    let own = &COUNTS[cpu];
    let share = SHARE.load(Ordering::Relaxed);
    let mut done = 0;
    while is_wild || done < share {
        attacker.mend();
        attacker.window.turn(&mut attacker.random);
        for _ in 0..BATCH {
            let (kind, slot, operands) = attacker.next();
            let result = catch(|| slots::run(slot, &operands));
            if result.is_ok() {
                registers::note(slot);
            }
            own.done[kind as usize].fetch_add(1, Ordering::Relaxed);
            own.caught[kind as usize].fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
        }
        done += BATCH;
        own.total.store(done, Ordering::Relaxed);
        if cpu == 0 {
            rescue_who_sleeps(platform);
        }
    }
    bare::register::mask_interrupts();
    timer::stop_virtual();
    timer::stop_physical();
    own.is_finished.store(true, Ordering::Release);
}

impl Attacker {
    /// Chooses the next operation.
    fn next(&mut self) -> (Kind, usize, Operands) {
        match self.random.below(10) {
            0..=2 => registers::choose(self),
            3 | 4 => calls::choose(self),
            _ => accesses::choose(self),
        }
    }

    /// Repairs this CPU's state after its last operations, except the choice of interrupts that it takes.
    fn mend(&mut self) {
        COUNTS[self.cpu].interrupts.store(0, Ordering::Relaxed);
        if self.is_wild {
            return;
        }
        // FP/SIMD usable.
        msr!("cpacr_el1", 3 << 20);
        msr!("icc_igrpen1_el1", 1);
        msr!("icc_pmr_el1", 0xff);
        // Every other time, pending interrupts are taken.
        msr!("daif", if self.random.below(2) == 0 { 0x300 } else { 0x3c0 });
    }
}

/// Sends an interrupt to CPUs without progress: another CPU may have disabled the interrupt that would have woken them from
/// CPU_SUSPEND.
fn rescue_who_sleeps(platform: &Platform) {
    static SEEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
    static SINCE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
    let now = timer::now();
    for cpu in 1..CPU_COUNT.load(Ordering::Relaxed) {
        let total = COUNTS[cpu].total.load(Ordering::Relaxed);
        if is_finished(cpu) || SEEN[cpu].swap(total, Ordering::Relaxed) != total {
            SINCE[cpu].store(now, Ordering::Relaxed);
        } else if now - SINCE[cpu].load(Ordering::Relaxed) > timer::ticks(ASLEEP) {
            SINCE[cpu].store(now, Ordering::Relaxed);
            RESCUES.fetch_add(1, Ordering::Relaxed);
            wake(platform, cpu);
        }
    }
}

/// Enables everything that an SGI to `cpu` needs, and sends one. It has to be this CPU that runs without exceptions meanwhile.
fn wake(platform: &Platform, cpu: usize) {
    use bare::mmio::write32;
    let frame = gic::redistributor(cpu) + gic::register::GICR_SGI;
    let _ = catch(|| {
        write32(platform.distributor + gic::register::CTLR, 1 << 4 | 3);
        write32(gic::redistributor(cpu) + gic::register::GICR_WAKER, 0);
        write32(frame + gic::register::ICACTIVER, 0xffff);
        write32(frame + gic::register::IGROUPR, u32::MAX);
        for intid in (0..16).step_by(4) {
            write32(frame + gic::register::IPRIORITYR + intid, gic::PRIORITY * 0x0101_0101);
        }
        write32(frame + gic::register::ISENABLER, 0xffff);
        for sgi in 0..16 {
            gic::send_sgi(sgi, platform.cpus()[cpu]);
        }
    });
}

fn take_irq() {
    let intid = gic::acknowledge();
    if intid < 1020 {
        gic::end(intid);
    }
    limit_interrupts();
}

fn take_fiq() {
    let intid = mrs!("icc_iar0_el1");
    msr!("icc_eoir0_el1", intid);
    limit_interrupts();
}

/// Handles an interrupt. A line that stays high would occupy the CPU, so it masks interrupts after a number of them, until the
/// next batch.
fn limit_interrupts() {
    let count = &COUNTS[smp::index()].interrupts;
    if count.fetch_add(1, Ordering::Relaxed) > STORM {
        msr!("icc_igrpen1_el1", 0);
        msr!("icc_igrpen0_el1", 0);
    }
}

fn report(cpus: usize) {
    let sum = |of: fn(&Counts, usize) -> u64, kind| {
        COUNTS[..cpus].iter().map(|counts| of(counts, kind)).sum::<u64>()
    };
    let (mut total, mut caught_total) = (0, 0);
    for (kind, name) in NAMES.iter().enumerate() {
        let done = sum(|counts, kind| counts.done[kind].load(Ordering::Relaxed), kind);
        let caught = sum(|counts, kind| counts.caught[kind].load(Ordering::Relaxed), kind);
        say!("hostile {} {} caught {}", name, done, caught);
        total += done;
        caught_total += caught;
    }
    let rescues = RESCUES.load(Ordering::Relaxed);
    say!("hostile done ops {} caught {} rescued {}", total, caught_total, rescues);
}
