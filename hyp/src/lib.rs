//! Ballast: the EL2 image. What touches registers is present only on the target; everything else also builds and is tested
//! on a PC. ARCHITECTURE.md has the table of rooms: each knows only rooms below it.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

#[cfg(target_os = "none")]
pub mod arch;
pub mod board;
#[cfg(target_os = "none")]
mod boot;
pub mod device;
pub mod errata;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
pub mod guest;
#[cfg(target_os = "none")]
mod host;
pub mod hyp_mem;
#[cfg(all(test, loom))]
mod interleavings;
pub mod mitigation;
pub mod monitor;
pub mod observe;
#[cfg(target_os = "none")]
mod operator;
pub mod physical;
pub mod requests;
#[cfg(test)]
mod rooms;
#[cfg(target_os = "none")]
mod serial;
pub mod translation;
