//! Counters, the trace and the log, to which any room may write.

pub(crate) mod counters;
pub(crate) mod log;
pub(crate) mod trace;
