//! Failures of commands.

use core::fmt;

use super::machine::{Reason, set_reason};

/// The outcome of a command.
pub type Done = Result<(), Failure>;

/// The reason why a command did nothing, or not everything. Its text is in [`State::why`](super::session::State).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command does not take the words that were typed.
    Usage,
    /// The machine refuses.
    Refused,
    /// The operator pressed Ctrl-C.
    Interrupted,
}

impl Failure {
    /// Returns a usage error and sets `why` to `text`.
    pub(super) fn usage(why: &mut Reason, text: fmt::Arguments<'_>) -> Self {
        set_reason(why, text);
        Self::Usage
    }
}

impl From<fmt::Error> for Failure {
    /// Converts a failed write: the console fails only if the operator interrupts.
    fn from(_: fmt::Error) -> Self {
        Self::Interrupted
    }
}
