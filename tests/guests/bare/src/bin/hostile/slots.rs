//! A buffer of instructions that are generated at run time, each followed by a return: all encodings of system registers and
//! instructions, calls with all kinds of immediates, and all kinds of loads and stores.

use crate::accesses;
use bare::cache;
use bare::platform::Platform;
use bare::random::Random;
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Encodings of one op0: op1, CRn, CRm, op2.
pub(crate) const ENCODINGS: usize = 1 << 14;
/// First slot of MRS by encoding, for op0 2 and then 3.
pub(crate) const MRS: usize = 0;
/// First slot of MSR, likewise.
pub(crate) const MSR: usize = MRS + 2 * ENCODINGS;
/// First slot of SYSL.
pub(crate) const SYSL: usize = MSR + 2 * ENCODINGS;
/// First slot of SYS.
pub(crate) const SYS: usize = SYSL + ENCODINGS;
/// First slot of HVC; SMC follows. Half of each have the immediate 0.
pub(crate) const CALLS: usize = SYS + ENCODINGS;
/// Number of slots of each conduit.
pub(crate) const CALL_SLOTS: usize = 64;
/// First slot of loads and stores.
pub(crate) const ACCESSES: usize = CALLS + 2 * CALL_SLOTS;
/// Number of slots of loads and stores.
pub(crate) const ACCESS_SLOTS: usize = 4096;
const SLOTS: usize = ACCESSES + ACCESS_SLOTS;

const RET: u32 = 0xd65f_03c0;

/// x0 to x17 of an operation.
pub(crate) type Operands = [u64; 18];

/// Address of the buffer. It is in free RAM, since a program's data must be near its code.
static CODE: AtomicUsize = AtomicUsize::new(0);

/// Generates all instructions. Only while one CPU runs.
pub(crate) fn fill(platform: &Platform, random: &mut Random) {
    let start = platform.free_ram().start;
    let put = |slot: usize, instruction: u32| {
        let place = (start + slot * size_of::<u64>()) as *mut u64;
        // SAFETY: free RAM, which nothing else uses.
        unsafe { place.write_volatile(u64::from(instruction) | u64::from(RET) << 32) };
    };
    for encoding in 0..ENCODINGS {
        let fields = (encoding as u32) << 5;
        for op0 in [2, 3] {
            let at = (op0 as usize - 2) * ENCODINGS + encoding;
            put(MRS + at, 0xd520_0000 | op0 << 19 | fields);
            put(MSR + at, 0xd500_0000 | op0 << 19 | fields);
        }
        put(SYSL + encoding, 0xd528_0000 | fields);
        put(SYS + encoding, 0xd508_0000 | fields);
    }
    for slot in 0..CALL_SLOTS {
        let immediate = if slot % 2 == 0 { 0 } else { random.draw() as u32 & 0xffff };
        put(CALLS + slot, 0xd400_0002 | immediate << 5);
        put(CALLS + CALL_SLOTS + slot, 0xd400_0003 | immediate << 5);
    }
    for slot in 0..ACCESS_SLOTS {
        put(ACCESSES + slot, accesses::instruction(slot, random));
    }
    cache::publish_code(start, SLOTS * size_of::<u64>());
    CODE.store(start, Ordering::Release);
}

/// Runs the instruction in `slot`. Returns x0.
pub(crate) fn run(slot: usize, operands: &Operands) -> u64 {
    let address = CODE.load(Ordering::Relaxed) + slot % SLOTS * size_of::<u64>();
    let [mut x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17] = *operands;
    // SAFETY: one instruction and RET. The caller repairs other effects than those of a call, or the guest ends, which is
    // allowed here.
    unsafe {
        asm!(
            "blr {code}",
            code = in(reg) address,
            inout("x0") x0, inout("x1") x1 => _, inout("x2") x2 => _, inout("x3") x3 => _,
            inout("x4") x4 => _, inout("x5") x5 => _, inout("x6") x6 => _, inout("x7") x7 => _,
            inout("x8") x8 => _, inout("x9") x9 => _, inout("x10") x10 => _, inout("x11") x11 => _,
            inout("x12") x12 => _, inout("x13") x13 => _, inout("x14") x14 => _, inout("x15") x15 => _,
            inout("x16") x16 => _, inout("x17") x17 => _, out("x30") _,
        );
    }
    x0
}
