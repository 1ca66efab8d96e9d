//! What `ballast`, the tool on the PC, is made of.
//!
//! What needs Ballast's serial line comes with the feature `line`, which is on by default: `ballast-qemu` checks
//! configurations without it.
//!
//! * [`link`]: where the serial line is, and what comes over it.
//! * [`splitter`], [`frames`]: text and the log's frames told apart, and frames put together.
//! * [`monitor`]: Ballast's monitor, asked for reports as JSON.
//! * [`model`]: the reports as data.
//! * [`recording`]: what passed, in a file that terminal players know.
//! * [`console`], [`log`], [`top`], [`report`], [`exporter`], [`configuration`]: the commands.
//! * [`host`]: what a host would make of a configuration.

pub mod configuration;
pub mod host;

#[cfg(feature = "line")]
pub mod console;
#[cfg(feature = "line")]
pub mod exporter;
#[cfg(feature = "line")]
pub mod frames;
#[cfg(feature = "line")]
pub mod link;
#[cfg(feature = "line")]
mod lock;
#[cfg(feature = "line")]
pub mod log;
#[cfg(feature = "line")]
pub mod model;
#[cfg(feature = "line")]
pub mod monitor;
#[cfg(feature = "line")]
pub mod recording;
#[cfg(feature = "line")]
pub mod report;
#[cfg(feature = "line")]
pub mod splitter;
#[cfg(feature = "line")]
pub mod top;
