//! Execution of single instructions that are chosen at run time, including those that a compiler would not generate.

use crate::exception::{Caught, catch, class};
use crate::platform::MAX_CPUS;
use crate::{cache, mrs, msr, smp};
use core::cell::UnsafeCell;

/// The encoding of a system register or instruction: op0, op1, CRn, CRm, op2.
pub type Encoding = (u32, u32, u32, u32, u32);

/// A page for code and one for data, for each CPU.
#[repr(C, align(4096))]
struct Pages(UnsafeCell<[[u64; 512]; MAX_CPUS]>);

// SAFETY: each CPU uses its own.
unsafe impl Sync for Pages {}

static CODE: Pages = Pages(UnsafeCell::new([[0; 512]; MAX_CPUS]));
static DATA: Pages = Pages(UnsafeCell::new([[0; 512]; MAX_CPUS]));

/// Returns `MRS x0, register` (or `SYSL`).
#[must_use]
pub const fn read((op0, op1, n, m, op2): Encoding) -> u32 {
    0xd520_0000 | op0 << 19 | op1 << 16 | n << 12 | m << 8 | op2 << 5
}

/// Returns `MSR register, x0` (or `SYS`).
#[must_use]
pub const fn write(encoding: Encoding) -> u32 {
    read(encoding) & !(1 << 21)
}

/// Returns the address of this CPU's page for data.
#[must_use]
pub fn data() -> usize {
    DATA.0.get() as usize + smp::index() * 4096
}

/// Runs one instruction with the address of [`data`] in x0. Returns x0.
///
/// # Errors
/// The exception that the instruction raised.
pub fn execute(instruction: u32) -> Result<u64, Caught> {
    execute_with(instruction, data() as u64)
}

/// Writes `code` to this CPU's page for code. Returns the address of the page.
pub fn place(code: &[u32]) -> usize {
    let page = (CODE.0.get() as usize + smp::index() * 4096) as *mut u32;
    for (index, instruction) in code.iter().enumerate().take(1024) {
        // SAFETY: this CPU's page, which no reference exists to.
        unsafe { page.add(index).write_volatile(*instruction) };
    }
    cache::publish_code(page as usize, 4 * code.len());
    page as usize
}

/// RET.
const RETURN: u32 = 0xd65f_03c0;

/// Single-steps one instruction with `x0`. Returns x0, and the number of instructions that were executed when the step ended.
///
/// # Errors
/// The first exception other than that of the step.
pub fn step(instruction: u32, x0: u64) -> Result<(u64, u64), Caught> {
    const NOP: u32 = 0xd503_201f;
    let code = place(&[instruction, NOP, NOP, RETURN]);
    // The OS lock disables debug exceptions.
    msr!("oslar_el1", 0);
    let mdscr = mrs!("mdscr_el1");
    let mut x0 = x0;
    let step = catch(|| {
        // SAFETY: the instruction and RET; callers answer for what the instruction does. PSTATE.D keeps the step from
        // this code; the handler ends stepping (MDSCR_EL1.KDE, SS).
        unsafe {
            core::arch::asm!(
                "adr x30, 2f", "msr elr_el1, {code}", "msr spsr_el1, {state}", "msr mdscr_el1, {stepping}", "isb",
                "eret", "2:",
                code = in(reg) code, state = in(reg) 1u64 << 21 | 0x1c5, stepping = in(reg) mdscr | 1 << 13 | 1,
                inout("x0") x0, clobber_abi("C")
            );
        }
    });
    msr!("mdscr_el1", mdscr);
    // RET returned with debug exceptions enabled.
    crate::instruction!("msr daifset, #8");
    match step {
        Err(caught) if caught.class() == class::STEP => Ok((x0, (caught.elr - code as u64) / 4)),
        Err(caught) => Err(caught),
        Ok(()) => Ok((x0, 0)),
    }
}

/// Runs one instruction with `x0`. Returns x0. The instruction may change all registers that a call may change.
///
/// # Errors
/// The exception that the instruction raised.
pub fn execute_with(instruction: u32, x0: u64) -> Result<u64, Caught> {
    let code = place(&[instruction, RETURN]);
    catch(|| {
        let mut x0 = x0;
        // SAFETY: the instruction and RET; callers answer for what the instruction does.
        unsafe { core::arch::asm!("blr {code}", code = in(reg) code, inout("x0") x0, clobber_abi("C")) };
        x0
    })
}
