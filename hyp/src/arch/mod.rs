//! Everything that touches registers: boot, vectors, world switch, translation, caches, interrupts.
//!
//! The rest of the crate reaches hardware through here; most of `unsafe` is here.

mod boot;
pub(crate) mod cache;
pub(crate) mod copy;
mod coroutine;
pub(crate) mod cost;
pub mod cpu;
mod device;
mod errata;
mod fatal;
pub(crate) mod features;
mod firmware;
pub(crate) mod gic;
mod heap;
pub(crate) mod idle;
mod mem;
mod mitigation;
mod mmu;
pub(crate) mod monitor;
pub(crate) mod own;
mod start;
mod sysreg;
pub mod timer;
pub(crate) mod tlb;
pub(crate) mod trace;
pub(crate) mod trap;
pub(crate) mod uart;
pub(crate) mod vcpu;
mod vectors;
pub(crate) mod window;

pub use firmware::version as psci_version;
pub use start::{board, controller_name, host_name, host_tree, taken};

/// A guest's images are in its RAM: all of it is at the point of coherency, and no CPU's instruction cache holds
/// anything of before.
pub(crate) fn complete_loading() {
    cache::complete();
}

/// What was loaded at `pa`, mapped read-only for ever; `None`, and a line in the log, where it cannot be mapped.
pub(crate) fn map_loaded(pa: stage2::addr::Pa, size: u64) -> Option<&'static [u8]> {
    match mmu::map_boot_data(pa.get(), size) {
        // SAFETY: mapped read-only for this size and never unmapped; reserved in the memory map, so nobody writes.
        Ok(address) => Some(unsafe { core::slice::from_raw_parts(address.as_ptr(), size as usize) }),
        Err(error) => {
            crate::log::error!("what was loaded at {}: {}", pa, error);
            None
        }
    }
}
