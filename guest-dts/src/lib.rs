//! Device trees: read, configured from, written.
//!
//! * [`tree`]: a flattened device tree, validated whole before anything else reads it.
//! * [`finding`]: what is wrong in a tree, as data: node, property, value and rule.
//! * [`argument`]: command lines, and the numbers and sizes in them.
//! * [`config`]: the configuration blob, from which guests are started.
//! * [`image`]: the arm64 Image header, and where kernel, ramdisk and tree go in a guest's RAM.
//! * [`guest_tree`]: the tree that a guest gets.
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
