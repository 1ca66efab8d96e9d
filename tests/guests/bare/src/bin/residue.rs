//! Register contents that pass from one guest to the next: prints all registers, writes to all that it can, and powers off.
//!
//! Prints `residue OP0 OP1 CRN CRM OP2 VALUE` for each system register that is not zero, `residue vectors VALUE` for the vector
//! registers, then `residue found N`, and `residue left N` after writing to N registers.

#![no_std]
#![no_main]

use bare::execute::{Encoding, execute_with, read, write};
use bare::platform::Platform;
use bare::{fp, msr, say};

bare::entry!(main);

const PATTERN: u64 = 0x5aa5_5aa5_5aa5_5aa5;

fn main(_: &'static Platform) {
    // Enable floating point, SVE and SME if they exist.
    msr!("cpacr_el1", 3 << 16 | 3 << 20 | 3 << 24);
    let vectors = fp::store().as_flattened().iter().fold(0, |all, word| all | word);
    say!("residue vectors {:#x}", vectors);
    let mut found = 0;
    for encoding in encodings().filter(|encoding| !is_volatile(*encoding)) {
        if let Ok(value) = execute_with(read(encoding), 0) {
            found += 1;
            let (op0, op1, n, m, op2) = encoding;
            if value != 0 {
                say!("residue {} {} {} {} {} {:#x}", op0, op1, n, m, op2, value);
            }
        }
    }
    say!("residue found {}", found);
    msr!("oslar_el1", 0);
    let mut left = 0;
    for encoding in encodings().filter(|encoding| !is_vital(*encoding)) {
        left += u64::from(execute_with(write(encoding), PATTERN).is_ok());
    }
    fp::load(&[[PATTERN; 2]; 32]);
    say!("residue left {}", left);
}

fn encodings() -> impl Iterator<Item = Encoding> {
    (2..4).flat_map(|op0| {
        (0..1 << 14).map(move |rest| (op0, rest >> 11, rest >> 7 & 0xf, rest >> 3 & 0xf, rest & 7))
    })
}

/// Returns true for registers that change by themselves or when they are read: counters, timer values, random numbers, pending
/// interrupts and their acknowledgement.
fn is_volatile(encoding: Encoding) -> bool {
    matches!(
        encoding,
        (3, 3, 14, 0, _)
            | (3, 3, 14, 2 | 3, 0)
            | (3, 3, 2, 4, _)
            | (3, 0, 12, 1, 0)
            | (3, 0, 12, 8 | 12, 0)
            | (3, 0, 12, 9, 5)
    )
}

/// Returns true for registers that this program depends on, and those with side effects: interrupts, single-stepping, state.
fn is_vital(encoding: Encoding) -> bool {
    match encoding {
        (3, 0, 1 | 2 | 4 | 10, _, _) => !matches!(encoding, (3, 0, 1, 2, 0) | (3, 0, 2, 1..4, _)),
        (3, 0, 12, _, _) | (3, 0, 13, 0, 4) | (3, 3, 4, 2, _) | (2, 0, 0, 2, 2) => true,
        // Controls of breakpoints and watchpoints; the OS lock.
        (2, 0, 0, _, 5 | 7) | (2, 0, 1, _, _) => true,
        // DBGCLAIMCLR_EL1, which clears the bits that DBGCLAIMSET_EL1 sets.
        (2, 0, 7, 9, 6) => true,
        _ => false,
    }
}
