//! More pending interrupts than list registers: all are taken, once each, in the order of their priorities.

use crate::irq;
use crate::report::{check, equal};
use bare::gic::{self, register};
use bare::mmio;
use bare::platform::Platform;
use bare::random::Random;

/// First SPI of the checks; lower ones may have devices.
const FIRST: u32 = 96;

pub(crate) fn run(platform: &'static Platform) {
    irq::start();
    let last = gic::intid_count();
    // All SPIs if the distributor has few.
    let first = if last > FIRST + 40 { FIRST } else { 40 };
    for (name, count) in [("many_40", 40), ("many_all", last.saturating_sub(first))] {
        let count = count.min(last.saturating_sub(first));
        check!("many_enough_interrupts", count >= 16, "{} SPIs from {}", count, first);
        ordered(name, first, count, platform.cpus()[0]);
        equal_priorities(name, first, count);
        refill(name, first, count);
        nested(name, first, count);
        level(name, first, count);
        close(first, count);
    }
    private(platform);
    irq::stop();
}

fn priority(intid: u32) -> u32 {
    (intid.wrapping_mul(7) % 14 + 1) << 4
}

fn ordered(name: &str, first: u32, count: u32, own: u64) {
    let mut random = Random::new(u64::from(count));
    for intid in first..first + count {
        gic::set_priority(intid, priority(intid));
        gic::set_edge(intid, 1);
        gic::route(intid, own);
        gic::enable(intid);
    }
    irq::clear();
    let start = random.below(u64::from(count)) as u32;
    // Any coprime step visits all.
    let step = (1..count).rev().find(|step| coprime(*step, count)).unwrap_or(1);
    for index in 0..count {
        gic::set_bit(register::ISPENDR, first + (start + index * step) % count);
    }
    irq::settle(count as usize);
    judge(name, "in order", first, count, true);
}

fn coprime(mut a: u32, mut b: u32) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// Checks that each interrupt is taken once, and in order of priority if `sorted`.
fn judge(name: &str, what: &str, first: u32, count: u32, sorted: bool) {
    let mut seen = [0u8; irq::LOG_SIZE];
    let mut disorder = None;
    let mut foreign = None;
    for index in 0..irq::count().min(irq::LOG_SIZE) {
        let intid = irq::entry(index);
        match seen.get_mut(intid as usize) {
            Some(times) if (first..first + count).contains(&intid) => *times = times.saturating_add(1),
            _ => foreign = foreign.or(Some(intid)),
        }
        if index > 0 && priority(irq::entry(index - 1)) > priority(intid) {
            disorder = disorder.or(Some(index));
        }
    }
    let once = (first..first + count).filter(|&intid| seen[intid as usize] == 1).count();
    let holds = once == count as usize && foreign.is_none() && (!sorted || disorder.is_none());
    check!(
        name,
        holds,
        "{}: {} came, {} of {} once, first out of order {:?}, foreign {:?}",
        what,
        irq::count(),
        once,
        count,
        disorder,
        foreign
    );
    irq::clear();
}

fn equal_priorities(name: &str, first: u32, count: u32) {
    for intid in first..first + count {
        gic::set_priority(intid, gic::PRIORITY);
    }
    // All at once, by whole words.
    for intid in first..first + count {
        gic::set_bit(register::ISPENDR, intid);
    }
    irq::settle(count as usize);
    judge(name, "equal priorities", first, count, false);
}

/// Checks handlers that make the next interrupt pending, until all were taken twice.
fn refill(name: &str, first: u32, count: u32) {
    irq::set_action(|intid| {
        if irq::count() <= 40 {
            gic::set_bit(register::ISPENDR, intid);
        }
    });
    for intid in first..first + count.min(40) {
        gic::set_bit(register::ISPENDR, intid);
    }
    irq::settle(80);
    let wrong = (first..first + count.min(40))
        .find(|&intid| (0..irq::count()).filter(|&index| irq::entry(index) == intid).count() == 0);
    check!(
        name,
        irq::count() == 40 + count.min(40) as usize && wrong.is_none(),
        "refilled: {} came",
        irq::count()
    );
    irq::set_action(|_| {});
    irq::clear();
}

/// Checks nested handlers to the maximum depth of priorities, with all interrupts pending at once.
fn nested(name: &str, first: u32, count: u32) {
    for intid in first..first + count {
        gic::set_priority(intid, priority(intid));
    }
    irq::set_action(|_| {
        bare::register::unmask_interrupts();
        for _ in 0..20 {
            bare::sync::relax();
        }
        bare::register::mask_interrupts();
    });
    // The least urgent first, with interrupts unmasked.
    bare::register::unmask_interrupts();
    for level in (1..15).rev() {
        for intid in (first..first + count).filter(|&intid| priority(intid) == level << 4) {
            gic::set_bit(register::ISPENDR, intid);
        }
    }
    irq::settle(count as usize);
    irq::set_action(|_| {});
    judge(name, "nested", first, count, false);
    equal!("many_priority_dropped", bare::mrs!("icc_rpr_el1"), 0xff);
}

fn level(name: &str, first: u32, count: u32) {
    for intid in first..first + count {
        gic::disable(intid);
        gic::set_edge(intid, 0);
        gic::enable(intid);
        gic::set_bit(register::ISPENDR, intid);
    }
    irq::settle(count as usize);
    judge(name, "level-sensitive", first, count, true);
}

fn close(first: u32, count: u32) {
    let mut active = None;
    for intid in first..first + count {
        if gic::bit(register::ISACTIVER, intid) || gic::bit(register::ISPENDR, intid) {
            active = active.or(Some(intid));
        }
        gic::disable(intid);
        gic::set_edge(intid, 1);
        gic::set_priority(intid, gic::PRIORITY);
    }
    check!("many_all_idle_after", active.is_none(), "{:?}", active);
}

/// Checks all SGIs and the unused PPIs at once.
fn private(platform: &'static Platform) {
    const SET: u32 = 0xffff | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21;
    mmio::write32(gic::base_of(0) + register::ISENABLER, SET);
    for intid in 0..22 {
        gic::set_priority(intid, priority(intid));
    }
    for intid in 0..16 {
        gic::send_sgi(intid, platform.cpus()[0]);
    }
    mmio::write32(gic::base_of(0) + register::ISPENDR, SET & !0xffff);
    irq::settle(22);
    judge("many_private", "SGIs and PPIs", 0, 22, true);
    for intid in 0..22 {
        gic::set_priority(intid, gic::PRIORITY);
    }
}
