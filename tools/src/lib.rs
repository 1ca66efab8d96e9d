//! What `ballast`, the tool on the PC, is made of.
//!
//! * [`link`]: where the serial line is, and what comes over it.
//! * [`splitter`], [`frames`]: text and the log's frames told apart, and frames put together.
//! * [`monitor`]: Ballast's monitor, asked for reports as JSON.
//! * [`model`]: the reports as data.
//! * [`recording`]: what passed, in a file that terminal players know.
//! * [`console`], [`log`], [`top`], [`report`], [`exporter`], [`configuration`]: the commands.
//! * [`host`]: what a host would make of a configuration.

pub mod configuration;
pub mod console;
pub mod exporter;
pub mod frames;
pub mod host;
pub mod link;
pub mod log;
pub mod model;
pub mod monitor;
pub mod recording;
pub mod report;
pub mod splitter;
pub mod top;
