//! Exceptions that EL2 raises at EL1 in place of the hardware (Arm ARM, `AArch64.TakeException()`).

/// SPSR_ELx (Arm ARM, SPSR_EL1).
const AARCH32: u64 = 1 << 4;
const MODE: u64 = 0xf;
const EL1T: u64 = 4;
const EL1H: u64 = 5;
const DAIF: u64 = 0xf << 6;
const SSBS: u64 = 1 << 12;
const PAN: u64 = 1 << 22;
const DIT: u64 = 1 << 24;
const TCO: u64 = 1 << 25;
const NZCV: u64 = 0xf << 28;
/// SCTLR_EL1.SPAN: an exception leaves PAN alone. DSSBS: the value of SSBS after an exception.
const SPAN: u64 = 1 << 23;
const DSSBS: u64 = 1 << 44;

/// Exception class "Unknown reason", for an instruction of 32 bits (ESR_ELx.IL).
const UNKNOWN: u64 = 1 << 25;

/// The features of a CPU that decide on the state after an exception.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// FEAT_PAN.
    pub(crate) has_pan: bool,
    /// FEAT_MTE2: allocation tags.
    pub(crate) has_tags: bool,
}

/// Returns true if the exception that left `spsr` came from EL0.
pub(crate) const fn is_from_el0(spsr: u64) -> bool {
    spsr & AARCH32 != 0 || spsr & MODE == 0
}

/// Returns the offset in EL1's vector table for a synchronous exception in state `spsr`.
pub(crate) const fn vector_offset(spsr: u64) -> u64 {
    match spsr & (AARCH32 | MODE) {
        mode if mode & AARCH32 != 0 => 0x600,
        0 => 0x400,
        EL1T => 0x000,
        _ => 0x200,
    }
}

/// Returns the state in which EL1 takes an exception in state `spsr`, as a value of SPSR_EL2. `sctlr` is SCTLR_EL1.
pub(crate) const fn entered(spsr: u64, sctlr: u64, cpu: Features) -> u64 {
    let mut state = EL1H | DAIF | spsr & (NZCV | DIT | PAN);
    if sctlr & SPAN == 0 && cpu.has_pan {
        state |= PAN;
    }
    if cpu.has_tags {
        state |= TCO;
    }
    if sctlr & DSSBS != 0 {
        state |= SSBS;
    }
    state
}

/// Returns the syndrome for EL1 of an instruction that does not exist for the guest. `esr` is EL2's, of a trapped system
/// register; `has_idst`: the CPU has FEAT_IDST, with which reads of identification registers keep their syndrome.
pub(crate) const fn undefined(esr: u64, has_idst: bool) -> u64 {
    if has_idst && is_identification_read(esr) { esr & 0xffff_ffff } else { UNKNOWN }
}

/// Returns true if `esr` is the syndrome of a read in FEAT_IDST's space: op0 3, op1 0, 1 or 3, CRn 0, CRm 0 to 7.
const fn is_identification_read(esr: u64) -> bool {
    const CLASS: u64 = 0x18;
    let (op0, op1, crn, crm) = (esr >> 20 & 3, esr >> 14 & 7, esr >> 10 & 15, esr >> 1 & 15);
    esr >> 26 & 0x3f == CLASS && esr & 1 != 0 && op0 == 3 && matches!(op1, 0 | 1 | 3) && crn == 0 && crm < 8
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Features = Features { has_pan: false, has_tags: false };
    const NEW: Features = Features { has_pan: true, has_tags: true };

    #[test]
    fn tag_checks_are_off_after_an_exception_if_there_are_tags() {
        for spsr in [0x3c5, 0x3c5 | TCO, 0x0, 0x10 | TCO] {
            assert_eq!(entered(spsr, SPAN, NEW), 0x3c5 | TCO, "{spsr:#x}");
            // Bit 25 is IT state in AArch32, and RES0 on other CPUs.
            assert_eq!(entered(spsr, SPAN, PLAIN), 0x3c5, "{spsr:#x}");
        }
    }

    #[test]
    fn access_never_and_bypass_safe_follow_the_control_register() {
        let pan = Features { has_pan: true, has_tags: false };
        assert_eq!(entered(0, 0, pan), 0x3c5 | PAN);
        assert_eq!(entered(0, SPAN, pan), 0x3c5);
        assert_eq!(entered(PAN, SPAN, pan), 0x3c5 | PAN);
        assert_eq!(entered(0, 0, PLAIN), 0x3c5);
        assert_eq!(entered(SSBS, SPAN, pan), 0x3c5);
        assert_eq!(entered(0, SPAN | DSSBS, pan), 0x3c5 | SSBS);
    }

    #[test]
    fn an_exception_keeps_flags_and_data_independent_timing_only() {
        let all = 0xffff_ffe0;
        assert_eq!(entered(all, SPAN, PLAIN), 0x3c5 | NZCV | DIT | PAN);
        // Single step, illegal state, UAO, BTYPE and an IT block end.
        let ended = 1 << 21 | 1 << 20 | 1 << 23 | 3 << 10;
        assert_eq!(entered(ended, SPAN, PLAIN), 0x3c5);
    }

    #[test]
    fn the_vector_depends_on_the_level_and_its_stack() {
        for (spsr, offset, is_el0) in [
            (0x3c4, 0, false),
            (0x3c5, 0x200, false),
            (0x3c0, 0x400, true),
            (0x1d0, 0x600, true),
            (0x1df, 0x600, true),
        ] {
            assert_eq!((vector_offset(spsr), is_from_el0(spsr)), (offset, is_el0), "{spsr:#x}");
        }
    }

    /// ESR_EL2 of a trapped MRS (`is_read`) or MSR of x5.
    const fn trapped(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64, is_read: bool) -> u64 {
        0x18 << 26
            | UNKNOWN
            | op0 << 20
            | op2 << 17
            | op1 << 14
            | crn << 10
            | 5 << 5
            | crm << 1
            | is_read as u64
    }

    #[test]
    fn reads_of_identification_registers_keep_their_syndrome_with_idst() {
        // SMIDR_EL1, GMID_EL1, a reserved one, CCSIDR2_EL1, DCZID_EL0's neighbour.
        for (op1, crm, op2) in [(1, 0, 6), (1, 0, 4), (0, 7, 7), (1, 0, 2), (3, 0, 6)] {
            let esr = trapped(3, op1, 0, crm, op2, true);
            assert_eq!(undefined(esr | 1 << 32, true), esr, "ESR_EL2 has more bits than ESR_EL1's syndrome");
            assert_eq!(undefined(esr, false), UNKNOWN);
        }
    }

    #[test]
    fn everything_else_is_undefined_for_an_unknown_reason() {
        for esr in [
            trapped(3, 1, 0, 0, 6, false), // a write
            trapped(3, 2, 0, 0, 0, true),  // CSSELR_EL1's space
            trapped(3, 4, 0, 0, 0, true),  // VPIDR_EL2
            trapped(3, 0, 0, 8, 0, true),
            trapped(3, 0, 1, 0, 5, true),
            trapped(2, 0, 0, 0, 0, true),
            0x07 << 26 | UNKNOWN | 1, // floating point
        ] {
            assert_eq!(undefined(esr, true), UNKNOWN, "{esr:#x}");
        }
    }
}
