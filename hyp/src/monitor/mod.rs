//! The serial console: multiplexer, shell, commands, reports.
#![allow(clippy::result_large_err, reason = "what went wrong is told in text, on the stack, and seldom")]

pub mod baseline;
pub mod claiming;
pub mod command;
mod complete;
pub mod editor;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_migration;
#[cfg(test)]
mod fake_pools;
pub mod grammar;
pub mod machine;
pub mod migration;
pub mod mux;
pub mod region;
pub mod report;
pub mod ring;
pub mod session;
pub mod shell;
pub mod units;

pub use machine::Machine;
pub use session::MonitorIo;
pub use shell::run;
