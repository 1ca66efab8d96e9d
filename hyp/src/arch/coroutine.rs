//! One stackful coroutine: straight-line code that shares a CPU with a guest.
//!
//! It runs at EL2 on its home CPU, on a stack of its own, from [`Coroutine::resume`] until it suspends itself. It takes no
//! interrupts and holds no lock across a suspension.

use super::cpu;
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Callee-saved registers (AAPCS64 6.1.1), x19 to x30, and the stack pointer.
#[repr(C)]
struct Context {
    x: [u64; 12],
    sp: u64,
}

impl Context {
    const fn new() -> Self {
        Self { x: [0; 12], sp: 0 }
    }
}

/// Saves the callee-saved registers to `from` and loads those of `to`.
#[unsafe(naked)]
unsafe extern "C" fn switch(from: *mut Context, to: *const Context) {
    naked_asm!(
        "stp x19, x20, [x0]",
        "stp x21, x22, [x0, #16]",
        "stp x23, x24, [x0, #32]",
        "stp x25, x26, [x0, #48]",
        "stp x27, x28, [x0, #64]",
        "stp x29, x30, [x0, #80]",
        "mov x2, sp",
        "str x2, [x0, #96]",
        "ldp x19, x20, [x1]",
        "ldp x21, x22, [x1, #16]",
        "ldp x23, x24, [x1, #32]",
        "ldp x25, x26, [x1, #48]",
        "ldp x27, x28, [x1, #64]",
        "ldp x29, x30, [x1, #80]",
        "ldr x2, [x1, #96]",
        "mov sp, x2",
        "ret",
    )
}

/// A stack of a coroutine's own.
pub(crate) struct Stack {
    top: u64,
}

impl Stack {
    /// Takes the stack below `top`.
    ///
    /// # Safety
    ///
    /// It is mapped forever and used by nobody else; `top` is a multiple of 16.
    pub(crate) const unsafe fn new(top: u64) -> Self {
        Self { top }
    }
}

/// A coroutine and its caller.
pub(crate) struct Coroutine {
    inside: UnsafeCell<Context>,
    outside: UnsafeCell<Context>,
    is_running: AtomicBool,
    /// The CPU that it runs on, by index; `usize::MAX` until it is started.
    home: AtomicUsize,
}

// SAFETY: the contexts are used on the coroutine's home CPU only.
unsafe impl Sync for Coroutine {}

impl Coroutine {
    pub(crate) const fn new() -> Self {
        Self {
            inside: UnsafeCell::new(Context::new()),
            outside: UnsafeCell::new(Context::new()),
            is_running: AtomicBool::new(false),
            home: AtomicUsize::new(usize::MAX),
        }
    }

    /// Prepares `function` to run on `stack`, on this CPU, at the first [`Coroutine::resume`]. A second start is ignored.
    pub(crate) fn start(&self, stack: Stack, function: extern "C" fn() -> !) {
        let here = cpu::current().index();
        if self.home.compare_exchange(usize::MAX, here, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // SAFETY: nothing runs in it yet, and only this CPU resumes it.
            let inside = unsafe { &mut *self.inside.get() };
            inside.sp = stack.top;
            inside.x[11] = function as usize as u64;
        }
    }

    /// Returns true on the coroutine's home CPU.
    fn is_home(&self) -> bool {
        self.home.load(Ordering::Relaxed) == cpu::current().index()
    }

    /// Lets it run until it suspends itself. Does nothing from within, and on other CPUs.
    pub(crate) fn resume(&self) {
        if self.is_home() && !self.is_running.swap(true, Ordering::Relaxed) {
            // SAFETY: `inside` holds a context that `start` or `suspend` left; this CPU alone is here.
            unsafe { switch(self.outside.get(), self.inside.get()) };
            self.is_running.store(false, Ordering::Relaxed);
        }
    }

    /// Returns true if it runs now; on its home CPU, if the caller is in it.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }

    /// Returns to the caller of [`Coroutine::resume`], from within.
    pub(crate) fn suspend(&self) {
        if self.is_home() && self.is_running() {
            // SAFETY: what runs on the home CPU now is on the coroutine's stack, and `outside` holds the caller of
            // `resume`.
            unsafe { switch(self.inside.get(), self.outside.get()) };
        }
    }
}
