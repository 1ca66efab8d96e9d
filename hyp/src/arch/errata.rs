//! Workarounds for errata of this machine's CPUs, and their instructions.

use super::cpu;
use super::sysreg::instruction;
use crate::errata::{self, Numbers, Workarounds};
use crate::observe::log;
use crate::translation::{Processor, Stage1, complete};
use aarch64_cpu::registers::*;
use core::sync::atomic::{AtomicU8, Ordering};

/// Workarounds that any CPU of the machine needs. They are harmless on CPUs that do not need them, so all CPUs apply all.
static MACHINE: AtomicU8 = AtomicU8::new(Workarounds::NONE.bits());

/// Adds the workarounds that this CPU needs. Called before the CPU is online, hence before other CPUs invalidate
/// translations that it uses.
pub(crate) fn init_cpu() {
    MACHINE.fetch_or(errata::needed(MIDR_EL1.get()).bits(), Ordering::Relaxed);
}

/// Returns the workarounds that this machine needs.
#[inline(always)]
pub(crate) fn machine() -> Workarounds {
    Workarounds::from_bits(MACHINE.load(Ordering::Relaxed))
}

/// Completes all earlier broadcast TLB invalidations, on all CPUs.
#[inline(always)]
pub(crate) fn complete_invalidations() {
    complete(&This, machine());
}

/// Logs the errata that are worked around, and how. Called when all CPUs are up.
#[inline(never)]
pub(crate) fn report() {
    let midrs = cpu::all().map(|cpu| cpu.midr());
    for workaround in Workarounds::ALL.into_iter().filter(|&one| machine().has(one)) {
        let numbers = Numbers { workaround, midrs: midrs.clone() };
        if workaround == Workarounds::GUEST_DEADLOCK {
            log::warn!("CPU errata {}: {}", numbers, workaround);
        } else {
            log::info!("CPU errata {}: {}", numbers, workaround);
        }
    }
}

/// The CPU that this runs on.
pub(crate) struct This;

impl Processor for This {
    #[inline(always)]
    fn stage1(&self) -> Stage1 {
        Stage1 { sctlr: SCTLR_EL1.get(), tcr: TCR_EL1.get() }
    }

    #[inline(always)]
    fn set_sctlr(&self, value: u64) {
        SCTLR_EL1.set(value);
    }

    #[inline(always)]
    fn set_tcr(&self, value: u64) {
        TCR_EL1.set(value);
    }

    #[inline(always)]
    fn vttbr(&self) -> u64 {
        VTTBR_EL2.get()
    }

    #[inline(always)]
    fn set_vttbr(&self, value: u64) {
        VTTBR_EL2.set(value);
    }

    #[inline(always)]
    fn set_vtcr(&self, value: u64) {
        VTCR_EL2.set(value);
    }

    #[inline(always)]
    fn par(&self) -> u64 {
        PAR_EL1.get()
    }

    #[inline(always)]
    fn set_par(&self, value: u64) {
        PAR_EL1.set(value);
    }

    #[inline(always)]
    fn synchronise_context(&self) {
        instruction!("isb");
    }

    #[inline(always)]
    fn wait(&self) {
        instruction!("dsb ish");
    }

    #[inline(always)]
    fn invalidate_nothing(&self) {
        instruction!("tlbi vale2is, xzr");
    }
}
