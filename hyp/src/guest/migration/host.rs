//! Migration's view of the machine: time, copies, frames and guests.

use crate::arch::features::is_interrupt_pending;
use crate::arch::tlb::Tlb;
use crate::arch::{timer, trace};
use crate::guest::tables::Tables;
use crate::guest::{Guest, Phase, get};
use crate::hyp_mem::copy::Caching;
use crate::hyp_mem::{copy, pages};
use crate::observe::log;
use crate::observe::trace::Kind;
use stage2::addr::{Frame, Ipa};
use stage2::controller::ControllerSet;
use stage2::migrate::{Absence, Copier, Frames, Guests, JobId, JobState, Region, Space, Span, Time};
use stage2::owner::GuestId;
use stage2::phys::alloc::Tenant;
use stage2::phys::frame::Contents;
use stage2::phys::placement::Placement;
use stage2::range::FrameRange;

/// The machine that the migration engine works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host;

impl Time for Host {
    fn now(&self) -> u64 {
        timer::now()
    }

    fn ticks_per_second(&self) -> u64 {
        timer::frequency()
    }

    fn is_wanted(&self) -> bool {
        is_interrupt_pending()
    }
}

impl Copier for Host {
    fn copy(&self, guest: GuestId, source: Frame, target: Frame, count: u64) {
        // SAFETY: the engine copies units of guests that it has broken or made read-only, to frames that it has just taken.
        unsafe { copy::frames(source, target, count, self.caching(guest), || true) };
    }

    fn copy_some(
        &self,
        guest: GuestId,
        source: Frame,
        target: Frame,
        count: u64,
        goes_on: impl FnMut() -> bool,
    ) -> u64 {
        // SAFETY: as in `copy`.
        unsafe { copy::frames(source, target, count, self.caching(guest), goes_on) }
    }

    fn copy_each(
        &self,
        guest: GuestId,
        source: Frame,
        target: Frame,
        count: usize,
        claim: impl FnMut(usize) -> bool,
        done: impl FnMut(usize),
    ) {
        // SAFETY: as in `copy`; a frame is claimed once.
        unsafe { copy::each_frame(source, target, count, self.caching(guest), claim, done) };
    }

    fn scrub(&self, frame: Frame, count: u64) {
        // SAFETY: the frames have left their guest, or are being claimed: nobody accesses them.
        unsafe { copy::zero(frame, count) };
    }

    fn synchronise_fetches(&self) {
        copy::synchronise_fetches();
    }
}

impl Frames for Host {
    fn tenant(&self, frames: FrameRange) -> Option<Tenant> {
        pages::MEMORY.tenant(frames)
    }

    fn allocate(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        Frames::allocate(&pages::MEMORY, guest, order, placement, ipa)
    }

    fn allocate_run(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        pages::MEMORY.allocate_run(guest, order, placement, ipa)
    }

    fn release_run(&self, guest: GuestId, first: Frame, count: u64, contents: Contents) {
        pages::MEMORY.release_run(guest, first, count, contents);
    }

    fn release(&self, guest: GuestId, frame: Frame, order: u8, contents: Contents) {
        pages::MEMORY.release(guest, frame, order, contents);
    }

    fn divide(&self, guest: GuestId, frame: Frame, order: u8) -> bool {
        Frames::divide(&pages::MEMORY, guest, frame, order)
    }

    fn unite(&self, guest: GuestId, frame: Frame, order: u8, ipa: Ipa) -> bool {
        Frames::unite(&pages::MEMORY, guest, frame, order, ipa)
    }

    fn span_of(&self, frame: Frame) -> Option<Span> {
        pages::MEMORY.span_of(frame)
    }

    fn claimed_frames(&self, controllers: ControllerSet) -> u64 {
        pages::MEMORY.claimed_frames(controllers)
    }

    fn free_frames(&self, placement: &Placement) -> u64 {
        pages::MEMORY.free_frames(placement)
    }
}

impl Host {
    fn caching(&self, id: GuestId) -> Caching {
        let has_caches = self.guest(id).is_some_and(Guest::has_caches_on);
        if has_caches { Caching::On } else { Caching::MaybeOff }
    }

    fn guest(&self, id: GuestId) -> Option<&'static Guest> {
        get(id.index())
    }
}

impl Guests for Host {
    type Tables = Tables;
    type Tlb = Tlb;

    fn space(&self, guest: GuestId) -> Option<&Space<Tables, Tlb>> {
        self.guest(guest)?.space.if_open()
    }

    fn absence(&self, guest: GuestId) -> Option<Absence> {
        match self.guest(guest)?.phase() {
            Phase::Starting => Some(Absence::Starting),
            Phase::Resetting => Some(Absence::Resetting),
            Phase::Stopping => Some(Absence::Stopping),
            Phase::Stopped | Phase::Running => None,
        }
    }

    fn region(&self, guest: GuestId, ipa: Ipa) -> Option<Region> {
        self.guest(guest)?.region(ipa)
    }

    fn rate_bytes(&self, guest: GuestId) -> u64 {
        self.guest(guest).map_or(0, |guest| guest.plan.migration().limit_bytes_per_s.unwrap_or(0))
    }

    fn has_moved(&self, guest: GuestId, ipa: Ipa, target: Frame) {
        trace::record(Kind::Migrate, guest.index(), 0, ipa.get(), target.pa().get());
    }

    fn has_reached(&self, job: JobId, state: JobState) {
        log::debug!("{}: {}", job, state);
    }
}
