//! Instructions that are chosen at run time, one by one, for all that a compiler would not write.

use crate::exception::{Caught, catch};
use crate::platform::MAX_CPUS;
use crate::{cache, smp};
use core::cell::UnsafeCell;

/// A system register or instruction as its encoding: op0, op1, CRn, CRm, op2.
pub type Encoding = (u32, u32, u32, u32, u32);

/// A page for code and one for data, for each CPU.
#[repr(C, align(4096))]
struct Pages(UnsafeCell<[[u64; 512]; MAX_CPUS]>);

// SAFETY: each CPU uses its own.
unsafe impl Sync for Pages {}

static CODE: Pages = Pages(UnsafeCell::new([[0; 512]; MAX_CPUS]));
static DATA: Pages = Pages(UnsafeCell::new([[0; 512]; MAX_CPUS]));

/// `MRS x0, register` (or `SYSL`).
#[must_use]
pub const fn read((op0, op1, n, m, op2): Encoding) -> u32 {
    0xd520_0000 | op0 << 19 | op1 << 16 | n << 12 | m << 8 | op2 << 5
}

/// `MSR register, x0` (or `SYS`).
#[must_use]
pub const fn write(encoding: Encoding) -> u32 {
    read(encoding) & !(1 << 21)
}

/// The page of RAM that instructions get the address of.
#[must_use]
pub fn data() -> usize {
    DATA.0.get() as usize + smp::index() * 4096
}

/// Runs one instruction with the address of [`data`] in x0; returns what x0 is then.
///
/// # Errors
/// The exception that it raised.
pub fn execute(instruction: u32) -> Result<u64, Caught> {
    execute_with(instruction, data() as u64)
}

/// Runs one instruction with `x0`; returns what x0 is then. It may change what a call may change.
///
/// # Errors
/// The exception that it raised.
pub fn execute_with(instruction: u32, x0: u64) -> Result<u64, Caught> {
    let code = (CODE.0.get() as usize + smp::index() * 4096) as *mut u32;
    // SAFETY: this CPU's page, which no reference exists to.
    unsafe {
        code.write_volatile(instruction);
        code.add(1).write_volatile(0xd65f_03c0); // RET
    }
    cache::publish_code(code as usize, 8);
    catch(|| {
        let mut x0 = x0;
        // SAFETY: the instruction and RET; callers answer for what the instruction does.
        unsafe { core::arch::asm!("blr {code}", code = in(reg) code, inout("x0") x0, clobber_abi("C")) };
        x0
    })
}
