//! Registers and interrupts of a vCPU on its CPU: their reset, and their state when the vCPU leaves.
//!
//! A vCPU owns its CPU, so EL1's and EL0's state lives in the CPU's own registers while the vCPU runs, and is reset when it
//! starts. State of one guest must not leak to the next: every register that EL1 or EL0 can write is set, floating point
//! included.

use super::cpu::{self, Core};
use super::sysreg::{instruction, read, write};
use super::{errata, features};
use crate::translation::{self, Closed, SCTLR_RES1, Stage1, Stage2};
use aarch64_cpu::registers::*;
use spin::Once;
use stage2::addr::{Ipa, Pa};
use stage2::table::Geometry;

/// SPSR_EL2 when a vCPU starts: EL1h, all exceptions masked.
const SPSR: u64 = 0x3c5;

/// The stage 2 of CPUs that run no vCPU.
static EMPTY_STAGE2: Once<Stage2> = Once::new();

/// Initial state of a vCPU.
pub(crate) struct Start {
    /// Address of the first instruction.
    pub(crate) entry: Ipa,
    /// Initial x0.
    pub(crate) context: u64,
    /// MPIDR_EL1 as the guest reads it.
    pub(crate) mpidr: u64,
    /// The guest's stage 2.
    pub(crate) stage2: Stage2,
    /// CNTVOFF_EL2: the physical count at which the guest's virtual count was 0.
    pub(crate) counter_offset: u64,
}

/// Sets every register of EL1 and EL0 as `start` says.
pub(crate) fn reset(start: &Start) {
    let stage1 = Stage1 { sctlr: SCTLR_RES1, tcr: 0 };
    translation::enter(&errata::This, start.stage2, stage1, forget_guest, reset_el1);
    reset_floating_point();
    VMPIDR_EL2.set(start.mpidr | 1 << 31);
    write!(guest "vpidr_el2", read!("midr_el1"));
    CNTVOFF_EL2.set(start.counter_offset);
    ELR_EL2.set(start.entry.get());
    SPSR_EL2.set(SPSR);
}

/// Invalidates this CPU's TLB entries and instructions of the guest in VTTBR_EL2: an earlier guest may have had its VMID.
fn forget_guest() {
    instruction!("dsb nshst");
    instruction!("tlbi vmalls12e1");
    instruction!("ic iallu");
    instruction!("dsb nsh");
    instruction!("isb");
}

/// Sets the registers of EL1 and EL0, except those that turn stage 1 on.
fn reset_el1() {
    ACTLR_EL1.set(0);
    CPACR_EL1.set(0);
    TTBR0_EL1.set(0);
    TTBR1_EL1.set(0);
    MAIR_EL1.set(0);
    write!(guest "amair_el1", 0);
    write!(guest "afsr0_el1", 0);
    write!(guest "afsr1_el1", 0);
    ESR_EL1.set(0);
    FAR_EL1.set(0);
    PAR_EL1.set(0);
    VBAR_EL1.set(0);
    ELR_EL1.set(0);
    SPSR_EL1.set(0);
    reset_debug_channel();
    SP_EL0.set(0);
    SP_EL1.set(0);
    TPIDR_EL0.set(0);
    TPIDR_EL1.set(0);
    TPIDRRO_EL0.set(0);
    CONTEXTIDR_EL1.set(0);
    CSSELR_EL1.set(0);
    CNTKCTL_EL1.set(0);
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    CNTV_CVAL_EL0.set(0);
    CNTP_CVAL_EL0.set(0);
    MDSCR_EL1.set(0);
    reset_breakpoints();
    // AArch32's DACR32_EL2, IFSR32_EL2, FPEXC32_EL2 and SPSR_abt and its like are accessible from EL2 only (EL1 is
    // AArch64), and are UNDEFINED if EL1 cannot be AArch32.
    if features::has_ras() {
        // VDISR_EL2, the guest's DISR_EL1, and VSESR_EL2.
        write!(guest "S3_4_C12_C1_1", 0);
        write!(guest "S3_4_C5_C2_3", 0);
    }
    if features::has_sme() {
        // TPIDR2_EL0: without fine-grained traps a guest can access it although SME is hidden.
        write!(guest "S3_3_C13_C0_5", 0);
    }
    reset_pointer_keys();
}

/// Resets the locks of debug, the channel to an external debugger, and the claim tags. A guest does not reach DBGPRCR_EL1
/// ([`features::configure`]).
fn reset_debug_channel() {
    write!(guest "osdlr_el1", 0);
    // The OS lock is set after a reset. Only while it is set do OSDTRRX_EL1, OSDTRTX_EL1 and OSECCR_EL1 access the real
    // state.
    write!(guest "oslar_el1", 1);
    instruction!("isb");
    super::debug_channel::clear();
    write!(guest "dbgclaimclr_el1", 0xff);
}

macro_rules! clear_pairs {
    ($count:expr; $($number:literal $value:literal $control:literal),* $(,)?) => {
        $(if $count > $number { write!(guest $value, 0); write!(guest $control, 0); })*
    };
}

/// Resets all breakpoints and watchpoints (their numbers less one are ID_AA64DFR0_EL1.BRPs, WRPs).
fn reset_breakpoints() {
    let dfr0 = read!("id_aa64dfr0_el1");
    let (breakpoints, watchpoints) = ((dfr0 >> 12 & 15) + 1, (dfr0 >> 20 & 15) + 1);
    clear_pairs!(breakpoints;
        0 "dbgbvr0_el1" "dbgbcr0_el1", 1 "dbgbvr1_el1" "dbgbcr1_el1", 2 "dbgbvr2_el1" "dbgbcr2_el1",
        3 "dbgbvr3_el1" "dbgbcr3_el1", 4 "dbgbvr4_el1" "dbgbcr4_el1", 5 "dbgbvr5_el1" "dbgbcr5_el1",
        6 "dbgbvr6_el1" "dbgbcr6_el1", 7 "dbgbvr7_el1" "dbgbcr7_el1", 8 "dbgbvr8_el1" "dbgbcr8_el1",
        9 "dbgbvr9_el1" "dbgbcr9_el1", 10 "dbgbvr10_el1" "dbgbcr10_el1", 11 "dbgbvr11_el1" "dbgbcr11_el1",
        12 "dbgbvr12_el1" "dbgbcr12_el1", 13 "dbgbvr13_el1" "dbgbcr13_el1", 14 "dbgbvr14_el1" "dbgbcr14_el1",
        15 "dbgbvr15_el1" "dbgbcr15_el1");
    clear_pairs!(watchpoints;
        0 "dbgwvr0_el1" "dbgwcr0_el1", 1 "dbgwvr1_el1" "dbgwcr1_el1", 2 "dbgwvr2_el1" "dbgwcr2_el1",
        3 "dbgwvr3_el1" "dbgwcr3_el1", 4 "dbgwvr4_el1" "dbgwcr4_el1", 5 "dbgwvr5_el1" "dbgwcr5_el1",
        6 "dbgwvr6_el1" "dbgwcr6_el1", 7 "dbgwvr7_el1" "dbgwcr7_el1", 8 "dbgwvr8_el1" "dbgwcr8_el1",
        9 "dbgwvr9_el1" "dbgwcr9_el1", 10 "dbgwvr10_el1" "dbgwcr10_el1", 11 "dbgwvr11_el1" "dbgwcr11_el1",
        12 "dbgwvr12_el1" "dbgwcr12_el1", 13 "dbgwvr13_el1" "dbgwcr13_el1", 14 "dbgwvr14_el1" "dbgwcr14_el1",
        15 "dbgwvr15_el1" "dbgwcr15_el1");
}

/// Resets the keys of pointer authentication, if the CPU has it.
fn reset_pointer_keys() {
    if read!("id_aa64isar1_el1") & 0xff00_0ff0 == 0 && read!("S3_0_C0_C6_2") & 0xff00 == 0 {
        return;
    }
    write!(guest "S3_0_C2_C1_0", 0);
    write!(guest "S3_0_C2_C1_1", 0);
    write!(guest "S3_0_C2_C1_2", 0);
    write!(guest "S3_0_C2_C1_3", 0);
    write!(guest "S3_0_C2_C2_0", 0);
    write!(guest "S3_0_C2_C2_1", 0);
    write!(guest "S3_0_C2_C2_2", 0);
    write!(guest "S3_0_C2_C2_3", 0);
    write!(guest "S3_0_C2_C3_0", 0);
    write!(guest "S3_0_C2_C3_1", 0);
}

macro_rules! vectors_to_zero {
    ($($register:literal),*) => {
        // A write to a vector register clears the bits that SVE adds (Arm ARM, "Registers in AArch64 state").
        concat!(".arch_extension fp\n.arch_extension simd\nmsr fpcr, xzr\nmsr fpsr, xzr\n",
            $("movi v", $register, ".2d, #0\n"),*)
    };
}

/// Resets floating point, vectors and, with SVE, predicates.
fn reset_floating_point() {
    // SAFETY: EL2 is compiled without floating point; CPTR_EL2.TFP is clear, so these do not trap.
    unsafe {
        core::arch::asm!(
            vectors_to_zero!(
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
                26, 27, 28, 29, 30, 31
            ),
            options(nostack, nomem)
        );
    }
    if features::has_sve() {
        // ZCR_EL1.LEN: the shortest vectors, as after a reset.
        write!(guest "S3_0_C1_C2_0", 0);
        // SAFETY: the CPU has SVE and CPTR_EL2.TZ is clear; registers of the guest only.
        unsafe {
            core::arch::asm!(
                ".arch_extension sve",
                "pfalse p0.b",
                "pfalse p1.b",
                "pfalse p2.b",
                "pfalse p3.b",
                "pfalse p4.b",
                "pfalse p5.b",
                "pfalse p6.b",
                "pfalse p7.b",
                "pfalse p8.b",
                "pfalse p9.b",
                "pfalse p10.b",
                "pfalse p11.b",
                "pfalse p12.b",
                "pfalse p13.b",
                "pfalse p14.b",
                "pfalse p15.b",
                "wrffr p0.b",
                options(nostack, nomem)
            );
        }
    }
}

/// Returns true if a list register of this CPU holds an interrupt, pending or active.
pub(crate) fn has_virtual_interrupt() -> bool {
    use crate::device::vgic::list_register::ListRegisters;
    let lists = super::gic::Lists;
    let all = (1 << lists.count()) - 1;
    lists.read_empty() & all != all
}

/// Physical SGIs that are used for a guest's own SGIs, a bit each.
const DIRECT_SGI_MASK: u32 = (1 << crate::device::vgic::DIRECT_SGIS) - 1;

/// Prepares this CPU's interrupts for a vCPU that is about to run: resets its timers, and lets SGIs arrive that were sent
/// to it while it was off.
pub(crate) fn prepare_interrupts() {
    super::gic::Lists.reset();
    if let Some(redistributor) = cpu::current().redistributor() {
        let timers = super::timer::guest_mask();
        redistributor.clear_pending(timers);
        redistributor.clear_active(timers);
        redistributor.enable(DIRECT_SGI_MASK);
    }
}

/// Holds back SGIs to the vCPU that leaves this CPU: until [`prepare_interrupts`] they stay pending in the redistributor,
/// like SGIs to a PE that is off (IHI 0069H, "Power management").
///
/// The DSB completes the SGIs that this CPU has sent, so that a later [`forget_sgis`] drops them.
pub(crate) fn hold_sgis() {
    instruction!("dsb sy");
    if let Some(redistributor) = cpu::current().redistributor() {
        redistributor.disable(DIRECT_SGI_MASK);
    }
}

/// Makes SGI `sgi` pending for the vCPU that owns `cpu`.
pub(crate) fn pend_sgi(cpu: &Core, sgi: u32) {
    if let Some(redistributor) = cpu.redistributor() {
        redistributor.set_pending(1 << sgi & DIRECT_SGI_MASK);
    }
}

/// Drops the pending SGIs of the vCPU that owns `cpu` and is off, when its guest is reset.
pub(crate) fn forget_sgis(cpu: &Core) {
    if let Some(redistributor) = cpu.redistributor() {
        redistributor.clear_pending(DIRECT_SGI_MASK);
    }
}

/// Returns the SGIs of the vCPU that owns `cpu` that are pending in the redistributor, and its timers whose lines are high,
/// a bit for each physical INTID.
pub(crate) fn pending_interrupts(cpu: &Core) -> u32 {
    let mask = DIRECT_SGI_MASK | super::timer::guest_mask();
    cpu.redistributor().map_or(0, |redistributor| redistributor.pending() & mask)
}

/// Clears the pending state of the SGIs of `mask` in the redistributor of `cpu`.
pub(crate) fn clear_pending_sgis(cpu: &Core, mask: u32) {
    if let Some(redistributor) = cpu.redistributor()
        && mask & DIRECT_SGI_MASK != 0
    {
        redistributor.clear_pending(mask & DIRECT_SGI_MASK);
    }
}

/// Takes the vCPU's state off this CPU: stops its timers, and ends walks of its stage 2 tables, speculative ones too, so that
/// they may be freed.
pub(crate) fn quiet() -> Closed {
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    translation::leave(&errata::This, empty_stage2())
}

/// Makes the zeroed frames at `pa`, as many as `geometry` has root tables, the stage 2 of CPUs without a vCPU, forever.
pub(crate) fn set_empty_stage2(pa: Pa, geometry: Geometry) {
    // No guest has VMID 0.
    EMPTY_STAGE2.call_once(|| Stage2 { vtcr: geometry.vtcr(), vttbr: pa.get() });
}

/// Returns the stage 2 of a CPU without a vCPU: tables without entries.
pub(crate) fn empty_stage2() -> Stage2 {
    EMPTY_STAGE2.get().copied().unwrap_or(Stage2 { vtcr: 1 << 31, vttbr: 0 })
}
