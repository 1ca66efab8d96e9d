//! Migration for the monitor's tests: real memory, real tables and the real engine, but no CPU that works by itself, and no
//! bytes.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64};

use stage2::addr::{FRAME_SIZE, Frame, Ipa};
use stage2::controller::{ControllerId, ControllerSet};
use stage2::migrate::{
    Copier, Engine, Fault, Frames, Guests, JobId, JobReport, Mobility, Payer, Region, Request, RequestError,
    Shortage, Space, Span, Step, Time, Verdict,
};
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::{Memory, Retired, Tenant};
use stage2::phys::frame::{Contents, Footprint};
use stage2::phys::map::BootMap;
use stage2::phys::placement::Placement;
use stage2::range::FrameRange;
use stage2::table::{Attributes, Cached, ENTRIES, Geometry, Level, Maintenance, Stage2, Table, TableMemory};

use super::balance::History;
use super::migration::{Heat, Look, Migration, Order, Piece};

/// Guest 0's RAM: a region, one that is mapped 1:1, and a designated movable block in units of 4 KiB.
const PIECES: [(bool, u8, u64, u64, Mobility); 3] = [
    (false, 0, 0x4000_0000, 16 << 20, Mobility::Movable),
    (false, 1, 0x4400_0000, 2 << 20, Mobility::PinnedInPlace),
    (true, 0, 0x5000_0000, 4 << 20, Mobility::Movable),
];

/// Two controllers of 64 MiB; guest 0 has 22 MiB behind the first. Nothing moves until [`Self::work`] is called.
pub(super) struct FakeMigration {
    pub(super) memory: &'static Memory<'static>,
    engine: Engine,
    history: History,
    space: Space<Tables, Tlb>,
    placements: [Cell<Placement>; 3],
    /// True if the guest restarts within each window of heat.
    pub(super) restarts: Cell<bool>,
    clock: Cell<u64>,
    /// True if the guest's configuration has `no-migration`.
    pub(super) is_opted_out: Cell<bool>,
}

fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

/// Table memory, by the frame's number.
pub(super) struct Tables(Vec<(bool, Box<Table>)>);

impl TableMemory for Tables {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        let count = 1 << order;
        let is_free = |first: &usize| self.0[*first..first + count].iter().all(|(is_taken, _)| !is_taken);
        let first = (0..self.0.len()).step_by(count).find(is_free)?;
        self.0[first..first + count].iter_mut().for_each(|(is_taken, _)| *is_taken = true);
        Frame::try_new(first as u64)
    }
    fn free(&mut self, frame: Frame, order: u8) {
        let first = frame.number() as usize;
        self.0[first..first + (1 << order)].iter_mut().for_each(|(is_taken, _)| *is_taken = false);
    }
    fn table(&self, frame: Frame) -> &Table {
        &self.0[frame.number() as usize].1
    }
}

pub(super) struct Tlb;

impl Maintenance for Tlb {
    fn publish(&self) {}
    fn invalidate(&self, _: Ipa, _: u64, _: Level, _: Cached) {}
    fn synchronise(&self) {}
}

impl FakeMigration {
    pub(super) fn new() -> Self {
        let mut map = BootMap::new();
        for (number, base) in [(0, 0x4000_0000), (1, 0x8000_0000)] {
            map.add_ram(controller(number), base, 64 << 20).unwrap();
        }
        let words: Vec<AtomicU32> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
        let memory: &'static Memory<'static> = Box::leak(Box::new(Memory::new()));
        memory.boot(&map, words.leak(), 0).unwrap();
        let tables = (0..64).map(|_| (false, Box::new([const { AtomicU64::new(0) }; ENTRIES])));
        let guest = GuestId::try_new(0).unwrap();
        let mut stage2 = Stage2::new(Geometry::new(40, 44).unwrap(), Tables(tables.collect()), Tlb).unwrap();
        for (is_dmb, _, base, size, _) in PIECES {
            let order = if is_dmb { 0 } else { 9 };
            for at in (base..base + size).step_by((FRAME_SIZE << order) as usize) {
                let (ipa, placement) = (Ipa::new_truncate(at), Placement::only(controller(0)));
                let frame = Frames::allocate(memory, guest, order, &placement, ipa).unwrap();
                stage2.map(ipa, frame.pa(), FRAME_SIZE << order, Attributes::RAM).unwrap();
            }
        }
        Self {
            memory,
            engine: Engine::new(),
            history: History::new(),
            space: Space::new(guest, stage2),
            placements: [const { Cell::new(Placement::Any) }; 3],
            restarts: Cell::new(false),
            clock: Cell::new(1_000_000),
            is_opted_out: Cell::new(false),
        }
    }

    fn mobility(&self, piece: Mobility) -> Mobility {
        if self.is_opted_out.get() { Mobility::OptedOut } else { piece }
    }

    /// Works for a millisecond, or until there is nothing to do.
    pub(super) fn work(&self, is_all: bool) {
        loop {
            match self.engine.step(self, 1_000_000, Payer::Idle) {
                Step::More | Step::Spare if is_all => {}
                Step::Wait(ticks) => self.pass(ticks),
                _ => return,
            }
        }
    }

    /// Writes to the unit in flight as the guest; returns `false` if there is none.
    pub(super) fn write(&self) -> bool {
        let in_flight = self.space.with(|stage2| {
            let mut leaves = stage2.leaves(Ipa::default(), 1 << 40);
            leaves.find(|leaf| leaf.is_protected() || leaf.is_broken()).map(|leaf| leaf.ipa())
        });
        let Some(ipa) = in_flight else { return false };
        self.engine.fault(self, self.space.guest(), ipa, Fault::Write) == Verdict::Retry
    }

    /// Returns the unit that `ipa` of `guest` is mapped to: its physical address and its size.
    pub(super) fn unit(&self, guest: usize, ipa: u64) -> Option<(u64, u64)> {
        let leaf = self.space.with(|stage2| stage2.leaf(Ipa::try_new(ipa)?)).filter(|_| guest == 0)?;
        Some((leaf.pa().get(), leaf.size()))
    }

    fn pass(&self, ticks: u64) {
        self.clock.set(self.clock.get() + ticks);
    }
}

impl Time for FakeMigration {
    fn now(&self) -> u64 {
        self.pass(100);
        self.clock.get()
    }
    fn ticks_per_second(&self) -> u64 {
        1_000_000_000
    }
}

impl Copier for FakeMigration {
    fn copy(&self, _: GuestId, _: Frame, _: Frame, count: u64) {
        self.pass(1_000 * count);
    }
    fn scrub(&self, _: Frame, count: u64) {
        self.pass(200 * count);
    }
    fn synchronise_fetches(&self) {}
}

impl Frames for FakeMigration {
    fn tenant(&self, frames: FrameRange) -> Option<Tenant> {
        self.memory.tenant(frames)
    }
    fn allocate(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        Frames::allocate(self.memory, guest, order, placement, ipa)
    }
    fn release(&self, guest: GuestId, frame: Frame, order: u8, contents: Contents) {
        Frames::release(self.memory, guest, frame, order, contents);
    }
    fn divide(&self, guest: GuestId, frame: Frame, order: u8) -> bool {
        Frames::divide(self.memory, guest, frame, order)
    }
    fn unite(&self, guest: GuestId, frame: Frame, order: u8, ipa: Ipa) -> bool {
        Frames::unite(self.memory, guest, frame, order, ipa)
    }
    fn span_of(&self, frame: Frame) -> Option<Span> {
        self.memory.span_of(frame)
    }
    fn claimed_frames(&self, controllers: ControllerSet) -> u64 {
        self.memory.claimed_frames(controllers)
    }
    fn free_frames(&self, placement: &Placement) -> u64 {
        self.memory.free_frames(placement)
    }
}

impl Guests for FakeMigration {
    type Tables = Tables;
    type Tlb = Tlb;

    fn space(&self, guest: GuestId) -> Option<&Space<Tables, Tlb>> {
        (guest.index() == 0).then_some(&self.space)
    }
    fn region(&self, guest: GuestId, ipa: Ipa) -> Option<Region> {
        let at = PIECES.iter().position(|(.., base, size, _)| base + size > ipa.get())?;
        let (_, _, base, size, mobility) = PIECES[at];
        let mobility = self.mobility(mobility);
        let (ipa, placement, largest) = (Ipa::new_truncate(base), self.placements[at].get(), Level::L2);
        (guest.index() == 0).then_some(Region { ipa, size, mobility, placement, largest })
    }
    fn rate_bytes(&self, _: GuestId) -> u64 {
        0
    }
}

impl Migration for FakeMigration {
    fn engine(&self) -> &Engine {
        &self.engine
    }
    fn history(&self) -> &History {
        &self.history
    }
    fn submit(&self, request: Request) -> Result<JobId, RequestError> {
        self.engine.submit(request)
    }
    fn control(&self, job: JobId, order: Order) -> Result<(), RequestError> {
        match order {
            Order::Pause => self.engine.pause(job),
            Order::Resume => self.engine.resume(job),
            Order::Cancel => self.engine.cancel(self, job),
        }
    }
    fn job(&self, job: JobId) -> Option<JobReport> {
        self.engine.job(job)
    }
    fn job_after(&self, job: JobId) -> Option<JobReport> {
        self.engine.job_after(job)
    }
    fn shortage(&self, report: &JobReport) -> Shortage {
        self.engine.shortage(self, report)
    }
    fn frames_for(&self, guest: GuestId, controller: ControllerId) -> u64 {
        let free = self.memory.free_frames(&Placement::only(controller));
        // Memory does not move back to a closed controller.
        if free == 0 && self.memory.is_closed(controller) {
            0
        } else {
            free + self.memory.resident(Owner::Guest(guest), controller)
        }
    }

    fn piece(&self, guest: usize, index: usize) -> Option<Piece> {
        let (is_dmb, number, ipa, size, mobility) = *PIECES.get(index).filter(|_| guest == 0)?;
        let placement = self.placements[index].get();
        let (is_pinned, mobility) = (placement != Placement::Any, self.mobility(mobility));
        Some(Piece { is_dmb, number, ipa, size, placement, is_pinned, mobility, backing: None })
    }
    fn place(&self, _: usize, index: usize, placement: Option<Placement>) {
        self.placements[index].set(placement.unwrap_or(Placement::Any));
    }
    fn sample(&self, guest: usize, ipa: u64, heat: &mut Heat) -> Option<u64> {
        if guest != 0 {
            return None;
        }
        heat.life = if self.restarts.get() && heat.look != Look::Begin { 2 } else { 1 };
        // The guest uses its first 8 MiB.
        self.space.with(|stage2| {
            let leaf = stage2.leaves(Ipa::try_new(ipa)?, 1 << 40).next()?;
            let at = self.memory.span_of(Frame::containing(leaf.pa()))?.controller.index();
            heat.unit_count += 1;
            heat.resident[at] += leaf.size();
            if heat.look != Look::Begin && leaf.ipa().get() < 0x4080_0000 {
                heat.touched[at] += leaf.size();
            }
            Some(leaf.ipa().get() + leaf.size())
        })
    }
    fn close(&self, controller: ControllerId, is_closed: bool) {
        if is_closed { self.memory.close(controller) } else { self.memory.open(controller) }
    }
    fn forget_some(&self, frames: FrameRange) -> FrameRange {
        self.memory.forget_some(frames)
    }

    fn retire_some(&self, frames: FrameRange, done: &mut Retired) -> FrameRange {
        self.memory.retire_some(frames, done)
    }
    fn nanoseconds(&self, ticks: u64) -> u64 {
        ticks
    }
    fn now(&self) -> u64 {
        Time::now(self)
    }
}
