//! FP/SIMD registers belong to the guest: zero at first, and unchanged by every kind of trap and interrupt.

use crate::irq;
use crate::report::{check, equal, skip};
use bare::exception::{catch, class};
use bare::fp::{Vectors, load, store};
use bare::platform::{Host, Platform};
use bare::{gic, mrs, msr, psci, smp, timer};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

static OTHER_MAY_END: AtomicBool = AtomicBool::new(false);
static OTHER_ERRORS: AtomicU32 = AtomicU32::new(u32::MAX);

pub(crate) fn run(platform: &'static Platform) {
    if mrs!("id_aa64pfr0_el1") >> 16 & 0xf == 0xf {
        skip("fp", "no floating point here");
        return;
    }
    let first = store();
    check!(
        "fp_starts_empty",
        first.iter().all(|v| *v == [0, 0]),
        "{:x?}",
        first.iter().find(|v| **v != [0, 0])
    );
    preserved("fp_kept_over_hvc", 1, || {
        let _ = psci::call(psci::VERSION, 0, 0, 0);
    });
    preserved("fp_kept_over_mmio", 2, || {
        let _ = bare::mmio::read32(gic::distributor() + gic::register::TYPER);
    });
    irq::start();
    gic::enable(1);
    preserved("fp_kept_over_sgi", 3, || {
        irq::clear();
        gic::send_sgi(1, platform.cpus()[0]);
        irq::settle(1);
    });
    gic::enable(timer::VIRTUAL_INTID);
    preserved("fp_kept_over_timer", 4, || {
        irq::clear();
        timer::arm_virtual(timer::now());
        irq::settle(1);
    });
    irq::stop();
    control_registers();
    trap();
    other_cpu(platform);
    if platform.host == Host::Bare {
        load(&[[0; 2]; 32]);
    }
}

fn pattern(seed: u64) -> Vectors {
    core::array::from_fn(|index| {
        [bare::random::mix(seed << 8 | index as u64), !bare::random::mix(seed << 9 | index as u64)]
    })
}

fn preserved(name: &str, seed: u64, work: impl FnOnce()) {
    let want = pattern(seed);
    load(&want);
    work();
    let got = store();
    check!(name, got == want, "V{:?} changed", got.iter().zip(&want).position(|(a, b)| a != b));
}

fn control_registers() {
    msr!("S3_3_C4_C4_0", 0x03c0_0000);
    msr!("S3_3_C4_C4_1", 0x0800_001f);
    let _ = psci::call(psci::VERSION, 0, 0, 0);
    let _ = bare::mmio::read32(gic::distributor() + gic::register::TYPER);
    equal!("fp_control_kept", (mrs!("S3_3_C4_C4_0"), mrs!("S3_3_C4_C4_1")), (0x03c0_0000, 0x0800_001f));
    msr!("S3_3_C4_C4_0", 0);
    msr!("S3_3_C4_C4_1", 0);
}

/// Checks that the guest's own FP trap works, without interference by lazy switching in a hypervisor.
fn trap() {
    let before = pattern(5);
    load(&before);
    let enabled = mrs!("cpacr_el1");
    msr!("cpacr_el1", 0);
    let result = catch(|| bare::instruction!(".inst 0x9e660000 // fmov x0, d0", "nop"));
    msr!("cpacr_el1", enabled);
    check!(
        "fp_trapped_when_disabled",
        result.is_err_and(|caught| caught.class() == class::FP),
        "{:x?}",
        result
    );
    equal!("fp_kept_over_own_trap", store() == before, true);
}

/// Checks that the registers of two CPUs, which trap continuously, do not mix.
fn other_cpu(platform: &'static Platform) {
    if platform.cpu_count < 2 {
        skip("fp_of_two_cpus", "one CPU");
        return;
    }
    OTHER_MAY_END.store(false, Ordering::Relaxed);
    if let Err(error) = smp::start(1, |_| {
        OTHER_ERRORS.store(hold(6, || OTHER_MAY_END.load(Ordering::Relaxed)), Ordering::Release)
    }) {
        check!("fp_of_two_cpus", false, "CPU_ON says {}", error);
        return;
    }
    while !smp::is_running(1) {
        bare::sync::relax();
    }
    let mut rounds = 0;
    let own = hold(7, || {
        rounds += 1;
        rounds == 500
    });
    OTHER_MAY_END.store(true, Ordering::Relaxed);
    timer::wait_for(2_000_000, || OTHER_ERRORS.load(Ordering::Acquire) != u32::MAX);
    equal!("fp_of_two_cpus", (own, OTHER_ERRORS.load(Ordering::Acquire)), (0, 0));
    timer::wait_for(2_000_000, || psci::affinity_info(platform.cpus()[1]) == 1);
}

fn hold(seed: u64, mut ended: impl FnMut() -> bool) -> u32 {
    let want = pattern(seed);
    let mut errors = 0;
    while !ended() {
        load(&want);
        let _ = psci::call(psci::VERSION, 0, 0, 0);
        let _ = bare::mmio::read32(gic::distributor() + gic::register::TYPER);
        errors += u32::from(store() != want);
    }
    errors
}
