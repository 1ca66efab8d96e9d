//! The locks and atomics of this crate, and of the parts of `hyp` that are tested on a PC, so that loom can replace
//! them.
//!
//! EL2 runs with interrupts masked, so a plain spin lock suffices: nothing on the CPU that holds it can take it again.

#[cfg(loom)]
mod imp {
    pub use loom::sync::atomic::{AtomicBool as Flag, AtomicU32 as Counter, Ordering};
    pub(crate) use loom::sync::{Mutex, Mutex as FairMutex};
    pub use loom::sync::{MutexGuard, MutexGuard as FairMutexGuard};
}

#[cfg(not(loom))]
mod imp {
    pub use core::sync::atomic::{AtomicBool as Flag, AtomicU32 as Counter, Ordering};
    pub(crate) use spin::mutex::{SpinMutex as Mutex, TicketMutex as FairMutex};
    pub use spin::mutex::{SpinMutexGuard as MutexGuard, TicketMutexGuard as FairMutexGuard};
}

use imp::{FairMutex, Mutex};
use spin::Once;

pub use imp::{Counter, FairMutexGuard, Flag, MutexGuard, Ordering};

/// Words shared between CPUs.
///
/// Under Miri only, the slice is behind one more reference: Miri checks each atomic behind a reference whenever that is
/// copied, so each step would cost as much as the map is large.
#[cfg(not(all(miri, test)))]
pub(crate) type Part<'a, T> = &'a [T];
#[cfg(all(miri, test))]
pub(crate) type Part<'a, T> = &'a &'a [T];

/// Returns `words` as a [`Part`].
#[cfg(not(all(miri, test)))]
#[inline(always)]
pub(crate) const fn part<T>(words: &[T]) -> Part<'_, T> {
    words
}

/// Returns `words` as a [`Part`].
#[cfg(all(miri, test))]
pub(crate) fn part<T>(words: &[T]) -> Part<'_, T> {
    Box::leak(Box::new(words))
}

/// Atomics in a larger structure. Under Miri only, they are stored apart from it, for the reason given at [`Part`].
#[cfg(not(all(miri, test)))]
pub(crate) type Aside<T> = T;
#[cfg(all(miri, test))]
pub(crate) struct Aside<T>(spin::Once<T>);

#[cfg(all(miri, test))]
impl<T> core::ops::Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.get().unwrap()
    }
}

/// Returns `value` as an [`Aside`].
#[cfg(not(all(miri, test)))]
#[inline(always)]
pub(crate) const fn aside<T>(value: T) -> Aside<T> {
    value
}

/// Returns `value` as an [`Aside`].
#[cfg(all(miri, test))]
pub(crate) const fn aside<T>(value: T) -> Aside<T> {
    Aside(spin::Once::initialized(value))
}

/// The function that [`relax`] calls.
static RELAX: Once<fn()> = Once::new();

/// Sets the function that a CPU calls while it waits for another one. Only the first call has an effect, before other CPUs
/// start. Until then waiting CPUs execute [`core::hint::spin_loop`].
pub fn set_relax(relax: fn()) {
    RELAX.call_once(|| relax);
}

/// Passes a moment of a wait for another CPU, or lets CPUs that wait for this one run, if an emulator runs one CPU at a
/// time. Out of line, since callers seldom get here.
#[inline(never)]
pub fn relax() {
    #[cfg(test)]
    if hooks::relax() {
        return;
    }
    RELAX.get().map_or_else(core::hint::spin_loop, |relax| relax());
}

/// Mutual exclusion between CPUs.
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Creates an unlocked lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Creates an unlocked lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Locks, waiting until the lock is free.
    #[cfg(not(loom))]
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }

    /// Locks, waiting until the lock is free.
    #[cfg(loom)]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// Mutual exclusion between CPUs that get the lock in the order in which they ask for it. For locks that guests take as
/// often as they like: no CPU waits longer than for one turn of each other CPU.
pub struct FairLock<T>(FairMutex<T>);

impl<T> FairLock<T> {
    /// Creates an unlocked lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self(FairMutex::new(value))
    }

    /// Creates an unlocked lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self(FairMutex::new(value))
    }

    /// Locks, waiting for the CPUs that have asked before.
    #[cfg(not(loom))]
    #[inline]
    pub fn lock(&self) -> FairMutexGuard<'_, T> {
        self.0.lock()
    }

    /// Locks, waiting until the lock is free.
    #[cfg(loom)]
    pub fn lock(&self) -> FairMutexGuard<'_, T> {
        self.0.lock().unwrap()
    }

    /// Locks if the lock is free.
    #[cfg(not(loom))]
    #[inline]
    pub fn try_lock(&self) -> Option<FairMutexGuard<'_, T>> {
        self.0.try_lock()
    }

    /// Locks if the lock is free.
    #[cfg(loom)]
    pub fn try_lock(&self) -> Option<FairMutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// Points at which tests let another CPU run. Each thread has its own hooks.
#[cfg(test)]
pub(crate) mod hooks {
    use std::cell::RefCell;
    use std::rc::Rc;

    type Hook = RefCell<Option<Rc<dyn Fn()>>>;

    thread_local! {
        static RELAX: Hook = const { RefCell::new(None) };
        static BEFORE_LOCK: Hook = const { RefCell::new(None) };
    }

    /// Sets the function that [`super::relax`] calls on this thread.
    pub(crate) fn set_relax(hook: Option<Rc<dyn Fn()>>) {
        RELAX.set(hook);
    }

    /// Sets the function that is called on this thread before it takes the lock of a guest's address space.
    pub(crate) fn set_before_lock(hook: Option<Rc<dyn Fn()>>) {
        BEFORE_LOCK.set(hook);
    }

    /// Calls the hook for [`super::relax`]. Returns false if there is none.
    pub(super) fn relax() -> bool {
        let hook = RELAX.with_borrow(Clone::clone);
        hook.inspect(|hook| hook()).is_some()
    }

    /// Calls the hook for a lock that is about to be taken.
    pub(crate) fn before_lock() {
        // The hook may take locks itself, or remove itself: it runs outside the borrow.
        let hook = BEFORE_LOCK.with_borrow(Clone::clone);
        hook.inspect(|hook| hook());
    }
}
