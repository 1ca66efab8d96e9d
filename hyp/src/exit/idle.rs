//! The idle loop of a CPU without a guest: it serves interrupts, its vCPU's life, the monitor and migration; else it sleeps.

use super::{interrupt, vectors};
use crate::arch::cpu::Request;
use crate::guest::{self, cpu, migration};
use crate::operator::scheduler;

/// Leaves whatever this CPU did and idles.
pub(crate) fn enter() -> ! {
    // SAFETY: this is the CPU's own stack; those who leave a guest hold nothing.
    unsafe { vectors::restart(cpu::current().stack_top(), idle, 0) }
}

extern "C" fn idle(_: u64) -> ! {
    let cpu = cpu::current();
    loop {
        interrupt::poll();
        // A request that comes after this is pending again as a kick, which ends the sleep.
        cpu.take(Request::Look);
        if let Some(start) = cpu.assigned().and_then(guest::serve) {
            // SAFETY: this loop holds nothing; the tables live until every vCPU has left.
            unsafe { super::enter::enter(&start) }
        }
        scheduler::resume(cpu);
        if !migration::use_idle(cpu) {
            aarch64_cpu::asm::wfi();
        }
    }
}
