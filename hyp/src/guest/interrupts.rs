//! Delivery of interrupts to vCPUs: filling list registers, kicking CPUs, and the lines of devices.
//!
//! A guest's lines are set once, at boot ([`Guest::set_lines`]). They are open from the load of the guest until its vCPUs have
//! left, so no line is enabled while a device changes hands.

use super::cpu::{self, PerCpu};
use super::{Guest, Vcpu};
use crate::arch;
use crate::arch::gic::{self, KICK_SGI, Lists, Priority, cpu_interface};
use crate::board::{Interrupt, Trigger};
use crate::device::vgic::{Kick, LINE_LIMIT, Line};

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

impl Guest {
    /// Makes the shared interrupts `interrupts` the guest's lines: entry `i` is its SPI `ASSIGNED_SPI_BASE + i`. Called once, at
    /// boot, before the guest can start. All are SPIs but no extended ones; no other guest has them, and EL2 does not use them.
    pub(crate) fn set_lines(&self, interrupts: &[Interrupt]) {
        let lines: heapless::Vec<Line, LINE_LIMIT> = interrupts
            .iter()
            .take_while(|interrupt| interrupt.is_spi())
            .map(|interrupt| Line {
                physical_intid: interrupt.intid,
                is_edge: interrupt.trigger == Trigger::Edge,
            })
            .take(LINE_LIMIT)
            .collect();
        if let Some(distributor) = gic::distributor() {
            for line in &lines {
                distributor.configure(line.physical_intid, line.is_edge, Priority::Guest);
                distributor.clear_pending(line.physical_intid);
                distributor.clear_active(line.physical_intid);
            }
        }
        self.vgic.set_lines(&lines, self.vcpus.iter().map(|vcpu| vcpu.cpu().mpidr()));
    }

    /// Lets the guest enable its lines. Its devices are attached.
    pub(crate) fn open_lines(&'static self) {
        deliver(self, self.vgic.open_lines(&Lists));
    }

    /// Disables the guest's lines and forgets their interrupts. No vCPU is in the guest.
    pub(crate) fn quiet_lines(&self) {
        self.vgic.quiet_lines(&Lists);
    }

    /// Returns the number of interrupts of line `line` that the guest has got.
    pub(crate) fn line_count(&self, line: usize) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.cpu().local.line_count(line)).sum()
    }
}

/// Handles an acknowledged shared interrupt whose priority was dropped, if it is a line of a guest. Returns false if not.
#[inline(never)]
pub(crate) fn arrive_line(cpu: &'static PerCpu, intid: u32) -> bool {
    if let Some(vcpu) = cpu.vcpu()
        && let Some(line) = vcpu.guest().vgic().line(intid)
    {
        let others = vcpu.guest().vgic().arrive_line(vcpu.index(), line, &cpu.local, &Lists);
        kick_others(cpu, others);
        return true;
    }
    let mut lines = super::all().filter_map(|guest| Some((guest, guest.vgic().line(intid)?)));
    let Some((guest, line)) = lines.next() else { return false };
    deliver(guest, guest.vgic().arrive_astray(line, &Lists));
    true
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
