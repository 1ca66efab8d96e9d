//! The common library of the bare-metal guests: boot from the first instruction at EL1 to Rust with the MMU on, a console, the
//! interrupt controller, PSCI, timers and secondary CPUs.
//!
//! A guest is a binary with one [`entry!`] function. It runs on Ballast's virtual platform, on QEMU's `virt` board without a
//! hypervisor (entered at EL1, or at EL2, which it leaves at once), and in a Xen domain. Addresses come from the device tree
//! in x0; without a tree, from Ballast's specification of its virtual platform.
//!
//! A *guest* is one of these programs; a *CPU* is a CPU from the guest's point of view.

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
