//! Calls of PSCI and SMCCC, by HVC and SMC.

use crate::platform::Conduit;
use core::arch::asm;

/// `PSCI_VERSION`
pub const VERSION: u64 = 0x8400_0000;
/// `CPU_SUSPEND`, 64-bit
pub const CPU_SUSPEND: u64 = 0xc400_0001;
/// `CPU_OFF`
pub const CPU_OFF: u64 = 0x8400_0002;
/// `CPU_ON`, 64-bit
pub const CPU_ON: u64 = 0xc400_0003;
/// `AFFINITY_INFO`, 64-bit
pub const AFFINITY_INFO: u64 = 0xc400_0004;
/// `MIGRATE`, 64-bit
pub const MIGRATE: u64 = 0xc400_0005;
/// `MIGRATE_INFO_TYPE`
pub const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
/// `SYSTEM_OFF`
pub const SYSTEM_OFF: u64 = 0x8400_0008;
/// `SYSTEM_RESET`
pub const SYSTEM_RESET: u64 = 0x8400_0009;
/// `PSCI_FEATURES`
pub const FEATURES: u64 = 0x8400_000a;
/// `SYSTEM_RESET2`, 64-bit
pub const SYSTEM_RESET2: u64 = 0xc400_0012;
/// `SMCCC_VERSION`
pub const SMCCC_VERSION: u64 = 0x8000_0000;
/// `SMCCC_ARCH_FEATURES`
pub const SMCCC_ARCH_FEATURES: u64 = 0x8000_0001;

/// PSCI's and SMCCC's results.
pub mod result {
    /// Success.
    pub const SUCCESS: i64 = 0;
    /// No such call.
    pub const NOT_SUPPORTED: i64 = -1;
    /// Invalid parameter.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// Denied in this state.
    pub const DENIED: i64 = -3;
    /// The CPU is already on.
    pub const ALREADY_ON: i64 = -4;
    /// The CPU is being turned on.
    pub const ON_PENDING: i64 = -5;
    /// Internal failure.
    pub const INTERNAL_FAILURE: i64 = -6;
    /// Invalid entry point.
    pub const INVALID_ADDRESS: i64 = -9;
}

/// All registers of a call, x0 to x17.
pub type Registers = [u64; 18];

macro_rules! conduit {
    ($name:ident, $instruction:literal) => {
        #[doc = concat!("Loads x0 to x17, executes `", $instruction, " #0` and returns what they are then.")]
        #[must_use]
        pub fn $name(registers: &Registers) -> Registers {
            let mut r = *registers;
            // SAFETY: SMCCC lets a call change x0 to x17 alone; no call that is made here gives memory away.
            unsafe {
                asm!(
                    concat!($instruction, " #0"),
                    inout("x0") r[0], inout("x1") r[1], inout("x2") r[2], inout("x3") r[3],
                    inout("x4") r[4], inout("x5") r[5], inout("x6") r[6], inout("x7") r[7],
                    inout("x8") r[8], inout("x9") r[9], inout("x10") r[10], inout("x11") r[11],
                    inout("x12") r[12], inout("x13") r[13], inout("x14") r[14], inout("x15") r[15],
                    inout("x16") r[16], inout("x17") r[17],
                );
            }
            r
        }
    };
}

conduit!(hvc, "hvc");
conduit!(smc, "smc");

/// Calls a function by the platform's conduit. Returns the signed result.
pub fn call(function: u64, a1: u64, a2: u64, a3: u64) -> i64 {
    let mut registers: Registers = [0; 18];
    registers[..4].copy_from_slice(&[function, a1, a2, a3]);
    let conduit = crate::boot::platform().map_or(Conduit::Hvc, |platform| platform.conduit);
    let answer = match conduit {
        Conduit::Hvc => hvc(&registers),
        Conduit::Smc => smc(&registers),
    };
    signed(function, answer[0])
}

/// Converts a result to a signed number, of 64 bits for 64-bit calls and else of 32 bits.
#[must_use]
pub fn signed(function: u64, result: u64) -> i64 {
    if function & 1 << 30 != 0 { result as i64 } else { i64::from(result as i32) }
}

/// Powers the machine off.
pub fn system_off() -> ! {
    call(SYSTEM_OFF, 0, 0, 0);
    stay()
}

/// Turns this CPU off. Returns only errors.
pub fn cpu_off() -> i64 {
    call(CPU_OFF, 0, 0, 0)
}

/// Starts the CPU with `affinity` at `entry`, with `context` in x0.
pub fn cpu_on(affinity: u64, entry: usize, context: u64) -> i64 {
    call(CPU_ON, affinity, entry as u64, context)
}

/// Returns 0 if the CPU with `affinity` is on, 1 if off, 2 if it is being turned on, or an error.
pub fn affinity_info(affinity: u64) -> i64 {
    call(AFFINITY_INFO, affinity, 0, 0)
}

/// Sleeps without end.
pub fn stay() -> ! {
    crate::register::mask_interrupts();
    loop {
        crate::instruction!("wfi");
    }
}
