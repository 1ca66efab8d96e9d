//! Memory as Ballast sees it: pure logic without CPUs or devices, tested on a PC.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod table;
