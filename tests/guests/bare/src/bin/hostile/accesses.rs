//! Loads and stores of every kind, generated from random fields (Arm ARM, "A64 instruction set encoding").

use crate::slots::{ACCESS_SLOTS, ACCESSES, Operands};
use crate::{Attacker, Kind, place};
use bare::random::Random;

/// Kinds of accesses, with equal probability.
const KINDS: [Kind; 8] = [
    Kind::Single,
    Kind::Indexed,
    Kind::Pair,
    Kind::Exclusive,
    Kind::Ordered,
    Kind::Atomic,
    Kind::Simd,
    Kind::Maintenance,
];

/// Base register x0.
const BASE: u32 = 0;
/// Registers of data: x2 and, of pairs, x3; status and compared values in x4 and x5.
const DATA: u32 = 2 | 3 << 10;

/// Chooses an access to a random place.
pub(crate) fn choose(attacker: &mut Attacker) -> (Kind, usize, Operands) {
    let slot = attacker.random.below(ACCESS_SLOTS as u64) as usize;
    let mut operands = [0; 18];
    operands[0] = place::any(attacker);
    // x1 is an offset.
    operands[1] = attacker.random.below(4) * 8;
    for operand in &mut operands[2..] {
        *operand = value(&mut attacker.random);
    }
    (kind(slot), ACCESSES + slot, operands)
}

/// Returns interesting values more often than random ones.
fn value(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        _ => random.draw(),
    }
}

/// Returns the kind of the access in a slot.
fn kind(slot: usize) -> Kind {
    KINDS[slot % KINDS.len()]
}

/// Returns a random instruction of the kind of a slot. Some encodings are undefined on CPUs without an extension.
pub(crate) fn instruction(slot: usize, random: &mut Random) -> u32 {
    let kind = kind(slot);
    let mut bits = |count: u32| (random.draw() >> 20) as u32 & ((1 << count) - 1);
    let (size, base) = (bits(2), BASE << 5);
    let offset = bits(9);
    let encoding = match kind {
        // Unsigned offset of 0 or 1, or a register; loads, stores, and those that extend the sign.
        Kind::Single => match bits(2) {
            0 => 0x3820_6800 | size << 30 | bits(2) << 22 | 1 << 16 | DATA & 31,
            _ => 0x3900_0000 | size << 30 | bits(2) << 22 | bits(1) << 10 | DATA & 31,
        },
        // Unscaled, post-index, unprivileged, pre-index.
        Kind::Indexed => 0x3800_0000 | size << 30 | bits(2) << 22 | offset << 12 | bits(2) << 10 | DATA & 31,
        // Of 32 bits, sign-extended, of 64; no-allocate, post-index, offset, pre-index.
        Kind::Pair => {
            let width = [0, 0, 1, 2, 2, 2][bits(8) as usize % 6];
            0x2800_0000 | width << 30 | bits(2) << 23 | bits(1) << 22 | (bits(3) << 15) | DATA
        }
        // Exclusives, of one and of pairs, acquiring and releasing too; CAS and CASP.
        Kind::Exclusive => {
            let (o2, load, o1, o0) = (bits(1), bits(1), bits(1), bits(1));
            // Encodings with o2 and without o1 are the ordered ones below.
            let o1 = o1 | o2;
            let (rs, rt2) = match (o2, o1, size >> 1) {
                // CAS and CASP compare an even register, and have no second one.
                (1, _, _) | (0, 1, 0) => (4, 31),
                (0, 1, _) => (if load == 1 { 31 } else { 4 }, 3),
                _ => (if load == 1 { 31 } else { 4 }, 31),
            };
            0x0800_0000 | size << 30 | o2 << 23 | load << 22 | o1 << 21 | rs << 16 | o0 << 15 | rt2 << 10 | 2
        }
        // LDAR, STLR, LDLAR, STLLR; LDAPUR and STLUR; LDAPR.
        Kind::Ordered => match bits(2) {
            0 | 1 => 0x089f_7c00 | size << 30 | bits(1) << 22 | bits(1) << 15 | 2,
            2 => 0x1900_0000 | size << 30 | bits(2) << 22 | offset << 12 | 2,
            _ => 0x38bf_c000 | size << 30 | 2,
        },
        // LDADD and similar ones, SWP; including a few of other extensions.
        Kind::Atomic => 0x3820_0000 | size << 30 | bits(2) << 22 | 4 << 16 | bits(4) << 12 | 2,
        Kind::Simd => match bits(2) {
            // One register of 8 to 128 bits.
            0 => 0x3d00_0000 | size << 30 | bits(2) << 22,
            // Pairs of 32, 64 and 128 bits.
            1 => 0x2c00_0000 | (size % 3) << 30 | bits(2) << 23 | bits(1) << 22 | bits(3) << 15 | 1 << 10,
            // Structures of one to four registers, whole; also post-index.
            2 => {
                let opcode = [0, 2, 4, 6, 7, 8, 10][bits(8) as usize % 7];
                let step = [0, 0x009f_0000, 0x0081_0000][bits(8) as usize % 3];
                0x0c00_0000 | bits(1) << 30 | bits(1) << 22 | opcode << 12 | size << 10 | step
            }
            // One lane of them, or a lane for all.
            _ => {
                let step = [0, 0x009f_0000, 0x0081_0000][bits(8) as usize % 3];
                0x0d00_0000 | bits(1) << 30 | bits(2) << 21 | bits(4) << 12 | size << 10 | step
            }
        },
        _ => match bits(4) {
            0..=2 => 0xd50b_7420,       // DC ZVA
            3 | 4 => 0xd50b_7e20,       // DC CIVAC
            5 | 6 => 0xd50b_7a20,       // DC CVAC
            7 | 8 => 0xd50b_7b20,       // DC CVAU
            9 => 0xd50b_7c20,           // DC CVAP
            10 => 0xd50b_7d20,          // DC CVADP
            11 | 12 => 0xd508_7620,     // DC IVAC
            13 | 14 => 0xd50b_7520,     // IC IVAU
            _ => 0xf980_0000 | bits(5), // PRFM
        },
    };
    // System instructions already have x0 as their operand.
    if kind == Kind::Maintenance { encoding } else { encoding | base }
}
