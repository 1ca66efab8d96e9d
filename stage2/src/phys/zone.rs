//! The two zones.

use core::fmt;

use crate::controller::{ControllerId, MAX_CONTROLLERS};

/// Where a frame may be used.
///
/// Zones may overlap in address; every frame is present in exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Zone {
    /// What EL2 cannot move: Ballast's image, heap and tables, pinned guest RAM; movable memory by fallback.
    Normal,
    /// Guest RAM that is reached only through stage 2. Nothing else is ever allocated here.
    Movable,
}

/// How many arenas there are: one for each zone of each controller.
pub(crate) const ARENAS: usize = 2 * MAX_CONTROLLERS;

impl Zone {
    /// Both zones.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Movable];

    /// The number of the arena of this zone behind `controller`, below [`ARENAS`].
    #[inline]
    pub(crate) const fn arena(self, controller: ControllerId) -> usize {
        (controller.index() * 2 + self as usize) % ARENAS
    }

    /// The zone and the controller of arena number `arena`, below [`ARENAS`].
    pub(crate) fn of_arena(arena: usize) -> (Self, ControllerId) {
        let controller = ControllerId::try_new((arena / 2) as u8).unwrap_or_default();
        (Self::ALL[arena % 2], controller)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "NORMAL",
            Self::Movable => "MOVABLE",
        })
    }
}
