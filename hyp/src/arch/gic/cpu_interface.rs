//! System registers of the CPU interface (IHI 0069H, ICC_*). EL2 accesses the physical ones; with HCR_EL2.IMO and FMO
//! set, EL1 accesses the virtual ones by the same names.

use crate::arch::sysreg::{instruction, read, write};

/// The SGI by which CPUs bring each other into EL2. Guests use the SGIs below it
/// ([`crate::device::vgic::DIRECT_SGIS`]).
pub(crate) const KICK_SGI: u32 = 7;
const _: () = assert!(KICK_SGI >= crate::device::vgic::DIRECT_SGIS);

/// Returns true if `intid` means that there is no interrupt ("Special INTIDs").
pub(crate) const fn is_special(intid: u32) -> bool {
    matches!(intid, 1020..=1023)
}

/// Turns the interface on: system registers, all priorities, group 1, deactivation separate from the priority drop.
pub(crate) fn init() {
    // ICC_SRE_EL2: SRE, no FIQ and IRQ bypass, EL1 may use system registers.
    write!(interrupt "S3_4_C12_C9_5", 0xf);
    instruction!("isb");
    // ICC_CTLR_EL1.EOImode.
    write!(interrupt "S3_0_C12_C12_4", 1 << 1);
    clear_active_priorities();
    // ICC_PMR_EL1, ICC_BPR1_EL1, ICC_IGRPEN1_EL1.
    write!(interrupt "S3_0_C4_C6_0", 0xff);
    write!(interrupt "S3_0_C12_C12_3", 0);
    write!(interrupt "S3_0_C12_C12_7", 1);
    instruction!("isb");
}

/// Clears active priorities of interrupts that a loader acknowledged and never ended; they would mask all others.
fn clear_active_priorities() {
    // ICC_CTLR_EL1.PRIbits bounds the number of words (ICC_AP1R<n>_EL1).
    let bits = (read!("S3_0_C12_C12_4") >> 8 & 7) + 1;
    // ICC_AP0R0_EL1 to ICC_AP0R3_EL1.
    if has_group0(bits) {
        write!(interrupt "S3_0_C12_C8_4", 0);
        if bits >= 6 {
            write!(interrupt "S3_0_C12_C8_5", 0);
        }
        if bits >= 7 {
            write!(interrupt "S3_0_C12_C8_6", 0);
            write!(interrupt "S3_0_C12_C8_7", 0);
        }
    }
    // ICC_AP1R0_EL1 to ICC_AP1R3_EL1.
    write!(interrupt "S3_0_C12_C9_0", 0);
    if bits >= 6 {
        write!(interrupt "S3_0_C12_C9_1", 0);
    }
    if bits >= 7 {
        write!(interrupt "S3_0_C12_C9_2", 0);
        write!(interrupt "S3_0_C12_C9_3", 0);
    }
    instruction!("isb");
}

/// Returns true if EL2 may use the registers of group 0. If EL3 takes FIQs (SCR_EL3.FIQ), they trap there, and the priority
/// mask is a non-secure view without the least significant implemented bit ("Interrupt prioritization").
fn has_group0(priority_bits: u64) -> bool {
    let least = 1 << (8 - priority_bits);
    write!(interrupt "S3_0_C4_C6_0", least);
    read!("S3_0_C4_C6_0") != 0
}

/// Acknowledges the most urgent pending interrupt (ICC_IAR1_EL1) and returns its INTID.
///
/// Later loads may be performed before it: see [`synchronize`].
#[inline(always)]
pub(crate) fn acknowledge() -> u32 {
    read!("S3_0_C12_C12_0") as u32 & 0xff_ffff
}

/// Orders all later accesses after the last [`acknowledge`].
///
/// The acknowledged interrupt may have become pending after this CPU entered EL2 for another one. Then neither exception
/// entry orders it nor the branch on its INTID, past which loads may be speculated. The DSB completes the acknowledgement
/// ("Observability of the effects of accesses to the GIC registers") before any later load, so that this CPU
/// sees what the sender wrote before the DSB of [`send_sgi`]. The ISB does so for system registers that the interrupt's
/// source has written indirectly.
///
/// Interrupts that EL2 passes to a guest on the fast path do not need it: EL2 reads nothing that a sender wrote. The guest's
/// handler begins after two context synchronization events (ERET, its own exception entry), which depend on the INTID
/// through the list register; barriers for its own acknowledgement are the guest's task.
#[inline(always)]
pub(crate) fn synchronize() {
    instruction!("dsb sy");
    instruction!("isb");
}

/// Drops the running priority (ICC_EOIR1_EL1).
#[inline(always)]
pub(crate) fn drop_priority(intid: u32) {
    write!(interrupt "S3_0_C12_C12_1", u64::from(intid));
}

/// Deactivates an interrupt (ICC_DIR_EL1).
#[inline(always)]
pub(crate) fn deactivate(intid: u32) {
    write!(interrupt "S3_0_C12_C11_1", u64::from(intid));
}

/// Returns the value of ICC_SGI1R_EL1, without the INTID, that reaches the CPU with MPIDR `mpidr`.
pub(crate) const fn sgi_target(mpidr: u64) -> u64 {
    let (aff0, aff1, aff2, aff3) = (mpidr & 0xff, mpidr >> 8 & 0xff, mpidr >> 16 & 0xff, mpidr >> 32 & 0xff);
    // The range selector chooses the 16 values of affinity 0 that the target list stands for.
    aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | aff1 << 16 | 1 << (aff0 & 0xf)
}

/// Sends SGI `intid` to `target`, a value of [`sgi_target`]. The target sees this CPU's earlier stores when it takes the
/// interrupt: the DSB orders them before the write to a system register.
#[inline(always)]
pub(crate) fn send_sgi(target: u64, intid: u32) {
    instruction!("dsb ishst");
    write!(interrupt "S3_0_C12_C11_5", target | u64::from(intid) << 24);
    instruction!("isb");
}
