//! Delivery of interrupts to vCPUs: filling list registers and kicking CPUs.

use super::cpu::{self, PerCpu};
use super::{Guest, Vcpu};
use crate::arch;
use crate::arch::gic::{KICK_SGI, Lists, cpu_interface};
use crate::device::vgic::Kick;

/// Refills the list registers of the vCPU that runs here.
pub(crate) fn refill(cpu: &'static PerCpu, vcpu: &'static Vcpu) {
    let others = vcpu.guest().vgic().refill(vcpu.index(), &cpu.local, &Lists);
    kick_others(cpu, others);
}

/// Kicks the vCPUs of `kick`, except the one that runs here.
pub(crate) fn kick_others(cpu: &PerCpu, kick: Kick) {
    let mut mask = kick.0;
    while mask != 0 {
        let index = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        let target = cpu.sgi_targets[index].get();
        if target != 0 && target != cpu.self_target.get() {
            cpu_interface::send_sgi(target, KICK_SGI);
        }
    }
}

/// Makes the vCPUs of `kick`, of the guest that runs here, refill their list registers.
pub(crate) fn kick(cpu: &'static PerCpu, vcpu: &'static Vcpu, kick: Kick) {
    if kick.0 >> vcpu.index() & 1 != 0 {
        refill(cpu, vcpu);
    }
    kick_others(cpu, Kick(kick.0 & !(1 << vcpu.index())));
}

/// Waits until the vCPUs of `mask`, of the guest that runs here, have refilled their list registers, and refills this CPU's
/// for vCPUs that wait for it. Bounded: gives up on a CPU that is busy at EL2 for long.
pub(crate) fn wait_clean(cpu: &'static PerCpu, vcpu: &'static Vcpu, mask: u32) {
    const LIMIT: u32 = 1 << 20;
    let vgic = vcpu.guest().vgic();
    for _ in 0..LIMIT {
        if vgic.dirty() & mask == 0 {
            return;
        }
        if vgic.is_dirty(vcpu.index()) {
            refill(cpu, vcpu);
        }
        arch::cpu::relax();
    }
}

/// Pulses the line of the guest's shared interrupt `spi`.
pub(crate) fn pulse(guest: &'static Guest, spi: u32) {
    let kick = guest.vgic.set_level(32 + spi, true);
    // A falling line needs no kick.
    let _ = guest.vgic.set_level(32 + spi, false);
    deliver(guest, kick);
}

/// Kicks the CPUs that have to take an interrupt.
#[inline(never)]
pub(crate) fn deliver(guest: &'static Guest, kick: Kick) {
    let cpu = cpu::current();
    match cpu.vcpu() {
        Some(vcpu) if core::ptr::eq(vcpu.guest(), guest) => self::kick(cpu, vcpu, kick),
        _ => {
            for vcpu in guest.vcpus.iter().filter(|vcpu| kick.0 >> vcpu.index & 1 != 0) {
                vcpu.cpu().kick();
            }
        }
    }
}
