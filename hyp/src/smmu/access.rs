//! Access to an SMMU's registers and to the memory that it shares with Ballast.

use super::error::{Error, Failure};
use core::cell::Cell;

/// Nanoseconds after which the SMMU counts as failed, unless it answers.
pub(super) const TIMEOUT_NS: u64 = 100_000_000;
/// Bytes of the smallest allocation.
const PAGE_SIZE: u64 = 4096;

/// An SMMU's registers, of which page 1 begins at 0x1_0000. Reads and writes are single accesses of Device memory, in program
/// order.
pub(crate) trait Registers {
    /// Reads 32 bits at `offset`.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 32 bits at `offset`.
    fn write32(&self, offset: usize, value: u32);
    /// Writes 64 bits at `offset`.
    fn write64(&self, offset: usize, value: u64);
}

/// Memory for tables and queues, by physical address, and the clock.
pub(crate) trait Memory {
    /// Allocates 4 KiB << `order`, zeroed and naturally aligned, or returns `None`.
    fn allocate(&self, order: u8) -> Option<u64>;
    /// Frees what [`allocate`](Self::allocate) returned for the same order.
    fn free(&self, pa: u64, order: u8);
    /// Reads 64 bits by a single access.
    fn read64(&self, pa: u64) -> u64;
    /// Writes 64 bits by a single access.
    fn write64(&self, pa: u64, value: u64);
    /// Cleans and invalidates the data caches to the point of coherency (Arm ARM, DC CIVAC). [`barrier`](Self::barrier)
    /// completes it.
    fn clean_invalidate(&self, pa: u64, size: u64);
    /// Completes all earlier accesses and maintenance for all observers, and orders later ones after them (Arm ARM, DSB SY).
    fn barrier(&self);
    /// Returns a time that never decreases.
    fn now_ns(&self) -> u64;
}

/// An SMMU's registers and memory.
#[derive(Debug)]
pub(super) struct Port<R, M> {
    pub(super) registers: R,
    pub(super) memory: M,
    /// True if the SMMU snoops the CPUs' caches when it accesses tables and queues.
    pub(super) is_coherent: bool,
    /// Bytes that are allocated.
    pub(super) bytes: Cell<u64>,
}

impl<R: Registers, M: Memory> Port<R, M> {
    /// Allocates 4 KiB << `order`, of which the SMMU sees zeroes.
    pub(super) fn allocate(&self, order: u8) -> Result<u64, Error> {
        let bytes = PAGE_SIZE << order;
        let pa = self.memory.allocate(order).ok_or(Error::Memory { bytes })?;
        self.bytes.set(self.bytes.get() + bytes);
        self.clean(pa, bytes);
        Ok(pa)
    }

    /// Frees memory that the SMMU no longer accesses.
    pub(super) fn free(&self, pa: u64, order: u8) {
        self.bytes.set(self.bytes.get() - (PAGE_SIZE << order));
        self.memory.free(pa, order);
    }

    /// Makes CPU writes visible to an SMMU that does not snoop, after the next barrier.
    pub(super) fn clean(&self, pa: u64, size: u64) {
        if !self.is_coherent {
            self.memory.clean_invalidate(pa, size);
        }
    }

    /// Writes 64 bits by a single access. The SMMU sees them after the next barrier.
    pub(super) fn write64(&self, pa: u64, value: u64) {
        self.memory.write64(pa, value);
        self.clean(pa, 8);
    }

    /// Writes `words` at `pa`. The SMMU sees them after the next barrier.
    pub(super) fn write_words(&self, pa: u64, words: &[u64]) {
        for (&word, at) in words.iter().zip((pa..).step_by(8)) {
            self.memory.write64(at, word);
        }
        self.clean(pa, words.len() as u64 * 8);
    }

    /// Reads `N` words that the SMMU wrote.
    pub(super) fn read_fresh<const N: usize>(&self, pa: u64) -> [u64; N] {
        // Lines that were fetched ahead of the SMMU's write are dropped; nothing is dirty in them.
        self.clean(pa, N as u64 * 8);
        self.memory.barrier();
        core::array::from_fn(|index| self.memory.read64(pa + index as u64 * 8))
    }

    /// Waits until `is_done`. Returns false after [`TIMEOUT_NS`].
    pub(super) fn wait(&self, mut is_done: impl FnMut() -> bool) -> bool {
        let start = self.memory.now_ns();
        loop {
            // The last look comes after the time has passed: EL2 may have been descheduled by firmware.
            let is_late = self.memory.now_ns().saturating_sub(start) > TIMEOUT_NS;
            if is_done() {
                return true;
            }
            if is_late {
                return false;
            }
            core::hint::spin_loop();
        }
    }

    /// Writes a control register and waits for its acknowledgement.
    pub(super) fn control(
        &self,
        name: &'static str,
        at: usize,
        acknowledge: usize,
        value: u32,
    ) -> Result<(), Failure> {
        self.memory.barrier();
        self.registers.write32(at, value);
        let is_done = self.wait(|| self.registers.read32(acknowledge) == value);
        is_done.then_some(()).ok_or(Failure::Unacknowledged(name))
    }
}
