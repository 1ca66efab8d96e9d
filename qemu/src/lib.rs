//! The machines that Ballast is run on under QEMU, as data, and how they are started.
//!
//! - a [`Machine`](machine::Machine) is read from `qemu/machines/NAME.toml`: CPUs, and memory controllers, each of
//!   which is a file on the PC;
//! - an [`Image`](image::Image) is Ballast, built; [`store`] fetches kernels and other packages from Debian;
//!   [`configuration`] compiles a set of guests;
//! - a [`Boot`](boot::Boot) is one start: what is loaded, on which machine. [`interactive`] runs it at the terminal,
//!   a [`Session`](session::Session) lets a program talk to it.

mod apt;
pub mod bench;
pub mod boot;
pub mod configuration;
pub mod errata;
pub mod error;
mod formats;
pub mod image;
pub mod interactive;
mod kernel;
pub mod machine;
pub mod place;
pub mod process;
pub mod ramdisk;
pub mod session;
pub mod size;
pub mod store;
pub mod suite;
pub mod toolchain;
pub mod tree;
pub mod workdir;

pub use error::{Error, Result};
