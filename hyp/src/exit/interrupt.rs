//! Physical interrupts. Most are a guest's timer or SGI, which the fast path puts into a list register.

use super::{fatal, vectors};
use crate::arch::cpu::Request;
use crate::arch::gic::{KICK_SGI, Lists, cpu_interface};
use crate::arch::{timer, vcpu};
use crate::device::vgic::DIRECT_SGIS;
use crate::device::vgic::list_register::ListRegister;
use crate::guest::cpu::{self, PerCpu};
use crate::guest::devices::smmus;
use crate::guest::interrupts::{self, kick_others, refill};
use crate::guest::{self, time, uart};
use crate::observe::counters::Exit;
use crate::operator::scheduler;
use crate::serial;

/// Handles an interrupt while a guest ran; called by the vectors with the volatile registers saved.
pub(crate) extern "C" fn irq() {
    let intid = cpu_interface::acknowledge();
    let cpu = cpu::current();
    if intid >= 32 {
        return line(cpu, intid);
    }
    if let Some(value) = cpu.local.inject(intid, &Lists) {
        cpu.counters.count_direct();
        hand_over(intid, value);
        return;
    }
    from_guest(cpu, intid);
}

/// Handles an SPI while a guest ran. A function of its own, so that timers and SGIs have the end of [`irq`] to themselves.
#[inline(never)]
fn line(cpu: &'static PerCpu, intid: u32) {
    if let Some(value) = inject_line(cpu, intid) {
        cpu.counters.count_direct();
        hand_over(intid, value);
        return;
    }
    from_guest(cpu, intid);
}

/// Injects physical interrupt `intid` by the fast path if it is a line of the guest that runs here.
#[inline(always)]
pub(crate) fn inject_line(cpu: &PerCpu, intid: u32) -> Option<ListRegister> {
    if intid < 32 { None } else { cpu.local.inject_line(intid, &Lists) }
}

/// Ends physical interrupt `intid`, which is in a list register now.
#[inline(always)]
pub(crate) fn hand_over(intid: u32, value: ListRegister) {
    cpu_interface::drop_priority(intid);
    if !value.hardware() {
        cpu_interface::deactivate(intid);
    }
}

/// Handles an interrupt from a guest that the fast path could not pass on.
#[inline(never)]
pub(crate) fn from_guest(cpu: &'static PerCpu, intid: u32) {
    crate::exit::counted(cpu, Exit::Interrupt, || slow(cpu, intid));
}

/// Handles an acknowledged interrupt off the fast path.
#[inline(never)]
fn slow(cpu: &'static PerCpu, intid: u32) {
    if cpu_interface::is_special(intid) {
        return;
    }
    cpu_interface::synchronize();
    cpu_interface::drop_priority(intid);
    if timer::is_guest_timer(intid) {
        // Stays active until the guest deactivates it.
        match cpu.vcpu() {
            Some(vcpu) => {
                let vgic = vcpu.guest().vgic();
                let others = vgic.arrive(vcpu.index(), intid, &cpu.local, &Lists);
                kick_others(cpu, others);
            }
            None => cpu_interface::deactivate(intid),
        }
        return;
    }
    if intid >= 32 && !serial::is_interrupt(intid) && interrupts::arrive_line(cpu, intid) {
        return;
    }
    cpu_interface::deactivate(intid);
    match intid {
        KICK_SGI => requests(cpu),
        sgi if sgi < DIRECT_SGIS => match cpu.vcpu() {
            Some(vcpu) => {
                let others = vcpu.guest().vgic().arrive(vcpu.index(), sgi, &cpu.local, &Lists);
                kick_others(cpu, others);
            }
            // SGIs are disabled here while the vCPU is off, so this one arrived just before: it stays pending.
            None => vcpu::pend_sgi(cpu, sgi),
        },
        intid if timer::is_maintenance(intid) => {
            if let Some(vcpu) = cpu.vcpu() {
                refill(cpu, vcpu);
            }
        }
        intid if timer::is_own_timer(intid) => {
            timer::expired();
            smmus::poll();
            time::tick(cpu);
        }
        intid if serial::is_interrupt(intid) => serve_consoles(&serial::interrupt()),
        intid => smmus::interrupt(intid),
    }
    scheduler::resume(cpu);
}

/// Hands input, breaks and room for output to guests and the monitor.
fn serve_consoles(effects: &serial::Effects) {
    effects.received().for_each(uart::receive_input);
    effects.breaks().for_each(uart::receive_break);
    effects.writable.guests().for_each(uart::drain_output);
    if effects.wakes_monitor || effects.writable.has_monitor() {
        scheduler::wake();
    }
}

/// Handles the requests of other CPUs.
fn requests(cpu: &'static PerCpu) {
    if cpu.take(Request::Halt) {
        fatal::halt();
    }
    if cpu.take(Request::Trace) {
        vectors::install();
    }
    if let Some(vcpu) = cpu.vcpu() {
        if vcpu.guest().vgic().is_dirty(vcpu.index()) {
            refill(cpu, vcpu);
        }
        if vcpu.guest().is_leaving() {
            guest::leave(vcpu);
        }
        time::engage(cpu);
    }
}

/// Handles interrupts that are pending for this CPU while it works at EL2 without a guest, as an idle CPU or in long
/// work does ([`crate::arch::cpu::serve_interrupts`]). With a guest on this CPU, its interrupts wait until it runs again. The number
/// of interrupts is bounded; the rest stay pending for the next call, so that a WFI ends at once.
pub(crate) fn poll() {
    let cpu = cpu::current();
    const LIMIT: usize = 32;
    for _ in 0..LIMIT {
        let intid = cpu_interface::acknowledge();
        if cpu_interface::is_special(intid) {
            return;
        }
        slow(cpu, intid);
    }
}
