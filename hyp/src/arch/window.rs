//! Windows: 2 MiB of address space through which a CPU reaches guest memory, which EL2 otherwise does not map.
//!
//! Each CPU has two and uses them alone. A window is opened on one pageblock at a time, with a level 2 block
//! entry; moving it is a break-before-make (Arm ARM D8.16.1): invalid entry, invalidation, new entry. The
//! invalidation is broadcast, since any CPU may have walked the shared tables speculatively.

use super::mmu;
use super::sysreg::instruction;
use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::addr::{PAGEBLOCK_SIZE, Pa};

/// One window of the CPU that it belongs to.
pub(crate) struct Window {
    base: NonNull<u8>,
    entry: &'static AtomicU64,
    /// The pageblock that it shows.
    open: Cell<Option<Pa>>,
}

// SAFETY: used by its own CPU only.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Window `slot` of CPU `cpu`.
    pub(super) fn new(cpu: usize, slot: usize) -> Result<Self, mmu::MapError> {
        let (base, entry) = mmu::window(cpu, slot)?;
        Ok(Self { base, entry, open: Cell::new(None) })
    }

    /// Shows the pageblock that `pa` lies in; returns the address of `pa` in the window. Good until the next call.
    pub(crate) fn show(&self, pa: Pa) -> NonNull<u8> {
        let block = Pa::new_truncate(pa.get() & !(PAGEBLOCK_SIZE - 1));
        if self.open.get() != Some(block) {
            self.close();
            self.entry.store(block.get() | mmu::WINDOW_BLOCK, Ordering::Relaxed);
            instruction!("dsb ishst");
            instruction!("isb");
            self.open.set(Some(block));
        }
        // SAFETY: the offset stays within the window's 2 MiB.
        unsafe { self.base.add((pa.get() % PAGEBLOCK_SIZE) as usize) }
    }

    /// Shows nothing.
    pub(crate) fn close(&self) {
        if self.open.take().is_some() {
            self.entry.store(0, Ordering::Relaxed);
            instruction!("dsb ishst");
            let page = self.base.addr().get() as u64 >> 12;
            // SAFETY: drops cached translations of the window, which nobody uses now.
            unsafe { core::arch::asm!("tlbi vae2is, {}", in(reg) page, options(nostack, preserves_flags)) };
            instruction!("dsb ish");
            instruction!("isb");
        }
    }
}
