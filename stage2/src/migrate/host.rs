//! The traits through which migration reaches the machine: time, copies, frames, guests.

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

/// The architected counter, and this CPU's other duties.
pub trait Time {
    /// Returns the counter in ticks.
    fn now(&self) -> u64;

    /// Returns the ticks per second; not 0.
    fn ticks_per_second(&self) -> u64;

    /// Returns whether this CPU has something more urgent to do. A step then ends after the current turn.
    fn is_wanted(&self) -> bool {
        false
    }
}

/// Number of frames that are copied or scrubbed between two looks at the time.
pub const SOME: u64 = 48;

/// Copies and cache maintenance.
pub trait Copier {
    /// Copies `count` frames of `guest`'s memory from `source` to `target`.
    ///
    /// Cleans and invalidates the source first, since the guest may have written past the caches, with caches off or by
    /// a Non-cacheable mapping. Cleans the target to the point of coherency and completes that by DSB ISH, since only
    /// the CPU that issued the maintenance can complete it (D7.5.9).
    fn copy(&self, guest: GuestId, source: Frame, target: Frame, count: u64);

    /// Copies frames like [`Self::copy`], [`SOME`] at a time, until `goes_on` returns false. Returns the number copied.
    fn copy_some(
        &self,
        guest: GuestId,
        source: Frame,
        target: Frame,
        count: u64,
        mut goes_on: impl FnMut() -> bool,
    ) -> u64 {
        let mut copied = 0;
        while copied < count {
            let pair = source.checked_add(copied).zip(target.checked_add(copied));
            let Some((source, target)) = pair else { break };
            let some = (count - copied).min(SOME);
            self.copy(guest, source, target, some);
            copied += some;
            if !goes_on() {
                break;
            }
        }
        copied
    }

    /// Copies up to `count` frames one by one: each frame for which `claim(index)` returns true, and then calls
    /// `done(index)`.
    fn copy_each(
        &self,
        guest: GuestId,
        source: Frame,
        target: Frame,
        count: usize,
        mut claim: impl FnMut(usize) -> bool,
        mut done: impl FnMut(usize),
    ) {
        for index in 0..count {
            let pair = source.checked_add(index as u64).zip(target.checked_add(index as u64));
            if let Some((source, target)) = pair
                && claim(index)
            {
                self.copy(guest, source, target, 1);
                done(index);
            }
        }
    }

    /// Zeroes `count` frames from `frame`.
    fn scrub(&self, frame: Frame, count: u64);

    /// Makes copied instructions visible to the fetches of all CPUs: DSB ISH; IC IALLUIS unless CTR_EL0.DIC; DSB ISH;
    /// ISB. The first DSB also completes the copies and their cleaning.
    fn synchronise_fetches(&self);
}

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
}

/// The mobility of a region of a guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mobility {
    /// Can move.
    Movable,
    /// Mapped 1:1.
    PinnedInPlace,
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

    /// Returns the reason why the memory of `guest` cannot be reached for now; `None` for a guest that runs or is off.
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
