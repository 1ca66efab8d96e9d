//! The idle loop of a CPU without a guest. It handles interrupts, its vCPU's life, the monitor and migration, and otherwise
//! sleeps. CPUs enter guests from here, and return here when a vCPU leaves.

use super::{interrupt, vectors};
use crate::arch::cpu::Request;
use crate::arch::frame::Frame;
use crate::arch::vcpu::{self, Start};
use crate::guest::{self, cpu, time};
use crate::operator::scheduler;

/// Abandons this CPU's stack and idles.
pub(crate) fn enter() -> ! {
    // SAFETY: this is the CPU's own stack; code that leaves a guest holds nothing.
    unsafe { vectors::restart(cpu::current().stack_top(), idle, 0) }
}

extern "C" fn idle(_: u64) -> ! {
    let cpu = cpu::current();
    loop {
        interrupt::poll();
        // A request that arrives after this comes with a kick, which ends the sleep.
        cpu.take(Request::Look);
        if let Some(start) = cpu.assigned().and_then(guest::serve) {
            enter_guest(&start)
        }
        scheduler::resume(cpu);
        if !time::use_idle(cpu) {
            aarch64_cpu::asm::wfi();
        }
    }
}

/// Sets every register of EL1 and EL0 and enters the guest.
fn enter_guest(start: &Start) -> ! {
    let cpu = cpu::current();
    cpu.hardening.reset();
    vectors::install();
    vcpu::reset(start);
    // SAFETY: the stack is this CPU's, and the idle loop on it holds nothing that would have to be dropped. The tables of
    // the guest's stage 2 live until every vCPU has left.
    unsafe { vectors::enter_guest(cpu.stack_top(), &Frame::new(start.context)) }
}
