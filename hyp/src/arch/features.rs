//! Features of the CPU, and the configuration of EL2 for guests: which features they get and which accesses trap.

use super::sysreg::{instruction, read, write};
use crate::device::identification;
use crate::translation::Closed;
use aarch64_cpu::registers::{CNTHCTL_EL2, CPTR_EL2, HCR_EL2, MDCR_EL2, Readable, Writeable};
use stage2::table::{Geometry, TableError};

fn field(value: u64, shift: u32) -> u64 {
    value >> shift & 15
}

/// Returns true if this CPU has SVE (ID_AA64PFR0_EL1.SVE).
pub(crate) fn has_sve() -> bool {
    field(read!("id_aa64pfr0_el1"), 32) != 0
}

/// Returns true if this CPU has RAS (ID_AA64PFR0_EL1.RAS).
pub(crate) fn has_ras() -> bool {
    field(read!("id_aa64pfr0_el1"), 28) != 0
}

/// Returns true if this CPU has SME (ID_AA64PFR1_EL1.SME).
pub(crate) fn has_sme() -> bool {
    field(read!("id_aa64pfr1_el1"), 24) != 0
}

/// Returns true if reads of unimplemented identification registers report the syndrome of a trapped read (FEAT_IDST,
/// ID_AA64MMFR2_EL1.IDS).
pub(crate) fn has_identification_syndrome() -> bool {
    field(read!("id_aa64mmfr2_el1"), 36) != 0
}

/// Returns true if this CPU has MTE with allocation tags (ID_AA64PFR1_EL1.MTE).
pub(crate) fn has_mte() -> bool {
    field(read!("id_aa64pfr1_el1"), 8) >= 2
}

/// Returns true if this CPU has PAN (ID_AA64MMFR1_EL1.PAN).
pub(crate) fn has_pan() -> bool {
    field(read!("id_aa64mmfr1_el1"), 20) != 0
}

/// Returns true if this CPU has FEAT_WFxT (ID_AA64ISAR2_EL1.WFxT).
pub(crate) fn has_wfxt() -> bool {
    field(read!("S3_0_C0_C6_2"), 0) != 0
}

/// Returns the number of physical address bits (ID_AA64MMFR0_EL1.PARange), at most 48.
pub(crate) fn pa_bits() -> u8 {
    match read!("id_aa64mmfr0_el1") & 15 {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

/// Returns the geometry of guests' address spaces: 40 bits, or fewer if this CPU's physical addresses have fewer.
///
/// # Errors
/// Does not fail: there is a geometry forevery number of [`pa_bits`] that the architecture allows.
pub(crate) fn guest_geometry() -> Result<Geometry, TableError> {
    Geometry::new(pa_bits().min(40), pa_bits())
}

/// Returns VTCR_EL2.HA if the CPU can set stage 2 access flags in hardware (ID_AA64MMFR1_EL1.HAFDBS), else 0. A CPU that
/// cannot ignores the bit and faults.
pub(crate) fn hardware_access_flag_control() -> u64 {
    if field(read!("id_aa64mmfr1_el1"), 0) != 0 { 1 << 21 } else { 0 }
}

macro_rules! identification_registers {
    ($crm:expr, $op2:expr; $($c:literal $o:literal $name:literal),* $(,)?) => {
        match ($crm, $op2) { $(($c, $o) => read!($name),)* _ => 0 }
    };
}

/// Returns REVIDR_EL1.
pub(crate) fn revision() -> u64 {
    read!("revidr_el1")
}

/// Returns AIDR_EL1.
pub(crate) fn auxiliary_identification() -> u64 {
    read!("aidr_el1")
}

/// Returns the identification register CRm `crm`, Op2 `op2` as a guest reads it.
pub(crate) fn identification(crm: u64, op2: u64) -> u64 {
    let host = identification_registers!(crm, op2;
        1 0 "S3_0_C0_C1_0", 1 1 "S3_0_C0_C1_1", 1 2 "S3_0_C0_C1_2", 1 4 "S3_0_C0_C1_4", 1 5 "S3_0_C0_C1_5",
        1 6 "S3_0_C0_C1_6", 1 7 "S3_0_C0_C1_7", 2 0 "S3_0_C0_C2_0", 2 1 "S3_0_C0_C2_1", 2 2 "S3_0_C0_C2_2",
        2 3 "S3_0_C0_C2_3", 2 4 "S3_0_C0_C2_4", 2 5 "S3_0_C0_C2_5", 2 6 "S3_0_C0_C2_6", 2 7 "S3_0_C0_C2_7",
        3 0 "S3_0_C0_C3_0", 3 1 "S3_0_C0_C3_1", 3 2 "S3_0_C0_C3_2", 3 4 "S3_0_C0_C3_4", 3 6 "S3_0_C0_C3_6",
        4 0 "S3_0_C0_C4_0", 4 1 "S3_0_C0_C4_1", 4 4 "S3_0_C0_C4_4", 5 0 "S3_0_C0_C5_0", 6 0 "S3_0_C0_C6_0",
        6 1 "S3_0_C0_C6_1", 6 2 "S3_0_C0_C6_2", 7 0 "S3_0_C0_C7_0", 7 1 "S3_0_C0_C7_1", 7 2 "S3_0_C0_C7_2");
    identification::guest_value(crm, op2, host, has_sve())
}

/// HCR_EL2 for a guest (Arm ARM, HCR_EL2): stage 2 on; invalidation by set/way also cleans; table walks may not access
/// device memory; FIQ, IRQ and SError go to EL2; identification group 3, SMC, implementation defined registers and ACTLR
/// trap; EL1 is AArch64.
const HCR: u64 = 1          // VM
    | 1 << 1                // SWIO
    | 1 << 2                // PTW
    | 1 << 3                // FMO
    | 1 << 4                // IMO
    | 1 << 5                // AMO
    | 1 << 18               // TID3
    | 1 << 19               // TSC
    | 1 << 20               // TIDCP
    | 1 << 21               // TACR
    | 1 << 31; // RW
/// HCR_EL2.TLOR: traps limited ordering regions, if the CPU has them.
const HCR_TLOR: u64 = 1 << 35;
/// HCR_EL2.TERR: traps the RAS error records.
const HCR_TERR: u64 = 1 << 36;
/// HCR_EL2.APK, API: pointer authentication keys and instructions do not trap.
const HCR_POINTER_AUTHENTICATION: u64 = 1 << 40 | 1 << 41;
/// HCRX_EL2.TALLINT: traps writes to ALLINT (FEAT_NMI).
const HCRX_TALLINT: u64 = 1 << 6;
/// HCR_EL2.TID5: traps GMID_EL1 (MTE).
const HCR_TID5: u64 = 1 << 58;
/// HCR_EL2.TID1: traps SMIDR_EL1 (SME), and with it REVIDR_EL1 and AIDR_EL1.
const HCR_TID1: u64 = 1 << 16;

/// HCR_EL2.TWI: traps WFI.
const HCR_TWI: u64 = 1 << 13;
/// HCR_EL2.TVM: traps writes to the registers of stage 1 translation, SCTLR_EL1 among them.
const HCR_TVM: u64 = 1 << 26;

/// Additional traps on this CPU while memory is migrated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MigrationTraps {
    /// Traps WFI, so that migration can use the time.
    pub(crate) waits: bool,
    /// Traps writes to SCTLR_EL1 and its like, to learn when the guest turns its caches off.
    pub(crate) caches: bool,
}

impl MigrationTraps {
    pub(crate) const NONE: Self = Self { waits: false, caches: false };

    /// Sets the traps on this CPU. They take effect at the next return to a guest.
    pub(crate) fn set(self) {
        let bit = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
        let traps = bit(self.waits, HCR_TWI) | bit(self.caches, HCR_TVM);
        HCR_EL2.set(HCR_EL2.get() & !(HCR_TWI | HCR_TVM) | traps);
    }
}

/// Returns true if the vCPU on this CPU has its MMU and data cache on (SCTLR_EL1.M, C).
pub(crate) fn has_caches_on() -> bool {
    read!("sctlr_el1") & 0b101 == 0b101
}

/// Returns true if an interrupt is pending for this CPU at EL2 (ISR_EL1.A, I, F).
pub(crate) fn is_interrupt_pending() -> bool {
    read!("isr_el1") != 0
}

/// CPTR_EL2 with E2H clear: RES1 bits 13, 12 (TSM with SME), 9 and 7:0 without TZ; TTA traps trace registers.
const CPTR: u64 = 0x32ff | 1 << 20;
/// CPTR_EL2.TZ: SVE traps; RES1 without SVE.
const CPTR_TZ: u64 = 1 << 8;
/// CPTR_EL2.TAM: traps the activity monitors, if the CPU has them.
const CPTR_TAM: u64 = 1 << 30;

/// MDCR_EL2: the PMU traps (TPM, TPMCR); the statistical profiler and trace buffer belong to EL2 and trap (E2PB,
/// E2TB 0; TPMS, TTRF). The debug registers are the guest's own, except DBGPRCR_EL1.
const MDCR: u64 = 1 << 6 | 1 << 5;
/// MDCR_EL2.TDOSA: DBGPRCR_EL1, with the registers of the OS lock. What a guest writes to DBGPRCR_EL1 must not stay for the
/// next guest, and QEMU lacks the register, so that EL2 cannot reset it.
const MDCR_TDOSA: u64 = 1 << 10;
const MDCR_TPMS: u64 = 1 << 14;
const MDCR_TTRF: u64 = 1 << 19;

/// Sets this CPU's traps and enables for guests. Once a CPU, before any guest runs there. Translation is closed:
/// HCR_EL2.VM makes the CPU walk the stage 2 in VTTBR_EL2 and VTCR_EL2, which are UNKNOWN after a reset.
pub(crate) fn configure(_: Closed) {
    let (pfr0, pfr1) = (read!("id_aa64pfr0_el1"), read!("id_aa64pfr1_el1"));
    let (isar1, isar2) = (read!("id_aa64isar1_el1"), read!("S3_0_C0_C6_2"));
    let (mmfr0, mmfr1) = (read!("id_aa64mmfr0_el1"), read!("id_aa64mmfr1_el1"));
    let dfr0 = read!("id_aa64dfr0_el1");

    let mut hcr = HCR;
    if field(mmfr1, 16) != 0 {
        hcr |= HCR_TLOR;
    }
    if field(pfr0, 28) != 0 {
        hcr |= HCR_TERR;
    }
    // APA, API, GPA, GPI; APA3, GPA3.
    if isar1 & 0xff00_0ff0 != 0 || isar2 & 0xff00 != 0 {
        hcr |= HCR_POINTER_AUTHENTICATION;
    }
    if has_mte() {
        hcr |= HCR_TID5;
    }
    if has_sme() {
        hcr |= HCR_TID1;
    }
    HCR_EL2.set(hcr);

    let mut cptr = CPTR;
    if !has_sve() {
        cptr |= CPTR_TZ;
    }
    if field(pfr0, 44) != 0 {
        cptr |= CPTR_TAM;
    }
    CPTR_EL2.set(cptr);
    instruction!("isb");
    if has_sve() {
        // ZCR_EL2.LEN: the longest vectors.
        write!(vector "S3_4_C1_C2_0", 0xf);
    }

    // HPMN stays as large as the number of counters, else it is CONSTRAINED UNPREDICTABLE (Arm ARM, MDCR_EL2).
    let pmu = field(dfr0, 8);
    let counters = if (1..15).contains(&pmu) { read!("pmcr_el0") >> 11 & 0x1f } else { 0 };
    let mut mdcr = counters | MDCR_TDOSA;
    if (1..15).contains(&pmu) {
        mdcr |= MDCR;
    }
    if field(dfr0, 32) != 0 {
        mdcr |= MDCR_TPMS;
    }
    if field(dfr0, 40) != 0 {
        mdcr |= MDCR_TTRF;
    }
    MDCR_EL2.set(mdcr);
    write!(trap "hstr_el2", 0);
    // The physical counter and timer are the guest's too: EL1PCTEN, EL1PCEN.
    CNTHCTL_EL2.set(3);

    if field(mmfr1, 40) != 0 {
        // HCRX_EL2: nothing enabled; writes to ALLINT trap, reads cannot.
        write!(trap "S3_4_C1_C2_2", if field(pfr1, 36) != 0 { HCRX_TALLINT } else { 0 });
    }
    trap_finely(field(mmfr0, 56), field(pfr0, 44) != 0);
    // With MPAM, the major version is not 0, or else the minor version is not.
    if field(pfr0, 40) != 0 || field(pfr1, 16) != 0 {
        partition_nothing();
    }
    instruction!("isb");
}

/// Clears the fine-grained trap registers of `version` (ID_AA64MMFR0_EL1.FGT). Bits that trap when set do not trap then;
/// bits that trap when clear, those of later features, do. A reset leaves the registers UNKNOWN.
fn trap_finely(version: u64, has_activity_monitors: bool) {
    if version >= 1 {
        write!(trap "S3_4_C1_C1_4", 0); // HFGRTR_EL2
        write!(trap "S3_4_C1_C1_5", 0); // HFGWTR_EL2
        write!(trap "S3_4_C1_C1_6", 0); // HFGITR_EL2
        write!(trap "S3_4_C3_C1_4", 0); // HDFGRTR_EL2
        write!(trap "S3_4_C3_C1_5", 0); // HDFGWTR_EL2
        if has_activity_monitors {
            write!(trap "S3_4_C3_C1_6", 0); // HAFGRTR_EL2; CPTR_EL2.TAM traps all of them
        }
    }
    if version >= 2 {
        write!(trap "S3_4_C3_C1_2", 0); // HFGRTR2_EL2
        write!(trap "S3_4_C3_C1_3", 0); // HFGWTR2_EL2
        write!(trap "S3_4_C3_C1_7", 0); // HFGITR2_EL2
        write!(trap "S3_4_C3_C1_0", 0); // HDFGRTR2_EL2
        write!(trap "S3_4_C3_C1_1", 0); // HDFGWTR2_EL2
    }
}

/// MPAM2_EL2.TRAPMPAM1EL1, TRAPMPAM0EL1: trap EL1's accesses to MPAM1_EL1 and MPAM0_EL1. EnMPAMSM, which is clear, traps
/// those to MPAMSM_EL1.
const MPAM2_TRAPS: u64 = 3 << 48;
/// MPAM2_EL2.TIDR: traps accesses to MPAMIDR_EL1. Exists if MPAMIDR_EL1.HAS_TIDR is set.
const MPAM2_TIDR: u64 = 1 << 58;
/// MPAMHCR_EL2.TRAP_MPAMIDR_EL1: traps accesses to MPAMIDR_EL1. Exists if MPAMIDR_EL1.HAS_HCR is set.
const MPAMHCR_TRAP_MPAMIDR: u64 = 1 << 31;

/// Puts all memory accesses into partition 0, those of EL1 and EL0 too, and traps the MPAM registers, which are hidden from
/// guests. A reset leaves the partitions UNKNOWN.
fn partition_nothing() {
    // MPAMIDR_EL1.
    let identification = read!("S3_0_C10_C4_4");
    let tidr = if identification >> 58 & 1 != 0 { MPAM2_TIDR } else { 0 };
    write!(trap "S3_4_C10_C5_0", MPAM2_TRAPS | tidr);
    if identification >> 17 & 1 != 0 {
        // No virtual partitions either.
        write!(trap "S3_4_C10_C4_0", MPAMHCR_TRAP_MPAMIDR);
    }
    // MPAM1_EL1, MPAM0_EL1.
    write!(guest "S3_0_C10_C5_0", 0);
    write!(guest "S3_0_C10_C5_1", 0);
}
