//! The generic timers at EL1.

use crate::{gic, mrs, msr};

/// INTID of the virtual timer.
pub const VIRTUAL_INTID: u32 = 27;
/// INTID of the non-secure EL1 physical timer.
pub const PHYSICAL_INTID: u32 = 30;

/// Returns the counter's ticks per second.
#[must_use]
pub fn frequency() -> u64 {
    mrs!("cntfrq_el0").max(1)
}

/// Returns the virtual counter, read in program order.
#[must_use]
pub fn now() -> u64 {
    crate::instruction!("isb");
    mrs!("cntvct_el0")
}

/// Returns the physical counter, read in program order.
#[must_use]
pub fn physical_now() -> u64 {
    crate::instruction!("isb");
    mrs!("cntpct_el0")
}

/// Converts `microseconds` to ticks.
#[must_use]
pub fn ticks(microseconds: u64) -> u64 {
    frequency() * microseconds / 1_000_000
}

/// Waits in a loop.
pub fn delay(microseconds: u64) {
    let start = now();
    while now() - start < ticks(microseconds) {
        crate::sync::relax();
    }
}

/// Sleeps in WFI. Interrupts must be masked; those that arrive are acknowledged and dropped.
pub fn sleep(microseconds: u64) {
    let until = now() + ticks(microseconds);
    gic::enable(VIRTUAL_INTID);
    arm_virtual(until);
    while now() < until {
        crate::instruction!("wfi");
        let intid = gic::acknowledge();
        if intid == VIRTUAL_INTID {
            stop_virtual();
        }
        if intid != gic::SPURIOUS {
            gic::end(intid);
        }
        if now() < until {
            arm_virtual(until);
        }
    }
    stop_virtual();
}

/// Waits at most `microseconds` for `condition`. Returns true if it was met.
pub fn wait_for(microseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = now();
    while now() - start < ticks(microseconds) {
        if condition() {
            return true;
        }
        crate::sync::relax();
    }
    condition()
}

/// Sets the virtual timer to fire when the virtual counter reaches `compare`.
pub fn arm_virtual(compare: u64) {
    msr!("cntv_cval_el0", compare);
    msr!("cntv_ctl_el0", 1);
}

/// Turns the virtual timer off.
pub fn stop_virtual() {
    msr!("cntv_ctl_el0", 0);
}

/// Sets the physical timer to fire when the physical counter reaches `compare`.
pub fn arm_physical(compare: u64) {
    msr!("cntp_cval_el0", compare);
    msr!("cntp_ctl_el0", 1);
}

/// Turns the physical timer off.
pub fn stop_physical() {
    msr!("cntp_ctl_el0", 0);
}
