//! The architected timers as EL1 sees them.

use crate::{gic, mrs, msr};

/// INTID of the virtual timer.
pub const VIRTUAL_INTID: u32 = 27;
/// INTID of the non-secure EL1 physical timer.
pub const PHYSICAL_INTID: u32 = 30;

/// Counter ticks per second.
#[must_use]
pub fn frequency() -> u64 {
    mrs!("cntfrq_el0").max(1)
}

/// The virtual counter, read in program order.
#[must_use]
pub fn now() -> u64 {
    crate::instruction!("isb");
    mrs!("cntvct_el0")
}

/// The physical counter, read in program order.
#[must_use]
pub fn physical_now() -> u64 {
    crate::instruction!("isb");
    mrs!("cntpct_el0")
}

/// Ticks in `microseconds`.
#[must_use]
pub fn ticks(microseconds: u64) -> u64 {
    frequency() * microseconds / 1_000_000
}

/// Waits actively.
pub fn delay(microseconds: u64) {
    let start = now();
    while now() - start < ticks(microseconds) {
        crate::sync::relax();
    }
}

/// Sleeps in WFI. Interrupts have to be masked; those that come meanwhile are acknowledged and dropped.
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

/// Waits until `condition` holds, at most `microseconds`; tells whether it came to hold.
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

/// Lets the virtual timer fire when the virtual counter reaches `compare`.
pub fn arm_virtual(compare: u64) {
    msr!("cntv_cval_el0", compare);
    msr!("cntv_ctl_el0", 1);
}

/// Switches the virtual timer off.
pub fn stop_virtual() {
    msr!("cntv_ctl_el0", 0);
}

/// Lets the physical timer fire when the physical counter reaches `compare`.
pub fn arm_physical(compare: u64) {
    msr!("cntp_cval_el0", compare);
    msr!("cntp_ctl_el0", 1);
}

/// Switches the physical timer off.
pub fn stop_physical() {
    msr!("cntp_ctl_el0", 0);
}
