//! Exceptions of a guest: interrupts call hooks, expected faults are caught, all others end the guest.

use crate::smp::{self, Record};
use crate::{lower, mrs, msr, psci, say};
use core::sync::atomic::Ordering;

/// Size of the state that the vectors save, in bytes.
const FRAME_SIZE: usize = 288;

core::arch::global_asm!(
    include_str!("vectors.S"),
    frame_size = const FRAME_SIZE,
    exception = sym exception,
);

/// The saved state of the interrupted code.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Return address.
    pub elr: u64,
    /// Processor state.
    pub spsr: u64,
    esr: u64,
    far: u64,
    reserved: u64,
}

/// A caught exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Syndrome.
    pub esr: u64,
    /// Fault address.
    pub far: u64,
    /// Address of the instruction.
    pub elr: u64,
    /// Number of the vector, 0 to 15.
    pub number: usize,
}

/// Exception classes (Arm ARM, ESR_EL1).
pub mod class {
    /// Unknown reason, such as an undefined instruction.
    pub const UNKNOWN: u64 = 0x00;
    /// Access to SIMD or floating point while it is trapped.
    pub const FP: u64 = 0x07;
    /// SVC.
    pub const SVC: u64 = 0x15;
    /// SVC from AArch32.
    pub const SVC32: u64 = 0x11;
    /// Branch to a guarded page without a landing pad.
    pub const BRANCH_TARGET: u64 = 0x0d;
    /// Trapped system register access.
    pub const SYSTEM_REGISTER: u64 = 0x18;
    /// Instruction abort without a change of exception level.
    pub const INSTRUCTION_ABORT: u64 = 0x21;
    /// Misaligned program counter.
    pub const PC_ALIGNMENT: u64 = 0x22;
    /// Data abort without a change of exception level.
    pub const DATA_ABORT: u64 = 0x25;
    /// Misaligned stack pointer.
    pub const SP_ALIGNMENT: u64 = 0x26;
    /// SError.
    pub const SERROR: u64 = 0x2f;
    /// Single step without a change of exception level.
    pub const STEP: u64 = 0x33;
    /// BRK.
    pub const BREAKPOINT: u64 = 0x3c;
}

impl Caught {
    /// Returns the exception class.
    #[must_use]
    pub const fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Returns the fault status code of an abort.
    #[must_use]
    pub const fn status(&self) -> u64 {
        self.esr & 0x3f
    }

    /// Returns true if the aborted access was a write.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        self.esr & 1 << 6 != 0
    }

    /// Returns true for a synchronous external abort that was not on a table walk.
    #[must_use]
    pub const fn is_external_abort(&self) -> bool {
        matches!(self.class(), class::DATA_ABORT | class::INSTRUCTION_ABORT) && self.status() == 0x10
    }
}

/// Sets the IRQ handler of this CPU.
pub fn on_irq(handler: fn()) {
    smp::record().on_irq.store(handler as *mut (), Ordering::Release);
}

/// Sets the FIQ handler of this CPU.
pub fn on_fiq(handler: fn()) {
    smp::record().on_fiq.store(handler as *mut (), Ordering::Release);
}

/// Runs `work`. Skips its instructions that raise synchronous exceptions, without changing their results. A jump to an address
/// without instructions returns at once.
///
/// # Errors
/// The first exception, if there was one.
pub fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Caught> {
    let record = smp::record();
    record.caught_count.store(0, Ordering::Relaxed);
    record.catching.store(true, Ordering::SeqCst);
    let result = work();
    // Asynchronous aborts that are still pending count too.
    crate::instruction!("dsb sy", "isb");
    record.catching.store(false, Ordering::SeqCst);
    if record.caught_count.load(Ordering::Relaxed) == 0 { Ok(result) } else { Err(record.last_caught()) }
}

extern "C" fn exception(number: usize, frame: &mut Frame) {
    let record = smp::record();
    match number % 4 {
        0 if number >= 8 => {
            record.caught_count.store(0, Ordering::Relaxed);
            note(record, number, frame);
            lower::leave(frame);
        }
        0 => synchronous(record, number, frame),
        1 => interrupt(record.on_irq.load(Ordering::Acquire), number, frame),
        2 => interrupt(record.on_fiq.load(Ordering::Acquire), number, frame),
        _ if record.catching.load(Ordering::SeqCst) => note(record, number, frame),
        _ => fatal(number, frame),
    }
}

fn interrupt(hook: *mut (), number: usize, frame: &Frame) {
    if hook.is_null() {
        fatal(number, frame);
    }
    // SAFETY: `on_irq` and `on_fiq` store functions of this type.
    let hook: fn() = unsafe { core::mem::transmute(hook) };
    hook();
}

fn synchronous(record: &Record, number: usize, frame: &mut Frame) {
    if !record.catching.load(Ordering::SeqCst) {
        fatal(number, frame);
    }
    note(record, number, frame);
    let class = frame.esr >> 26 & 0x3f;
    frame.elr = match class {
        class::INSTRUCTION_ABORT | class::PC_ALIGNMENT => frame.x[30],
        class::SVC => frame.elr,
        class::STEP => {
            msr!("mdscr_el1", mrs!("mdscr_el1") & !1);
            frame.elr
        }
        _ => frame.elr + 4,
    };
}

fn note(record: &Record, number: usize, frame: &Frame) {
    if record.caught_count.fetch_add(1, Ordering::Relaxed) == 0 {
        for (slot, value) in record.caught.iter().zip([frame.esr, frame.far, frame.elr, number as u64]) {
            slot.store(value, Ordering::Relaxed);
        }
    }
}

fn fatal(number: usize, frame: &Frame) -> ! {
    say!(
        "fatal CPU {} exception {} esr {:#x} far {:#x} elr {:#x} (image at {:#x})",
        smp::index(),
        number,
        frame.esr,
        frame.far,
        frame.elr,
        crate::boot::image().start
    );
    psci::system_off()
}
