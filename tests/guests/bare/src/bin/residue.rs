//! What one guest leaves in registers for the next: prints all that it finds, writes to all that it can, and switches off.
//!
//! Prints `residue OP0 OP1 CRN CRM OP2 VALUE` for each system register that is not zero, `residue vectors VALUE` for what the
//! vector registers hold, then `residue found N`, and `residue left N` when N registers took a value.

#![no_std]
#![no_main]

use bare::execute::{Encoding, execute_with, read, write};
use bare::platform::Platform;
use bare::{fp, msr, say};

bare::entry!(main);

const PATTERN: u64 = 0x5aa5_5aa5_5aa5_5aa5;

fn main(_: &'static Platform) {
    // Floating point, SVE and SME as far as there are; the OS lock, which holds debug registers back.
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

/// Registers that change by themselves, or by being read: counters and what is left until a timer fires, random numbers,
/// pending interrupts and their acknowledgement.
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

/// Registers that this program stands on, and those whose writing does something: interrupts, single-stepping, state.
fn is_vital(encoding: Encoding) -> bool {
    match encoding {
        (3, 0, 1 | 2 | 4 | 10, _, _) => !matches!(encoding, (3, 0, 1, 2, 0) | (3, 0, 2, 1..4, _)),
        (3, 0, 12, _, _) | (3, 0, 13, 0, 4) | (3, 3, 4, 2, _) | (2, 0, 0, 2, 2) => true,
        // Breakpoints and watchpoints; their locks.
        (2, 0, 0, _, 5 | 7) | (2, 0, 1, _, _) => true,
        // DBGCLAIMCLR_EL1, which takes back what DBGCLAIMSET_EL1 sets.
        (2, 0, 7, 9, 6) => true,
        _ => false,
    }
}
