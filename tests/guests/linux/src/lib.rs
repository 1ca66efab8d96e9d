//! System calls of Linux on arm64, a line on the console, and the counter.
#![no_std]

use core::arch::asm;
use core::fmt::{self, Write};

/// Numbers of system calls (Linux, include/uapi/asm-generic/unistd.h).
pub mod number {
    /// `write(fd, buffer, size)`.
    pub const WRITE: usize = 64;
    /// `exit_group(status)`.
    pub const EXIT_GROUP: usize = 94;
    /// `reboot(magic, magic, command, argument)`.
    pub const REBOOT: usize = 142;
    /// `mmap(address, size, protection, flags, fd, offset)`.
    pub const MMAP: usize = 222;
    /// `madvise(address, size, advice)`.
    pub const MADVISE: usize = 233;
    /// `mbind(address, size, mode, nodes, bits, flags)`.
    pub const MBIND: usize = 235;
    /// `move_pages(pid, count, pages, nodes, status, flags)`.
    pub const MOVE_PAGES: usize = 239;
}

/// Makes a system call. Returns its result, or a negative error number.
///
/// # Safety
/// The call changes this program's memory only as the caller expects.
pub unsafe fn call(number: usize, arguments: [usize; 6]) -> isize {
    let [mut first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the caller answers for the call; the kernel keeps all registers but x0.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") first, in("x1") second, in("x2") third, in("x3") fourth,
             in("x4") fifth, in("x5") sixth, options(nostack));
    }
    first as isize
}

/// Returns the counter after all previous instructions.
pub fn counter() -> u64 {
    let ticks;
    // SAFETY: reads a register that Linux lets programs read.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack)) };
    ticks
}

/// Returns the counter's ticks per second.
pub fn frequency() -> u64 {
    let frequency;
    // SAFETY: as above.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    frequency
}

/// Standard output.
pub struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: the kernel reads the text.
        let written = unsafe { call(number::WRITE, [1, text.as_ptr() as usize, text.len(), 0, 0, 0]) };
        if written < 0 { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Powers the machine off, since the kernel panics when its init program ends.
pub fn power_off() -> ! {
    // SAFETY: nothing of this program is needed any more (reboot(2): the two magic numbers, LINUX_REBOOT_CMD_POWER_OFF).
    unsafe {
        call(number::REBOOT, [0xfee1_dead, 0x2812_1969, 0x4321_fedc, 0, 0, 0]);
        call(number::EXIT_GROUP, [1, 0, 0, 0, 0, 0]);
    }
    loop {
        core::hint::spin_loop();
    }
}
