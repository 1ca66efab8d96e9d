//! Calls to the host's firmware: PSCI and the SMCCC workarounds, by the conduit that the host's tree names.

use crate::board::{Conduit, Psci};
use crate::device::smccc::{Firmware, Workaround};
use core::sync::atomic::{AtomicBool, Ordering};
use smccc::{Hvc, Smc, psci};

static BY_HVC: AtomicBool = AtomicBool::new(false);

/// Takes the conduit from the host's tree.
pub(super) fn init(host: &Psci) {
    BY_HVC.store(host.conduit == Conduit::Hvc, Ordering::Relaxed);
}

fn is_hvc() -> bool {
    BY_HVC.load(Ordering::Relaxed)
}

/// Starts the CPU with MPIDR `mpidr` at physical address `entry` with `x0` = `context` (PSCI CPU_ON).
pub(super) fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), psci::Error> {
    if is_hvc() { psci::cpu_on::<Hvc>(mpidr, entry, context) } else { psci::cpu_on::<Smc>(mpidr, entry, context) }
}

/// The host's firmware, for guests' calls.
pub(super) struct Host;

impl Firmware for Host {
    fn features(&self, workaround: Workaround) -> i32 {
        // SMCCC_ARCH_FEATURES exists from SMCCC 1.1 on; older firmware answers NOT_SUPPORTED, -1.
        let id = workaround.id().get();
        let arguments = [id, 0, 0, 0, 0, 0, 0];
        let result = if is_hvc() { smccc::hvc32(0x8000_0001, arguments) } else { smccc::smc32(0x8000_0001, arguments) };
        result[0] as i32
    }

    fn apply(&self, workaround: Workaround) {
        let id = workaround.id().get();
        let _ = if is_hvc() { smccc::hvc32(id, [0; 7]) } else { smccc::smc32(id, [0; 7]) };
    }
}
