//! The way into a guest.

use super::vectors;
use crate::arch::cpu;
use crate::arch::frame::Frame;
use crate::arch::vcpu::{self, Start};

/// Sets every register of EL1 and EL0 and enters the guest.
///
/// # Safety
///
/// On a CPU without a guest, whose stack holds nothing that has to be dropped; `start` names the tables of the
/// guest's stage 2, which outlive its running here.
pub(crate) unsafe fn enter(start: &Start) -> ! {
    let cpu = cpu::current();
    cpu.hardening.reset();
    vectors::install();
    vcpu::reset(start);
    // SAFETY: as the caller says.
    unsafe { vectors::enter_guest(cpu.stack_top(), &Frame::new(start.context)) }
}
