//! WFI of vCPUs. It traps while memory is migrated, so that migration can use the time.

use super::skip_instruction;
use crate::arch::frame::Frame;
use crate::arch::{features, timer, vcpu};
use crate::device::wait::Wait;
use crate::guest::{cpu, time};

/// Returns the latest physical count at which a wait without a deadline ends. With FEAT_WFxT the syndrome tells WFIT from
/// WFI, but QEMU (10.0, and later versions so far) reports both as WFI: then a wait takes at most a slice. A WFI may end
/// without an interrupt (Arm ARM, "Wait for Interrupt"), and the guest checks the time itself.
fn latest_end() -> u64 {
    if features::has_wfxt() { timer::now() + time::slice() } else { timer::NEVER }
}

/// Handles a trapped WFI or WFIT. If migration has no use for the time, WFI does not trap for a while, and the guest executes
/// it.
pub(crate) fn wait(frame: &Frame, esr: u64) {
    let wait = Wait::decode(esr, |register| frame.get(register));
    let is_over = match wait {
        Wait::Event => true,
        Wait::Interrupt => time::use_wait(cpu::current(), latest_end()),
        Wait::InterruptUntil(count) => time::use_wait(cpu::current(), timer::physical(count)),
        Wait::Unknown => time::leave_wait(cpu::current()),
    };
    if is_over {
        skip_instruction(esr);
    }
}

/// Waits as the guest's WFI would: until an interrupt is pending for this CPU or in its list registers.
pub(crate) fn standby() {
    // ICC_HPPIR1_EL1 at EL2 shows the physical interface only, and virtual interrupts do not end a WFI at EL2 (Arm ARM,
    // "Wait for Interrupt"): so do not wait if a list register holds an interrupt.
    if !vcpu::has_virtual_interrupt() && !time::use_wait(cpu::current(), timer::NEVER) {
        aarch64_cpu::asm::wfi();
    }
}
