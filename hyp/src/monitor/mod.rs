//! The serial console: multiplexer, shell, commands, reports.
//!
//! | module | purpose |
//! |---|---|
//! | `mux` | shares the serial line between the monitor and the guests |
//! | `shell` | reads a line (`editor`, `complete`) and passes it to the session |
//! | `command` | the table of commands; one file for each group of commands |
//! | `session` | checks a line by the `grammar`, and runs its command with the console, the machine and the form of the answer |
//! | `report` | writes an answer as text or as JSON |
//! | `machine`, `migration`, `claiming`, `devices` | the traits through which commands reach the hypervisor |
//!
//! `operator` implements these traits on the target, `fake` in tests on a PC.
#![allow(clippy::result_large_err, reason = "errors are rare and carry their text on the stack")]

pub(crate) mod balance;
pub(crate) mod baseline;
pub(crate) mod claiming;
pub(crate) mod command;
mod complete;
pub(crate) mod devices;
pub(crate) mod editor;
pub(crate) mod failure;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_devices;
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
