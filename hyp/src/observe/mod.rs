//! Counters, the trace and the log: what any room may write to.

pub(crate) mod counters;
pub(crate) mod log;
pub(crate) mod trace;
