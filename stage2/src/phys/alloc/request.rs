//! What is asked for, and what is handed out.

use crate::addr::{FRAME_SIZE, Frame};
use crate::controller::ControllerId;
use crate::owner::Owner;
use crate::phys::frame::{Contents, Mapping, MemoryKind};
use crate::phys::pageblock::MigrateType;
use crate::phys::placement::Placement;
use crate::phys::zone::Zone;

impl MemoryKind {
    /// Returns the zone to try first. NORMAL is tried last in any case.
    #[inline]
    pub(super) const fn first_zone(self) -> Zone {
        match self {
            Self::Unmovable => Zone::Normal,
            Self::Movable => Zone::Movable,
        }
    }

    /// Returns the type of pageblock that serves memory of this kind.
    #[inline]
    pub(super) const fn migrate_type(self) -> MigrateType {
        match self {
            Self::Unmovable => MigrateType::Unmovable,
            Self::Movable => MigrateType::Movable,
        }
    }
}

/// A request for one block.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// log2 of the block's frames, at most 18 (1 GiB).
    pub order: u8,
    /// Whether its contents can be moved.
    pub kind: MemoryKind,
    /// Whose it will be.
    pub owner: Owner,
    /// Behind which controllers.
    pub placement: Placement,
    /// Where it will appear, if that is known.
    pub mapping: Option<Mapping>,
}

impl Request {
    /// Whether it leaves NORMAL its floor. That is for Ballast and for tables: no guest's RAM goes below it, whether it can
    /// move or not.
    #[inline]
    pub(super) const fn keeps_floor(&self) -> bool {
        matches!(self.kind, MemoryKind::Movable) || matches!(self.owner, Owner::Guest(_))
    }
}

/// A block handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "frames that nobody keeps are lost"]
pub struct Allocation {
    /// The first frame.
    pub frame: Frame,
    /// log2 of the block's frames.
    pub order: u8,
    /// The controller that it lies behind.
    pub controller: ControllerId,
    /// The zone that it was taken from.
    pub zone: Zone,
    /// What is known of its bytes: unless they are zero, scrub before anyone else can read them.
    pub contents: Contents,
}

impl Allocation {
    /// How many bytes the block has.
    pub const fn bytes(&self) -> u64 {
        FRAME_SIZE << self.order
    }
}
