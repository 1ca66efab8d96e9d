//! Ballast's hypercalls for owners of pools.

use crate::psci::{Registers, hvc};

/// UID.
pub const UID: u64 = 0x8600_ff01;
/// FEATURES.
pub const FEATURES: u64 = 0x8600_0000;
/// POOL_INFO.
pub const POOL_INFO: u64 = 0xc600_0010;
/// CLAIM.
pub const CLAIM: u64 = 0xc600_0011;
/// CLAIM_AT.
pub const CLAIM_AT: u64 = 0xc600_0012;
/// RELEASE.
pub const RELEASE: u64 = 0xc600_0013;
/// STATUS.
pub const STATUS: u64 = 0xc600_0014;
/// CANCEL.
pub const CANCEL: u64 = 0xc600_0015;

/// Calls Ballast. Returns X0 to X3.
pub fn call(function: u64, first: u64, second: u64, third: u64) -> [i64; 4] {
    let mut registers: Registers = [0; 18];
    registers[..4].copy_from_slice(&[function, first, second, third]);
    let answer = hvc(&registers);
    [answer[0] as i64, answer[1] as i64, answer[2] as i64, answer[3] as i64]
}
