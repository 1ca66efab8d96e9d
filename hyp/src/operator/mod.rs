//! The monitor on the real machine: the work of its commands, and its CPU time.

pub(crate) mod claims;
pub(crate) mod cost;
pub(crate) mod machine;
pub(crate) mod migration;
pub(crate) mod scheduler;
pub(crate) mod trace;
