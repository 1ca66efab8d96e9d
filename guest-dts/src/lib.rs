//! Device trees: the host's, the configuration and those of guests.
//!
//! * [`tree`]: a reader for flattened device trees; it validates the whole blob first.
//! * [`finding`]: errors, warnings and notes about a tree, with node, property, value and rule.
//! * [`argument`]: command lines and the numbers and sizes in them.
//! * [`config`]: the configuration blob, which defines guests, blocks and pools.
//! * [`image`]: the arm64 Image header, and the placement of kernel, ramdisk and tree in a guest's RAM.
//! * [`guest_tree`]: the writer of a guest's device tree.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod argument;
pub mod config;
pub mod finding;
pub mod guest_tree;
pub mod image;
pub mod range;
pub mod tree;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
