//! The machine as the host of migration and claims.

use std::sync::atomic::Ordering;

use super::ground::{FailingStep, FaultyGround};
use super::tables::{Tables, Tlb};
use super::{Guest, Machine, WINDOW};
use crate::addr::{FRAME_SIZE, Frame, Ipa};
use crate::claim::{Host, Windows};
use crate::controller::ControllerSet;
use crate::migrate::{Absence, Copier, Frames, Guests, Region, Space, Span, Time};
use crate::owner::{GuestId, PoolId};
use crate::phys::alloc::Tenant;
use crate::phys::frame::Contents;
use crate::phys::placement::Placement;
use crate::range::FrameRange;
use crate::table::Attributes;

fn window_ipa(number: u64) -> Ipa {
    Ipa::try_new(WINDOW + number * FRAME_SIZE).unwrap()
}

impl Time for Machine {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
    fn ticks_per_second(&self) -> u64 {
        1_000_000_000
    }
}

impl Copier for Machine {
    fn copy(&self, _: GuestId, source: Frame, target: Frame, count: u64) {
        self.clock.fetch_add(300 * count, Ordering::Relaxed);
        let mut contents = self.contents.lock().unwrap();
        let (source, target) = (source.number(), target.number());
        let old: Vec<u64> = contents.range(target..target + count).map(|(number, _)| *number).collect();
        old.iter().for_each(|number| _ = contents.remove(number));
        let new: Vec<_> = contents.range(source..source + count).map(|(at, value)| (*at, *value)).collect();
        contents.extend(new.into_iter().map(|(at, value)| (at - source + target, value)));
    }
    fn scrub(&self, frame: Frame, count: u64) {
        self.scrub_frames(frame, count);
    }
    fn synchronise_fetches(&self) {}
}

impl Frames for Machine {
    fn tenant(&self, frames: FrameRange) -> Option<Tenant> {
        self.memory().tenant(frames)
    }
    fn allocate(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        if self.ground.fails(FailingStep::Allocate) {
            return None;
        }
        Frames::allocate(self.memory(), guest, order, placement, ipa)
    }
    fn release(&self, guest: GuestId, frame: Frame, order: u8, contents: Contents) {
        let frames = FrameRange::try_new(frame, 1 << order).unwrap();
        if contents == Contents::Zeroed {
            assert!(self.is_zero(frames), "{frames} was to be zero");
        }
        Frames::release(self.memory(), guest, frame, order, contents);
        assert_eq!(self.memory().refused_count(), 0);
    }
    fn divide(&self, guest: GuestId, frame: Frame, order: u8) -> bool {
        Frames::divide(self.memory(), guest, frame, order)
    }
    fn unite(&self, guest: GuestId, frame: Frame, order: u8, ipa: Ipa) -> bool {
        Frames::unite(self.memory(), guest, frame, order, ipa)
    }
    fn span_of(&self, frame: Frame) -> Option<Span> {
        self.memory().span_of(frame)
    }
    fn free_frames(&self, placement: &Placement) -> u64 {
        Frames::free_frames(self.memory(), placement)
    }
    fn claimed_frames(&self, controllers: ControllerSet) -> u64 {
        Frames::claimed_frames(self.memory(), controllers)
    }
}

impl Guests for Machine {
    type Tables = Tables;
    type Tlb = Tlb;

    fn space(&self, guest: GuestId) -> Option<&Space<Tables, Tlb>> {
        let is_open = |guest: &&Guest| guest.is_there.get() && guest.absence.get().is_none();
        self.guests.get(guest.index()).filter(is_open).map(|guest| &guest.space)
    }
    fn absence(&self, guest: GuestId) -> Option<Absence> {
        self.guests.get(guest.index())?.absence.get()
    }
    fn region(&self, guest: GuestId, ipa: Ipa) -> Option<Region> {
        let mut regions = self.guests.get(guest.index())?.regions.iter();
        regions.find(|region| region.ipa.get() + region.size > ipa.get()).copied()
    }
    fn rate_bytes(&self, _: GuestId) -> u64 {
        0
    }
}

impl Windows for Machine {
    fn invalidate_instructions(&self) {
        self.has_stale_instructions.store(false, Ordering::Relaxed);
    }
    fn show(&self, guest: GuestId, _: PoolId, range: FrameRange) -> Option<Ipa> {
        if self.ground.fails(FailingStep::Show) {
            return None;
        }
        assert!(
            !self.has_stale_instructions.load(Ordering::Relaxed),
            "{range} is shown, but fetched from before"
        );
        assert!(self.is_zero(range), "{range} is shown, but not scrubbed");
        let cleaned = self.cleaned.lock().unwrap().range(range.start()..range.end()).count();
        assert_eq!(cleaned as u64, range.frames(), "{range} is shown, but not cleaned");
        let space = Guests::space(self, guest)?;
        let base = window_ipa(range.start());
        space.with(|stage2| stage2.map(base, range.base(), range.bytes(), Attributes::RAM)).ok()?;
        let mut shown = self.shown.lock().unwrap();
        shown.entry(guest).or_default().extend(range.start()..range.end());
        Some(base)
    }
    fn part(&self, guest: GuestId, _: PoolId, range: FrameRange) -> bool {
        let Some(space) = Guests::space(self, guest) else { return true };
        space.with(|stage2| {
            [range.start(), range.end()].into_iter().all(|edge| stage2.split_at(window_ipa(edge)).is_ok())
        })
    }
    fn hide(&self, guest: GuestId, _: PoolId, range: FrameRange) -> bool {
        if self.ground.fails(FailingStep::Hide) {
            return false;
        }
        let Some(space) = Guests::space(self, guest) else { return true };
        space.with(|stage2| stage2.unmap(window_ipa(range.start()), range.bytes(), |_| ()).unwrap());
        // The next tenant may execute from the range.
        self.has_stale_instructions.store(true, Ordering::Relaxed);
        let mut shown = self.shown.lock().unwrap();
        let frames = shown.entry(guest).or_default();
        (range.start()..range.end()).for_each(|number| _ = frames.remove(&number));
        true
    }
    fn clean(&self, frame: Frame, count: u64) {
        self.has_stale_instructions.store(true, Ordering::Relaxed);
        self.cleaned.lock().unwrap().extend(frame.number()..frame.number() + count);
    }
    fn scrub(&self, frame: Frame, count: u64) {
        self.clock.fetch_add(80 * count, Ordering::Relaxed);
        self.scrub_frames(frame, count);
    }
}

impl Host for Machine {
    type Ground = FaultyGround;
    fn ground(&self) -> &FaultyGround {
        &self.ground
    }
    fn region_at(&self, guest: GuestId, ipa: Ipa) -> Option<Region> {
        Guests::region(self, guest, ipa)
    }
}
