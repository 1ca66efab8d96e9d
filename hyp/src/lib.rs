//! Ballast: the EL2 image. What touches registers is present only on the target; everything else also builds and is tested
//! on a PC. ARCHITECTURE.md has the table of rooms: each knows only rooms below it.
//!
//! `unsafe` is allowed in `arch` and `hyp_mem`, in `boot`, and in these leaves: the vectors, the idle loop, which enters
//! guests, and the fatal record (`exit`); a CPU's data, a guest's tables and memory, migration's copies, and
//! the mapping of devices' registers (`guest`); the PL011
//! (`serial`); the log's frames and its ring's symbol (`observe`).
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![cfg_attr(
    not(target_os = "none"),
    allow(dead_code, unused_imports, reason = "a PC runs a part of the image")
)]

extern crate alloc;

#[allow(unsafe_code)]
#[cfg(target_os = "none")]
mod arch;
pub mod board;
#[allow(unsafe_code)]
#[cfg(target_os = "none")]
mod boot;
mod device;
mod doorbell;
mod errata;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod host;
#[allow(unsafe_code)]
mod hyp_mem;
#[cfg(all(test, loom))]
mod interleavings;
mod mitigation;
#[allow(unreachable_pub, reason = "to other rooms")]
pub mod monitor;
mod observe;
#[cfg(target_os = "none")]
mod operator;
mod pci;
pub mod physical;
mod requests;
#[cfg(test)]
mod rooms;
#[allow(unsafe_code)]
#[cfg(target_os = "none")]
mod serial;
mod smmu;
mod translation;
