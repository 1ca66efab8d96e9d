//! One stackful coroutine: straight-line code that shares a CPU with a guest.
//!
//! It runs on the CPU that owns it, at EL2, on a stack of its own, whenever that CPU calls [`Coroutine::resume`],
//! until it suspends itself. It never takes interrupts and holds no lock across a suspension.

use core::arch::naked_asm;
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicBool, Ordering};

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

/// Saves the callee-saved registers in `from` and takes those of `to`.
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

/// A coroutine and whoever resumed it.
pub(crate) struct Coroutine {
    inside: UnsafeCell<Context>,
    outside: UnsafeCell<Context>,
    is_running: AtomicBool,
    exists: Cell<bool>,
}

// SAFETY: used on one CPU only, the one that `start` was called on.
unsafe impl Sync for Coroutine {}

impl Coroutine {
    pub(crate) const fn new() -> Self {
        Self {
            inside: UnsafeCell::new(Context::new()),
            outside: UnsafeCell::new(Context::new()),
            is_running: AtomicBool::new(false),
            exists: Cell::new(false),
        }
    }

    /// Prepares `function` to run on the stack with top `stack_top` at the first [`Coroutine::resume`].
    ///
    /// # Safety
    ///
    /// The stack is mapped, used by nobody else, 16-byte aligned; called once, on the CPU that will resume it.
    pub(crate) unsafe fn start(&self, stack_top: u64, function: extern "C" fn() -> !) {
        // SAFETY: nothing runs in it yet.
        let inside = unsafe { &mut *self.inside.get() };
        inside.sp = stack_top;
        inside.x[11] = function as usize as u64;
        self.exists.set(true);
    }

    /// Lets it run until it suspends itself. Nothing happens from within.
    pub(crate) fn resume(&self) {
        if self.exists.get() && !self.is_running.swap(true, Ordering::Relaxed) {
            // SAFETY: `inside` holds a context that `start` or `suspend` left; this CPU alone is here.
            unsafe { switch(self.outside.get(), self.inside.get()) };
            self.is_running.store(false, Ordering::Relaxed);
        }
    }

    /// Whether it runs now: on its own CPU, whether the caller is in it.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }

    /// From within: back to whoever resumed it.
    pub(crate) fn suspend(&self) {
        if self.is_running() {
            // SAFETY: the caller runs on the coroutine's stack and `outside` holds who resumed it.
            unsafe { switch(self.inside.get(), self.outside.get()) };
        }
    }
}
