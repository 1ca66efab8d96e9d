//! Mitigations of speculative execution on this CPU: chosen when it comes up, kept for its vectors and its guest.

use super::cpu::{self, Core};
use super::firmware::{self, Host};
use super::sysreg::{instruction, read};
use crate::device::smccc::{Firmware as _, Workaround};
use crate::mitigation::{Answers, Branches, Choice, Policy, Registers, StoreBypass, Stores};
use crate::observe::{log, trace};
use aarch64_cpu::registers::{Readable, SCTLR_EL2, Writeable};
use core::cell::Cell;
use core::mem::offset_of;
use guest_dts::argument;
use spin::Once;

/// SCTLR_EL2.DSSBS: PSTATE.SSBS on exceptions to EL2 (Arm ARM D24.2.146).
const SCTLR_DSSBS: u64 = 1 << 44;

/// The operator's choice, set before the first CPU needs it.
static POLICY: Once<Policy> = Once::new();

/// The mitigations of one CPU: what its hardened vectors read, and its vCPU's choice. Touched by that CPU alone, but for
/// `choice`.
pub(crate) struct Hardening {
    /// Iterations of the loop that overwrites the branch history, or 0.
    loop_count: Cell<u8>,
    /// Not 0: after the mitigation, the vectors go by way of `exit::hardened`.
    is_slow: Cell<u8>,
    /// Not 0: firmware is called by HVC.
    is_hvc: Cell<u8>,
    /// The function that invalidates the branch predictor, or 0.
    call: Cell<u32>,
    choice: Once<Choice>,
    store_bypass: StoreBypass,
}

impl Hardening {
    pub(crate) const LOOP_COUNT: usize = offset_of!(Self, loop_count);
    pub(crate) const IS_SLOW: usize = offset_of!(Self, is_slow);
    pub(crate) const IS_HVC: usize = offset_of!(Self, is_hvc);
    pub(crate) const CALL: usize = offset_of!(Self, call);

    pub(crate) const fn new() -> Self {
        Self {
            loop_count: Cell::new(0),
            is_slow: Cell::new(0),
            is_hvc: Cell::new(0),
            call: Cell::new(0),
            choice: Once::new(),
            store_bypass: StoreBypass::new(),
        }
    }

    /// The choice for this CPU, once it has come up.
    pub(crate) fn choice(&self) -> Option<&Choice> {
        self.choice.get()
    }

    /// Whether the vCPU runs with store bypassing allowed and EL2 does not.
    fn toggles_store_bypass(&self) -> bool {
        self.store_bypass.is_wanted() && self.choice().is_some_and(|choice| !choice.allows_store_bypass())
    }

    /// Whether an exception from a guest has to come by the hardened vectors, and sets what these read beside the choice.
    pub(crate) fn prepare(&self) -> bool {
        let is_toggled = self.toggles_store_bypass();
        self.is_slow.set(u8::from(is_toggled || trace::is_recording()));
        let is_chosen = self.choice().is_some_and(|choice| {
            matches!(choice.branches, Branches::Loop(_) | Branches::ClearInstruction | Branches::Firmware(_))
        });
        is_chosen || is_toggled
    }

    /// Turns store bypassing off again after the vCPU ran with it allowed.
    pub(crate) fn enter(&self) {
        if self.toggles_store_bypass() {
            self.store_bypass.enter(&Host);
        }
    }

    /// Makes the vCPU's choice about store bypassing true, before it runs again.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.store_bypass.leave(&Host);
    }

    /// Forgets the choice of the vCPU that ran here, before one starts. The CPU's vectors have to be chosen anew.
    pub(crate) fn reset(&self) {
        self.store_bypass.reset(&Host);
    }

    /// Answers a guest's SMCCC_ARCH_FEATURES for `workaround`.
    pub(crate) fn feature(&self, workaround: Workaround) -> i32 {
        self.choice().map_or(Answers::NONE.of(workaround), |choice| choice.feature(workaround))
    }

    /// Does what a guest asks for by `workaround`, and returns the status for X0. The CPU's vectors have to be chosen anew.
    pub(crate) fn apply(&self, workaround: Workaround) -> i32 {
        let choice = self.choice();
        choice.map_or(crate::device::smccc::NOT_SUPPORTED, |choice| {
            choice.apply(workaround, &self.store_bypass, &Host)
        })
    }
}

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

/// Chooses for this CPU, asking its firmware, and makes it so. Its vectors have to be chosen anew.
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
    let hardening = &this.hardening;
    hardening.is_hvc.set(u8::from(firmware::is_hvc()));
    hardening.loop_count.set(choice.branches.loop_count().unwrap_or(0));
    if let Branches::Firmware(workaround) = choice.branches {
        hardening.call.set(workaround.id().get());
    }
    match choice.stores {
        Stores::Ssbs => set_ssbs(choice.allows_store_bypass()),
        // On already after a reset (DEN 0028, 7.6), unless a loader turned it off.
        Stores::Firmware => {
            let enable = Workaround::StoreBypass { enable: 1 };
            let _ = Host.call(enable.id(), 1);
        }
        Stores::NotNeeded | Stores::Vulnerable => {}
    }
    hardening.choice.call_once(|| choice);
}

/// Lets EL2's loads bypass stores, or not, from this CPU's first exception on: no guest has run here before. PSTATE.SSBS
/// itself cannot be written on every core that has it (FEAT_SSBS without FEAT_SSBS2).
fn set_ssbs(is_allowed: bool) {
    let sctlr = SCTLR_EL2.get() & !SCTLR_DSSBS;
    SCTLR_EL2.set(if is_allowed { sctlr | SCTLR_DSSBS } else { sctlr });
    instruction!("isb");
}

/// Warns of cores that stay unprotected, one line for each kind of core.
pub(crate) fn report_gaps() {
    let gap = |cpu: &Core| cpu.hardening.choice().and_then(|choice| choice.branches.gap());
    let is_first = |cpu: &Core| {
        cpu::all().take(cpu.index()).all(|before| (before.midr(), gap(before)) != (cpu.midr(), gap(cpu)))
    };
    for cpu in cpu::all().filter(|&cpu| is_first(cpu)) {
        if let Some(why) = gap(cpu) {
            log::warn!(
                "CPU {} and its like, MIDR {:#x}: guests can train its branch predictor against Ballast: {}",
                cpu.index(),
                cpu.midr(),
                why
            );
        }
    }
}
