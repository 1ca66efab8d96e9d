//! Fatal errors: EL2 stops and leaves a record.
//!
//! The record stays in memory at the symbol `FATAL_RECORD`, for a debugger, and is printed on the console by polling. The
//! other CPUs are halted: guests must not run under a broken hypervisor.

use crate::arch::cache;
use crate::arch::cpu::{self, Request};
use crate::arch::frame::Frame;
use aarch64_cpu::registers::{ELR_EL2, ESR_EL2, FAR_EL2, HPFAR_EL2, Readable, SPSR_EL2, TPIDR_EL2};
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes of the stack on which an exception from EL2 is handled.
pub(crate) const STACK_SIZE: usize = 8192;

#[repr(C, align(16))]
pub(crate) struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: only the CPU that has set OWNER uses it.
unsafe impl Sync for Stack {}

/// The fatal stack.
pub(crate) static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));
/// Set to 1 by the first CPU that takes an exception from EL2: the owner of the fatal stack.
pub(crate) static OWNER: AtomicU32 = AtomicU32::new(0);

/// Most return addresses in a record.
const BACKTRACE_DEPTH: usize = 16;
/// Most bytes of the reason in a record.
const REASON_SIZE: usize = 160;
/// Number of slots of the log, each a line or a part of one, that are printed with the record.
const LOG_LINES: u64 = 20;
/// First word of a complete record: "BALLAST!".
const MAGIC: u64 = u64::from_le_bytes(*b"BALLAST!");

/// Record of a fatal error.
#[repr(C)]
struct Record {
    magic: u64,
    cpu: u64,
    esr: u64,
    elr: u64,
    far: u64,
    hpfar: u64,
    spsr: u64,
    sp: u64,
    x: [u64; 31],
    backtrace: [u64; BACKTRACE_DEPTH],
    reason_size: usize,
    reason: [u8; REASON_SIZE],
}

struct RecordCell(UnsafeCell<Record>);

// SAFETY: written by the one CPU that has set REPORTED, read by debuggers.
unsafe impl Sync for RecordCell {}

#[unsafe(no_mangle)]
static FATAL_RECORD: RecordCell = RecordCell(UnsafeCell::new(Record {
    magic: 0,
    cpu: 0,
    esr: 0,
    elr: 0,
    far: 0,
    hpfar: 0,
    spsr: 0,
    sp: 0,
    x: [0; 31],
    backtrace: [0; BACKTRACE_DEPTH],
    reason_size: 0,
    reason: [0; REASON_SIZE],
}));

/// Set to 1 by the CPU that reports.
static REPORTED: AtomicU32 = AtomicU32::new(0);

impl Write for Record {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = REASON_SIZE - self.reason_size;
        let taken = text.len().min(room);
        self.reason[self.reason_size..self.reason_size + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.reason_size += taken;
        Ok(())
    }
}

/// Collects return addresses along the chain of frame pointers, as long as it ascends within one stack.
fn backtrace(mut frame: u64, entries: &mut [u64; BACKTRACE_DEPTH]) {
    for entry in entries {
        if frame == 0
            || !frame.is_multiple_of(8)
            || !(crate::hyp_mem::mmu::is_stack(frame) && crate::hyp_mem::mmu::is_stack(frame + 15))
        {
            return;
        }
        // SAFETY: an aligned pair of words in a mapped stack.
        let [next, link] = unsafe { *(frame as *const [u64; 2]) };
        *entry = link;
        if next <= frame {
            return;
        }
        frame = next;
    }
}

/// Writes the record and prints it, once. `x`, `sp` and `pc` are the registers at the error.
fn report(reason: fmt::Arguments<'_>, x: &[u64; 31], sp: u64, pc: u64, is_exception: bool) -> ! {
    if REPORTED.swap(1, Ordering::AcqRel) == 0 {
        let here = TPIDR_EL2.get();
        // SAFETY: REPORTED lets one CPU in, once.
        let record = unsafe { &mut *FATAL_RECORD.0.get() };
        record.cpu = if here == 0 { 0 } else { cpu::current().index() as u64 };
        if is_exception {
            record.esr = ESR_EL2.get();
            record.far = FAR_EL2.get();
            record.hpfar = HPFAR_EL2.get();
            record.spsr = SPSR_EL2.get();
        }
        record.elr = pc;
        record.sp = sp;
        record.x = *x;
        let _ = record.write_fmt(reason);
        backtrace(x[29], &mut record.backtrace);
        record.magic = MAGIC;
        cache::clean_invalidate_value(record);
        if here != 0 {
            for other in cpu::all().filter(|other| other.is_online() && other.index() as u64 != record.cpu) {
                other.request(Request::Halt);
            }
        }
        let _ = print(&mut crate::serial::Polled, record, is_exception);
        let ring = crate::observe::log::ring();
        cache::clean_invalidate_value(ring);
        let _ = print_log(&mut crate::serial::Polled, ring);
    }
    halt()
}

fn print(out: &mut impl Write, record: &Record, is_exception: bool) -> fmt::Result {
    let reason = core::str::from_utf8(&record.reason[..record.reason_size]).unwrap_or("?");
    writeln!(out, "\r\n\nBallast: fatal error: {reason}\r")?;
    writeln!(out, "  CPU {} at {:#x}, stack {:#x}\r", record.cpu, record.elr, record.sp)?;
    if is_exception {
        writeln!(
            out,
            "  ESR_EL2 {:#x} FAR_EL2 {:#x} HPFAR_EL2 {:#x} SPSR_EL2 {:#x}\r",
            record.esr, record.far, record.hpfar, record.spsr
        )?;
        for (row, values) in record.x.chunks(4).enumerate() {
            for (column, value) in values.iter().enumerate() {
                write!(out, "  x{:<2} {value:016x}", 4 * row + column)?;
            }
            writeln!(out, "\r")?;
        }
    }
    write!(out, "  called from")?;
    for address in record.backtrace.iter().take_while(|&&address| address != 0) {
        write!(out, " {address:#x}")?;
    }
    writeln!(out, "\r\n  The record is kept at symbol FATAL_RECORD.\r")
}

/// Prints the last lines of the log, some of which may not have reached the console.
fn print_log(out: &mut impl Write, ring: &crate::observe::log::Ring) -> fmt::Result {
    writeln!(out, "  The log is kept at symbol BALLAST_LOG. Its last lines:\r")?;
    let mut reader = ring.reader_near_end(LOG_LINES);
    for _ in 0..LOG_LINES {
        let Some(entry) = reader.next(ring) else { break };
        match entry.frame() {
            Some(frame) => write!(out, "{}", crate::monitor::mux::Sequence(frame))?,
            None => writeln!(out, "  {entry}\r")?,
        }
    }
    Ok(())
}

/// Stops this CPU forever.
pub(crate) fn halt() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Reports an exception from EL2 itself. `kind` is the vector's number, from 0.
pub(crate) extern "C" fn exception(kind: u64, frame: &Frame) -> ! {
    let what = ["synchronous exception", "IRQ", "FIQ", "SError"][kind as usize & 3];
    let elr = ELR_EL2.get();
    report(format_args!("{what} at EL2"), &frame.x, frame.sp(), elr, true)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (frame, link, sp): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        core::arch::asm!("mov {}, x29", "mov {}, x30", "mov {}, sp", out(reg) frame, out(reg) link, out(reg) sp)
    };
    let mut x = [0; 31];
    x[29] = frame;
    x[30] = link;
    let message = info.message();
    match info.location() {
        Some(place) => {
            report(format_args!("{message}, at {}:{}", place.file(), place.line()), &x, sp, link, false)
        }
        None => report(format_args!("{message}"), &x, sp, link, false),
    }
}
