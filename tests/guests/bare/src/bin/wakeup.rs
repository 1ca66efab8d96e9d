//! Counts SGIs to a CPU that is being turned on: each must arrive once.
//!
//! In each round, CPU 0 turns CPU 1 on, waits in one of three ways, and sends it an SGI, all 16 in turn. CPU 1 takes the SGI,
//! reports it, and turns itself off. The ways are `affinity`, which polls AFFINITY_INFO until the CPU is on, `memory`, which
//! polls a word that CPU 1 writes with its first instructions, and `none`, which does not wait: the SGI is pending before.
//!
//! Prints `wakeup WAY rounds N lost N wrong N` for each way, then `wakeup done`, and powers the machine off. Boot
//! arguments: `rounds=N` (for each way, default 1000).

#![no_std]
#![no_main]

use bare::gic::{self, register};
use bare::platform::Platform;
use bare::{cache, mmio, psci, say, smp, sync, timer};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

bare::entry!(main);

/// The words that the CPUs share. CPU 1 has its MMU off, so CPU 0 cleans and invalidates around each access, and words of the two
/// CPUs do not share a cache line.
#[repr(C, align(1024))]
struct Shared {
    /// Set when CPU 1 runs.
    awake: AtomicU64,
    /// The first INTID plus [`CAME`]; 0 before, [`LOST`] if none arrived.
    first: AtomicU64,
    /// The next value of ICC_IAR1_EL1.
    second: AtomicU64,
    apart: [u64; 61],
    /// Set when CPU 0 has sent the SGI.
    sent: AtomicU64,
}

static SHARED: Shared = Shared {
    awake: AtomicU64::new(0),
    first: AtomicU64::new(0),
    second: AtomicU64::new(0),
    apart: [0; 61],
    sent: AtomicU64::new(0),
};

/// Offset that marks an INTID.
const CAME: u64 = 0x1000;
/// No interrupt arrived.
const LOST: u64 = 1;
/// Number of times that CPU 1 looks for an interrupt before it counts as lost.
const LOOKS: u64 = 100_000;

core::arch::global_asm!(
    r#"
/* CPU 1, each time: x0 = the shared words, MMU off, everything masked. */
.global wakeup_target
wakeup_target:
    mov     x1, #1
    str     x1, [x0]
    mov     x2, #0xff
    msr     icc_pmr_el1, x2
    msr     icc_ctlr_el1, xzr
    msr     icc_igrpen1_el1, x1
    isb
    ldr     x4, ={looks}
1:  mrs     x3, icc_iar1_el1
    cmp     x3, #1023
    b.ne    2f
    yield
    ldr     x5, [x0, #{sent}]
    cbz     x5, 1b                      /* not sent yet */
    subs    x4, x4, #1
    b.ne    1b
    mov     x3, #{lost}
    b       3f
2:  dsb     sy
    msr     icc_eoir1_el1, x3
    isb
    mrs     x6, icc_iar1_el1
    str     x6, [x0, #{second}]
    add     x3, x3, #{came}
3:  dsb     sy
    str     x3, [x0, #{first}]
    dsb     sy
    mov     w0, #0x84000000             /* CPU_OFF */
    add     w0, w0, #2
    hvc     #0
4:  wfi
    b       4b
    .ltorg
"#,
    looks = const LOOKS,
    lost = const LOST,
    came = const CAME,
    sent = const offset_of!(Shared, sent),
    first = const offset_of!(Shared, first),
    second = const offset_of!(Shared, second),
);

unsafe extern "C" {
    fn wakeup_target();
}

/// The way in which CPU 0 waits between CPU_ON and the SGI.
#[derive(Clone, Copy)]
enum Way {
    Affinity,
    Memory,
    None,
}

fn main(platform: &'static Platform) {
    let Some(&target) = platform.cpus().get(1) else {
        say!("wakeup FAIL one CPU");
        return;
    };
    // Its redistributor keeps its state while it is off.
    if let Err(error) = smp::start(1, |_| {}) {
        say!("wakeup FAIL CPU_ON says {}", error);
        return;
    }
    while gic::redistributor(1) == 0 {
        sync::relax();
    }
    wait_until_off(target);
    let frame = gic::redistributor(1) + register::GICR_SGI;
    mmio::write32(frame + register::ISENABLER, 0xffff);
    let rounds = platform.number("rounds").unwrap_or(1000);
    for (name, way) in [("affinity", Way::Affinity), ("memory", Way::Memory), ("none", Way::None)] {
        let (mut lost, mut wrong) = (0, 0);
        for round in 0..rounds {
            let sgi = (round % 16) as u32;
            match run(target, way, sgi) {
                Some((first, 1023)) if first == u64::from(sgi) => {}
                Some(_) => wrong += 1,
                None => lost += 1,
            }
        }
        say!("wakeup {} rounds {} lost {} wrong {}", name, rounds, lost, wrong);
    }
    say!("wakeup done");
}

/// Runs one round. Returns the first two INTIDs that CPU 1 acknowledged, or `None` if none arrived.
fn run(target: u64, way: Way, sgi: u32) -> Option<(u64, u64)> {
    for word in [&SHARED.awake, &SHARED.first, &SHARED.second, &SHARED.sent] {
        word.store(0, Ordering::Relaxed);
        publish(word);
    }
    let context = core::ptr::from_ref(&SHARED) as u64;
    let result = psci::cpu_on(target, wakeup_target as *const () as usize, context);
    if result != psci::result::SUCCESS {
        say!("wakeup FAIL CPU_ON says {}", result);
        return None;
    }
    interrupt_soon();
    match way {
        Way::Affinity => {
            while psci::affinity_info(target) != 0 {
                sync::relax();
            }
        }
        Way::Memory => {
            while load(&SHARED.awake) == 0 {
                sync::relax();
            }
        }
        Way::None => {}
    }
    gic::send_sgi(sgi, target);
    bare::instruction!("dsb sy");
    SHARED.sent.store(1, Ordering::Relaxed);
    publish(&SHARED.sent);
    let first = loop {
        match load(&SHARED.first) {
            0 => sync::relax(),
            first => break first,
        }
    };
    let second = load(&SHARED.second);
    wait_until_off(target);
    (first != LOST).then(|| (first - CAME, second))
}

/// Arms the timer, whose interrupt is disabled, for a near and varying time. An emulator that runs one CPU at a time then switches
/// to CPU 0, at different points of CPU 1's way into the guest.
fn interrupt_soon() {
    static TURNS: AtomicU64 = AtomicU64::new(0);
    let turn = TURNS.fetch_add(1, Ordering::Relaxed);
    timer::arm_virtual(timer::now() + 1 + bare::random::mix(turn) % 400);
}

fn wait_until_off(target: u64) {
    while psci::affinity_info(target) != 1 {
        sync::relax();
    }
}

/// Makes a shared word visible to CPU 1, whose caches are off.
fn publish(word: &AtomicU64) {
    cache::clean_invalidate(core::ptr::from_ref(word) as usize, size_of::<AtomicU64>());
}

/// Reads a shared word that CPU 1 has written.
fn load(word: &AtomicU64) -> u64 {
    publish(word);
    word.load(Ordering::Acquire)
}
