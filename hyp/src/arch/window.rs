//! Windows: 2 MiB of address space through which a CPU reaches guest memory, which EL2 otherwise does not map.
//!
//! Each CPU has two and uses them alone. A window is opened on one pageblock at a time, with a level 2 block
//! entry; moving it is a break-before-make (Arm ARM D8.16.1): invalid entry, invalidation, new entry. The
//! invalidation is broadcast, since any CPU may have walked the shared tables speculatively.
//!
//! Whoever opens a window closes it before it returns: the memory of a guest is mapped at EL2 only while EL2 works on it,
//! so that what EL2 does for one guest cannot be led by speculation to what is left of another's. An open and a close take
//! some 25 instructions and one broadcast invalidation; migration pays them once for a batch of pages or a run of a unit
//! of 2 MiB, which takes thousands.
//!
//! A window is cacheable or, for cache maintenance, Non-cacheable. As long as a cacheable one is open, a line may be
//! fetched through it by speculation, even one that has just been cleaned and invalidated (Arm ARM B2.8). So memory that
//! somebody may access past the caches is cleaned and invalidated through a Non-cacheable window, after the other is
//! closed; maintenance by address acts on the physical address in either case (D7.5.9).

use super::sysreg::instruction;
use super::{errata, mmu};
use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::addr::{PAGEBLOCK_SIZE, Pa};

/// One window of the CPU that it belongs to.
pub(crate) struct Window {
    base: NonNull<u8>,
    entry: &'static AtomicU64,
    /// Its entry: 0 while it is closed.
    open: Cell<u64>,
}

// SAFETY: used by its own CPU only.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Window `slot` of CPU `cpu`.
    pub(super) fn new(cpu: usize, slot: usize) -> Result<Self, mmu::MapError> {
        let (base, entry) = mmu::window(cpu, slot)?;
        Ok(Self { base, entry, open: Cell::new(0) })
    }

    /// Shows the pageblock that `pa` lies in; returns the address of `pa` in the window. Good until the next call.
    pub(crate) fn show(&self, pa: Pa) -> NonNull<u8> {
        self.show_as(pa, mmu::WINDOW_BLOCK)
    }

    /// Shows the pageblock that `pa` lies in as Non-cacheable memory, for cache maintenance. Good until the next call.
    pub(crate) fn show_uncached(&self, pa: Pa) -> NonNull<u8> {
        self.show_as(pa, mmu::WINDOW_BLOCK_UNCACHED)
    }

    #[inline(always)]
    fn show_as(&self, pa: Pa, attributes: u64) -> NonNull<u8> {
        let entry = pa.get() & !(PAGEBLOCK_SIZE - 1) | attributes;
        if self.open.get() != entry {
            self.close();
            self.entry.store(entry, Ordering::Relaxed);
            instruction!("dsb ishst");
            instruction!("isb");
            self.open.set(entry);
        }
        // SAFETY: the offset stays within the window's 2 MiB.
        unsafe { self.base.add((pa.get() % PAGEBLOCK_SIZE) as usize) }
    }

    /// Shows nothing.
    pub(crate) fn close(&self) {
        close_all([self]);
    }
}

/// Lets `windows` show nothing, with one completion for all. Accesses and cache maintenance through them are complete when
/// it returns (DSB ISH).
#[inline(always)]
pub(crate) fn close_all<const COUNT: usize>(windows: [&Window; COUNT]) {
    if windows.iter().all(|window| window.open.get() == 0) {
        return;
    }
    for window in windows {
        window.open.set(0);
        window.entry.store(0, Ordering::Relaxed);
    }
    instruction!("dsb ishst");
    for window in windows {
        let page = window.base.addr().get() as u64 >> 12;
        // SAFETY: drops cached translations of the window, which nobody uses now.
        unsafe { core::arch::asm!("tlbi vae2is, {}", in(reg) page, options(nostack, preserves_flags)) };
    }
    errata::complete_invalidations();
    instruction!("isb");
}
