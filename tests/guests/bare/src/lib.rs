//! What the bare-metal guests share: from the first instruction at EL1 to Rust with the MMU on, a console, the
//! interrupt controller, PSCI, timers and further CPUs.
//!
//! A guest is a binary with one [`entry!`] function. It runs on Ballast's virtual platform, on QEMU's `virt` board
//! without any hypervisor (entered at EL1, or at EL2, which it leaves at once), and in a Xen domain. Where things are
//! comes from the device tree in x0; without one, from the platform that Ballast promises its guests.
//!
//! The words: a *guest* is one of these programs; a *CPU* here is what the guest takes for one.

#![no_std]

pub mod boot;
pub mod cache;
pub mod console;
pub mod exception;
pub mod execute;
pub mod fdt;
pub mod fp;
pub mod gic;
pub mod lower;
pub mod mmio;
pub mod mmu;
pub mod platform;
pub mod pools;
pub mod psci;
pub mod random;
pub mod register;
pub mod smp;
pub mod sync;
pub mod timer;
pub mod xen;
