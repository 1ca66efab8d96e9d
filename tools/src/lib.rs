//! The library behind `ballast`, the tool on the PC.
//!
//! Modules that use Ballast's serial line need the feature `line`, which is on by default. `ballast-qemu` checks
//! configurations without it.
//!
//! * [`link`]: the connection to the serial line.
//! * [`splitter`], [`frames`]: separation of text and log frames, and decoding of frames.
//! * [`monitor`]: a client of Ballast's monitor that asks for reports as JSON.
//! * [`model`]: the reports as data.
//! * [`recording`]: recordings of a line in the format of terminal players.
//! * [`console`], [`log`], [`top`], [`report`], [`exporter`], [`configuration`]: the commands.
//! * [`host`]: the check of a configuration against a host's device tree.

pub mod configuration;
mod host;

#[cfg(feature = "line")]
pub mod console;
#[cfg(feature = "line")]
pub mod exporter;
#[cfg(feature = "line")]
pub mod frames;
#[cfg(feature = "line")]
mod link;
#[cfg(feature = "line")]
mod lock;
#[cfg(feature = "line")]
pub mod log;
#[cfg(feature = "line")]
mod model;
#[cfg(feature = "line")]
pub mod monitor;
#[cfg(feature = "line")]
mod recording;
#[cfg(feature = "line")]
pub mod report;
#[cfg(feature = "line")]
pub mod splitter;
#[cfg(feature = "line")]
pub mod top;
