//! Controllers and placements as the operator writes them.

use super::prelude::*;
use stage2::controller::ControllerSet;
use stage2::phys::placement::{Placement, Strictness};

/// A placement: the controllers and the way in which they are used.
pub(super) struct Placed<'a>(pub(super) &'a dyn Machine, pub(super) &'a Placement);

impl fmt::Display for Placed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (set, strictness) = self.1.named();
        match self.1 {
            Placement::Any => return f.write_str("any"),
            // In the order in which they are tried.
            Placement::Listed(list, _) => {
                for (at, controller) in list.as_slice().iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    f.write_str(self.0.controller_name(*controller))?;
                }
            }
            Placement::Interleave(..) => write!(f, "{} (interleaved)", Names(self.0, set))?,
        }
        if strictness == Strictness::Preferred { f.write_str(" (preferred)") } else { Ok(()) }
    }
}

/// The names of controllers, separated by commas.
pub(super) struct Names<'a>(pub(super) &'a dyn Machine, pub(super) ControllerSet);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.1.iter().filter(|controller| controller.index() < self.0.controller_count());
        for (at, controller) in known.enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            f.write_str(self.0.controller_name(controller))?;
        }
        Ok(())
    }
}
