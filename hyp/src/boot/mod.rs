//! From the loader's jump to running guests. The composition root: it knows every other room.

pub(crate) mod entry;
pub(crate) mod start;
