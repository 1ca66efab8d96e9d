//! The traits through which migration reaches frames and guests.

use super::copier::{Copier, Time};
use super::job::{JobId, JobState};
use super::space::Space;
use crate::addr::{Frame, Ipa};
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::GuestId;
use crate::phys::alloc::Tenant;
use crate::phys::frame::Contents;
use crate::phys::placement::{Placement, Strictness};
use crate::range::FrameRange;
use crate::table::{Level, Maintenance, TableMemory};

/// A contiguous range of frames behind one controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The controller.
    pub controller: ControllerId,
    /// The frames.
    pub frames: FrameRange,
}

/// The frame allocator. Orders are 0, 9 and 18.
pub trait Frames {
    /// Returns the first part of any guest's RAM in `frames`, by the reverse map.
    fn tenant(&self, frames: FrameRange) -> Option<Tenant>;

    /// Allocates a movable block for `guest`, to be mapped at `ipa`. Its content is undefined.
    fn allocate(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame>;

    /// Releases a block of `guest`. Retired frames in it are never allocated again.
    fn release(&self, guest: GuestId, frame: Frame, order: u8, contents: Contents);

    /// Allocates `1 << order` contiguous movable blocks of one frame each within a pageblock, to be mapped from `ipa`.
    /// Returns `None` also if that would cost more than single allocations.
    fn allocate_run(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        let _ = (guest, order, placement, ipa);
        None
    }

    /// Releases `count` contiguous blocks of one frame each within a pageblock.
    fn release_run(&self, guest: GuestId, first: Frame, count: u64, contents: Contents) {
        for frame in (0..count).filter_map(|index| first.checked_add(index)) {
            self.release(guest, frame, 0, contents);
        }
    }

    /// Splits an allocated block of `guest` into 512 blocks. Returns false if that failed.
    fn divide(&self, guest: GuestId, frame: Frame, order: u8) -> bool;

    /// Merges 512 allocated blocks of `guest` from `frame` into one block of `order`, to be mapped at `ipa`. Returns
    /// false if that failed.
    fn unite(&self, guest: GuestId, frame: Frame, order: u8, ipa: Ipa) -> bool;

    /// Returns the controller behind `frame`, and the range of frames around it behind the same controller.
    fn span_of(&self, frame: Frame) -> Option<Span>;

    /// Returns the number of free frames that [`Self::allocate`] could take for `placement`.
    fn free_frames(&self, placement: &Placement) -> u64;

    /// Returns the number of frames behind `controllers` that owners of pools have claimed.
    fn claimed_frames(&self, controllers: ControllerSet) -> u64;
}

/// The mobility of a region of a guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mobility {
    /// Can move.
    Movable,
    /// Mapped 1:1.
    PinnedInPlace,
    /// DMA window: a device may access it at any time.
    DmaWindow,
    /// Excluded by the guest's configuration.
    OptedOut,
    /// Claimed by the owner of a pool.
    Claimed,
    /// In a pool that is being claimed from.
    InClaim,
}

/// A range of a guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Start.
    pub ipa: Ipa,
    /// Size in bytes.
    pub size: u64,
    /// Mobility.
    pub mobility: Mobility,
    /// Allowed and preferred controllers.
    pub placement: Placement,
    /// Largest leaf size to use: 1 GiB, 2 MiB or 4 KiB.
    pub largest: Level,
}

impl Region {
    /// Returns the controllers that it may move to; none if it cannot move.
    pub(crate) const fn allowed(&self) -> ControllerSet {
        match (self.mobility, self.placement.named()) {
            (Mobility::Movable, (named, Strictness::Strict)) => named,
            (Mobility::Movable, (_, Strictness::Preferred)) => ControllerSet::ALL,
            _ => ControllerSet::EMPTY,
        }
    }

    /// Returns whether `size` bytes from `ipa` lie in it.
    pub(super) const fn holds(&self, ipa: Ipa, size: u64) -> bool {
        ipa.get() >= self.ipa.get() && ipa.get() + size <= self.ipa.get() + self.size
    }
}

/// A short phase in a guest's life during which its memory cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absence {
    /// The guest gets its RAM and is loaded. It may wait for a claim.
    Starting,
    /// The guest is loaded again.
    Resetting,
    /// The guest's RAM is being freed.
    Stopping,
}

/// The guests.
pub trait Guests {
    /// Source of stage 2 table frames.
    type Tables: TableMemory;
    /// Invalidation of stage 2 translations.
    type Tlb: Maintenance;

    /// Returns the address space of `guest`, if the guest exists and its memory can be reached.
    fn space(&self, guest: GuestId) -> Option<&Space<Self::Tables, Self::Tlb>>;

    /// Returns the reason why the memory of `guest` is out of reach; `None` for a guest that runs or is off.
    /// Jobs wait for an absent guest.
    fn absence(&self, guest: GuestId) -> Option<Absence> {
        let _ = guest;
        None
    }

    /// Returns the region of RAM that contains `ipa`, or else the next one above it.
    fn region(&self, guest: GuestId, ipa: Ipa) -> Option<Region>;

    /// Returns the limit for moving `guest`'s memory in bytes per second; 0 for no limit.
    fn rate_bytes(&self, guest: GuestId) -> u64;

    /// Notes that the unit at `ipa` of `guest` has moved to `target`, and possibly units after it to the frames after
    /// it.
    fn has_moved(&self, guest: GuestId, ipa: Ipa, target: Frame) {
        let _ = (guest, ipa, target);
    }

    /// Notes that a job starts, or stops in `state`.
    fn has_reached(&self, job: JobId, state: JobState) {
        let _ = (job, state);
    }
}

/// The machine: all of these traits.
pub trait Host: Time + Copier + Frames + Guests {}

impl<H: Time + Copier + Frames + Guests> Host for H {}
