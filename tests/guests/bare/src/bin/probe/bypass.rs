//! Calls of SMCCC_ARCH_WORKAROUND_2 with traps between them, so that a test can see which calls of firmware the hypervisor makes.
//! This is not a group of checks: it prints `probe bypass is ANSWER`, then `probe bypass asked`, and idles.

use bare::psci::{self, call};
use bare::{gic, mmio, say};

/// SMCCC_ARCH_WORKAROUND_2.
const WORKAROUND: u64 = 0x8000_7fff;
/// Number of traps while the mitigation is on.
const MITIGATED: u32 = 500;
/// Number of traps while it is off.
const ALLOWED: u32 = 10;

fn trap(count: u32) {
    for _ in 0..count {
        let _ = mmio::read32(gic::distributor() + gic::register::TYPER);
    }
}

pub(crate) fn run() -> ! {
    say!("probe bypass is {}", call(psci::SMCCC_ARCH_FEATURES, WORKAROUND, 0, 0));
    trap(MITIGATED);
    let off = call(WORKAROUND, 0, 0, 0);
    trap(ALLOWED);
    let on = call(WORKAROUND, 0x8000_0000, 0, 0);
    trap(MITIGATED);
    let _ = call(WORKAROUND, 0, 0, 0);
    trap(ALLOWED);
    say!("probe bypass asked {} {}", off, on);
    psci::stay()
}
