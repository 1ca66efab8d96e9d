//! Global errors (IHI 0070, GERROR and GERRORN).

use super::registers::{GERROR_CMDQ, GERROR_EVENTQ_ABORT, GERROR_SFM};
use core::fmt;

/// Global errors that were active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GlobalErrors(pub(super) u32);

impl GlobalErrors {
    /// Returns true if no error was active.
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for GlobalErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (GERROR_CMDQ, "CMDQ_ERR"),
            (GERROR_EVENTQ_ABORT, "EVENTQ_ABT_ERR"),
            (1 << 3, "PRIQ_ABT_ERR"),
            (1 << 4, "MSI_CMDQ_ABT_ERR"),
            (1 << 5, "MSI_EVENTQ_ABT_ERR"),
            (1 << 6, "MSI_PRIQ_ABT_ERR"),
            (1 << 7, "MSI_GERROR_ABT_ERR"),
            (GERROR_SFM, "SFM_ERR"),
            (1 << 9, "CMDQP_ERR"),
            (1 << 10, "DPT_ERR"),
        ];
        let mut separator = "";
        for (_, name) in names.iter().filter(|(bit, _)| self.0 & bit != 0) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}
