//! Memory management: physical memory, stage 2 tables, migration and claims. Pure logic without CPUs or devices, tested
//! on a PC.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
#[cfg(test)]
mod cases;
pub mod claim;
pub mod controller;
pub mod histogram;
pub mod migrate;
pub mod name;
pub mod owner;
pub mod phys;
pub mod range;
pub mod scale;
pub mod size;
pub mod sync;
pub mod table;
