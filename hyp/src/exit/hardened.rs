//! Slow paths of the hardened vectors: for a vCPU that runs with store bypassing allowed, and while events are traced.
//!
//! Bypassing is turned off first and turned on again last. Events are recorded if tracing is on.

use super::traced;
use crate::arch::cpu;
use crate::arch::frame::Frame;

/// Handles a synchronous exception, FIQ or SError from a guest.
pub(crate) extern "C" fn hardened_sync(frame: &mut Frame, esr: u64) {
    let hardening = &cpu::current().hardening;
    hardening.enter();
    traced::traced_sync(frame, esr);
    hardening.leave();
}

/// Handles an interrupt while a guest ran.
pub(crate) extern "C" fn hardened_irq() {
    let hardening = &cpu::current().hardening;
    hardening.enter();
    traced::traced_irq();
    hardening.leave();
}
