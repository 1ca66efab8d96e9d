//! What migration asks for: time, copies, frames, guests.

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
    /// The counter, in ticks.
    fn now(&self) -> u64;

    /// Ticks a second; not 0.
    fn ticks_per_second(&self) -> u64;

    /// Whether this CPU is wanted for something else: a step ends after the turn that it is in.
    fn is_wanted(&self) -> bool {
        false
    }
}

/// Frames that are copied or scrubbed between two looks at the time.
pub const SOME: u64 = 48;

/// Copies and cache maintenance.
pub trait Copier {
    /// Copies `count` frames from `source` on to `target` on, of `guest`'s memory, and cleans the target
    /// to the point of coherency: when it returns, the cleaning is complete too (DSB ISH), since that is for the CPU
    /// alone that has done it (D7.5.9). What the guest wrote past the caches, with caches off or by a Non-cacheable
    /// mapping, is in memory: it cleans and invalidates the source first.
    fn copy(&self, guest: GuestId, source: Frame, target: Frame, count: u64);

    /// Copies frames as [`Self::copy`] does, some at a time, for as long as `goes_on` says so after each time. Yields how
    /// many it copied.
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

    /// Copies up to `count` frames one by one: number `index` if `claim(index)`, and then calls `done(index)`.
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

    /// Fills `count` frames from `frame` on with zeroes.
    fn scrub(&self, frame: Frame, count: u64);

    /// Lets every CPU fetch what was copied: DSB ISH; IC IALLUIS unless CTR_EL0.DIC; DSB ISH; ISB. The
    /// first DSB completes the copies and their cleaning too.
    fn synchronise_fetches(&self);
}

/// Frames of one controller side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The controller.
    pub controller: ControllerId,
    /// The frames.
    pub frames: FrameRange,
}

/// The frame allocator, as far as migration needs it. Orders are 0, 9 and 18.
pub trait Frames {
    /// The first of a guest's RAM that touches `frames`, by the reverse map.
    fn tenant(&self, frames: FrameRange) -> Option<Tenant>;

    /// A movable block of `guest`'s, which will appear at `ipa`, with any content.
    fn allocate(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame>;

    /// Gives back a block of `guest`'s. A retired frame in it is never handed out again.
    fn release(&self, guest: GuestId, frame: Frame, order: u8, contents: Contents);

    /// `1 << order` movable blocks of one frame each side by side, within a pageblock, which will appear from `ipa` on;
    /// `None` also where that is not worth the while.
    fn allocate_run(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        let _ = (guest, order, placement, ipa);
        None
    }

    /// Gives back `count` blocks of one frame each that lie side by side within a pageblock.
    fn release_run(&self, guest: GuestId, first: Frame, count: u64, contents: Contents) {
        for frame in (0..count).filter_map(|index| first.checked_add(index)) {
            self.release(guest, frame, 0, contents);
        }
    }

    /// Makes 512 blocks of a block of `guest`'s in use. Yields whether it did.
    fn divide(&self, guest: GuestId, frame: Frame, order: u8) -> bool;

    /// Makes one block of `order` of 512 blocks of `guest`'s in use, from `frame` on, which will appear at
    /// `ipa`. Yields whether it did.
    fn unite(&self, guest: GuestId, frame: Frame, order: u8, ipa: Ipa) -> bool;

    /// The controller behind `frame`, with the frames around it for which the answer is the same.
    fn span_of(&self, frame: Frame) -> Option<Span>;

    /// The free frames that [`Self::allocate`] could take for `placement`.
    fn free_frames(&self, placement: &Placement) -> u64;
}

/// Whether a region of a guest's RAM can move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mobility {
    /// It can.
    Movable,
    /// It is mapped 1:1.
    PinnedInPlace,
    /// The configuration of the guest says no.
    OptedOut,
    /// The owner of a pool has claimed it.
    Claimed,
    /// It lies in a pool of which a claim is under way.
    InClaim,
}

/// A stretch of a guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where it starts.
    pub ipa: Ipa,
    /// Its bytes.
    pub size: u64,
    /// Whether it can move.
    pub mobility: Mobility,
    /// Behind which controllers it may lie.
    pub placement: Placement,
    /// The largest leaves wanted: 1 GiB, 2 MiB or 4 KiB.
    pub largest: Level,
}

impl Region {
    /// The controllers that it may lie behind, wherever it lies now; none if it cannot move.
    pub(crate) const fn allowed(&self) -> ControllerSet {
        match (self.mobility, self.placement.named()) {
            (Mobility::Movable, (named, Strictness::Strict)) => named,
            (Mobility::Movable, (_, Strictness::Preferred)) => ControllerSet::ALL,
            _ => ControllerSet::EMPTY,
        }
    }

    /// Whether `size` bytes from `ipa` on lie in it.
    pub(super) const fn holds(&self, ipa: Ipa, size: u64) -> bool {
        ipa.get() >= self.ipa.get() && ipa.get() + size <= self.ipa.get() + self.size
    }
}

/// A change in a guest's life that its memory is out of reach during. It will be over soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absence {
    /// The guest gets its RAM and is loaded. It may wait for a claim meanwhile.
    Starting,
    /// The guest is loaded afresh.
    Resetting,
    /// The guest's RAM is being freed.
    Stopping,
}

/// The guests.
pub trait Guests {
    /// Where their table frames come from.
    type Tables: TableMemory;
    /// How their translations are invalidated.
    type Tlb: Maintenance;

    /// The address space of `guest`, if there is such a guest and its memory is there.
    fn space(&self, guest: GuestId) -> Option<&Space<Self::Tables, Self::Tlb>>;

    /// The reason why the memory of `guest` cannot be reached for now; `None` for a guest that runs or is off. Jobs wait for
    /// such a guest.
    fn absence(&self, guest: GuestId) -> Option<Absence> {
        let _ = guest;
        None
    }

    /// The region of RAM that holds `ipa`, or else the next one above it.
    fn region(&self, guest: GuestId, ipa: Ipa) -> Option<Region>;

    /// Bytes a second of `guest` that may be moved; 0 is no limit.
    fn rate_bytes(&self, guest: GuestId) -> u64;

    /// The unit at `ipa` of `guest` has moved to `target`, and maybe some behind it that lie side by side there too.
    fn has_moved(&self, guest: GuestId, ipa: Ipa, target: Frame) {
        let _ = (guest, ipa, target);
    }

    /// A job begins, or stops so.
    fn has_reached(&self, job: JobId, state: JobState) {
        let _ = (job, state);
    }
}

/// All of these together.
pub trait Host: Time + Copier + Frames + Guests {}

impl<H: Time + Copier + Frames + Guests> Host for H {}
