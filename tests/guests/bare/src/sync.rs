//! A spin lock and a barrier between CPUs, for memory that all CPUs map as cacheable.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Waits a moment for another CPU. An emulator that runs CPUs in turn switches to the next one.
pub fn relax() {
    crate::instruction!("yield");
}

/// A spin lock. It is not taken while this CPU's MMU is off: exclusives do not work then, and no other CPU runs.
#[derive(Debug, Default)]
pub struct Lock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a guard, and only one exists at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// A guard, which gives access to the lock's value.
#[derive(Debug)]
pub struct Guard<'lock, T> {
    lock: &'lock Lock<T>,
}

impl<T> Lock<T> {
    /// Creates a free lock.
    pub const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits until the lock is free and takes it.
    pub fn lock(&self) -> Guard<'_, T> {
        if crate::mmu::is_on() {
            while self.held.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
            {
                crate::sync::relax();
            }
        }
        Guard { lock: self }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard is the only one.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the only one.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.held.store(false, Ordering::Release);
    }
}

/// A reusable barrier, which all CPUs of a group reach before any continues.
#[derive(Debug, Default)]
pub struct Barrier {
    arrived: AtomicUsize,
    generation: AtomicUsize,
}

impl Barrier {
    /// Creates a barrier that no CPU has reached.
    #[must_use]
    pub const fn new() -> Self {
        Self { arrived: AtomicUsize::new(0), generation: AtomicUsize::new(0) }
    }

    /// Waits until `count` CPUs, including this one, have arrived.
    pub fn wait(&self, count: usize) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            while self.generation.load(Ordering::Acquire) == generation {
                crate::sync::relax();
            }
        }
    }
}
