//! Completing a trapped instruction in the guest's place.
//!
//! When EL2 takes an exception from a guest, ELR_EL2 holds the address of the trapped instruction and SPSR_EL2 the processor
//! state. After EL2 has emulated the instruction, the guest resumes at the next one. Its state must then be as if the CPU had
//! executed the instruction.

/// SPSR_EL2.M\[4\]: the exception came from AArch32.
const AARCH32: u64 = 1 << 4;
/// SPSR_EL2.T: the AArch32 instruction is a Thumb one.
const THUMB: u64 = 1 << 5;
/// SPSR_EL2.M\[3:0\]: exception level and stack pointer in AArch64; 0 is EL0.
const MODE: u64 = 0xf;
/// SPSR_EL2.E of AArch32: data accesses are big-endian.
const AARCH32_BIG_ENDIAN: u64 = 1 << 9;
/// SPSR_EL2.BTYPE of AArch64: kind of the branch that led to the instruction.
const BTYPE: u64 = 3 << 10;
/// SPSR_EL2.SS: the instruction that is being single-stepped has not been executed.
const SINGLE_STEP: u64 = 1 << 21;
/// Bits of SPSR_EL2 that completing an AArch64 instruction may clear, and the bit that indicates AArch32.
const UNUSUAL: u64 = AARCH32 | BTYPE | SINGLE_STEP;
/// ESR_EL2.IL: the instruction is 32 bits long.
const INSTRUCTION_LENGTH: u64 = 1 << 25;
/// SCTLR_EL1.E0E and EE: data accesses of EL0, and of EL1, are big-endian.
const E0E: u64 = 1 << 24;
const EE: u64 = 1 << 25;

/// The state of a guest after an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// ELR_EL2.
    pub(crate) elr: u64,
    /// SPSR_EL2.
    pub(crate) spsr: u64,
}

/// Returns true if adding 4 to ELR_EL2 is enough to complete an instruction in state `spsr`.
#[inline(always)]
pub(crate) const fn is_plain(spsr: u64) -> bool {
    spsr & UNUSUAL == 0
}

/// Returns true if the AArch64 state `spsr` [is plain](is_plain).
///
/// One test is enough: the shift aligns SS (bit 21) with the upper bit of BTYPE. The lower one meets SPSR_EL2.IL (bit 20),
/// which is clear for an instruction that was executed.
#[inline(always)]
pub(crate) const fn is_plain_aarch64(spsr: u64) -> bool {
    (spsr | spsr >> 10) & BTYPE == 0
}

/// Returns true if AArch64 data accesses are little-endian at both EL0 and EL1, with `sctlr` in SCTLR_EL1.
#[inline(always)]
pub(crate) const fn is_always_little_endian(sctlr: u64) -> bool {
    sctlr & (E0E | EE) == 0
}

/// Returns true if data accesses in state `spsr` are big-endian, with `sctlr` in SCTLR_EL1 (Arm ARM, `BigEndian()`).
pub(crate) const fn is_big_endian(spsr: u64, sctlr: u64) -> bool {
    if spsr & AARCH32 != 0 {
        spsr & AARCH32_BIG_ENDIAN != 0
    } else if spsr & MODE == 0 {
        sctlr & E0E != 0
    } else {
        sctlr & EE != 0
    }
}

impl State {
    /// Returns the state after the instruction. `esr` is the syndrome of its exception.
    ///
    /// Completing an instruction ends its single step (SPSR.SS, Arm ARM chapter "AArch64 Self-hosted Debug": the step becomes
    /// active-pending), clears the branch type (SPSR.BTYPE), and advances a Thumb IT block (`AArch32.ITAdvance()`).
    pub(crate) const fn completed(self, esr: u64) -> Self {
        let length = if esr & INSTRUCTION_LENGTH == 0 { 2 } else { 4 };
        let spsr = self.spsr & !SINGLE_STEP;
        if spsr & AARCH32 != 0 {
            let elr = (self.elr as u32).wrapping_add(length) as u64;
            return Self { elr, spsr: with_it_state(spsr, advanced(it_state(spsr))) };
        }
        Self { elr: self.elr.wrapping_add(4), spsr: spsr & !BTYPE }
    }

    /// Returns true if the instruction passes its condition. An instruction that fails its condition may trap too (Arm ARM,
    /// ESR_ELx, "Conditionality of ... trapped"), and must then have no effect.
    pub(crate) const fn passes_condition(self, esr: u64) -> bool {
        // Only exception classes below 0x10, except Unknown, have a condition in the syndrome.
        let class = esr >> 26;
        if self.spsr & AARCH32 == 0 || class == 0 || class >= 0x10 {
            return true;
        }
        // If ISS.CV is clear, which only a Thumb instruction allows, the condition comes from the IT block.
        let condition = if esr & 1 << 24 != 0 {
            esr >> 20 & 0xf
        } else if it_state(self.spsr) != 0 {
            it_state(self.spsr) >> 4
        } else {
            return true;
        };
        holds(condition, self.spsr)
    }
}

/// Returns ITSTATE, which is split into two fields of SPSR_EL2.
const fn it_state(spsr: u64) -> u64 {
    if spsr & THUMB == 0 { 0 } else { spsr >> 8 & 0xfc | spsr >> 25 & 3 }
}

/// Returns `spsr` with ITSTATE `state`.
const fn with_it_state(spsr: u64, state: u64) -> u64 {
    if spsr & THUMB == 0 {
        return spsr;
    }
    spsr & !(0xfc << 8 | 3 << 25) | (state & 0xfc) << 8 | (state & 3) << 25
}

/// Returns ITSTATE after an instruction.
const fn advanced(state: u64) -> u64 {
    if state & 7 == 0 { 0 } else { state & 0xe0 | state << 1 & 0x1f }
}

/// Returns true if the flags in `spsr` satisfy `condition` (Arm ARM, `ConditionHolds()`).
const fn holds(condition: u64, spsr: u64) -> bool {
    let (n, z, c, v) = (spsr >> 31 & 1, spsr >> 30 & 1, spsr >> 29 & 1, spsr >> 28 & 1);
    let result = match condition >> 1 {
        0 => z == 1,
        1 => c == 1,
        2 => n == 1,
        3 => v == 1,
        4 => c == 1 && z == 0,
        5 => n == v,
        6 => n == v && z == 0,
        _ => return true,
    };
    result != (condition & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EL1h, and EL0, with exceptions masked; AArch32 user mode, and its Thumb state.
    const EL1H: u64 = 0x3c5;
    const EL0: u64 = 0x3c0;
    const ARM: u64 = 0x1d0;
    const THUMB_USER: u64 = ARM | THUMB;
    /// Syndromes of a trapped WFI and of a data abort.
    const WFI: u64 = 0x01 << 26;
    const ABORT: u64 = 0x24 << 26;

    fn completed(elr: u64, spsr: u64, esr: u64) -> (u64, u64) {
        let state = State { elr, spsr }.completed(esr);
        (state.elr, state.spsr)
    }

    #[test]
    fn an_aarch64_instruction_has_four_bytes_regardless_of_the_syndrome() {
        for esr in [ABORT, ABORT | INSTRUCTION_LENGTH] {
            assert_eq!(completed(0xffff_8000_0000_1000, EL1H, esr), (0xffff_8000_0000_1004, EL1H));
        }
        assert_eq!(completed(u64::MAX - 3, EL1H, ABORT).0, 0);
    }

    #[test]
    fn a_single_step_and_a_branch_end_with_the_instruction() {
        // NZCV, PAN, DIT, and TCO, which has a place of ITSTATE's in AArch32.
        let flags = 0xf << 28 | 1 << 22 | 1 << 24 | 1 << 25;
        for unusual in [SINGLE_STEP, BTYPE, 1 << 10, 2 << 10, SINGLE_STEP | BTYPE] {
            assert!(!is_plain(EL1H | unusual) && !is_plain_aarch64(EL1H | unusual));
            assert_eq!(completed(0, EL1H | flags | unusual, ABORT), (4, EL1H | flags));
        }
        for spsr in [EL1H | flags, EL0 | flags | 1 << 12 | 1 << 23 | 1 << 25] {
            assert!(is_plain(spsr) && is_plain_aarch64(spsr));
        }
        assert!(!is_plain(ARM));
        assert_eq!(completed(0, ARM | SINGLE_STEP, ABORT | INSTRUCTION_LENGTH), (4, ARM));
    }

    #[test]
    fn the_syndrome_has_the_length_of_an_aarch32_instruction() {
        assert_eq!(completed(0x1000, THUMB_USER, ABORT), (0x1002, THUMB_USER));
        assert_eq!(completed(0x1002, THUMB_USER, ABORT | INSTRUCTION_LENGTH), (0x1006, THUMB_USER));
        assert_eq!(completed(0x1000, ARM, ABORT | INSTRUCTION_LENGTH), (0x1004, ARM));
        assert_eq!(completed(0xffff_fffe, THUMB_USER, ABORT), (0, THUMB_USER), "an address has 32 bits");
    }

    #[test]
    fn an_it_block_moves_on_by_one_condition() {
        // ITTE EQ: the conditions EQ, EQ, NE.
        let mut state = 0b0000_0110;
        let conditions = [0b0000, 0b0000, 0b0001];
        for condition in conditions {
            assert_eq!(state >> 4, condition);
            let spsr = with_it_state(THUMB_USER, state);
            assert_eq!(it_state(spsr), state);
            let (elr, after) = completed(0, spsr, ABORT);
            assert_eq!((elr, after & !(0xfc << 8 | 3 << 25)), (2, THUMB_USER & !(0xfc << 8)));
            state = it_state(after);
        }
        assert_eq!(state, 0, "the block ends after its last instruction");
        // In ARM state, bits 15:10 and 26:25 are not an IT block.
        let other = ARM | 0xfc00 | 3 << 25;
        assert_eq!(completed(0, other, ABORT | INSTRUCTION_LENGTH), (4, other));
    }

    #[test]
    fn every_condition_is_looked_up_in_the_flags() {
        for flags in 0..16u64 {
            let (n, z, c, v) = (flags & 8 != 0, flags & 4 != 0, flags & 2 != 0, flags & 1 != 0);
            let conditions = [
                z,
                !z,
                c,
                !c,
                n,
                !n,
                v,
                !v,
                c && !z,
                !c || z,
                n == v,
                n != v,
                !z && n == v,
                z || n != v,
                true,
                true,
            ];
            for (condition, expected) in (0..).zip(conditions) {
                let state = State { elr: 0, spsr: ARM | flags << 28 };
                let esr = WFI | 1 << 24 | condition << 20;
                assert_eq!(state.passes_condition(esr), expected, "condition {condition}, flags {flags:#x}");
                // From an IT block, if the syndrome has no condition.
                let state =
                    State { elr: 0, spsr: with_it_state(THUMB_USER | flags << 28, condition << 4 | 8) };
                assert_eq!(state.passes_condition(WFI), expected, "IT {condition}, flags {flags:#x}");
            }
        }
    }

    #[test]
    fn unconditional_instructions_pass() {
        let never = 1 << 24; // EQ, with Z clear
        assert!(State { elr: 0, spsr: EL1H }.passes_condition(WFI | never));
        for class in [0u64, 0x11, 0x16, 0x18, 0x20, 0x24, 0x3c] {
            assert!(State { elr: 0, spsr: ARM }.passes_condition(class << 26 | never), "{class:#x}");
        }
        for class in 1..0x10u64 {
            assert!(!State { elr: 0, spsr: ARM }.passes_condition(class << 26 | never), "{class:#x}");
        }
        assert!(State { elr: 0, spsr: THUMB_USER }.passes_condition(WFI), "outside an IT block");
    }

    #[test]
    fn each_exception_level_has_an_endianness_of_its_own() {
        assert_eq!([EL0, EL1H, EL1H & !1].map(|spsr| is_big_endian(spsr, 0)), [false; 3]);
        assert_eq!([EL0, EL1H, EL1H & !1].map(|spsr| is_big_endian(spsr, EE)), [false, true, true]);
        assert_eq!([EL0, EL1H, EL1H & !1].map(|spsr| is_big_endian(spsr, E0E)), [true, false, false]);
        assert!(!is_big_endian(ARM, E0E | EE) && is_big_endian(ARM | AARCH32_BIG_ENDIAN, 0));
        assert!(is_always_little_endian(!(EE | E0E)));
        assert!(!is_always_little_endian(EE) && !is_always_little_endian(E0E));
    }
}
