//! Three CPUs that flood one CPU with interrupts as fast as possible.
//!
//! Boot arguments: `flood=sgi` (SGIs 0 to 6) or `flood=kick` (writes to the CPU's redistributor, which make a hypervisor kick
//! it), `target=N` (the flooded CPU; default 0). All CPUs except N and 0 send. CPU 3 always has a timer due soon, so that an
//! emulator which runs one CPU at a time switches between CPUs within a few hundred instructions.
//!
//! Prints `flood ready` and continues without end.

#![no_std]
#![no_main]

use bare::gic::{self, register};
use bare::platform::Platform;
use bare::sync::Barrier;
use bare::{boot, exception, mmio, msr, say, smp, timer};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

bare::entry!(main);

static TARGET: AtomicUsize = AtomicUsize::new(0);
static IS_KICK: AtomicBool = AtomicBool::new(false);
/// SGIs that a hypervisor may pass on directly.
const SGIS: u32 = 7;
const CPUS: usize = 4;
static BARRIER: Barrier = Barrier::new();
/// Time until the timer is due, in ticks.
const NEAR: u64 = 64;

fn main(platform: &'static Platform) {
    let target = platform.number("target").unwrap_or(0) as usize;
    TARGET.store(target, Ordering::Relaxed);
    IS_KICK.store(platform.argument("flood") == Some("kick"), Ordering::Relaxed);
    prepare();
    if smp::start_all(flood) != CPUS {
        say!("flood FAIL it takes four CPUs");
        return;
    }
    loop {
        bare::instruction!("nop");
    }
}

fn prepare() {
    exception::on_irq(|| {
        let intid = gic::acknowledge();
        if intid < 1020 {
            gic::end(intid);
        }
    });
    (0..SGIS).for_each(gic::enable);
    bare::register::unmask_interrupts();
}

fn flood(index: usize) {
    prepare();
    let target = TARGET.load(Ordering::Acquire);
    let affinity = boot::platform().map_or(0, |platform| platform.cpus()[target]);
    let enable = gic::redistributor(target) + register::GICR_SGI + register::ISENABLER;
    let mut sgi = 0;
    // CPU 0 starts the others before it is flooded.
    BARRIER.wait(CPUS - 1);
    if index == 3 {
        say!("flood ready");
    }
    if target != 0 && index == target {
        loop {
            bare::instruction!("nop");
        }
    }
    loop {
        if index == 3 {
            timer::arm_virtual(timer::now() + NEAR);
        }
        if IS_KICK.load(Ordering::Relaxed) {
            mmio::write32(enable, 1);
        } else {
            msr!("icc_sgi1r_el1", gic::sgi_target(sgi, affinity));
            sgi = (sgi + 1) % SGIS;
        }
    }
}
