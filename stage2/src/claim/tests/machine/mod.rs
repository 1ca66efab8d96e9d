//! Machine in plain memory with the real allocator, stage-2 tables, migration and claims. The contents of a frame are one
//! number.

mod checks;
mod ground;
mod host;
mod tables;

pub(crate) use self::ground::{FailingStep, FaultyGround};
use self::tables::{Shared, Tables, Tlb};

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::addr::{FRAME_SIZE, Frame, Ipa, Pa};
use crate::claim::{Claimant, Claims, Report, State, Step, Wish};
use crate::controller::ControllerId;
use crate::migrate::{Absence, Engine, Fault, Frames, Mobility, Payer, Region, Space, Verdict};
use crate::owner::{GuestId, Owner, PoolId};
use crate::phys::alloc::Memory;
use crate::phys::dmb;
use crate::phys::dmb::{Node, NodeKind, NodePlace, Source, Wishes};
use crate::phys::frame::{Contents, Footprint};
use crate::phys::map::BootMap;
use crate::phys::placement::Placement;
use crate::phys::pool::Pools;
use crate::range::FrameRange;
use crate::table::{Attributes, Geometry, Level, Stage2};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// Start of the RAM of controller 0. That of controller N starts N * 64 GiB above.
pub(crate) const BASE: u64 = 0x4000_0000;
/// Start and size of the part of a guest's address space that has windows and no RAM.
const WINDOW: u64 = 1 << 38;

struct Guest {
    space: Space<Tables, Tlb>,
    regions: Vec<Region>,
    is_there: Cell<bool>,
    absence: Cell<Option<Absence>>,
}

pub(crate) struct Machine {
    pub(crate) ground: FaultyGround,
    pub(crate) engine: Engine,
    pub(crate) claims: Claims,
    guests: Vec<Guest>,
    shared: &'static Shared,
    /// Contents of frames that are not 0.
    contents: Mutex<BTreeMap<u64, u64>>,
    /// Frames that were cleaned to the point of coherency.
    cleaned: Mutex<BTreeSet<u64>>,
    /// Expected contents of guests' pages.
    expected: Mutex<BTreeMap<(GuestId, u64), u64>>,
    /// Frames in the window of each guest.
    shown: Mutex<BTreeMap<GuestId, BTreeSet<u64>>>,
    /// Set while instruction caches may hold a tenant's instructions for frames that are shown next.
    has_stale_instructions: AtomicBool,
    clock: AtomicU64,
    versions: AtomicU64,
    /// Set if steps are those of an idle CPU, which also coalesces.
    pub(crate) is_idle: Cell<bool>,
}

pub(crate) fn guest_id(number: u8) -> GuestId {
    GuestId::try_new(number).unwrap()
}

pub(crate) fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

/// Pool for [`Machine::new`]: name, controller, offset in bytes from the start of its RAM, bytes, kind.
pub(crate) struct PoolAt(
    pub(crate) &'static str,
    pub(crate) u8,
    pub(crate) u64,
    pub(crate) u64,
    pub(crate) NodeKind,
);

pub(crate) fn base_of(controller: u8) -> u64 {
    BASE + u64::from(controller) * (64 * GIB)
}

impl Machine {
    /// Creates a machine with controllers of these sizes in bytes, and pools. Guest N owns a pool whose name starts with
    /// `gN`.
    pub(crate) fn new(sizes: &[u64], pools: &[PoolAt]) -> Self {
        let mut map = BootMap::new();
        for (number, size) in sizes.iter().enumerate() {
            map.add_ram(controller(number as u8), base_of(number as u8), *size).unwrap();
        }
        let node = |pool: &PoolAt| Node {
            name: pool.0,
            source: Source::Tree,
            kind: pool.4,
            place: NodePlace::Static { base: base_of(pool.1) + pool.2, size: pool.3 },
            entry: 0,
            is_reusable: true,
            is_no_map: false,
            is_cma_default: false,
        };
        let nodes: Vec<_> = pools.iter().map(node).collect();
        dmb::designate(&mut map, &Wishes { nodes: &nodes, ..Wishes::default() }).unwrap();
        let owner = |name: &str| {
            let digit = name.strip_prefix('g')?.chars().next()?.to_digit(10)?;
            GuestId::try_new(digit as u8)
        };
        let mut pools = Pools::of(&map);
        let bound: Vec<_> =
            pools.iter().filter_map(|(id, pool)| Some((id, owner(pool.name.as_str())?))).collect();
        bound.into_iter().for_each(|(id, guest)| pools.bind(id, guest, false));
        let words: &'static [AtomicU32] = Vec::leak(crate::cases::words(Footprint::of(&map).words()));
        let memory: &'static Memory<'static> = Box::leak(Box::new(Memory::new()));
        memory.boot(&map, words, 0).unwrap();
        let shared = Box::leak(Box::new(Shared::new()));
        let claims = Claims::new();
        claims.set_pools(pools);
        Self {
            ground: FaultyGround {
                memory,
                fails: Cell::new(None),
                is_stubborn: Cell::new(false),
                touched: Cell::new(0),
            },
            engine: Engine::new(),
            claims,
            guests: Vec::new(),
            shared,
            contents: Mutex::default(),
            cleaned: Mutex::default(),
            expected: Mutex::default(),
            shown: Mutex::default(),
            has_stale_instructions: AtomicBool::new(true),
            clock: AtomicU64::new(1),
            versions: AtomicU64::new(1 << 40),
            is_idle: Cell::new(false),
        }
    }

    pub(crate) fn memory(&self) -> &'static Memory<'static> {
        self.ground.memory
    }

    /// Makes a pool keep units. Resets the state of claims.
    pub(crate) fn keep_units(&mut self, pool: PoolId, order: u8) {
        let mut pools = self.claims.pools().unwrap().clone();
        pools.keep_units(pool, order, 60_000);
        self.claims = Claims::new();
        self.claims.set_pools(pools);
    }

    pub(crate) fn pool(&self, name: &str) -> PoolId {
        self.claims.pools().unwrap().find(name).unwrap()
    }

    pub(crate) fn pool_range(&self, pool: PoolId) -> FrameRange {
        self.claims.pools().unwrap().get(pool).unwrap().range
    }

    /// Adds a guest without RAM.
    pub(crate) fn add_guest(&mut self) -> GuestId {
        let guest = guest_id(self.guests.len() as u8);
        let stage2 = Stage2::new(Geometry::new(40, 44).unwrap(), Tables(self.shared), Tlb).unwrap();
        let space = Space::new(guest, stage2);
        self.guests.push(Guest {
            space,
            regions: Vec::new(),
            is_there: Cell::new(true),
            absence: Cell::new(None),
        });
        guest
    }

    /// Maps the block at `frame` as RAM of `guest`, and writes to it.
    fn put(&self, guest: GuestId, ipa: Ipa, frame: Frame, order: u8) {
        let block = FRAME_SIZE << order;
        let space = &self.guests[guest.index()].space;
        space.with(|stage2| stage2.map(ipa, frame.pa(), block, Attributes::RAM)).unwrap();
        // Some pages are enough for gigantic units, and for all units under Miri.
        let step = match (order, cfg!(miri)) {
            (18, true) => 8191,
            (18, false) | (_, true) => 61,
            _ => 1,
        };
        let first = ipa.get() / FRAME_SIZE;
        let first = first.next_multiple_of(step) - first;
        for page in (first..block / FRAME_SIZE).step_by(step as usize) {
            let page_ipa = ipa.get() + page * FRAME_SIZE;
            let value = (guest.index() as u64 + 1) << 56 | page_ipa;
            self.contents.lock().unwrap().insert(frame.number() + page, value);
            self.expected.lock().unwrap().insert((guest, page_ipa), value);
        }
    }

    /// Maps the unit at `frame`, which `guest` has adopted, as its RAM.
    pub(crate) fn add_unit(&mut self, guest: GuestId, ipa: Ipa, frame: Frame, order: u8) {
        self.put(guest, ipa, frame, order);
        self.guests[guest.index()].regions.push(Region {
            ipa,
            size: FRAME_SIZE << order,
            mobility: Mobility::Movable,
            placement: Placement::Any,
            largest: Level::L2,
        });
    }

    /// Gives `guest` RAM in blocks of `order`. Returns whether there was enough.
    pub(crate) fn add_ram(
        &mut self,
        guest: GuestId,
        ipa: u64,
        size: u64,
        order: u8,
        placement: Placement,
    ) -> bool {
        let mut end = ipa;
        while end < ipa + size {
            // Under Miri only the first 2 MiB consist of pages.
            let order = if cfg!(miri) && order < 9 && end >= ipa + 2 * MIB { 9 } else { order };
            let block = FRAME_SIZE << order;
            let at = Ipa::try_new(end).unwrap();
            let Some(frame) = Frames::allocate(self.memory(), guest, order, &placement, at) else { break };
            self.put(guest, at, frame, order);
            end += block;
        }
        let largest = if order == 0 { Level::L2 } else { Level::L1 };
        self.guests[guest.index()].regions.push(Region {
            ipa: Ipa::try_new(ipa).unwrap(),
            size: end - ipa,
            mobility: Mobility::Movable,
            placement: Placement::Any,
            largest,
        });
        end == ipa + size
    }

    /// Begins or ends a start, reset or stop of the guest.
    pub(crate) fn set_absence(&self, guest: GuestId, absence: Option<Absence>) {
        self.guests[guest.index()].absence.set(absence);
    }

    pub(crate) fn regions(&mut self, guest: GuestId) -> &mut Vec<Region> {
        &mut self.guests[guest.index()].regions
    }

    /// Takes all RAM and windows from `guest`, which does not run.
    pub(crate) fn remove_ram(&mut self, guest: GuestId) {
        self.guests[guest.index()].is_there.set(false);
        self.engine.abandon(self, &self.guests[guest.index()].space);
        self.claims.abandon(self, guest);
        self.shown.lock().unwrap().remove(&guest);
        let space = &self.guests[guest.index()].space;
        space.with(|stage2| {
            let window = Ipa::try_new(WINDOW).unwrap();
            let leaves: Vec<_> = stage2.leaves(window, WINDOW).collect();
            for leaf in leaves {
                stage2.unmap(leaf.ipa(), leaf.size(), |_| ()).unwrap();
            }
            for region in &self.guests[guest.index()].regions {
                stage2
                    .unmap(region.ipa, region.size, |leaf| {
                        let frame = Frame::containing(leaf.pa());
                        self.scrub_frames(frame, leaf.size() / FRAME_SIZE);
                        let order = leaf.level().order();
                        self.memory().free(frame, order, Owner::Guest(guest), Contents::Zeroed).unwrap();
                    })
                    .unwrap();
            }
        });
        self.expected.lock().unwrap().retain(|(of, _), _| *of != guest);
        self.guests[guest.index()].regions.clear();
        self.guests[guest.index()].is_there.set(true);
    }

    /// Takes the page on frame `number` from `guest`.
    pub(crate) fn drop_page(&self, guest: GuestId, number: u64) {
        let frame = Frame::try_new(number).unwrap();
        let ipa = self.memory().mapping(frame).unwrap().ipa;
        let space = &self.guests[guest.index()].space;
        space.with(|stage2| stage2.unmap(ipa, FRAME_SIZE, |_| ()).unwrap());
        self.scrub_frames(frame, 1);
        self.expected.lock().unwrap().remove(&(guest, ipa.get()));
        self.memory().free(frame, 0, Owner::Guest(guest), Contents::Zeroed).unwrap();
    }

    fn scrub_frames(&self, frame: Frame, count: u64) {
        let mut contents = self.contents.lock().unwrap();
        let mut cleaned = self.cleaned.lock().unwrap();
        let frames = frame.number()..frame.number() + count;
        let written: Vec<u64> = contents.range(frames.clone()).map(|(number, _)| *number).collect();
        written.iter().for_each(|number| _ = contents.remove(number));
        let clean: Vec<u64> = cleaned.range(frames).copied().collect();
        clean.iter().for_each(|number| _ = cleaned.remove(number));
    }

    /// Reads the page at `ipa` as the guest, compares it with the last write, and writes to it. Retries after faults.
    pub(crate) fn touch(&self, guest: GuestId, ipa: u64) {
        let at = Ipa::try_new(ipa).unwrap();
        for _ in 0..100_000 {
            let leaf = self.guests[guest.index()].space.with(|stage2| stage2.leaf(at)).unwrap();
            if leaf.is_broken() || leaf.is_protected() {
                let fault = if leaf.is_broken() { Fault::Translation } else { Fault::Write };
                assert_eq!(self.engine.fault(self, guest, at, fault), Verdict::Retry);
                continue;
            }
            let frame = Frame::containing(leaf.pa()).number() + (ipa - leaf.ipa().get()) / FRAME_SIZE;
            let mut contents = self.contents.lock().unwrap();
            let mut expected = self.expected.lock().unwrap();
            assert_eq!(contents.get(&frame), expected.get(&(guest, ipa)), "{guest} at {ipa:#x}");
            let value = self.versions.fetch_add(1, Ordering::Relaxed);
            contents.insert(frame, value);
            expected.insert((guest, ipa), value);
            return;
        }
        panic!("the access never ends");
    }

    /// Runs claims and migration until both are idle.
    pub(crate) fn run(&self) {
        for _ in 0..4_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("no end");
    }

    /// Does one slice of work. Returns whether there was any.
    pub(crate) fn step(&self) -> bool {
        let payer = if self.is_idle.get() { Payer::Idle } else { Payer::Guest(guest_id(0)) };
        match self.claims.step(self, &self.engine, 1) {
            Step::More => true,
            Step::Waiting | Step::Stalled => {
                self.engine.step(self, 1, payer);
                true
            }
            Step::Idle | Step::Busy => self.engine.step(self, 1, payer) != crate::migrate::Step::Idle,
        }
    }

    pub(crate) fn claim(&self, claimant: Claimant, pool: PoolId, wish: Wish) -> Report {
        let id = self.claims.claim(self, claimant, pool, wish).unwrap();
        self.run();
        let report = self.claims.report(claimant, id).unwrap();
        assert!(report.state.is_over());
        self.check();
        report
    }

    pub(crate) fn release(&self, claimant: Claimant, pool: PoolId, range: FrameRange) -> Report {
        let id = self.claims.release(self, claimant, pool, range).unwrap();
        self.run();
        let report = self.claims.report(claimant, id).unwrap();
        self.check();
        report
    }

    #[track_caller]
    pub(crate) fn granted(&self, claimant: Claimant, pool: PoolId, wish: Wish) -> FrameRange {
        let report = self.claim(claimant, pool, wish);
        assert_eq!(report.state, State::Granted, "{}", report.blocker);
        report.range
    }

    /// Writes to frames, as their owner would.
    pub(crate) fn fill(&self, range: FrameRange) {
        let mut contents = self.contents.lock().unwrap();
        (range.start()..range.end()).for_each(|number| _ = contents.insert(number, number));
    }

    pub(crate) fn is_zero(&self, range: FrameRange) -> bool {
        self.contents.lock().unwrap().range(range.start()..range.end()).next().is_none()
    }

    pub(crate) fn shown_frames(&self, guest: GuestId) -> usize {
        self.shown.lock().unwrap().get(&guest).map_or(0, BTreeSet::len)
    }

    /// Returns the frame that `ipa` leads to.
    pub(crate) fn frame_at(&self, guest: GuestId, ipa: Ipa) -> Option<Frame> {
        let pa = self.guests[guest.index()].space.with(|stage2| stage2.translate(ipa))?;
        Some(Frame::containing(pa))
    }

    /// Advances the clock.
    pub(crate) fn pass(&self, ticks: u64) {
        self.clock.fetch_add(ticks, Ordering::Relaxed);
    }

    pub(crate) fn set_tables(&self, is_empty: bool) {
        self.shared.is_empty.store(is_empty, Ordering::Relaxed);
    }
}

pub(crate) fn range_at(controller: u8, offset: u64, bytes: u64) -> FrameRange {
    FrameRange::covering(base_of(controller) + offset, bytes).unwrap()
}

pub(crate) fn pa(value: u64) -> Pa {
    Pa::try_new(value).unwrap()
}
