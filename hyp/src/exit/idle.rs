//! What a CPU does without a guest: serve its vCPU's life, the monitor, interrupts; else sleep.

use super::vectors;
use crate::arch::cpu;
use crate::exit;
use crate::guest::migration;
use crate::operator::scheduler;

/// Leaves whatever this CPU did and idles.
pub(crate) fn enter() -> ! {
    // SAFETY: this is the CPU's own stack; those who leave a guest hold nothing.
    unsafe { vectors::restart(cpu::current().stack_top(), idle, 0) }
}

extern "C" fn idle(_: u64) -> ! {
    let cpu = cpu::current();
    loop {
        exit::poll(cpu);
        // A request that comes after this is pending again as a kick, which ends the sleep.
        cpu.take(cpu::Request::Look);
        if let Some(vcpu) = cpu.assigned() {
            crate::guest::serve(vcpu);
        }
        scheduler::resume(cpu);
        if !migration::use_idle(cpu) {
            aarch64_cpu::asm::wfi();
        }
    }
}
