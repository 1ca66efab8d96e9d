//! Requests and allocations.

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
    /// The kind of memory.
    pub kind: MemoryKind,
    /// The owner of the block.
    pub owner: Owner,
    /// The controllers that may be used.
    pub placement: Placement,
    /// The guest and IPA that will map the block, if known.
    pub mapping: Option<Mapping>,
}

impl Request {
    /// Returns whether the request must leave NORMAL its floor, which is for Ballast and for tables: no guest's RAM
    /// goes below it, movable or not.
    #[inline]
    pub(super) const fn keeps_floor(&self) -> bool {
        matches!(self.kind, MemoryKind::Movable) || matches!(self.owner, Owner::Guest(_))
    }
}

/// An allocated block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a dropped allocation is never freed"]
pub struct Allocation {
    /// The first frame.
    pub frame: Frame,
    /// log2 of the block's frames.
    pub order: u8,
    /// The controller that the block is behind.
    pub controller: ControllerId,
    /// The zone that it was taken from.
    pub zone: Zone,
    /// The state of its bytes. Unless they are zero, they must be scrubbed before anyone else can read them.
    pub contents: Contents,
}

impl Allocation {
    /// Returns the size of the block in bytes.
    pub const fn bytes(&self) -> u64 {
        FRAME_SIZE << self.order
    }
}
