//! The CPU and its registers: GIC, timer, TLB, caches, saved frame, a CPU's core. It knows no guest and no monitor.

pub(crate) mod cache;
pub(crate) mod coroutine;
pub(crate) mod cpu;
pub(crate) mod debug_channel;
pub(crate) mod device;
pub(crate) mod errata;
pub(crate) mod features;
pub(crate) mod firmware;
pub(crate) mod frame;
pub(crate) mod gic;
pub(crate) mod hardening;
pub(crate) mod mem;
pub(crate) mod mitigation;
pub(crate) mod mmio;
pub(crate) mod os_lock;
pub(crate) mod pci;
pub(crate) mod stage1;
pub(crate) mod sysreg;
pub(crate) mod timer;
pub(crate) mod tlb;
pub(crate) mod trace;
pub(crate) mod vcpu;

pub(crate) use firmware::version as psci_version;

/// Completes the loading of a guest: its images are at the point of coherency, and no CPU's instruction cache holds older
/// contents.
pub(crate) fn complete_loading() {
    cache::complete();
}
