//! The CPU interface's system registers (IHI 0069H, 12.2). EL2 sees the physical ones; with HCR_EL2.IMO and FMO
//! set, EL1 sees the virtual ones behind the same names.

use crate::arch::sysreg::{instruction, read, write};

/// INTIDs from here on are special: no interrupt was pending.
pub(crate) const SPECIAL: u32 = 1020;

/// Turns the interface on: system registers, all priorities, group 1, deactivation apart from the end.
pub(crate) fn init() {
    // ICC_SRE_EL2: SRE, no FIQ and IRQ bypass, EL1 may use system registers.
    write!("S3_4_C12_C9_5", 0xf);
    instruction!("isb");
    // ICC_CTLR_EL1.EOImode.
    write!("S3_0_C12_C12_4", 1 << 1);
    // ICC_PMR_EL1, ICC_BPR1_EL1, ICC_IGRPEN1_EL1.
    write!("S3_0_C4_C6_0", 0xff);
    write!("S3_0_C12_C12_3", 0);
    write!("S3_0_C12_C12_7", 1);
    instruction!("isb");
}

/// Acknowledges the most urgent pending interrupt (ICC_IAR1_EL1).
#[inline(always)]
pub(crate) fn acknowledge() -> u32 {
    read!("S3_0_C12_C12_0") as u32 & 0xff_ffff
}

/// Drops the running priority (ICC_EOIR1_EL1).
#[inline(always)]
pub(crate) fn drop_priority(intid: u32) {
    write!("S3_0_C12_C12_1", u64::from(intid));
}

/// Deactivates an interrupt (ICC_DIR_EL1).
#[inline(always)]
pub(crate) fn deactivate(intid: u32) {
    write!("S3_0_C12_C11_1", u64::from(intid));
}

/// What to write to ICC_SGI1R_EL1, less the INTID, to reach the CPU with MPIDR `mpidr`.
pub(crate) const fn sgi_target(mpidr: u64) -> u64 {
    let (aff0, aff1, aff2, aff3) = (mpidr & 0xff, mpidr >> 8 & 0xff, mpidr >> 16 & 0xff, mpidr >> 32 & 0xff);
    // Range selector: which 16 of affinity 0's values the target list stands for.
    aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | aff1 << 16 | 1 << (aff0 & 0xf)
}

/// Sends SGI `intid` to `target`, a value of [`sgi_target`]. What this CPU wrote before is visible to the other
/// when it takes the interrupt: DSB before, since a write to a system register is not ordered with stores.
#[inline(always)]
pub(crate) fn send_sgi(target: u64, intid: u32) {
    instruction!("dsb ishst");
    write!("S3_0_C12_C11_5", target | u64::from(intid) << 24);
    instruction!("isb");
}
