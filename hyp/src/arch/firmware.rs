//! Calls to the host's firmware: PSCI and the SMCCC workarounds, by the conduit that the host's tree names.

use crate::board::{Conduit, Psci, PsciVersion};
use crate::device::smccc::{Firmware, FunctionId};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// PSCI_VERSION and, from 0.2 on, CPU_ON with 64-bit arguments (PSCI, DEN 0022).
const VERSION: u32 = 0x8400_0000;
const CPU_ON: u32 = 0xc400_0003;

static BY_HVC: AtomicBool = AtomicBool::new(false);
/// The function number of CPU_ON. Before PSCI 0.2 the host's tree gives it.
static CPU_ON_ID: AtomicU32 = AtomicU32::new(CPU_ON);

/// Takes the conduit, and function numbers for PSCI before 0.2, from the host's tree.
pub(crate) fn init(host: &Psci) {
    BY_HVC.store(host.conduit == Conduit::Hvc, Ordering::Relaxed);
    if let PsciVersion::V0_1 { cpu_on, .. } = host.version {
        CPU_ON_ID.store(cpu_on, Ordering::Relaxed);
    }
}

/// Returns true if firmware is called by HVC instead of SMC.
pub(crate) fn is_hvc() -> bool {
    BY_HVC.load(Ordering::Relaxed)
}

/// Calls function `id` and returns W0. Firmware may change x0 to x17: before SMCCC 1.1 it need not preserve x4 to x17
/// (DEN 0028, "Changes between 1.0 and 1.1"). The `smc32` of the `smccc` crate assumes that x8 to x17 are preserved.
fn call(id: u32, first: [u64; 3]) -> i32 {
    let mut arguments = [0; 17];
    arguments[..3].copy_from_slice(&first);
    let result = if is_hvc() { smccc::hvc64(id, arguments) } else { smccc::smc64(id, arguments) };
    result[0] as i32
}

fn call32(id: u32, first: u32) -> i32 {
    call(id, [first.into(), 0, 0])
}

/// Returns the version of the host's PSCI: major and minor number.
pub(crate) fn version() -> (u16, u16) {
    if CPU_ON_ID.load(Ordering::Relaxed) != CPU_ON {
        return (0, 1);
    }
    let version = call32(VERSION, 0);
    ((version >> 16) as u16, version as u16)
}

/// An error code of PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(i32);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            -1 => "NOT_SUPPORTED",
            -2 => "INVALID_PARAMETERS",
            -3 => "DENIED",
            -4 => "ALREADY_ON",
            -5 => "ON_PENDING",
            -6 => "INTERNAL_FAILURE",
            -9 => "INVALID_ADDRESS",
            other => return write!(f, "{other}"),
        };
        f.write_str(name)
    }
}

/// Starts the CPU with MPIDR `mpidr` at physical address `entry` with `x0` = `context` (PSCI CPU_ON).
pub(crate) fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), Refusal> {
    match call(CPU_ON_ID.load(Ordering::Relaxed), [mpidr, entry, context]) {
        0 => Ok(()),
        status => Err(Refusal(status)),
    }
}

/// The host's firmware.
pub(crate) struct Host;

impl Firmware for Host {
    fn call(&self, id: FunctionId, argument: u32) -> i32 {
        call32(id.get(), argument)
    }
}
