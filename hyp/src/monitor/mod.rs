//! The serial console: multiplexer, shell, commands, reports.

pub mod mux;
pub mod ring;
