//! The two zones.

use core::fmt;

use crate::controller::{ControllerId, MAX_CONTROLLERS};

/// A zone: the kinds of memory that a frame may hold.
///
/// Zones may overlap in address. Every frame is present in exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Zone {
    /// Memory that EL2 cannot move: Ballast's image, heap and tables, and unmovable guest RAM. Movable memory by
    /// fallback.
    Normal,
    /// Guest RAM that only stage 2 maps, and nothing else.
    Movable,
}

/// The number of arenas: one for each zone of each controller.
pub(crate) const ARENAS: usize = 2 * MAX_CONTROLLERS;

impl Zone {
    /// Both zones.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Movable];

    /// Returns the number of the arena of this zone behind `controller`, below [`ARENAS`].
    #[inline]
    pub(crate) const fn arena(self, controller: ControllerId) -> usize {
        (controller.index() * 2 + self as usize) % ARENAS
    }

    /// Returns the zone and the controller of arena number `arena`, below [`ARENAS`].
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
