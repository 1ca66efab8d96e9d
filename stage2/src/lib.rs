//! Memory as Ballast sees it: pure logic without CPUs or devices, tested on a PC.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
mod arena;
mod buddy;
#[cfg(test)]
mod cases;
pub mod claim;
pub mod controller;
pub mod dmb;
pub mod frame;
pub mod map;
pub mod memory;
pub mod migrate;
pub mod name;
pub mod owner;
pub mod pageblock;
pub mod placement;
pub mod pool;
pub mod range;
pub mod scale;
pub mod size;
pub mod sync;
pub mod table;
pub mod zone;
