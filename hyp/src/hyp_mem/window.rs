//! Windows: 2 MiB of address space through which a CPU accesses guests' memory, which EL2 otherwise does not map.
//!
//! Each CPU has two windows of its own. A window shows one pageblock at a time, by a level 2 block entry. Moving it is a
//! break-before-make (Arm ARM, "Using break-before-make when updating translation table entries"): invalid entry,
//! invalidation, new entry. The invalidation is broadcast, since any CPU may have walked the shared tables
//! speculatively.
//!
//! A function that opens a window closes it before it returns. So a guest's memory is mapped at EL2 only while EL2 works on
//! it, and speculation on behalf of one guest cannot reach another guest's memory. Opening and closing take some 25
//! instructions and one broadcast invalidation; migration pays that once for a batch of pages or a run of a unit of 2 MiB,
//! which takes thousands.
//!
//! A window is cacheable or, for cache maintenance, Non-cacheable. While a cacheable window is open, a CPU may fetch lines
//! through it speculatively, even lines that have just been cleaned and invalidated (Arm ARM, "General behavior of the
//! caches"). So memory that may be accessed uncached is cleaned and invalidated through a Non-cacheable window, after
//! the cacheable one is closed. Maintenance by address acts on the physical address in either case (Arm ARM, "Data and
//! unified caches").

use super::mmu;
use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::errata;
use crate::arch::sysreg::instruction;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;
use stage2::addr::{PAGEBLOCK_SIZE, Pa};

/// One window of the CPU that it belongs to.
pub(crate) struct Window {
    base: NonNull<u8>,
    /// Level 2 descriptor: 0 while the window is closed.
    entry: &'static AtomicU64,
}

// SAFETY: used by its own CPU only.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

/// The windows of each CPU, by its index.
static WINDOWS: [Once<[Window; mmu::WINDOWS_PER_CPU]>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// Makes the windows of this CPU. Once, before it comes online.
///
/// # Errors
///
/// EL2's tables have no room for them.
pub(crate) fn init_cpu() -> Result<(), mmu::MapError> {
    let cpu = cpu::current().index();
    let windows = [Window::new(cpu, 0)?, Window::new(cpu, 1)?];
    WINDOWS[cpu].call_once(|| windows);
    Ok(())
}

/// Returns the windows of this CPU.
///
/// # Panics
///
/// There are none: boot makes them before a CPU comes online.
pub(crate) fn own() -> &'static [Window; mmu::WINDOWS_PER_CPU] {
    let cpu = cpu::current().index();
    match WINDOWS[cpu].get() {
        Some(windows) => windows,
        None => panic!("CPU {cpu} has no window to guests' memory"),
    }
}

impl Window {
    /// Makes window `slot` of CPU `cpu`.
    fn new(cpu: usize, slot: usize) -> Result<Self, mmu::MapError> {
        let (base, entry) = mmu::window(cpu, slot)?;
        Ok(Self { base, entry })
    }

    /// Shows the pageblock of `pa`. Returns the address of `pa` in the window, valid until the next call.
    pub(crate) fn show(&self, pa: Pa) -> NonNull<u8> {
        self.show_as(pa, mmu::WINDOW_BLOCK)
    }

    /// Shows the pageblock of `pa` as Non-cacheable memory, for cache maintenance. The address is valid until the next call.
    pub(crate) fn show_uncached(&self, pa: Pa) -> NonNull<u8> {
        self.show_as(pa, mmu::WINDOW_BLOCK_UNCACHED)
    }

    #[inline(always)]
    fn show_as(&self, pa: Pa, attributes: u64) -> NonNull<u8> {
        let address = self.set(pa, attributes);
        complete_opening();
        address
    }

    /// Writes the descriptor, after a break if the window is open. Returns the address of `pa` in the window.
    #[inline(always)]
    fn set(&self, pa: Pa, attributes: u64) -> NonNull<u8> {
        if self.entry.load(Ordering::Relaxed) != 0 {
            self.close();
        }
        self.entry.store(pa.get() & !(PAGEBLOCK_SIZE - 1) | attributes, Ordering::Relaxed);
        // SAFETY: the offset stays within the window's 2 MiB.
        unsafe { self.base.add((pa.get() % PAGEBLOCK_SIZE) as usize) }
    }

    /// Closes the window. Accesses and cache maintenance through it are complete when this returns (DSB ISH).
    pub(crate) fn close(&self) {
        self.clear();
        instruction!("dsb ishst");
        self.invalidate();
        complete_closing();
    }

    #[inline(always)]
    fn clear(&self) {
        self.entry.store(0, Ordering::Relaxed);
    }

    /// Invalidates cached translations of the window.
    #[inline(always)]
    fn invalidate(&self) {
        let page = self.base.addr().get() as u64 >> 12;
        // SAFETY: nobody uses the window now.
        unsafe { core::arch::asm!("tlbi vae2is, {}", in(reg) page, options(nostack, preserves_flags)) };
    }
}

/// Shows a pageblock in each of two windows, as [`Window::show`] does, with one completion.
#[inline(always)]
pub(crate) fn show_pair([first, second]: [&Window; 2], [one, other]: [Pa; 2]) -> [NonNull<u8>; 2] {
    let addresses = [first.set(one, mmu::WINDOW_BLOCK), second.set(other, mmu::WINDOW_BLOCK)];
    complete_opening();
    addresses
}

/// Closes two windows, as [`Window::close`] does, with one completion.
#[inline(always)]
pub(crate) fn close_pair([first, second]: [&Window; 2]) {
    first.clear();
    second.clear();
    instruction!("dsb ishst");
    first.invalidate();
    second.invalidate();
    complete_closing();
}

#[inline(always)]
fn complete_opening() {
    instruction!("dsb ishst");
    instruction!("isb");
}

#[inline(always)]
fn complete_closing() {
    errata::complete_invalidations();
    instruction!("isb");
}
