//! The choice of mitigations of speculative execution, made when a CPU comes up.

use super::cpu::{self, Core};
use super::firmware::{self, Host};
use super::sysreg::{instruction, read};
use crate::device::smccc::{Firmware as _, Workaround};
use crate::mitigation::{Answers, Choice, Policy, Registers, Stores};
use crate::observe::log;
use aarch64_cpu::registers::{Readable, SCTLR_EL2, Writeable};
use guest_dts::argument;
use spin::Once;

/// SCTLR_EL2.DSSBS: PSTATE.SSBS on exceptions to EL2 (Arm ARM, SCTLR_EL2).
const SCTLR_DSSBS: u64 = 1 << 44;

/// The operator's choice, set before the first CPU needs it.
static POLICY: Once<Policy> = Once::new();

/// Takes the operator's choice from Ballast's command line.
pub(crate) fn init(command_line: &str) {
    let policy = match argument::value(command_line, "mitigations") {
        None => Policy::Auto,
        Some(value) => Policy::parse(value).unwrap_or_else(|| {
            log::warn!("mitigations={}: not one of auto, off, loop:1 to loop:255, clrbhb; using auto", value);
            Policy::Auto
        }),
    };
    if policy == Policy::Off {
        log::warn!(
            "mitigations=off: guests can attack Ballast, and through it each other, by speculative execution"
        );
    }
    POLICY.call_once(|| policy);
}

/// Chooses the mitigations of this CPU, asking its firmware, and applies them. The caller chooses the CPU's vectors anew.
pub(crate) fn init_cpu(this: &Core) {
    let registers = Registers {
        midr: read!("midr_el1"),
        pfr0: read!("id_aa64pfr0_el1"),
        pfr1: read!("id_aa64pfr1_el1"),
        isar2: read!("S3_0_C0_C6_2"),
        mmfr1: read!("id_aa64mmfr1_el1"),
    };
    let policy = POLICY.get().copied().unwrap_or_default();
    let choice = Choice::new(&registers, Answers::ask(firmware::version(), &Host), policy);
    match choice.stores {
        Stores::Ssbs => set_ssbs(choice.allows_store_bypass()),
        // The mitigation is on after a reset (DEN 0028, SMCCC_ARCH_WORKAROUND_2), but a loader may have turned it off.
        Stores::Firmware => {
            let enable = Workaround::StoreBypass { enable: 1 };
            let _ = Host.call(enable.id(), 1);
        }
        Stores::NotNeeded | Stores::Vulnerable => {}
    }
    this.hardening.set(choice, firmware::is_hvc());
}

/// Allows or forbids EL2's loads to bypass stores, from this CPU's next exception on; no guest has run here before.
/// PSTATE.SSBS itself cannot be written on every core that has it (FEAT_SSBS without FEAT_SSBS2).
fn set_ssbs(is_allowed: bool) {
    let sctlr = SCTLR_EL2.get() & !SCTLR_DSSBS;
    SCTLR_EL2.set(if is_allowed { sctlr | SCTLR_DSSBS } else { sctlr });
    instruction!("isb");
}

/// Warns of cores that remain unprotected, one line for each kind of core.
pub(crate) fn report_gaps() {
    let gap = |cpu: &Core| cpu.hardening.choice().and_then(|choice| choice.branches.gap());
    let is_first = |cpu: &Core| {
        cpu::all().take(cpu.index()).all(|before| (before.midr(), gap(before)) != (cpu.midr(), gap(cpu)))
    };
    for cpu in cpu::all().filter(|&cpu| is_first(cpu)) {
        if let Some(why) = gap(cpu) {
            log::warn!(
                "CPU {} and others of MIDR {:#x}: guests can train the branch predictor against Ballast: {}",
                cpu.index(),
                cpu.midr(),
                why
            );
        }
    }
}
