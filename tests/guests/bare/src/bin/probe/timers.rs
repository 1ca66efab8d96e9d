//! The virtual and the physical timer: they fire in time and not before, and their level follows their registers.

use crate::irq;
use crate::report::{check, equal};
use bare::gic::{self, register};
use bare::platform::{Host, Platform};
use bare::{mrs, msr, psci, timer};

macro_rules! timer_checks {
    ($name:ident, $prefix:literal, $intid:expr, $now:path, $ctl:literal, $cval:literal, $tval:literal) => {
        fn $name(platform: &Platform) {
            let intid = $intid;
            gic::enable(intid);
            msr!($ctl, 0);
            let start = $now();
            let due = start + timer::ticks(3000);
            msr!($cval, due);
            msr!($ctl, 1);
            equal!(concat!($prefix, "_compare_reads_back"), mrs!($cval), due);
            let early = irq::count();
            bare::register::unmask_interrupts();
            timer::wait_for(1_000_000, || irq::count() > 0);
            let end = $now();
            irq::settle(1);
            check!(
                concat!($prefix, "_fires"),
                irq::came(&[intid]),
                "{} came: {:?}",
                irq::count(),
                irq::entries()
            );
            check!(
                concat!($prefix, "_not_early"),
                early == 0 && end >= due,
                "{} ticks early",
                due.wrapping_sub(end)
            );
            irq::clear();

            // A time in the past fires at once. TVAL has the sign of the remaining time.
            msr!($cval, $now() - 1000);
            msr!($ctl, 1);
            check!(concat!($prefix, "_past_value"), (mrs!($tval) as u32 as i32) < 0, "{:#x}", mrs!($tval));
            equal!(concat!($prefix, "_status"), mrs!($ctl) & 7, 5);
            equal!(concat!($prefix, "_pending_level"), gic::bit(register::ISPENDR, intid), true);
            irq::settle(1);
            equal!(concat!($prefix, "_past_fires"), irq::came(&[intid]), true);
            irq::clear();

            // Masked, then unmasked; and cleared before it was taken.
            msr!($cval, 0);
            msr!($ctl, 3);
            equal!(concat!($prefix, "_masked_status"), mrs!($ctl) & 7, 7);
            irq::settle(0);
            equal!(concat!($prefix, "_masked_silent"), irq::count(), 0);
            msr!($ctl, 1);
            timer::delay(50);
            msr!($ctl, 0);
            timer::delay(50);
            irq::settle(0);
            // A level that fell is removed in finite time (GICv3 specification, 4.3.3). A hypervisor that has already passed the
            // interrupt on cannot know that it fell, so it may be taken once.
            let most = usize::from(platform.host == Host::Hypervisor);
            let taken = (0..irq::count()).filter(|&index| irq::entry(index) < 1020).count();
            check!(concat!($prefix, "_taken_back"), taken <= most, "{:?}", irq::entries());
            equal!(concat!($prefix, "_no_level_when_off"), gic::bit(register::ISPENDR, intid), false);
            irq::clear();

            // TVAL counts from now; a distant time does not fire.
            let before = $now();
            msr!($tval, timer::ticks(2000));
            let (start, after) = (mrs!($cval).wrapping_sub(timer::ticks(2000)), $now());
            check!(
                concat!($prefix, "_relative"),
                (before..=after).contains(&start),
                "{before} {start} {after}"
            );
            msr!($ctl, 1);
            bare::register::unmask_interrupts();
            timer::wait_for(1_000_000, || irq::count() > 0);
            bare::register::mask_interrupts();
            equal!(concat!($prefix, "_relative_fires"), irq::came(&[intid]), true);
            irq::clear();
            msr!($cval, u64::MAX >> 1);
            msr!($ctl, 1);
            irq::settle(0);
            equal!(concat!($prefix, "_far_away"), (irq::count(), mrs!($ctl) & 4), (0, 0));

            // WFI until it fires, with and without interrupts masked.
            for masked in [false, true] {
                msr!($cval, $now() + timer::ticks(2000));
                msr!($ctl, 1);
                let due = mrs!($cval);
                if masked {
                    bare::instruction!("wfi");
                } else {
                    // Masked until the WFI has ended, as in an operating system.
                    bare::instruction!("dsb sy", "wfi");
                }
                let woke = $now();
                check!(concat!($prefix, "_wakes"), woke >= due, "{} ticks early", due.wrapping_sub(woke));
                irq::settle(1);
                equal!(concat!($prefix, "_woken_by"), irq::came(&[intid]), true);
                irq::clear();
            }
            msr!($ctl, 0);

            // The handler is called repeatedly until it clears the level.
            irq::set_action(|intid| {
                if intid == $intid && irq::count() < 5 {
                    msr!($ctl, 1);
                }
            });
            msr!($cval, 0);
            msr!($ctl, 1);
            irq::settle(5);
            irq::set_action(|_| {});
            equal!(concat!($prefix, "_level_again"), irq::came(&[intid; 5]), true);
            irq::clear();

            // Many in sequence, each taken once.
            let mut taken = 0;
            for _ in 0..200 {
                msr!($cval, $now() + 100);
                msr!($ctl, 1);
                bare::register::unmask_interrupts();
                timer::wait_for(1_000_000, || irq::count() > 0);
                bare::register::mask_interrupts();
                taken += irq::count();
                irq::clear();
            }
            equal!(concat!($prefix, "_200_times"), taken, 200);
            msr!($ctl, 0);

            // Made pending by software while its line is low: pending until it is taken or cleared.
            gic::set_bit(register::ISPENDR, intid);
            equal!(concat!($prefix, "_made_pending"), gic::bit(register::ISPENDR, intid), true);
            equal!(concat!($prefix, "_still_pending"), gic::bit(register::ISPENDR, intid), true);
            irq::settle(1);
            equal!(concat!($prefix, "_made_pending_comes"), irq::came(&[intid]), true);
            irq::clear();
            gic::set_bit(register::ISPENDR, intid);
            gic::set_bit(register::ICPENDR, intid);
            equal!(concat!($prefix, "_not_pending_any_more"), gic::bit(register::ISPENDR, intid), false);
            irq::settle(0);
            equal!(concat!($prefix, "_taken_back_by_register"), irq::count(), 0);
            gic::set_bit(register::ISPENDR, intid);
            gic::disable(intid);
            irq::settle(0);
            equal!(concat!($prefix, "_disabled_waits"), irq::count(), 0);
            gic::enable(intid);
            irq::settle(1);
            equal!(concat!($prefix, "_enabled_comes"), irq::came(&[intid]), true);
            irq::clear();
            // The timer itself still fires.
            msr!($cval, 0);
            msr!($ctl, 1);
            irq::settle(1);
            equal!(concat!($prefix, "_fires_after_that"), irq::came(&[intid]), true);
            irq::clear();
            msr!($ctl, 0);
            gic::disable(intid);
        }
    };
}

timer_checks!(
    virtual_timer,
    "timer_virtual",
    timer::VIRTUAL_INTID,
    timer::now,
    "cntv_ctl_el0",
    "cntv_cval_el0",
    "cntv_tval_el0"
);
timer_checks!(
    physical_timer,
    "timer_physical",
    timer::PHYSICAL_INTID,
    timer::physical_now,
    "cntp_ctl_el0",
    "cntp_cval_el0",
    "cntp_tval_el0"
);

pub(crate) fn run(platform: &'static Platform) {
    irq::start();
    counters();
    virtual_timer(platform);
    physical_timer(platform);
    both();
    irq::stop();
}

fn counters() {
    let (mut last_virtual, mut last_physical) = (timer::now(), timer::physical_now());
    let backwards = (0..2000).any(|_| {
        let (new_virtual, new_physical) = (timer::now(), timer::physical_now());
        let wrong = new_virtual < last_virtual || new_physical < last_physical;
        (last_virtual, last_physical) = (new_virtual, new_physical);
        wrong
    });
    equal!("counters_never_back", backwards, false);
    let offset = timer::physical_now() - timer::now();
    for _ in 0..100 {
        let _ = psci::call(psci::VERSION, 0, 0, 0);
    }
    let later = timer::physical_now() - timer::now();
    check!("counters_in_step", later.abs_diff(offset) < timer::ticks(100_000), "{} then {}", offset, later);
}

/// Checks both timers at once: both fire, once each.
fn both() {
    gic::enable(timer::VIRTUAL_INTID);
    gic::enable(timer::PHYSICAL_INTID);
    gic::set_priority(timer::PHYSICAL_INTID, 0x40);
    timer::arm_virtual(timer::now());
    timer::arm_physical(timer::physical_now());
    irq::settle(2);
    equal!("timers_both", irq::came(&[timer::PHYSICAL_INTID, timer::VIRTUAL_INTID]), true);
    gic::set_priority(timer::PHYSICAL_INTID, gic::PRIORITY);
    irq::clear();
}
