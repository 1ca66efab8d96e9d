//! Registers of the virtual CPU interface that both groups share, for CPUs that cannot trap ICC_DIR_EL1 alone.
//!
//! While active interrupts do not fit the list registers, ICC_DIR_EL1 must trap. A CPU with ICH_VTR_EL2.TDS traps it alone
//! (ICH_HCR_EL2.TDIR). Others, such as Cortex-A57 and A72, trap it together with ICC_CTLR_EL1, ICC_PMR_EL1 and ICC_RPR_EL1
//! (ICH_HCR_EL2.TC). This module emulates these three from ICH_VMCR_EL2, ICH_VTR_EL2 and the active priorities
//! (IHI 0069H, the descriptions of these registers and of ICV_CTLR_EL1, ICV_PMR_EL1, ICV_RPR_EL1).

/// ICH_HCR_EL2.TC and TDIR.
const HCR_TRAP_COMMON: u64 = 1 << 10;
const HCR_TRAP_DIR: u64 = 1 << 14;
/// ICH_VTR_EL2.TDS.
const VTR_TDS: u64 = 1 << 19;

/// ICH_VMCR_EL2.VCBPR, VEOIM, and the lowest bit of VPMR.
const VMCR_CBPR: u64 = 1 << 4;
const VMCR_EOI_MODE: u64 = 1 << 9;
const VMCR_PMR_SHIFT: u32 = 24;
/// ICV_CTLR_EL1.CBPR and EOImode, the two fields that can be written.
const CTLR_CBPR: u64 = 1 << 0;
const CTLR_EOI_MODE: u64 = 1 << 1;
/// ICV_RPR_EL1 while no interrupt is active.
const IDLE_PRIORITY: u64 = 0xff;

/// A register by its place in the syndrome of a trapped MSR or MRS (Arm ARM, ESR_EL2): op0 3, op1 0.
const fn register(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 20 | op2 << 17 | crn << 10 | crm << 1
}

/// ICC_CTLR_EL1.
pub(crate) const CTLR: u64 = register(12, 12, 4);
/// ICC_PMR_EL1.
pub(crate) const PMR: u64 = register(4, 6, 0);
/// ICC_RPR_EL1, read-only.
pub(crate) const RPR: u64 = register(12, 11, 3);
/// The bits that [`register`] sets.
const REGISTER: u64 = 3 << 20 | 7 << 17 | 7 << 14 | 15 << 10 | 15 << 1;

/// The virtual CPU interface that the registers show.
pub(crate) trait Interface {
    /// Reads ICH_VTR_EL2.
    fn vtr(&self) -> u64;
    /// Reads ICH_VMCR_EL2.
    fn vmcr(&self) -> u64;
    /// Writes ICH_VMCR_EL2.
    fn set_vmcr(&self, value: u64);
    /// Reads ICH_AP0R<n>_EL2 | ICH_AP1R<n>_EL2.
    fn active_priorities(&self) -> [u64; 4];
}

/// Performs a trapped access to [`CTLR`], [`PMR`] or [`RPR`] with syndrome `esr`. `value` is the value of a write. Returns the
/// value of a read.
pub(crate) fn access(interface: &impl Interface, esr: u64, value: u64) -> Option<u64> {
    let (vtr, vmcr) = (interface.vtr(), interface.vmcr());
    let is_read = esr & 1 != 0;
    match (esr & REGISTER, is_read) {
        (CTLR, true) => return Some(control(vmcr, vtr)),
        (CTLR, false) => interface.set_vmcr(with_control(vmcr, value)),
        (PMR, true) => return Some(priority_mask(vmcr)),
        (PMR, false) => interface.set_vmcr(with_priority_mask(vmcr, vtr, value)),
        (RPR, true) => return Some(running_priority(interface.active_priorities(), vtr)),
        _ => {}
    }
    None
}

/// Returns the bit of ICH_HCR_EL2 that traps ICC_DIR_EL1 on a CPU with this ICH_VTR_EL2.
pub(crate) const fn deactivation_trap(vtr: u64) -> u64 {
    if vtr & VTR_TDS != 0 { HCR_TRAP_DIR } else { HCR_TRAP_COMMON }
}

/// Returns the guest's ICC_CTLR_EL1.
const fn control(vmcr: u64, vtr: u64) -> u64 {
    let flags = if vmcr & VMCR_CBPR != 0 { CTLR_CBPR } else { 0 }
        | if vmcr & VMCR_EOI_MODE != 0 { CTLR_EOI_MODE } else { 0 };
    // PRIbits, IDbits, SEIS, A3V.
    flags | (vtr >> 29 & 7) << 8 | (vtr >> 23 & 7) << 11 | (vtr >> 22 & 1) << 14 | (vtr >> 21 & 1) << 15
}

/// Returns ICH_VMCR_EL2 after the guest has written `value` to ICC_CTLR_EL1.
const fn with_control(vmcr: u64, value: u64) -> u64 {
    vmcr & !(VMCR_CBPR | VMCR_EOI_MODE)
        | if value & CTLR_CBPR != 0 { VMCR_CBPR } else { 0 }
        | if value & CTLR_EOI_MODE != 0 { VMCR_EOI_MODE } else { 0 }
}

/// Returns the guest's ICC_PMR_EL1.
const fn priority_mask(vmcr: u64) -> u64 {
    vmcr >> VMCR_PMR_SHIFT & 0xff
}

/// Returns ICH_VMCR_EL2 after the guest has written `value` to ICC_PMR_EL1. Unimplemented bits of priority
/// (ICH_VTR_EL2.PRIbits) stay zero.
const fn with_priority_mask(vmcr: u64, vtr: u64, value: u64) -> u64 {
    let bits = (vtr >> 29 & 7) + 1;
    let implemented = 0xff << (8 - bits) & 0xff;
    vmcr & !(0xff << VMCR_PMR_SHIFT) | (value & implemented) << VMCR_PMR_SHIFT
}

/// Returns the guest's ICC_RPR_EL1: the group priority of the most urgent active interrupt. `active` holds
/// ICH_AP0R<n>_EL2 | ICH_AP1R<n>_EL2, a bit for each preemption level (ICH_VTR_EL2.PREbits), the most urgent first.
fn running_priority(active: [u64; 4], vtr: u64) -> u64 {
    let bits = (vtr >> 26 & 7) + 1;
    let levels = active.iter().zip((0..).step_by(32));
    let mut set = levels.filter(|(word, _)| **word != 0);
    let level = set.next().map(|(word, first)| first + u64::from(word.trailing_zeros()));
    level.map_or(IDLE_PRIORITY, |level| level << (8 - bits) & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// ICH_VTR_EL2 of a Cortex-A72: five bits of priority and preemption, 16 bits of INTID, four list registers, no TDS.
    const VTR_A72: u64 = 4 << 29 | 4 << 26 | 3;

    #[test]
    fn deactivation_traps_alone_if_possible() {
        assert_eq!(deactivation_trap(VTR_A72), 1 << 10);
        assert_eq!(deactivation_trap(VTR_A72 | 1 << 19), 1 << 14);
    }

    /// The interface of a Cortex-A72.
    struct Fake {
        vmcr: Cell<u64>,
        active: u64,
    }

    impl Interface for Fake {
        fn vtr(&self) -> u64 {
            VTR_A72
        }
        fn vmcr(&self) -> u64 {
            self.vmcr.get()
        }
        fn set_vmcr(&self, value: u64) {
            self.vmcr.set(value);
        }
        fn active_priorities(&self) -> [u64; 4] {
            [self.active, 0, 0, 0]
        }
    }

    #[test]
    fn registers_that_trap_with_deactivation_are_emulated_without_tds() {
        // Syndromes as a CPU reports them: MRS x3 and MSR x3 of each register.
        const CTLR: (u64, u64) = (0x6238_3079, 0x6238_3078);
        const PMR: (u64, u64) = (0x6230_106d, 0x6230_106c);
        const RPR_READ: u64 = 0x6236_3077;
        let cpu = Fake { vmcr: Cell::new(0xf0 << 24 | 3), active: 1 << 20 };
        assert_eq!(access(&cpu, CTLR.0, 0), Some(4 << 8));
        assert_eq!(access(&cpu, CTLR.1, CTLR_EOI_MODE), None);
        assert_eq!(access(&cpu, CTLR.0, 0), Some(4 << 8 | CTLR_EOI_MODE));
        assert_eq!(access(&cpu, PMR.0, 0), Some(0xf0));
        assert_eq!(access(&cpu, PMR.1, 0xa7), None);
        assert_eq!(access(&cpu, PMR.0, 0), Some(0xa0));
        assert_eq!(cpu.vmcr.get(), 0xa0 << 24 | VMCR_EOI_MODE | 3);
        assert_eq!(access(&cpu, RPR_READ, 0), Some(0xa0));
    }

    #[test]
    fn control_reads_back_written_fields_and_shows_the_implementation() {
        let vmcr = 0xf0 << 24 | 3;
        assert_eq!(control(vmcr, VTR_A72), 4 << 8);
        assert_eq!(
            control(vmcr, VTR_A72 | 1 << 23 | 1 << 22 | 1 << 21),
            4 << 8 | 1 << 11 | 1 << 14 | 1 << 15
        );
        for (value, read) in [(0, 0), (1, 1), (2, 2), (3, 3), (u64::MAX, 3)] {
            let vmcr = with_control(vmcr, value);
            assert_eq!(control(vmcr, VTR_A72) & 3, read);
            assert_eq!(vmcr & !(VMCR_CBPR | VMCR_EOI_MODE), 0xf0 << 24 | 3, "all else stays");
            assert_eq!(with_control(vmcr, 0), 0xf0 << 24 | 3);
        }
    }

    #[test]
    fn the_priority_mask_has_only_implemented_bits() {
        let vmcr = with_priority_mask(3, VTR_A72, u64::MAX);
        assert_eq!((priority_mask(vmcr), vmcr & 0xff_ffff), (0xf8, 3));
        assert_eq!(priority_mask(with_priority_mask(vmcr, VTR_A72, 0xa7)), 0xa0);
        assert_eq!(priority_mask(with_priority_mask(vmcr, 7 << 29, 0xa7)), 0xa7);
    }

    #[test]
    fn the_running_priority_is_the_most_urgent_active_one() {
        assert_eq!(running_priority([0; 4], VTR_A72), 0xff);
        assert_eq!(running_priority([1 << 20, 0, 0, 0], VTR_A72), 0xa0);
        assert_eq!(running_priority([1 << 20 | 1 << 4, 0, 0, 0], VTR_A72), 0x20);
        assert_eq!(running_priority([1 << 31, 0, 0, 0], VTR_A72), 0xf8);
        // Seven bits of preemption: four words.
        assert_eq!(running_priority([0, 0, 1 << 3, 1], 6 << 26), (64 + 3) << 1);
        assert_eq!(running_priority([0, 1 << 31, 0, 1], 6 << 26), 63 << 1);
    }
}
