//! The serial console: multiplexer, shell, commands, reports.

pub mod editor;
pub mod mux;
pub mod ring;
pub mod units;
