//! Builds and runs Ballast on machines under QEMU, which are described as data.
//!
//! - A [`Machine`](machine::Machine) is read from `qemu/machines/NAME.toml`: CPUs, memory controllers and devices.
//!   Each controller is a file on the PC, and so is each disk.
//! - [`Image`](image::Image) builds Ballast, [`store`] fetches kernels and other packages from Debian, and
//!   [`configuration`] compiles a set of guests.
//! - A [`Boot`](boot::Boot) describes one boot: the machine and the loaded files. [`interactive`] runs it at the terminal; a
//!   [`Session`](session::Session) gives a program access to its serial line.

mod apt;
pub mod bench;
pub mod boot;
pub mod configuration;
pub mod debian;
pub mod devices;
pub mod errata;
pub mod error;
mod formats;
pub mod image;
pub mod interactive;
mod kernel;
mod libraries;
pub mod machine;
mod modules;
pub mod place;
pub mod process;
mod progress;
pub mod ramdisk;
pub mod session;
mod size;
pub mod store;
pub mod suite;
pub mod toolchain;
mod tree;
mod workdir;

pub use error::{Error, Result};
