//! Ballast: the EL2 image. What touches registers is in `arch`, present only on the target; everything
//! else also builds and is tested on a PC.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

#[cfg(target_os = "none")]
pub mod arch;
pub mod board;
pub mod device;
pub mod errata;
#[cfg(target_os = "none")]
pub mod guest;
#[cfg(all(test, loom))]
mod interleavings;
pub mod log;
pub mod mitigation;
pub mod monitor;
pub mod physical;
pub mod requests;
pub mod tables;
pub mod translation;
