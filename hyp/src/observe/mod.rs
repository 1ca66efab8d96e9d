//! Counters, the trace and the log: what any room may write to.

pub mod counters;
pub mod log;
pub mod trace;
