//! The interrupt controller: an interrupt is taken once, in order, by the right CPU, if it is enabled, pending, not active, of
//! sufficient priority and in an enabled group; and otherwise not.

use crate::cpus;
use crate::irq::{self, AS_FIQ, END};
use crate::report::{check, equal, skip};
use bare::exception::catch;
use bare::gic::{self, register};
use bare::platform::Platform;
use bare::{mmio, mrs, msr, timer};
use core::sync::atomic::{AtomicU32, Ordering};

/// SPIs without a device, with unused neighbours.
pub(crate) const A: u32 = 70;
const B: u32 = 77;
const C: u32 = 84;

pub(crate) fn run(platform: &'static Platform) {
    if gic::intid_count() <= C {
        check!("gic_enough_interrupts", false, "{} in all", gic::intid_count());
        return;
    }
    irq::start();
    idle();
    sgis(platform);
    enable_and_pending(platform);
    active(platform);
    masks(platform);
    order(platform);
    preemption(platform);
    end_of_interrupt_mode_1(platform);
    group_0(platform);
    configuration();
    changes_while_pending(platform);
    cpus::run(platform);
    for intid in [A, B, C] {
        reset(intid);
    }
    irq::stop();
}

/// Resets an SPI to the library's state, and routes it to this CPU.
fn reset(intid: u32) {
    gic::disable(intid);
    gic::set_bit(register::ICPENDR, intid);
    gic::set_bit(register::ICACTIVER, intid);
    gic::set_priority(intid, gic::PRIORITY);
    gic::set_group(intid, 1);
    gic::set_edge(intid, 1);
    gic::route(intid, bare::register::affinity());
}

/// Resets and enables an SPI.
pub(crate) fn ready(intid: u32) {
    reset(intid);
    gic::enable(intid);
}

/// Makes an interrupt pending.
pub(crate) fn pend(intid: u32) {
    gic::set_bit(register::ISPENDR, intid);
}

/// Takes interrupts, and checks that exactly `entries` arrive in that order.
pub(crate) fn expect(name: &str, entries: &[u32]) {
    irq::settle(entries.len());
    check!(name, irq::came(entries), "{} came: {:?}, want {:?}", irq::count(), irq::entries(), entries);
    irq::clear();
}

fn idle() {
    equal!("gic_spurious", gic::acknowledge(), gic::SPURIOUS);
    equal!("gic_running_priority_idle", mrs!("icc_rpr_el1"), 0xff);
    equal!("gic_nothing_highest_pending", mrs!("icc_hppir1_el1"), u64::from(gic::SPURIOUS));
    equal!("gic_isr_idle", mrs!("isr_el1"), 0);
    let bits = (mrs!("icc_ctlr_el1") >> 8 & 7) + 1;
    check!("gic_priority_bits", (4..=8).contains(&bits), "{}", bits);
    let sre = catch(|| msr!("icc_sre_el1", 0));
    equal!("gic_system_registers_stay", (sre.is_ok(), mrs!("icc_sre_el1") & 1), (true, 1));
}

fn sgis(platform: &Platform) {
    let own = platform.cpus()[0];
    let mut wrong = None;
    for intid in 0..16 {
        gic::enable(intid);
        gic::send_sgi(intid, own);
        irq::settle(1);
        if !irq::came(&[intid]) {
            wrong = wrong.or(Some(intid));
        }
        irq::clear();
    }
    check!("gic_each_sgi", wrong.is_none(), "SGI {:?}", wrong);
    for _ in 0..3 {
        gic::send_sgi(5, own);
    }
    expect("gic_sgi_merged", &[5]);
    pend(6);
    expect("gic_sgi_by_register", &[6]);
    gic::send_sgi(7, own);
    gic::set_bit(register::ICPENDR, 7);
    expect("gic_sgi_taken_back", &[]);
    // To all other CPUs, not to this one.
    msr!("icc_sgi1r_el1", 1 << 40 | 8 << 24);
    expect("gic_sgi_to_others", &[]);
    msr!("icc_sgi1r_el1", gic::sgi_target(9, 0xfe_0000));
    expect("gic_sgi_to_nobody", &[]);
    irq::set_action(|_| {
        if irq::count() < 5 {
            gic::send_sgi(10, bare::register::affinity());
        }
    });
    gic::send_sgi(10, own);
    expect("gic_sgi_while_active", &[10; 5]);
    irq::set_action(|_| {});
    gic::enable(22);
    pend(22);
    expect("gic_ppi_by_register", &[22]);
    gic::disable(22);
    equal!("gic_sgi_configuration_fixed", mmio::read32(gic::base_of(0) + register::ICFGR), 0xaaaa_aaaa);
}

fn enable_and_pending(_platform: &Platform) {
    reset(A);
    pend(A);
    equal!(
        "gic_pending_reads_back",
        (gic::bit(register::ISPENDR, A), gic::bit(register::ICPENDR, A)),
        (true, true)
    );
    expect("gic_disabled_waits", &[]);
    equal!("gic_disabled_still_pending", gic::bit(register::ISPENDR, A), true);
    gic::enable(A);
    equal!(
        "gic_enable_reads_back",
        (gic::bit(register::ISENABLER, A), gic::bit(register::ICENABLER, A)),
        (true, true)
    );
    expect("gic_enabled_comes", &[A]);
    equal!("gic_taken_no_longer_pending", gic::bit(register::ISPENDR, A), false);
    expect("gic_comes_once", &[]);
    gic::disable(A);
    pend(A);
    gic::set_bit(register::ICPENDR, A);
    gic::enable(A);
    expect("gic_pending_taken_back", &[]);
    // The neighbours in the same word are unchanged.
    ready(A + 1);
    pend(A);
    gic::disable(A + 1);
    expect("gic_neighbour_disabled", &[A]);
    equal!(
        "gic_enable_of_zero_keeps",
        {
            mmio::write32(gic::distributor() + register::ISENABLER + A as usize / 32 * 4, 0);
            mmio::write32(gic::distributor() + register::ICENABLER + A as usize / 32 * 4, 0);
            gic::bit(register::ISENABLER, A)
        },
        true
    );
    reset(A + 1);
}

fn active(_platform: &Platform) {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    ready(A);
    irq::set_action(|intid| {
        let state = u32::from(gic::bit(register::ISACTIVER, intid)) << 1
            | u32::from(gic::bit(register::ISPENDR, intid));
        SEEN.store(state | (mrs!("icc_rpr_el1") as u32) << 8, Ordering::Relaxed);
    });
    pend(A);
    expect("gic_active_taken", &[A]);
    let seen = SEEN.load(Ordering::Relaxed);
    equal!("gic_active_in_handler", seen & 3, 2);
    equal!("gic_running_priority", seen >> 8, gic::PRIORITY);
    equal!("gic_inactive_after_handler", gic::bit(register::ISACTIVER, A), false);
    irq::set_action(|intid| {
        if irq::count() < 3 {
            pend(intid);
        }
    });
    pend(A);
    expect("gic_pending_while_active", &[A; 3]);
    irq::set_action(|_| {});
    gic::set_bit(register::ISACTIVER, A);
    pend(A);
    equal!("gic_active_by_register", gic::bit(register::ISACTIVER, A), true);
    expect("gic_active_waits", &[]);
    gic::set_bit(register::ICACTIVER, A);
    expect("gic_inactive_comes", &[A]);
}

fn masks(platform: &Platform) {
    ready(A);
    msr!("icc_pmr_el1", 0x80);
    pend(A);
    expect("gic_below_priority_mask", &[]);
    gic::set_priority(A, 0x70);
    expect("gic_raised_over_priority_mask", &[A]);
    msr!("icc_pmr_el1", 0xa0);
    gic::set_priority(A, 0xa0);
    pend(A);
    expect("gic_equal_to_priority_mask", &[]);
    msr!("icc_pmr_el1", 0xff);
    expect("gic_priority_mask_open", &[A]);
    pend(A);
    equal!("gic_highest_pending", mrs!("icc_hppir1_el1"), u64::from(A));
    equal!("gic_isr_pending", mrs!("isr_el1") & 0xc0, 0x80);
    msr!("icc_igrpen1_el1", 0);
    expect("gic_group_closed_at_cpu", &[]);
    msr!("icc_igrpen1_el1", 1);
    expect("gic_group_open_at_cpu", &[A]);
    let control = gic::distributor() + register::CTLR;
    mmio::write32(control, mmio::read32(control) & !2);
    gic::wait_distributor();
    pend(A);
    gic::send_sgi(3, platform.cpus()[0]);
    expect("gic_group_closed_at_distributor", &[]);
    mmio::write32(control, mmio::read32(control) | 2);
    gic::wait_distributor();
    irq::settle(2);
    let mut both = [irq::entry(0), irq::entry(1)];
    both.sort_unstable();
    equal!("gic_group_open_at_distributor", (irq::count(), both), (2, [3, A]));
    irq::clear();
}

fn order(platform: &Platform) {
    for (intid, priority) in [(A, 0x60), (B, 0x20), (C, 0x40)] {
        ready(intid);
        gic::set_priority(intid, priority);
        pend(intid);
    }
    gic::set_priority(4, 0x50);
    gic::send_sgi(4, platform.cpus()[0]);
    expect("gic_by_priority", &[B, C, 4, A]);
    gic::set_priority(4, gic::PRIORITY);
    let stored =
        [A, B, C].map(|intid| mmio::read8(gic::distributor() + register::IPRIORITYR + intid as usize));
    equal!("gic_priority_reads_back", stored, [0x60, 0x20, 0x40]);
}

/// Checks preemption: handlers of A enable other interrupts.
fn preemption(_platform: &Platform) {
    for (intid, priority) in [(A, 0x80), (B, 0x40), (C, 0xa0)] {
        ready(intid);
        gic::set_priority(intid, priority);
    }
    let open = |intid: u32| {
        if intid == A {
            pend(B);
            pend(C);
            bare::register::unmask_interrupts();
            timer::delay(300);
            bare::register::mask_interrupts();
            irq::log(A | END);
        } else {
            irq::log(intid | END);
        }
    };
    irq::set_action(open);
    pend(A);
    expect("gic_preemption", &[A, B, B | END, A | END, C, C | END]);
    // One priority group: no preemption, but the order is kept.
    msr!("icc_bpr1_el1", 7);
    gic::set_priority(A, 0x30);
    gic::set_priority(B, 0x10);
    gic::set_priority(C, 0x20);
    pend(A);
    expect("gic_no_preemption_in_group", &[A, A | END, B, B | END, C, C | END]);
    msr!("icc_bpr1_el1", 0);
    irq::set_action(|_| {});
    // Three levels, and the running priority returns step by step.
    for (intid, priority) in [(A, 0xc0), (B, 0x80), (C, 0x40)] {
        gic::set_priority(intid, priority);
    }
    static PRIORITIES: AtomicU32 = AtomicU32::new(0);
    PRIORITIES.store(0, Ordering::Relaxed);
    irq::set_action(|intid| {
        match intid {
            A => pend(B),
            B => pend(C),
            _ => {}
        }
        bare::register::unmask_interrupts();
        timer::delay(300);
        bare::register::mask_interrupts();
        let seen = PRIORITIES.load(Ordering::Relaxed) << 8 | mrs!("icc_rpr_el1") as u32 & 0xff;
        PRIORITIES.store(seen, Ordering::Relaxed);
    });
    pend(A);
    expect("gic_preemption_of_three", &[A, B, C]);
    equal!("gic_running_priorities", PRIORITIES.load(Ordering::Relaxed), 0x40_80c0);
    irq::set_action(|_| {});
}

/// Checks EOImode 1: the end only drops the priority, and the same interrupt needs deactivation before it is taken again.
fn end_of_interrupt_mode_1(_platform: &Platform) {
    for intid in [A, B] {
        ready(intid);
    }
    msr!("icc_ctlr_el1", 2);
    equal!("gic_mode_1_reads_back", mrs!("icc_ctlr_el1") & 2, 2);
    pend(A);
    expect("gic_mode_1_taken", &[A]);
    equal!("gic_mode_1_still_active", gic::bit(register::ISACTIVER, A), true);
    equal!("gic_mode_1_priority_dropped", mrs!("icc_rpr_el1"), 0xff);
    pend(B);
    expect("gic_mode_1_other_comes", &[B]);
    pend(A);
    expect("gic_mode_1_same_waits", &[]);
    msr!("icc_dir_el1", u64::from(A));
    expect("gic_mode_1_same_comes", &[A]);
    // In a different order than they were taken, and one of them by the distributor's register.
    msr!("icc_dir_el1", u64::from(A));
    gic::set_bit(register::ICACTIVER, B);
    let active = [A, B].map(|intid| gic::bit(register::ISACTIVER, intid));
    equal!("gic_mode_1_deactivated", active, [false, false]);
    pend(B);
    pend(A);
    irq::settle(2);
    equal!("gic_mode_1_both_again", irq::count(), 2);
    irq::clear();
    for intid in [B, A] {
        msr!("icc_dir_el1", u64::from(intid));
    }
    gic::send_sgi(2, bare::register::affinity());
    expect("gic_mode_1_sgi", &[2]);
    equal!("gic_mode_1_sgi_active", gic::bit(register::ISACTIVER, 2), true);
    msr!("icc_dir_el1", 2);
    equal!("gic_mode_1_sgi_inactive", gic::bit(register::ISACTIVER, 2), false);
    msr!("icc_ctlr_el1", 0);
}

/// Checks group 0, which is signalled as FIQ and has its own registers.
fn group_0(platform: &Platform) {
    let control = gic::distributor() + register::CTLR;
    if mmio::read32(control) & 1 << 6 == 0 {
        skip("gic_group_0", "two security states");
        return;
    }
    ready(A);
    ready(B);
    gic::set_group(A, 0);
    equal!("gic_group_reads_back", [A, B].map(|intid| gic::bit(register::IGROUPR, intid)), [false, true]);
    gic::set_priority(A, 0x40);
    gic::set_priority(B, 0x20);
    pend(A);
    expect("gic_group_0_closed_at_cpu", &[]);
    pend(B);
    expect("gic_group_1_beside_closed_group_0", &[B]);
    msr!("icc_igrpen0_el1", 1);
    equal!("gic_isr_fiq", mrs!("isr_el1") & 0xc0, 0x40);
    equal!("gic_highest_pending_0", mrs!("icc_hppir0_el1"), u64::from(A));
    expect("gic_group_0_as_fiq", &[A | AS_FIQ]);
    pend(B);
    pend(A);
    irq::settle(2);
    let mut both = [irq::entry(0), irq::entry(1)];
    both.sort_unstable();
    equal!("gic_both_groups", (irq::count(), both), (2, [B, A | AS_FIQ]));
    irq::clear();
    gic::set_group(11, 0);
    msr!("icc_sgi0r_el1", gic::sgi_target(11, platform.cpus()[0]));
    expect("gic_sgi_of_group_0", &[11 | AS_FIQ]);
    gic::set_group(11, 1);
    mmio::write32(control, mmio::read32(control) & !1);
    gic::wait_distributor();
    pend(A);
    expect("gic_group_0_closed_at_distributor", &[]);
    // A pending interrupt of group 0 moves to group 1.
    gic::set_group(A, 1);
    expect("gic_group_changed_while_pending", &[A]);
    mmio::write32(control, mmio::read32(control) | 1);
    gic::wait_distributor();
    msr!("icc_igrpen0_el1", 0);
}

fn configuration() {
    let address = gic::distributor() + register::ICFGR + A as usize / 16 * 4;
    let old = mmio::read32(address);
    gic::set_edge(A, 0);
    equal!("gic_level_reads_back", mmio::read32(address) >> (A % 16 * 2) & 3, 0);
    gic::set_edge(A, 1);
    equal!("gic_edge_reads_back", mmio::read32(address) >> (A % 16 * 2) & 3, 2);
    mmio::write32(address, old);
    // A level-sensitive interrupt that software made pending is taken once, like an edge.
    reset(A);
    gic::set_edge(A, 0);
    gic::enable(A);
    pend(A);
    expect("gic_level_by_register", &[A]);
    gic::disable(A);
    pend(A);
    gic::set_bit(register::ICPENDR, A);
    equal!("gic_level_taken_back", gic::bit(register::ISPENDR, A), false);
    reset(A);
}

/// Checks that changes affect pending interrupts, which may already be in a list register.
fn changes_while_pending(_platform: &Platform) {
    for intid in [A, B, C] {
        ready(intid);
    }
    pend(A);
    gic::disable(A);
    expect("gic_disabled_while_pending", &[]);
    gic::enable(A);
    expect("gic_enabled_again", &[A]);
    for (intid, priority) in [(A, 0x20), (B, 0x40), (C, 0x60)] {
        gic::set_priority(intid, priority);
        pend(intid);
    }
    gic::set_priority(C, 0x10);
    gic::set_priority(A, 0x80);
    expect("gic_priority_while_pending", &[C, B, A]);
    for intid in [A, B, C] {
        pend(intid);
    }
    gic::set_bit(register::ICPENDR, B);
    irq::settle(2);
    let both = [irq::entry(0), irq::entry(1)];
    equal!("gic_taken_back_while_pending", (irq::count(), both), (2, [C, A]));
    irq::clear();
    pend(A);
    let old = mrs!("icc_pmr_el1");
    msr!("icc_pmr_el1", 0);
    expect("gic_all_masked_while_pending", &[]);
    msr!("icc_pmr_el1", old);
    expect("gic_unmasked_again", &[A]);
}
