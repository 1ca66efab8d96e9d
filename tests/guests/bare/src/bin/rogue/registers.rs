//! All encodings of system registers and instructions.

use crate::Task;
use bare::execute::{Encoding, execute_with, read, write};
use bare::random::Random;
use bare::{mrs, msr, say};

/// Reads every encoding of op0 2 and 3, and writes random values to those that this program does not depend on.
pub(crate) fn every(task: &Task) {
    let mut random = Random::new(task.seed);
    let (mut readable, mut writable, mut refused) = (0u64, 0u64, 0u64);
    // Registers that must be restored afterwards.
    let kept = [mrs!("cpacr_el1"), mrs!("cntkctl_el1")];
    for encoding in encodings(2..4) {
        match execute_with(read(encoding), 0) {
            Ok(_) => readable += 1,
            Err(_) => refused += 1,
        }
    }
    for _ in 0..task.count(1) {
        for encoding in encodings(2..4).filter(|encoding| !is_vital(*encoding)) {
            let value = match random.below(4) {
                0 => 0,
                1 => u64::MAX,
                _ => random.draw(),
            };
            match execute_with(write(encoding), value) {
                Ok(_) => writable += 1,
                Err(_) => refused += 1,
            }
        }
    }
    msr!("cpacr_el1", kept[0]);
    msr!("cntkctl_el1", kept[1]);
    msr!("cntv_ctl_el0", 0);
    msr!("cntp_ctl_el0", 0);
    msr!("daif", 0x3c0);
    say!("rogue registers: {} reads and {} writes done, {} refused", readable, writable, refused);
}

fn encodings(op0: core::ops::Range<u32>) -> impl Iterator<Item = Encoding> {
    op0.flat_map(|op0| {
        (0..1 << 14).map(move |rest| (op0, rest >> 11, rest >> 7 & 0xf, rest >> 3 & 0xf, rest & 7))
    })
}

/// Returns true for registers that this program depends on: translation, vectors, stack pointer, state, and single-stepping.
fn is_vital((op0, op1, n, m, op2): Encoding) -> bool {
    match (op0, op1, n, m) {
        (3, 0, 1 | 2 | 4 | 10, _) | (3, 0, 12, 0) => (n, m) != (4, 6),
        (3, 0, 13, 0) => op2 == 4,
        // DAIF and other parts of the state.
        (3, 3, 4, 2) => true,
        // MDSCR_EL1 and the control of breakpoints and watchpoints, which `debug` tests.
        (2, 0, 0, _) => true,
        _ => false,
    }
}

/// Executes cache and TLB maintenance and address translation in every encoding, with all kinds of addresses.
pub(crate) fn maintenance(task: &Task) {
    let mut random = Random::new(task.seed);
    let (mut done, mut refused) = (0u64, 0u64);
    let top = task.platform.ram().iter().map(|range| range.end).max().unwrap_or(0) as u64;
    for _ in 0..task.count(2) {
        for encoding in encodings(1..2) {
            let address = match random.below(4) {
                0 => bare::execute::data() as u64,
                1 => task.platform.distributor as u64,
                2 => top,
                _ => random.draw() | 1 << 47,
            };
            match execute_with(write(encoding), address) {
                Ok(_) => done += 1,
                Err(_) => refused += 1,
            }
            refused += u64::from(execute_with(read(encoding), 0).is_err());
        }
    }
    say!("rogue maintenance: {} done, {} refused", done, refused);
}

/// Uses breakpoints, watchpoints and the OS lock.
pub(crate) fn debug(task: &Task) {
    let mut random = Random::new(task.seed);
    let mut refused = 0u64;
    msr!("oslar_el1", 0);
    for index in 0..16 {
        for (op2, value) in [
            (4, bare::execute::data() as u64),
            (5, random.draw() | 1),
            (6, bare::execute::data() as u64),
            (7, random.draw() | 1),
        ] {
            refused += u64::from(execute_with(write((2, 0, 0, index, op2)), value).is_err());
        }
    }
    // Enable monitor debug events, for the kernel too: the watchpoints cover a page that is in use.
    let old = mrs!("mdscr_el1");
    let result = execute_with(write((2, 0, 0, 2, 2)), 1 << 15);
    refused += u64::from(result.is_err());
    for _ in 0..100 {
        let _ = execute_with(0xf940_0001, bare::execute::data() as u64);
    }
    let _ = execute_with(write((2, 0, 0, 2, 2)), old);
    for index in 0..16 {
        for op2 in [5, 7] {
            refused += u64::from(execute_with(write((2, 0, 0, index, op2)), 0).is_err());
        }
    }
    say!("rogue debug: {} refused", refused);
}
