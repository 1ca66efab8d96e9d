//! The locks and atomics of this crate, so that loom can stand in for them.
//!
//! EL2 runs with interrupts masked, so a plain spin lock is enough: nothing on the CPU that holds it can ask for it
//! a second time.

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicU32 as Counter, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

#[cfg(not(loom))]
mod imp {
    pub(crate) use core::sync::atomic::{AtomicU32 as Counter, Ordering};
    pub(crate) use spin::mutex::{SpinMutex as Mutex, SpinMutexGuard as MutexGuard};
}

pub(crate) use imp::{Counter, Mutex, MutexGuard, Ordering};

/// Mutual exclusion between CPUs.
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// A free lock around `value`.
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// A free lock around `value`.
    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits until the lock is free and takes it.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }

    /// Waits until the lock is free and takes it.
    #[cfg(loom)]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}
