//! Trapped system registers: SGI generation, identification, and registers that are hidden from guests.

use super::{counted, inject, is_plain_aarch64, skip_instruction, skip_plain_instruction};
use crate::arch::features;
use crate::arch::frame::{Frame, KEEP, Reload};
use crate::arch::gic::{Lists, cpu_interface};
use crate::arch::os_lock;
use crate::arch::stage1::Register;
use crate::device::vgic::{DIRECT_SGIS, Kick, common_registers};
use crate::guest::cpu::{self, PerCpu};
use crate::guest::{self, interrupts, time};
use crate::observe::counters::Exit;
use aarch64_cpu::registers::{ELR_EL2, Readable};

/// Op0, Op2, Op1, CRn, CRm as they lie in the syndrome's bits 21:10 and 4:1 (Arm ARM, ESR_EL2, "ISS encoding for
/// an exception from MSR, MRS"), the direction in bit 0: 1 reads.
const fn register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// Mask of these fields, without the general-purpose register.
const REGISTER_MASK: u64 = 0x3f_fc1f & !1;

const ICC_SGI1R: u64 = register(3, 0, 12, 11, 5);
/// ESR_EL2 of a write to it, without the general-purpose register: EC, IL, and the direction, bit 0, which is 0.
const SGI1R_WRITE: u64 = crate::exit::EC_SYSTEM_REGISTER << 26 | 1 << 25 | ICC_SGI1R;
const ICC_ASGI1R: u64 = register(3, 0, 12, 11, 6);
const ICC_SGI0R: u64 = register(3, 0, 12, 11, 7);
const ICC_DIR: u64 = register(3, 0, 12, 11, 1);

/// ERRIDR_EL1, ERRSELR_EL1, and of the selected record ERXFR_EL1, ERXCTLR_EL1, ERXSTATUS_EL1, ERXADDR_EL1, ERXMISC0_EL1,
/// ERXMISC1_EL1.
const RAS_RECORDS: [u64; 8] = [
    register(3, 0, 5, 3, 0),
    register(3, 0, 5, 3, 1),
    register(3, 0, 5, 4, 0),
    register(3, 0, 5, 4, 1),
    register(3, 0, 5, 4, 2),
    register(3, 0, 5, 4, 3),
    register(3, 0, 5, 5, 0),
    register(3, 0, 5, 5, 1),
];

/// ACTLR_EL1: reads as zero, ignores writes (HCR_EL2.TACR).
const ACTLR: u64 = register(3, 0, 1, 0, 1);

/// The OS lock's registers, and DBGPRCR_EL1, which traps with them (MDCR_EL2.TDOSA).
const OSLAR: u64 = register(2, 0, 1, 0, 4);
const OSLSR: u64 = register(2, 0, 1, 1, 4);
const OSDLR: u64 = register(2, 0, 1, 3, 4);
const DBGPRCR: u64 = register(2, 0, 1, 4, 4);

/// Registers that trap along with SMIDR_EL1 (HCR_EL2.TID1). A guest reads the CPU's own.
const REVIDR: u64 = register(3, 0, 0, 0, 6);
const AIDR: u64 = register(3, 1, 0, 0, 7);

/// The identification space: Op0 3, Op1 0, CRn 0, CRm 1 to 15.
const ID_SPACE_MASK: u64 = register(3, 7, 15, 0, 0);
const ID_SPACE: u64 = register(3, 0, 0, 0, 0);

/// Returns the reason of the exit.
pub(crate) const fn reason(esr: u64) -> Exit {
    match esr & (REGISTER_MASK | 1) {
        ICC_SGI1R | ICC_SGI0R | ICC_ASGI1R => Exit::Sgi,
        _ => Exit::SystemRegister,
    }
}

/// Handles a trapped MSR, MRS or system instruction; called by the vectors. SGIs to vCPUs of the guest are sent here
/// (IHI 0069H, ICC_SGI1R_EL1).
pub(crate) extern "C" fn system_register(frame: &mut Frame, esr: u64) -> Reload {
    let moved = (esr >> 5 & 0x1f) as usize;
    // Only instructions of AArch64 come here.
    if esr & !(0x1f << 5) != SGI1R_WRITE || !is_plain_aarch64() {
        return others(frame, esr, moved);
    }
    skip_plain_instruction();
    let value = frame.get(moved);
    let intid = (value >> 24 & 0xf) as u32;
    let cpu = cpu::current();
    // One target list, affinities 1 to 3 and range selector 0: the list's bits are vCPUs.
    if value & !0xf00_ffff != 0 || intid >= DIRECT_SGIS {
        return pend_sgi(cpu, value);
    }
    cpu.counters.count_exit(Exit::Sgi);
    let mut list = value & 0xffff;
    while list != 0 {
        let target = cpu.sgi_targets[list.trailing_zeros() as usize].get();
        list &= list - 1;
        if target == cpu.self_target.get() {
            if cpu.local.inject(intid, &Lists).is_none() {
                // The rest of the list takes the slow path too.
                return pend_rest(cpu, value & !0xffff | list | cpu.self_bit.get());
            }
            cpu.counters.count_injected();
        } else if target != 0 {
            cpu_interface::send_sgi(target, intid);
        }
    }
    KEEP
}

/// Handles a trapped MSR, MRS or system instruction on the path that sees each interrupt given to a guest.
pub(crate) fn traced(frame: &mut Frame, esr: u64) {
    others(frame, esr, (esr >> 5 & 0x1f) as usize);
}

/// Handles the general case of an SGI of group 1.
#[inline(never)]
fn pend_sgi(cpu: &'static PerCpu, value: u64) -> Reload {
    counted(cpu, Exit::Sgi, || pend(cpu, value, true));
    KEEP
}

/// Sends an SGI of group 1 to the remaining targets. The exit has been counted.
#[inline(never)]
fn pend_rest(cpu: &'static PerCpu, value: u64) -> Reload {
    pend(cpu, value, true);
    KEEP
}

/// Latches the SGI for each target and kicks it.
#[inline(never)]
fn pend(cpu: &'static PerCpu, value: u64, is_group1: bool) {
    let Some(vcpu) = cpu.vcpu() else { return };
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
    interrupts::kick(cpu, vcpu, kick);
}

/// SCTLR_EL1.M, C: MMU and data cache.
const SCTLR_CACHES: u64 = 0b101;

/// Performs a write to a register of stage 1 translation. They all trap while memory is migrated (HCR_EL2.TVM), so that EL2
/// learns when a vCPU turns its caches off. Returns false if `written` is not one of them.
fn write_translation_control(cpu: &'static PerCpu, written: u64, value: u64) -> bool {
    const SCTLR: u64 = register(3, 0, 1, 0, 0);
    const TTBR0: u64 = register(3, 0, 2, 0, 0);
    const TTBR1: u64 = register(3, 0, 2, 0, 1);
    const TCR: u64 = register(3, 0, 2, 0, 2);
    const AFSR0: u64 = register(3, 0, 5, 1, 0);
    const AFSR1: u64 = register(3, 0, 5, 1, 1);
    const ESR: u64 = register(3, 0, 5, 2, 0);
    const FAR: u64 = register(3, 0, 6, 0, 0);
    const MAIR: u64 = register(3, 0, 10, 2, 0);
    const AMAIR: u64 = register(3, 0, 10, 3, 0);
    const CONTEXTIDR: u64 = register(3, 0, 13, 0, 1);
    let register = match written {
        SCTLR => {
            // A unit that is being copied on the assumption of caches on stays inaccessible until the copy is complete.
            time::note_control(cpu, value & SCTLR_CACHES == SCTLR_CACHES);
            Register::Sctlr
        }
        TTBR0 => Register::Ttbr0,
        TTBR1 => Register::Ttbr1,
        TCR => Register::Tcr,
        AFSR0 => Register::Afsr0,
        AFSR1 => Register::Afsr1,
        ESR => Register::Esr,
        FAR => Register::Far,
        MAIR => Register::Mair,
        AMAIR => Register::Amair,
        CONTEXTIDR => Register::ContextId,
        _ => return false,
    };
    register.write(value);
    true
}

/// Handles all other registers, which are accessed seldom.
#[inline(never)]
fn others(frame: &mut Frame, esr: u64, moved: usize) -> Reload {
    let cpu = cpu::current();
    counted(cpu, reason(esr), || other(cpu, frame, esr, moved))
}

fn other(cpu: &'static PerCpu, frame: &mut Frame, esr: u64, moved: usize) -> Reload {
    let value = frame.get(moved);
    let Some(vcpu) = cpu.vcpu() else { return KEEP };
    let mut reload = KEEP;
    match (esr & REGISTER_MASK, esr & 1 != 0) {
        (ICC_SGI1R, false) => pend(cpu, value, true),
        // Group 0 SGIs; with one security state, ASGI1R reaches the other group 1, which does not exist.
        (ICC_SGI0R, false) => pend(cpu, value, false),
        (ICC_ASGI1R, false) => {}
        (ICC_DIR, false) => {
            let vgic = vcpu.guest().vgic();
            let others = vgic.deactivate(vcpu.index(), value as u32 & 0xff_ffff, &cpu.local, &Lists);
            interrupts::kick(cpu, vcpu, others);
        }
        (common_registers::CTLR | common_registers::PMR, _) | (common_registers::RPR, true) => {
            if let Some(read) = common_registers::access(&Lists, esr, value) {
                reload = frame.set(moved, read);
            }
        }
        (control, false) if write_translation_control(cpu, control, value) => {}
        (ACTLR, true) => reload = frame.set(moved, 0),
        (ACTLR, false) => {}
        // Trapped together with DBGPRCR_EL1 (`features::MDCR_TDOSA`).
        (OSLAR, false) => os_lock::write(value),
        (OSLSR, true) => reload = frame.set(moved, os_lock::read_status()),
        (OSDLR, true) => reload = frame.set(moved, os_lock::read_double_lock()),
        (OSDLR, false) => os_lock::write_double_lock(value),
        // It asks a power controller that guests do not have to keep the CPU's power on.
        (DBGPRCR, true) => reload = frame.set(moved, 0),
        (DBGPRCR, false) => {}
        (REVIDR, true) => reload = frame.set(moved, features::revision()),
        (AIDR, true) => reload = frame.set(moved, features::auxiliary_identification()),
        // RAS has no error records for guests: ERRIDR_EL1.NUM is 0, and there is nothing to select.
        (ras, is_read) if RAS_RECORDS.contains(&ras) => {
            if is_read {
                reload = frame.set(moved, 0);
            }
        }
        (id, true) if id & ID_SPACE_MASK == ID_SPACE && id & register(0, 0, 0, 15, 0) != 0 => {
            let (crm, op2) = (id >> 1 & 0xf, id >> 17 & 7);
            reload = frame.set(moved, features::identification(crm, op2));
        }
        (unknown, is_read) => {
            // Op0, Op1, CRn, CRm and Op2, a digit each.
            let digits = [(20, 3), (14, 7), (10, 15), (1, 15), (17, 7)];
            let name = digits.iter().fold(0, |name, (at, mask)| name << 4 | unknown >> at & mask);
            let what = if is_read { "undefined: MRS of" } else { "undefined: MSR to" };
            guest::note(vcpu, [(what, name), ("at", ELR_EL2.get())]);
            inject::undefined(esr);
            return KEEP;
        }
    }
    skip_instruction(esr);
    reload
}
