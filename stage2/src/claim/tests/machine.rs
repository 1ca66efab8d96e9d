//! A machine in plain memory with the real allocator, the real stage 2 tables, the real migration and the real claims.
//! A frame's contents are one number.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, Pa};
use crate::claim::{Claimant, Claims, Ground, Host, Report, State, Step, Windows, Wish};
use crate::controller::{ControllerId, ControllerSet};
use crate::migrate::{
    Absence, Copier, Engine, Fault, Frames, Guests, Mobility, Payer, Region, Space, Span, Time, Verdict,
};
use crate::owner::{GuestId, Owner, PoolId};
use crate::phys::alloc::{Glance, IsolateError, Isolated, Memory, Occupant, TakeError, Tenant};
use crate::phys::dmb;
use crate::phys::dmb::{Node, NodeKind, NodePlace, Source, Wishes};
use crate::phys::frame::{Contents, Footprint};
use crate::phys::map::BootMap;
use crate::phys::placement::Placement;
use crate::phys::pool::Pools;
use crate::phys::zone::Zone;
use crate::range::FrameRange;
use crate::table::{Attributes, Cached, Geometry, Level, Maintenance, Stage2, Table, TableMemory};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
/// Where the RAM of the first controller starts; the others follow, each at a multiple of 64 GiB.
pub(super) const BASE: u64 = 0x4000_0000;
const TABLES: usize = 96;
const TABLE_BASE: u64 = 0x1000;
/// Where a pool's window is: a part of the address space that no RAM lies in.
const WINDOW: u64 = 1 << 38;

/// What may fail, once, for no reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step2Fail {
    Isolate,
    Take,
    Show,
    Hide,
    Allocate,
}

#[derive(Clone, Copy)]
pub(super) struct Tables(&'static Shared);
#[derive(Clone, Copy)]
pub(super) struct Tlb;

/// Table frames.
struct Shared {
    tables: Vec<Box<Table>>,
    taken: Mutex<Vec<bool>>,
    is_empty: std::sync::atomic::AtomicBool,
}

impl TableMemory for Tables {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        if self.0.is_empty.load(Ordering::Relaxed) {
            return None;
        }
        let mut taken = self.0.taken.lock().unwrap();
        let count = 1 << order;
        let first = (0..taken.len()).step_by(count).find(|at| !taken[*at..at + count].contains(&true))?;
        taken[first..first + count].fill(true);
        Frame::try_new(TABLE_BASE + first as u64)
    }

    fn free(&mut self, frame: Frame, order: u8) {
        let first = (frame.number() - TABLE_BASE) as usize;
        self.0.taken.lock().unwrap()[first..first + (1 << order)].fill(false);
    }

    fn table(&self, frame: Frame) -> &Table {
        &self.0.tables[(frame.number() - TABLE_BASE) as usize]
    }
}

impl Maintenance for Tlb {
    fn publish(&self) {}
    fn invalidate(&self, _: Ipa, _: u64, _: Level, _: Cached) {}
    fn synchronise(&self) {}
}

/// The allocator, with what fails on the way to it.
pub(super) struct Soil {
    pub(super) memory: &'static Memory<'static>,
    /// What fails, after how many times that it did not.
    pub(super) fails: Cell<Option<(Step2Fail, u32)>>,
    /// Whether what fails goes on to fail.
    pub(super) is_stubborn: Cell<bool>,
    /// Pageblocks that were looked at, isolated or opened.
    pub(super) touched: Cell<u64>,
}

impl Soil {
    fn touch(&self, pageblocks: u64) {
        self.touched.set(self.touched.get() + pageblocks);
    }

    pub(super) fn fails(&self, step: Step2Fail) -> bool {
        match self.fails.get() {
            Some((what, 0)) if what == step => {
                if !self.is_stubborn.get() {
                    self.fails.set(None);
                }
                true
            }
            Some((what, left)) if what == step => {
                self.fails.set(Some((what, left - 1)));
                false
            }
            _ => false,
        }
    }
}

impl Ground for Soil {
    fn glance(&self, frame: Frame) -> Option<Glance> {
        self.touch(1);
        self.memory.glance(frame)
    }
    fn glances(&self, frame: Frame, glances: &mut [Glance]) -> usize {
        let count = self.memory.glances(frame, glances);
        // A split one takes as long as many others.
        glances[..count].iter().for_each(|glance| self.touch(if glance.is_split { 32 } else { 1 }));
        count
    }
    fn occupant(&self, range: FrameRange) -> Option<Occupant> {
        Ground::occupant(self.memory, range)
    }
    fn isolate(&self, range: FrameRange, pool: PoolId) -> Result<Isolated, IsolateError> {
        if self.fails(Step2Fail::Isolate) {
            let (frame, reason) = (range.first(), crate::phys::alloc::IsolateReason::Isolated);
            return Err(IsolateError { range, frame, reason });
        }
        Ground::isolate(self.memory, range, pool)
    }
    fn isolate_on(&self, isolated: &mut Isolated, end: u64, pool: PoolId) -> Result<(), IsolateError> {
        if self.fails(Step2Fail::Isolate) {
            let (range, reason) = (isolated.range(), crate::phys::alloc::IsolateReason::Isolated);
            return Err(IsolateError { range, frame: range.first(), reason });
        }
        Ground::isolate_on(self.memory, isolated, end, pool)
    }
    fn end_isolation_of_last(&self, isolated: Isolated, most: u64) -> Option<Isolated> {
        let before = isolated.range().frames();
        let rest = Ground::end_isolation_of_last(self.memory, isolated, most);
        self.touch((before - rest.as_ref().map_or(0, |rest| rest.range().frames())) / PAGEBLOCK_FRAMES);
        rest
    }
    fn take(&self, isolated: &Isolated, range: FrameRange, pool: PoolId) -> Result<Contents, TakeError> {
        if self.fails(Step2Fail::Take) {
            return Err(TakeError { frame: range.first() });
        }
        Ground::take(self.memory, isolated, range, pool)
    }
    fn give(&self, range: FrameRange, pool: PoolId, contents: Contents) -> bool {
        let is_given = Ground::give(self.memory, range, pool, contents);
        assert!(is_given, "{range} was not the owner's");
        is_given
    }
    fn claimed_frames(&self, pool: PoolId) -> u64 {
        Ground::claimed_frames(self.memory, pool)
    }
    fn free_frames(&self) -> u64 {
        Ground::free_frames(self.memory)
    }
    fn free_frames_behind(&self, controller: ControllerId) -> u64 {
        Ground::free_frames_behind(self.memory, controller)
    }
    fn controllers(&self) -> ControllerSet {
        Ground::controllers(self.memory)
    }
}

struct Guest {
    space: Space<Tables, Tlb>,
    regions: Vec<Region>,
    is_there: Cell<bool>,
    absence: Cell<Option<Absence>>,
}

pub(super) struct Machine {
    pub(super) soil: Soil,
    pub(super) engine: Engine,
    pub(super) claims: Claims,
    guests: Vec<Guest>,
    shared: &'static Shared,
    /// What frames hold, if not 0.
    contents: Mutex<BTreeMap<u64, u64>>,
    /// Frames whose contents memory has, and not only a cache.
    cleaned: Mutex<std::collections::BTreeSet<u64>>,
    /// What guests' pages have to hold.
    expected: Mutex<BTreeMap<(GuestId, u64), u64>>,
    /// Frames shown in windows: what hides them.
    shown: Mutex<BTreeMap<u64, GuestId>>,
    /// Set while instruction caches may hold what a tenant executed from frames that are shown next.
    has_stale_instructions: AtomicBool,
    clock: AtomicU64,
    versions: AtomicU64,
    /// Whether steps take the time of an idle CPU, which also coalesces.
    pub(super) is_idle: Cell<bool>,
}

pub(super) fn guest_id(number: u8) -> GuestId {
    GuestId::try_new(number).unwrap()
}

pub(super) fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

/// A pool for [`Machine::new`]: name, start in bytes from the start of its controller's RAM, bytes.
pub(super) struct PoolAt(
    pub(super) &'static str,
    pub(super) u8,
    pub(super) u64,
    pub(super) u64,
    pub(super) NodeKind,
);

pub(super) fn base_of(controller: u8) -> u64 {
    BASE + u64::from(controller) * (64 * GIB)
}

impl Machine {
    /// Controllers of these sizes in bytes, and pools; a pool whose name is `gN…` is bound to guest N.
    pub(super) fn new(sizes: &[u64], pools: &[PoolAt]) -> Self {
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
        let shared = Box::leak(Box::new(Shared {
            tables: crate::cases::tables(TABLES),
            taken: Mutex::new(vec![false; TABLES]),
            is_empty: false.into(),
        }));
        let claims = Claims::new();
        claims.set_pools(pools);
        Self {
            soil: Soil {
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

    pub(super) fn memory(&self) -> &'static Memory<'static> {
        self.soil.memory
    }

    /// The pool keeps units: everything else about claims starts anew.
    pub(super) fn keep_units(&mut self, pool: PoolId, order: u8) {
        let mut pools = self.claims.pools().unwrap().clone();
        pools.keep_units(pool, order, 60_000);
        self.claims = Claims::new();
        self.claims.set_pools(pools);
    }

    pub(super) fn pool(&self, name: &str) -> PoolId {
        self.claims.pools().unwrap().find(name).unwrap()
    }

    pub(super) fn pool_range(&self, pool: PoolId) -> FrameRange {
        self.claims.pools().unwrap().get(pool).unwrap().range
    }

    /// Adds a guest without RAM.
    pub(super) fn add_guest(&mut self) -> GuestId {
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

    /// Makes the block at `frame` RAM of `guest`, and writes to it.
    fn put(&self, guest: GuestId, ipa: Ipa, frame: Frame, order: u8) {
        let block = FRAME_SIZE << order;
        let space = &self.guests[guest.index()].space;
        space.with(|stage2| stage2.map(ipa, frame.pa(), block, Attributes::RAM)).unwrap();
        // Of gigantic units some pages will do, and under Miri of all.
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

    /// Gives `guest` the unit at `frame`, which it has adopted, as RAM.
    pub(super) fn add_unit(&mut self, guest: GuestId, ipa: Ipa, frame: Frame, order: u8) {
        self.put(guest, ipa, frame, order);
        self.guests[guest.index()].regions.push(Region {
            ipa,
            size: FRAME_SIZE << order,
            mobility: Mobility::Movable,
            placement: Placement::Any,
            largest: Level::L2,
        });
    }

    /// Gives `guest` RAM in blocks of `order`. Yields whether there was as much.
    pub(super) fn add_ram(
        &mut self,
        guest: GuestId,
        ipa: u64,
        size: u64,
        order: u8,
        placement: Placement,
    ) -> bool {
        let mut end = ipa;
        while end < ipa + size {
            // Under Miri pages make way for blocks of 2 MiB after the first of these.
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

    /// The guest starts, is reset or stops, or is through with that.
    pub(super) fn set_absence(&self, guest: GuestId, absence: Option<Absence>) {
        self.guests[guest.index()].absence.set(absence);
    }

    pub(super) fn regions(&mut self, guest: GuestId) -> &mut Vec<Region> {
        &mut self.guests[guest.index()].regions
    }

    /// Takes all RAM from `guest`, which does not run.
    pub(super) fn remove_ram(&mut self, guest: GuestId) {
        self.guests[guest.index()].is_there.set(false);
        self.engine.abandon(self, &self.guests[guest.index()].space);
        self.claims.abandon(self, guest);
        self.shown.lock().unwrap().retain(|_, of| *of != guest);
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
    pub(super) fn drop_page(&self, guest: GuestId, number: u64) {
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

    /// The guest reads the page at `ipa`, which must be what it wrote last, and writes to it, as often as it faults.
    pub(super) fn touch(&self, guest: GuestId, ipa: u64) {
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

    /// Lets claims and migration work until neither has anything to do.
    pub(super) fn run(&self) {
        for _ in 0..4_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("no end");
    }

    /// One slice of work. Yields whether there was any.
    pub(super) fn step(&self) -> bool {
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

    pub(super) fn claim(&self, claimant: Claimant, pool: PoolId, wish: Wish) -> Report {
        let id = self.claims.claim(self, claimant, pool, wish).unwrap();
        self.run();
        let report = self.claims.report(claimant, id).unwrap();
        assert!(report.state.is_over());
        self.check();
        report
    }

    pub(super) fn release(&self, claimant: Claimant, pool: PoolId, range: FrameRange) -> Report {
        let id = self.claims.release(self, claimant, pool, range).unwrap();
        self.run();
        let report = self.claims.report(claimant, id).unwrap();
        self.check();
        report
    }

    #[track_caller]
    pub(super) fn granted(&self, claimant: Claimant, pool: PoolId, wish: Wish) -> FrameRange {
        let report = self.claim(claimant, pool, wish);
        assert_eq!(report.state, State::Granted, "{}", report.blocker);
        report.range
    }

    /// Zone, type, isolation, block and pool of every pageblock of the machine, and how many frames each owner has.
    pub(super) fn picture(&self) -> Vec<String> {
        let memory = self.memory();
        let mut lines = Vec::new();
        for controller in memory.controllers().iter() {
            for zone in Zone::ALL {
                let totals = memory.arena_totals(zone, controller);
                for number in (totals.span.start()..totals.span.end()).step_by(PAGEBLOCK_FRAMES as usize) {
                    let info = memory.frame_info(Frame::try_new(number).unwrap()).unwrap();
                    lines.push(format!(
                        "{number:#x}: {} {} {} {:?} {:?}",
                        info.zone, info.migrate_type, info.is_isolated, info.block, info.pool
                    ));
                }
            }
        }
        let owners = Owner::all().map(|owner| (owner, memory.resident_everywhere(owner)));
        lines.extend(
            owners.filter(|(_, frames)| *frames > 0).map(|(owner, frames)| format!("{owner} {frames}")),
        );
        lines
    }

    /// What has to hold at any time between steps of claims, whatever migration does.
    pub(super) fn check(&self) {
        let memory = self.memory();
        // Every page of every guest holds what it wrote last.
        for (index, guest) in self.guests.iter().enumerate() {
            let id = guest_id(index as u8);
            let leaves: Vec<_> = guest.space.with(|stage2| stage2.leaves(Ipa::default(), WINDOW).collect());
            let contents = self.contents.lock().unwrap();
            let expected = self.expected.lock().unwrap();
            let mut pages = 0;
            for leaf in leaves.iter().filter(|leaf| !leaf.is_broken()) {
                let first = Frame::containing(leaf.pa());
                let (first, start) = (first.number(), leaf.ipa().get());
                let found = contents.range(first..first + leaf.size() / FRAME_SIZE);
                let found = found.map(|(number, value)| (start + (number - first) * FRAME_SIZE, *value));
                let wanted = expected.range((id, start)..(id, start + leaf.size()));
                let wanted = wanted.map(|((_, ipa), value)| (*ipa, *value));
                for (found, wanted) in found.clone().zip(wanted.clone()) {
                    assert_eq!(found, wanted, "IPA and contents of {id}");
                }
                assert_eq!(found.clone().count(), wanted.count(), "{id} from {start:#x} on");
                pages += found.count() as u64;
            }
            let of_guest = expected.keys().filter(|(of, _)| *of == id).count() as u64;
            assert_eq!(pages, of_guest, "pages of {id}");
        }
        // What is claimed is zero, unless it is shown to its owner; nothing is counted twice.
        for (id, pool) in self.claims.pools().unwrap().iter() {
            let mut claimed = 0;
            for occupant in memory.occupants(pool.range) {
                if occupant.owner != Some(Owner::Pool(id)) {
                    continue;
                }
                claimed += 1 << occupant.order;
            }
            assert_eq!(claimed, memory.resident_everywhere(Owner::Pool(id)), "claimed of {id}");
        }
        for controller in memory.controllers().iter() {
            let used: u64 = Owner::all().map(|owner| memory.resident(owner, controller)).sum();
            let zones = Zone::ALL.map(|zone| memory.arena_totals(zone, controller));
            let others: u64 = zones.iter().map(|zone| zone.free + zone.isolated + zone.retired).sum();
            let managed: u64 = zones.iter().map(|zone| zone.managed).sum();
            assert_eq!(used + others, managed, "behind {controller:?}");
        }
    }

    /// Whether nothing is isolated.
    pub(super) fn is_open(&self) -> bool {
        !self.picture().iter().any(|line| line.contains("true"))
    }

    /// Makes frames hold something, as their owner would.
    pub(super) fn fill(&self, range: FrameRange) {
        let mut contents = self.contents.lock().unwrap();
        (range.start()..range.end()).for_each(|number| _ = contents.insert(number, number));
    }

    pub(super) fn is_zero(&self, range: FrameRange) -> bool {
        self.contents.lock().unwrap().range(range.start()..range.end()).next().is_none()
    }

    pub(super) fn shown_frames(&self, guest: GuestId) -> usize {
        self.shown.lock().unwrap().values().filter(|of| **of == guest).count()
    }

    /// The frame behind `ipa`.
    pub(super) fn frame_at(&self, guest: GuestId, ipa: Ipa) -> Option<Frame> {
        let pa = self.guests[guest.index()].space.with(|stage2| stage2.translate(ipa))?;
        Some(Frame::containing(pa))
    }

    /// Time goes by.
    pub(super) fn pass(&self, ticks: u64) {
        self.clock.fetch_add(ticks, Ordering::Relaxed);
    }

    pub(super) fn set_tables(&self, is_empty: bool) {
        self.shared.is_empty.store(is_empty, Ordering::Relaxed);
    }
}

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
        if self.soil.fails(Step2Fail::Allocate) {
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
        if self.soil.fails(Step2Fail::Show) {
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
        (range.start()..range.end()).for_each(|number| _ = shown.insert(number, guest));
        Some(base)
    }
    fn part(&self, guest: GuestId, _: PoolId, range: FrameRange) -> bool {
        let Some(space) = Guests::space(self, guest) else { return true };
        space.with(|stage2| {
            [range.start(), range.end()].into_iter().all(|edge| stage2.split_at(window_ipa(edge)).is_ok())
        })
    }
    fn hide(&self, guest: GuestId, _: PoolId, range: FrameRange) -> bool {
        if self.soil.fails(Step2Fail::Hide) {
            return false;
        }
        let Some(space) = Guests::space(self, guest) else { return true };
        space.with(|stage2| stage2.unmap(window_ipa(range.start()), range.bytes(), |_| ()).unwrap());
        // The next tenant executes from it.
        self.has_stale_instructions.store(true, Ordering::Relaxed);
        self.shown.lock().unwrap().retain(|number, _| !range.contains(Frame::try_new(*number).unwrap()));
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
    type Ground = Soil;
    fn ground(&self) -> &Soil {
        &self.soil
    }
    fn region_at(&self, guest: GuestId, ipa: Ipa) -> Option<Region> {
        Guests::region(self, guest, ipa)
    }
}

pub(super) fn range_at(controller: u8, offset: u64, bytes: u64) -> FrameRange {
    FrameRange::covering(base_of(controller) + offset, bytes).unwrap()
}

pub(super) fn pa(value: u64) -> Pa {
    Pa::try_new(value).unwrap()
}
