//! Interrupts between CPUs: routing of SPIs, SGIs to other CPUs, redistributors of other CPUs.

use crate::gic::{A, expect, pend, ready};
use crate::irq::{self, BY_CPU_1};
use crate::report::{check, equal, skip};
use bare::gic::{self, register};
use bare::platform::Platform;
use bare::{mmio, msr, psci, smp, timer};
use core::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn run(platform: &'static Platform) {
    routing(platform);
    other_cpu(platform);
}

static RELEASED: AtomicBool = AtomicBool::new(false);

/// Runs the second CPU: takes interrupts until it is released.
fn second(_index: usize) {
    // This also clears the log, when no interrupt is expected.
    irq::start();
    mmio::write32(gic::base_of(0) + register::ISENABLER, 0xffff);
    bare::register::unmask_interrupts();
    while !RELEASED.load(Ordering::Acquire) {
        bare::instruction!("wfi");
    }
}

fn with_second(platform: &Platform, work: impl FnOnce(u64)) -> bool {
    let Some(&other) = platform.cpus().get(1) else {
        return false;
    };
    RELEASED.store(false, Ordering::Release);
    if let Err(error) = smp::start(1, second) {
        check!("gic_second_cpu", false, "CPU_ON says {}", error);
        return true;
    }
    while !smp::is_running(1) {
        bare::sync::relax();
    }
    // It is ready when it answers SGI 15, which has no other use.
    timer::delay(1000);
    irq::clear();
    gic::send_sgi(15, other);
    timer::wait_for(1_000_000, || irq::count() > 0);
    irq::clear();
    work(other);
    RELEASED.store(true, Ordering::Release);
    let mut rounds = 0;
    while psci::affinity_info(other) != 1 && rounds < 1000 {
        gic::send_sgi(15, other);
        timer::delay(1000);
        rounds += 1;
    }
    irq::clear();
    true
}

fn routing(platform: &Platform) {
    let own = platform.cpus()[0];
    let done = with_second(platform, |other| {
        ready(A);
        gic::route(A, other);
        equal!(
            "gic_route_reads_back",
            mmio::read64(gic::distributor() + register::IROUTER + A as usize * 8),
            other
        );
        pend(A);
        expect("gic_routed_to_other", &[A | BY_CPU_1]);
        gic::route(A, own);
        pend(A);
        expect("gic_routed_back", &[A]);
        pend(A);
        gic::route(A, other);
        expect("gic_routed_while_pending", &[A | BY_CPU_1]);
        gic::route(A, own);
        one_of_n();
    });
    if !done {
        skip("gic_routing", "one CPU");
    }
    ready(A);
    gic::route(A, 0xfe_0000);
    pend(A);
    expect("gic_routed_to_nobody", &[]);
    gic::route(A, own);
    expect("gic_routed_from_nobody", &[A]);
}

fn one_of_n() {
    if mmio::read32(gic::distributor() + register::TYPER) & 1 << 25 != 0 {
        skip("gic_one_of_n", "GICD_TYPER.No1N");
        return;
    }
    gic::route(A, 1 << 31);
    let mut wrong = 0;
    for _ in 0..50 {
        pend(A);
        irq::settle(1);
        wrong += u32::from(irq::count() != 1 || irq::entry(0) & 0xffff != A);
        irq::clear();
    }
    equal!("gic_one_of_n", wrong, 0);
}

fn other_cpu(platform: &Platform) {
    let done = with_second(platform, |other| {
        gic::send_sgi(3, other);
        expect("gic_sgi_to_other", &[3 | BY_CPU_1]);
        msr!("icc_sgi1r_el1", 1 << 40 | 4 << 24);
        irq::settle(platform.cpu_count.min(2) - 1);
        equal!("gic_sgi_to_all_others", (irq::count(), irq::entry(0)), (1, 4 | BY_CPU_1));
        irq::clear();
        // The redistributor of the other CPU.
        let frame = gic::redistributor(1) + register::GICR_SGI;
        mmio::write32(frame + register::ICENABLER, 1 << 3);
        gic::send_sgi(3, other);
        expect("gic_disabled_at_other", &[]);
        equal!("gic_pending_at_other", mmio::read32(frame + register::ISPENDR) >> 3 & 1, 1);
        equal!("gic_not_pending_here", gic::bit(register::ISPENDR, 3), false);
        mmio::write32(frame + register::ISENABLER, 1 << 3);
        expect("gic_enabled_at_other", &[3 | BY_CPU_1]);
        mmio::write32(frame + register::ISPENDR, 1 << 5);
        expect("gic_made_pending_at_other", &[5 | BY_CPU_1]);
        mmio::write8(frame + register::IPRIORITYR + 7, 0x30);
        equal!(
            "gic_priorities_are_banked",
            mmio::read8(gic::base_of(7) + register::IPRIORITYR + 7),
            gic::PRIORITY
        );
    });
    if !done {
        skip("gic_other_cpu", "one CPU");
    }
}
