//! A machine for tests: frames of a few words, an allocator that checks, TLBs that keep entries as long as they may,
//! vCPUs that read and write, and a scheduler that decides which CPU runs.

mod allocator;
mod hardware;
mod schedule;

pub(super) use allocator::{Allocator, Books};
pub(super) use hardware::Hardware;
pub(super) use schedule::{Actor, Explorer, Scheduler, explore};

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::copier::{Copier, Time};
use super::engine::{Engine, Payer, Step};
use super::host::{Absence, Frames, Guests, Mobility, Region, Span};
use super::job::JobId;
use super::space::{Fault, Space, Verdict};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES};
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::GuestId;
use crate::phys::alloc::Tenant;
use crate::phys::frame::Contents;
use crate::phys::placement::Placement;
use crate::range::FrameRange;
use crate::sync::relax;
use crate::table::{Attributes, Cached, Geometry, Level, Maintenance, Stage2, Table, TableMemory};

pub(super) const K4: u64 = FRAME_SIZE;
pub(super) const M2: u64 = FRAME_SIZE * PAGEBLOCK_FRAMES;
pub(super) const G1: u64 = M2 * 512;

/// Ticks for copying a frame. A tick is an instruction.
const COPY_TICKS: u64 = 300;
const SCRUB_TICKS: u64 = 80;

pub(super) fn ipa(value: u64) -> Ipa {
    Ipa::try_new(value).unwrap()
}

pub(super) fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

pub(super) fn only(number: u8) -> Placement {
    Placement::only(controller(number))
}

/// Table memory of a guest.
#[derive(Clone)]
pub(super) struct Tables(Arc<Hardware>);

/// TLB maintenance for a guest.
#[derive(Clone)]
pub(super) struct Tlb(Arc<Hardware>);

pub(super) type FakeSpace = Space<Tables, Tlb>;

impl TableMemory for Tables {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        self.0.allocate_table(order)
    }

    fn free(&mut self, frame: Frame, order: u8) {
        self.0.free_table(frame, order);
    }

    fn table(&self, frame: Frame) -> &Table {
        self.0.table(frame)
    }
}

impl Maintenance for Tlb {
    fn publish(&self) {
        self.0.pause_if_hot();
    }

    fn invalidate(&self, ipa: Ipa, size: u64, _: Level, _: Cached) {
        self.0.invalidate(ipa, size);
        self.0.pause_if_hot();
    }

    fn synchronise(&self) {
        self.0.pause_if_hot();
        self.0.synchronise();
        self.0.pause_if_hot();
    }
}

/// The machine: guests, their memory, and migration.
pub(super) struct Host {
    pub(super) hardware: Arc<Hardware>,
    pub(super) engine: Engine,
    spaces: Vec<FakeSpace>,
    pub(super) regions: Vec<Vec<Region>>,
    pub(super) is_gone: AtomicBool,
    /// Guests that are starting, a bit each.
    pub(super) coming: AtomicU32,
    /// Number of lookups in the reverse map.
    pub(super) tenant_count: AtomicU64,
    pub(super) rate: AtomicU64,
    /// Number of notes that a unit has moved.
    pub(super) arrivals: AtomicU64,
    /// The number of locks of spaces that are taken before the worker runs, and the number of its steps then.
    pub(super) work_at_lock: Mutex<Option<(u32, u32)>>,
    /// Frames that the worker has copied in these steps.
    pub(super) copied_at_lock: AtomicU64,
}

impl Host {
    /// Makes a machine with two controllers of `frames` frames each (a multiple of 512), and no guest.
    pub(super) fn new(frames: u64, scheduler: Option<Arc<Scheduler>>) -> Self {
        Self::with_controllers(&[frames, frames], scheduler)
    }

    pub(super) fn with_controllers(frames: &[u64], scheduler: Option<Arc<Scheduler>>) -> Self {
        Self {
            hardware: Arc::new(Hardware::new(frames, scheduler)),
            engine: Engine::new(),
            spaces: Vec::new(),
            regions: Vec::new(),
            is_gone: AtomicBool::new(false),
            coming: AtomicU32::new(0),
            tenant_count: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            arrivals: AtomicU64::new(0),
            work_at_lock: Mutex::new(None),
            copied_at_lock: AtomicU64::new(0),
        }
    }

    /// Adds a guest without RAM.
    pub(super) fn add_guest(&mut self) -> GuestId {
        let guest = GuestId::try_new(self.spaces.len() as u8).unwrap();
        let (tables, tlb) = (Tables(self.hardware.clone()), Tlb(self.hardware.clone()));
        let stage2 = Stage2::new(Geometry::new(40, 44).unwrap(), tables, tlb).unwrap();
        self.hardware.add_root(guest, stage2.root());
        self.spaces.push(Space::new(guest, stage2));
        self.regions.push(Vec::new());
        guest
    }

    /// Adds RAM for `guest` at `base`, in blocks of `order`, filled with the pattern.
    pub(super) fn add_ram(&mut self, guest: GuestId, base: u64, size: u64, order: u8, placement: Placement) {
        self.map_ram(guest, base, size, order, &placement);
        let largest = if order == 0 { Level::L2 } else { Level::L1 };
        self.regions[guest.index()].push(Region {
            ipa: ipa(base),
            size,
            mobility: Mobility::Movable,
            placement,
            largest,
        });
    }

    /// Maps blocks without making a region of them.
    pub(super) fn map_ram(&self, guest: GuestId, base: u64, size: u64, order: u8, placement: &Placement) {
        let block = FRAME_SIZE << order;
        for at in (base..base + size).step_by(block as usize) {
            let frame = self.allocate(guest, order, placement, ipa(at)).unwrap();
            let space = &self.spaces[guest.index()];
            space.with(|stage2| stage2.map(ipa(at), frame.pa(), block, Attributes::RAM)).unwrap();
            for page in (0..block).step_by(K4 as usize) {
                self.hardware.fill(guest, ipa(at + page), frame.checked_add(page / K4).unwrap());
            }
        }
    }

    /// Runs the worker until it is idle.
    pub(super) fn run_jobs(&self) {
        for _ in 0..2_000_000 {
            // In a guest's time only jobs are worked on.
            match self.engine.step(self, u64::MAX, Payer::Guest(GuestId::default())) {
                Step::Idle => return,
                Step::Wait(ticks) => self.hardware.pass(ticks),
                Step::More | Step::Spare => {}
                Step::Busy => self.relax(),
            }
        }
        panic!("the jobs do not end");
    }

    /// Runs an idle CPU until it has no work.
    pub(super) fn run_idle(&self) {
        for _ in 0..2_000_000 {
            match self.engine.step(self, u64::MAX, Payer::Idle) {
                Step::Idle => return,
                Step::Wait(ticks) => self.hardware.pass(ticks),
                Step::More | Step::Spare => {}
                Step::Busy => self.relax(),
            }
        }
        panic!("the work does not end");
    }

    /// Lets another CPU run.
    pub(super) fn relax(&self) {
        self.hardware.pass(10);
        relax();
    }

    /// Lets the worker run if [`Self::work_at_lock`] says so. For [`hooks::set_before_lock`](crate::sync::hooks).
    pub(super) fn work_before_lock(&self) {
        let mut work = self.work_at_lock.lock().unwrap();
        match &mut *work {
            Some((0, steps)) => {
                let steps = *steps;
                *work = None;
                drop(work);
                let copied = || self.hardware.frames_copied.load(Ordering::Relaxed);
                let before = copied();
                (0..steps).for_each(|_| _ = self.engine.step(self, 1, Payer::Idle));
                self.copied_at_lock.fetch_add(copied() - before, Ordering::Relaxed);
            }
            Some((locks, _)) => *locks -= 1,
            None => {}
        }
    }

    /// Performs an access of a vCPU, and repeats it while it faults. Returns whether it succeeded at once.
    pub(super) fn access(&self, guest: GuestId, vcpu: usize, ipa: Ipa, is_write: bool) -> bool {
        let mut is_first = true;
        loop {
            match self.hardware.access(guest, vcpu, ipa, is_write) {
                Ok(()) => return is_first,
                Err(fault) => self.handle(guest, ipa, fault),
            }
            is_first = false;
        }
    }

    /// Handles a fault, as EL2 does.
    pub(super) fn handle(&self, guest: GuestId, ipa: Ipa, fault: Fault) {
        let verdict = self.engine.fault(self, guest, ipa, fault);
        assert_eq!(verdict, Verdict::Retry, "{fault:?} at {ipa}");
    }

    pub(super) fn moved(&self, id: JobId) -> u64 {
        self.engine.job(id).unwrap().moved.bytes()
    }

    /// Returns the controllers behind `guest`'s RAM.
    pub(super) fn behind(&self, guest: GuestId) -> ControllerSet {
        self.spaces[guest.index()].with(|stage2| {
            let leaves = stage2.leaves(Ipa::default(), 1 << 40);
            leaves.map(|leaf| self.span_of(Frame::containing(leaf.pa())).unwrap().controller).collect()
        })
    }

    /// Returns the number of `guest`'s leaves of 1 GiB, 2 MiB and 4 KiB.
    pub(super) fn leaf_counts(&self, guest: GuestId) -> [u64; 3] {
        let mut counts = [0; 3];
        self.spaces[guest.index()].with(|stage2| {
            stage2.leaves(Ipa::default(), 1 << 40).for_each(|leaf| counts[leaf.level() as usize - 1] += 1);
        });
        counts
    }

    /// Checks the invariants that hold when no job is running.
    pub(super) fn check(&self) {
        let mut mapped = 0;
        for space in &self.spaces {
            let leaves: Vec<_> = space.with(|stage2| stage2.leaves(Ipa::default(), 1 << 40).collect());
            for leaf in leaves {
                assert!(!leaf.is_broken() && !leaf.is_protected() && leaf.mark().get() == 0, "{leaf:?}");
                let frame = Frame::containing(leaf.pa());
                let books = self.hardware.allocator();
                assert_eq!(books.block(frame), Some((leaf.level().order(), space.guest())), "{leaf:x?}");
                drop(books);
                for page in 0..leaf.size() / K4 {
                    let at = ipa(leaf.ipa().get() + page * K4);
                    self.hardware.check_page(space.guest(), at, frame.checked_add(page).unwrap());
                }
                mapped += leaf.size() / K4;
            }
        }
        assert_eq!(self.hardware.allocator().used_frames(), mapped, "frames in use and mapped");
        self.hardware.check_scrubbed();
    }
}

impl Time for Host {
    fn now(&self) -> u64 {
        self.hardware.now()
    }

    fn ticks_per_second(&self) -> u64 {
        1_000_000_000
    }
}

impl Copier for Host {
    fn copy(&self, _: GuestId, source: Frame, target: Frame, count: u64) {
        for index in 0..count {
            self.hardware.pass(COPY_TICKS);
            self.hardware.copy(source.checked_add(index).unwrap(), target.checked_add(index).unwrap());
        }
    }

    fn scrub(&self, frame: Frame, count: u64) {
        for index in 0..count {
            self.hardware.pass(SCRUB_TICKS);
            self.hardware.scrub(frame.checked_add(index).unwrap());
        }
    }

    fn synchronise_fetches(&self) {
        self.hardware.synchronise_fetches();
    }
}

impl Frames for Host {
    fn tenant(&self, frames: FrameRange) -> Option<Tenant> {
        self.tenant_count.fetch_add(1, Ordering::Relaxed);
        let books = self.hardware.allocator();
        let (first, order, guest) = books.blocks_in(frames).next()?;
        let frames = FrameRange::from_numbers(first, first + (1 << order))?;
        drop(books);
        let space = &self.spaces[guest.index()];
        let leaf = space.with(|stage2| {
            stage2.leaves(Ipa::default(), 1 << 40).find(|leaf| Frame::containing(leaf.pa()) == frames.first())
        })?;
        Some(Tenant { guest, ipa: leaf.ipa(), frames })
    }

    fn allocate(&self, guest: GuestId, order: u8, placement: &Placement, _: Ipa) -> Option<Frame> {
        self.hardware.pass(100);
        self.hardware.allocator().allocate(guest, order, placement.named().0)
    }

    fn release(&self, guest: GuestId, frame: Frame, order: u8, contents: Contents) {
        self.hardware.pass(100);
        if contents == Contents::Zeroed {
            self.hardware.check_zero(frame, 1 << order);
        }
        self.hardware.allocator().release(guest, frame, order);
        // The allocator scrubs later; here it is done at once.
        self.hardware.scrub_free(frame, 1 << order);
    }

    fn divide(&self, guest: GuestId, frame: Frame, order: u8) -> bool {
        self.hardware.pass(2000);
        self.hardware.allocator().divide(guest, frame, order)
    }

    fn unite(&self, guest: GuestId, frame: Frame, order: u8, _: Ipa) -> bool {
        self.hardware.pass(2000);
        self.hardware.allocator().unite(guest, frame, order)
    }

    fn span_of(&self, frame: Frame) -> Option<Span> {
        let (number, frames) = self.hardware.span_of(frame)?;
        Some(Span { controller: controller(number), frames })
    }

    fn claimed_frames(&self, _: ControllerSet) -> u64 {
        0
    }

    fn free_frames(&self, placement: &Placement) -> u64 {
        let allowed = ControllerSet::ALL.iter().filter(|controller| placement.allows(*controller));
        self.hardware.allocator().free_frames(allowed.collect())
    }
}

impl Guests for Host {
    type Tables = Tables;
    type Tlb = Tlb;

    fn space(&self, guest: GuestId) -> Option<&FakeSpace> {
        let is_there = !self.is_gone.load(Ordering::Relaxed) && self.absence(guest).is_none();
        self.spaces.get(guest.index()).filter(|_| is_there)
    }

    fn absence(&self, guest: GuestId) -> Option<Absence> {
        let is_away = self.coming.load(Ordering::Relaxed) & 1 << guest.index() != 0;
        is_away.then_some(Absence::Starting)
    }

    fn region(&self, guest: GuestId, ipa: Ipa) -> Option<Region> {
        let mut regions = self.regions.get(guest.index())?.iter();
        regions.find(|region| region.ipa.get() + region.size > ipa.get()).copied()
    }

    fn rate_bytes(&self, _: GuestId) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    fn has_moved(&self, guest: GuestId, ipa: Ipa, target: Frame) {
        let pa = self.any_space(guest).with(|stage2| stage2.translate(ipa));
        assert_eq!(pa, Some(target.pa()), "{ipa} was reported as moved");
        self.arrivals.fetch_add(1, Ordering::Relaxed);
    }
}

impl Host {
    /// Returns the address space, even of a guest that is gone.
    pub(super) fn any_space(&self, guest: GuestId) -> &FakeSpace {
        &self.spaces[guest.index()]
    }

    pub(super) fn frames_behind(&self, number: u8) -> FrameRange {
        self.hardware.controller_frames(number)
    }
}
