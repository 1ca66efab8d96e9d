//! Calls to the hypervisor, by HVC and SMC.

use crate::slots::{CALL_SLOTS, CALLS, Operands};
use crate::{Attacker, Kind, place};
use bare::{gic, msr, pools, psci, timer};

/// Existing functions.
const KNOWN: [u64; 24] = [
    psci::VERSION,
    psci::CPU_SUSPEND,
    psci::CPU_ON,
    psci::AFFINITY_INFO,
    psci::MIGRATE,
    psci::MIGRATE_INFO_TYPE,
    psci::FEATURES,
    psci::SMCCC_VERSION,
    psci::SMCCC_ARCH_FEATURES,
    0x8000_7fff,
    0x8000_8000,
    0x8000_3fff,
    0x8000_0002,
    0xc400_0014,
    pools::UID,
    pools::FEATURES,
    pools::POOL_INFO,
    pools::CLAIM,
    pools::CLAIM,
    pools::CLAIM_AT,
    pools::RELEASE,
    pools::RELEASE,
    pools::STATUS,
    pools::CANCEL,
];

/// Chooses a call.
pub(crate) fn choose(attacker: &mut Attacker) -> (Kind, usize, Operands) {
    let mut operands: Operands = core::array::from_fn(|_| argument(attacker));
    operands[0] = function(attacker);
    if attacker.random.below(2) == 0 {
        ask_for_memory(attacker, &mut operands);
    }
    // Calls that end the guest also end the other operations, so they are rare even if allowed.
    if is_final(operands[0]) && (!attacker.is_wild || attacker.random.below(64) != 0) {
        operands[0] ^= 1 << 20;
    }
    if !attacker.is_wild && is_sleep(operands[0]) {
        // The first CPU wakes the others.
        if attacker.cpu == 0 {
            operands[0] = psci::VERSION;
        } else {
            wake_soon(attacker);
        }
    }
    let at = attacker.random.below(CALL_SLOTS as u64) as usize;
    match attacker.random.below(2) {
        0 => (Kind::Hvc, CALLS + at, operands),
        _ => (Kind::Smc, CALLS + CALL_SLOTS + at, operands),
    }
}

fn function(attacker: &mut Attacker) -> u64 {
    let random = &mut attacker.random;
    let upper = if random.below(8) == 0 { random.draw() << 32 } else { 0 };
    upper
        | match random.below(6) {
            0 | 1 => KNOWN[random.below(KNOWN.len() as u64) as usize],
            2 => random.draw() & 0xffff_ffff,
            // PSCI, and architecture, by both conventions.
            3 => 0x8400_0000 | random.below(2) << 30 | random.below(0x20),
            4 => 0x8000_0000 | random.below(64) << 24 | random.below(0x1_0000),
            _ => 0x8600_0000 | random.below(2) << 30 | (random.below(2) * 0xff00) | random.below(0x100),
        }
}

/// Changes the arguments of a pool call so that it may succeed.
fn ask_for_memory(attacker: &mut Attacker, operands: &mut Operands) {
    let (window, size) = place::pool();
    let random = &mut attacker.random;
    let (offset, bytes) = (random.below(size.max(1)) & !0xfff, 4096 << random.below(11));
    match operands[0] {
        pools::CLAIM => operands[1..4].copy_from_slice(&[0, bytes, 0]),
        pools::CLAIM_AT => operands[1..4].copy_from_slice(&[0, offset, bytes]),
        pools::RELEASE => operands[1..3].copy_from_slice(&[window + offset, bytes]),
        _ => {}
    }
}

fn argument(attacker: &mut Attacker) -> u64 {
    let cpus = attacker.platform.cpus();
    let (window, size) = place::pool();
    let random = &mut attacker.random;
    match random.below(9) {
        0 => 0,
        1 => random.below(0x20),
        2 => cpus[random.below(cpus.len() as u64) as usize],
        3 => 4096 << random.below(14),
        4 => window + (random.below(size.max(1)) & !0xfff),
        5 => u64::MAX - random.below(0x2000),
        6 => 1 << random.below(64),
        7 => place::device(attacker),
        _ => random.draw(),
    }
}

/// Returns true if a call does not return: CPU_OFF, SYSTEM_OFF, SYSTEM_RESET, SYSTEM_SUSPEND, SYSTEM_RESET2.
fn is_final(function: u64) -> bool {
    is_psci(function) && matches!(function & 0xffff, 0x02 | 0x08 | 0x09 | 0x0e | 0x12)
}

/// Returns true if a call waits for an interrupt: CPU_SUSPEND, CPU_FREEZE, CPU_DEFAULT_SUSPEND.
fn is_sleep(function: u64) -> bool {
    is_psci(function) && matches!(function & 0xffff, 0x01 | 0x0b | 0x0c)
}

fn is_psci(function: u64) -> bool {
    function & 0xbf00_0000 == 0x8400_0000
}

/// Makes a timer due, and enables it in the CPU interface. Other CPUs may still disable it.
fn wake_soon(attacker: &Attacker) {
    use bare::mmio::write32;
    let frame = gic::redistributor(attacker.cpu) + gic::register::GICR_SGI;
    let _ = bare::exception::catch(|| {
        write32(attacker.platform.distributor + gic::register::CTLR, 1 << 4 | 3);
        write32(frame + gic::register::ICACTIVER, u32::MAX);
        write32(frame + gic::register::IGROUPR, u32::MAX);
        write32(frame + gic::register::ISENABLER, 1 << timer::VIRTUAL_INTID);
        bare::mmio::write8(frame + gic::register::IPRIORITYR + timer::VIRTUAL_INTID as usize, gic::PRIORITY);
    });
    msr!("icc_ap1r0_el1", 0);
    msr!("icc_pmr_el1", 0xff);
    msr!("icc_igrpen1_el1", 1);
    timer::arm_virtual(0);
}
