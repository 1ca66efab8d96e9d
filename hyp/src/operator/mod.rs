//! The monitor on the real machine: what its commands do, and the CPU time that it gets.

pub(crate) mod cost;
pub(crate) mod machine;
pub(crate) mod migration;
pub(crate) mod scheduler;
pub(crate) mod trace;
