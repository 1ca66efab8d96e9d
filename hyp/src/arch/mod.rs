//! Everything that touches registers: boot, vectors, world switch, translation, caches, interrupts.
//!
//! The rest of the crate reaches hardware through here; most of `unsafe` is here.

pub(crate) mod cache;
pub(crate) mod coroutine;
pub(crate) mod cpu;
pub(crate) mod device;
pub(crate) mod errata;
pub(crate) mod features;
pub(crate) mod firmware;
pub(crate) mod frame;
pub(crate) mod gic;
pub(crate) mod hardening;
pub(crate) mod mem;
pub(crate) mod mitigation;
pub(crate) mod os_lock;
pub(crate) mod stage1;
pub(crate) mod sysreg;
pub(crate) mod timer;
pub(crate) mod tlb;
pub(crate) mod trace;
pub(crate) mod vcpu;

pub(crate) use firmware::version as psci_version;

/// A guest's images are in its RAM: all of it is at the point of coherency, and no CPU's instruction cache holds
/// anything of before.
pub(crate) fn complete_loading() {
    cache::complete();
}
