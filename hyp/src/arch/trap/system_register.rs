//! System registers that EL2 traps: SGI generation, identification, and what a guest shall not have.

use super::{inject, interrupt, skip_instruction};
use crate::arch::cpu::{self, PerCpu};
use crate::arch::features;
use crate::arch::gic::{Lists, cpu_interface};
use crate::arch::vectors::Frame;
use crate::device::vgic::{DIRECT_SGIS, Kick};
use crate::guest::Vcpu;

/// Op0, Op2, Op1, CRn, CRm as they lie in the syndrome's bits 21:10 and 4:1 (Arm ARM D24.2.40, "ISS encoding for
/// an exception from MSR, MRS"), the direction in bit 0: 1 reads.
const fn register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// All of that, without the register that is moved.
const REGISTER_MASK: u64 = 0x3f_fc1f & !1;

const ICC_SGI1R: u64 = register(3, 0, 12, 11, 5);
const ICC_ASGI1R: u64 = register(3, 0, 12, 11, 6);
const ICC_SGI0R: u64 = register(3, 0, 12, 11, 7);
const ICC_DIR: u64 = register(3, 0, 12, 11, 1);

/// ACTLR_EL1: reads as zero, ignores writes (HCR_EL2.TACR).
const ACTLR: u64 = register(3, 0, 1, 0, 1);

/// A trapped MSR or MRS.
#[inline(always)]
pub(super) fn access(frame: &mut Frame, esr: u64) {
    let is_read = esr & 1 != 0;
    let moved = (esr >> 5 & 0x1f) as usize;
    if esr & REGISTER_MASK == ICC_SGI1R && !is_read {
        let value = frame.get(moved);
        skip_instruction();
        send_sgi(value);
        return;
    }
    others(frame, esr, is_read, moved);
}

/// ICC_SGI1R_EL1 (IHI 0069H, 12.2.19): sends a group 1 SGI to vCPUs of the guest.
#[inline(always)]
fn send_sgi(value: u64) {
    let cpu = cpu::current();
    let intid = (value >> 24 & 0xf) as u32;
    // One target list, affinities 1 to 3 and range selector 0: the list's bits are vCPUs.
    if value & !0xf00_ffff == 0 && intid < DIRECT_SGIS {
        let mut list = value & 0xffff;
        while list != 0 {
            let target = cpu.sgi_targets[list.trailing_zeros() as usize].get();
            list &= list - 1;
            if target == cpu.self_target.get() {
                if cpu.local.inject(intid, &Lists).is_none() {
                    arrive(cpu, intid);
                }
            } else if target != 0 {
                cpu_interface::send_sgi(target, intid);
            }
        }
        return;
    }
    if let Some(vcpu) = cpu.vcpu() {
        pend_sgi(cpu, vcpu, value, true);
    }
}

/// An SGI to oneself whose list register is taken.
#[inline(never)]
fn arrive(cpu: &'static PerCpu, intid: u32) {
    if let Some(vcpu) = cpu.vcpu() {
        let others = vcpu.guest().vgic().arrive(vcpu.index(), intid, &cpu.local, &Lists);
        interrupt::kick(cpu, vcpu, others);
    }
}

/// The general case: latches the SGI for each target and kicks it.
#[inline(never)]
fn pend_sgi(cpu: &'static PerCpu, vcpu: &'static Vcpu, value: u64, is_group1: bool) {
    let guest = vcpu.guest();
    let intid = (value >> 24 & 0xf) as u32;
    let everybody = value >> 40 & 1 != 0;
    // The vCPUs' affinities 1 to 3 are 0, and affinity 0 is below 16.
    let names_nobody = value & (0xff << 48 | 0xf << 44 | 0xff << 32 | 0xff << 16) != 0;
    let list = match (everybody, names_nobody) {
        (true, _) => 0xffff & !(1 << vcpu.index()),
        (false, true) => 0,
        (false, false) => value as u32 & 0xffff,
    };
    let mut kick = Kick(0);
    for target in (0..guest.vcpu_count()).filter(|target| list >> target & 1 != 0) {
        kick.0 |= guest.vgic().send_sgi(target, intid, is_group1).0;
    }
    interrupt::kick(cpu, vcpu, kick);
}

/// What is rare.
#[inline(never)]
fn others(frame: &mut Frame, esr: u64, is_read: bool, moved: usize) {
    let cpu = cpu::current();
    let Some(vcpu) = cpu.vcpu() else { return };
    let value = frame.get(moved);
    match (esr & REGISTER_MASK, is_read) {
        // Group 0 SGIs; with one security state, ASGI1R reaches the other group 1, which does not exist.
        (ICC_SGI0R, false) => pend_sgi(cpu, vcpu, value, false),
        (ICC_ASGI1R, false) => {}
        (ICC_DIR, false) => {
            let vgic = vcpu.guest().vgic();
            let others = vgic.deactivate(vcpu.index(), value as u32 & 0xff_ffff, &cpu.local, &Lists);
            interrupt::kick(cpu, vcpu, others);
        }
        (ACTLR, true) => frame.set(moved, 0),
        (ACTLR, false) => {}
        (id, true) if id & register(3, 7, 15, 0, 0) == register(3, 0, 0, 0, 0) && id & register(0, 0, 0, 15, 0) != 0 => {
            // Op0 3, Op1 0, CRn 0, CRm 1 to 15: the identification space.
            let (crm, op2) = (id >> 1 & 0xf, id >> 17 & 7);
            frame.set(moved, features::identification(crm, op2));
        }
        _ => return inject::undefined(),
    }
    skip_instruction();
}
