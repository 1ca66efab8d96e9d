//! System registers and instructions, by every encoding.

use crate::slots::{self, ENCODINGS, MRS, MSR, Operands, SYS, SYSL};
use crate::{Attacker, Kind, place};
use core::sync::atomic::{AtomicU64, Ordering};

/// Number of slots of registers and system instructions, which come before those of calls.
const SLOTS: usize = slots::CALLS;

/// Slots that were executed without an exception, a bit each.
static IS_KNOWN: [AtomicU64; SLOTS / 64] = [const { AtomicU64::new(0) }; SLOTS / 64];

/// Records that the instruction in `slot` raised no exception.
pub(crate) fn note(slot: usize) {
    if let Some(word) = IS_KNOWN.get(slot / 64) {
        word.fetch_or(1 << (slot % 64), Ordering::Relaxed);
    }
}

/// Returns a random encoding of the slots from `first`. Half of the results are encodings that raised no exception before, of
/// which there are about one in a hundred.
fn encoding(attacker: &mut Attacker, first: usize) -> usize {
    let random = attacker.random.below(ENCODINGS as u64) as usize;
    if attacker.random.below(2) == 0 {
        return random;
    }
    let words = &IS_KNOWN[first / 64..][..ENCODINGS / 64];
    let known = (0..words.len()).find_map(|step| {
        let at = (random / 64 + step) % words.len();
        let word = words[at].load(Ordering::Relaxed);
        // Start at a random bit, so that all are used.
        let turned = word.rotate_right(random as u32 % 64);
        let bit = (turned.trailing_zeros() as usize + random) % 64;
        (word != 0).then_some(at * 64 + bit)
    });
    known.unwrap_or(random)
}

/// Chooses an access to a register, or a system instruction.
pub(crate) fn choose(attacker: &mut Attacker) -> (Kind, usize, Operands) {
    let mut operands = [0; 18];
    // Debug registers, of op0 2, would only stop the program that writes them: `rogue` does that.
    let op0 = if attacker.is_wild { attacker.random.below(2) as usize } else { 1 };
    let what = attacker.random.below(8);
    let first = match what {
        0 | 1 => MRS + op0 * ENCODINGS,
        2..=4 => MSR + op0 * ENCODINGS,
        5 => SYSL,
        _ => SYS,
    };
    let encoding = encoding(attacker, first);
    let at = op0 * ENCODINGS + encoding;
    match what {
        0 | 1 => (Kind::RegisterRead, MRS + at, operands),
        2..=4 => {
            operands[0] = if !attacker.is_wild && is_vital(encoding) {
                // Write its own value. A register that cannot be read cannot be written either.
                bare::exception::catch(|| slots::run(MRS + at, &[0; 18])).unwrap_or(0)
            } else if op0 == 1 && is_binary_point(encoding) {
                value(attacker) & 7
            } else {
                value(attacker)
            };
            (Kind::RegisterWrite, MSR + at, operands)
        }
        5 => (Kind::SystemRead, SYSL + encoding, operands),
        _ => {
            operands[0] = match attacker.random.below(4) {
                0 => place::scratch(attacker.cpu) as u64,
                1 => place::device(attacker) & !0xfff,
                2 => place::hole(attacker),
                // Operands of invalidations, and invalid addresses.
                _ => attacker.random.draw() | 1 << 47,
            };
            if attacker.is_wild && attacker.random.below(2) == 0 {
                operands[0] = attacker.random.draw();
            }
            (Kind::System, SYS + encoding, operands)
        }
    }
}

fn value(attacker: &mut Attacker) -> u64 {
    match attacker.random.below(5) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << attacker.random.below(64),
        3 => attacker.random.draw() & 0xff,
        _ => attacker.random.draw(),
    }
}

/// Returns true for ICC_BPR0_EL1 and ICC_BPR1_EL1. Reserved bits there end QEMU 10.0 with a failed assertion (`icv_gprio_mask`:
/// it keeps three bits of a value that it has compared with the minimum as a whole), regardless of the hypervisor.
fn is_binary_point(encoding: usize) -> bool {
    matches!(encoding, 0b00_0110_0100_0011 | 0b00_0110_0110_0011)
}

/// Returns true if this program depends on the register of op0 3: translation and its attributes, vectors, the selection of the
/// stack, and the pointer to a CPU's record.
fn is_vital(encoding: usize) -> bool {
    let field = |shift: usize, bits: usize| encoding >> shift & ((1 << bits) - 1);
    match (field(11, 3), field(7, 4), field(3, 4), field(0, 3)) {
        // SCTLR_EL1, SCTLR2_EL1.
        (0, 1, 0, 0 | 3) => true,
        // TTBR0_EL1, TTBR1_EL1, TCR_EL1, TCR2_EL1, GCSCR_EL1.
        (0, 2, 0 | 5, _) => true,
        // SPSel.
        (0, 4, 2, 0) => true,
        // MAIR_EL1, PIRE0_EL1, PIR_EL1, POR_EL1.
        (0, 10, 2, _) => true,
        // VBAR_EL1, TPIDR_EL1.
        (0, 12, 0, 0) | (0, 13, 0, 4) => true,
        _ => false,
    }
}
