//! The serial console: multiplexer, shell, commands, reports.
#![allow(clippy::result_large_err, reason = "errors are rare and carry their text on the stack")]

pub(crate) mod balance;
pub(crate) mod baseline;
pub(crate) mod claiming;
pub(crate) mod command;
mod complete;
pub(crate) mod editor;
pub(crate) mod failure;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_migration;
#[cfg(test)]
mod fake_pools;
pub(crate) mod grammar;
pub(crate) mod machine;
pub(crate) mod migration;
pub(crate) mod mux;
pub(crate) mod region;
pub mod report;
pub(crate) mod ring;
pub(crate) mod session;
pub(crate) mod shell;
pub(crate) mod units;

pub(crate) use session::MonitorIo;
pub(crate) use shell::run;
