//! Table memory and a TLB in plain memory, which catch what hardware would punish.
//!
//! The TLB caches as much as the architecture lets it: at every barrier and invalidation it walks a set
//! of addresses, from the root or from a cached table, and keeps leaves and tables until they are
//! invalidated *and* the invalidation is completed. It notes as violations: a valid leaf that contradicts a
//! cached one (break-before-make), an invalidation before the table writes were published, a table freed
//! while a cached walk leads to it, table memory not zero where it has to be.
//!
//! With `hardware_flags` its walks also set access flags, and mark writes, as FEAT_HAFDBS does.

use super::descriptor::{Access, Descriptor, Kind};
use super::{Cached, Geometry, Leaf, Level, Maintenance, Stage2, Table, TableMemory, load};
use crate::addr::{Frame, Ipa, Pa};
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeSet;
use std::rc::Rc;

/// What the architecture may cache of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CachedLeaf {
    ipa: u64,
    level: Level,
    descriptor: Descriptor,
    is_dying: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CachedTable {
    ipa: u64,
    /// The level of the entry that leads to the table.
    level: Level,
    frame: Frame,
    is_dying: bool,
}

pub(crate) struct Machine {
    base: Frame,
    arena: Vec<Box<Table>>,
    taken: RefCell<Vec<bool>>,
    /// Allocations that may still succeed.
    pub(crate) allowance: Cell<u64>,
    root: Cell<Option<(Geometry, Frame)>>,
    published: RefCell<Vec<u64>>,
    /// Frames whose zeroes no barrier has published yet.
    fresh: RefCell<BTreeSet<u64>>,
    leaves: RefCell<Vec<CachedLeaf>>,
    tables: RefCell<Vec<CachedTable>>,
    /// The addresses that the guest touches at every step; odd ones are written to.
    touched: RefCell<Vec<(Ipa, bool)>>,
    hardware_flags: Cell<bool>,
    dirtied: RefCell<BTreeSet<u64>>,
    violations: RefCell<Vec<String>>,
    pub(crate) publish_count: Cell<u64>,
    pub(crate) invalidate_count: Cell<u64>,
    pub(crate) synchronise_count: Cell<u64>,
}

/// The guest's side of a [`Machine`]: table memory.
#[derive(Clone)]
pub(crate) struct FakeTables(pub(crate) Rc<Machine>);

/// The guest's side of a [`Machine`]: TLB maintenance.
#[derive(Clone)]
pub(crate) struct FakeTlb(pub(crate) Rc<Machine>);

pub(crate) type FakeStage2 = Stage2<FakeTables, FakeTlb>;

/// What a guest's access comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Reaches(Pa),
    TranslationFault,
    AccessFlagFault,
    PermissionFault,
}

impl Machine {
    pub(crate) fn new(frames: usize) -> Rc<Self> {
        Rc::new(Self {
            base: Frame::try_new(0x1_0000).unwrap(),
            arena: crate::cases::tables(frames),
            taken: RefCell::new(vec![false; frames]),
            allowance: Cell::new(u64::MAX),
            root: Cell::new(None),
            published: RefCell::default(),
            fresh: RefCell::default(),
            leaves: RefCell::default(),
            tables: RefCell::default(),
            touched: RefCell::default(),
            hardware_flags: Cell::new(false),
            dirtied: RefCell::default(),
            violations: RefCell::default(),
            publish_count: Cell::new(0),
            invalidate_count: Cell::new(0),
            synchronise_count: Cell::new(0),
        })
    }

    pub(crate) fn stage2(self: &Rc<Self>, ipa_bits: u8, pa_bits: u8) -> FakeStage2 {
        let geometry = Geometry::new(ipa_bits, pa_bits).unwrap();
        let stage2 = Stage2::new(geometry, FakeTables(self.clone()), FakeTlb(self.clone())).unwrap();
        self.root.set(Some((geometry, Frame::containing(stage2.root()))));
        stage2
    }

    /// Lets the guest touch these addresses from now on, and write to those that say so.
    pub(crate) fn touch(&self, addresses: impl IntoIterator<Item = (Ipa, bool)>) {
        self.touched.replace(addresses.into_iter().collect());
    }

    pub(crate) fn set_hardware_flags(&self, on: bool) {
        self.hardware_flags.set(on);
    }

    pub(crate) fn frames_taken(&self) -> u64 {
        self.taken.borrow().iter().filter(|taken| **taken).count() as u64
    }

    fn index(&self, frame: Frame) -> usize {
        usize::try_from(frame.number() - self.base.number()).unwrap()
    }

    fn violation(&self, text: String) {
        self.violations.borrow_mut().push(text);
    }

    /// What was found wrong so far.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.borrow().clone()
    }

    /// One guest access: through the TLB if it has the leaf, else by a walk that fills it.
    pub(crate) fn access(&self, ipa: Ipa, is_write: bool) -> Outcome {
        let cached = self.cached_leaf(ipa);
        // A hit does not make an entry younger: one that is being invalidated stays so.
        let is_dying = cached.is_some_and(|cached| cached.is_dying);
        let found = match cached {
            Some(cached) => (cached.ipa, cached.level, cached.descriptor),
            None => match self.walk(ipa) {
                Some(leaf) => (leaf.ipa().get(), leaf.level(), leaf.descriptor()),
                None => return Outcome::TranslationFault,
            },
        };
        let (base, level, mut descriptor) = found;
        if !descriptor.is_accessed() && !self.hardware_flags.get() {
            return Outcome::AccessFlagFault;
        }
        let access = descriptor.attributes().access;
        let may_write = !descriptor.is_protected()
            && match access {
                Access::ReadOnly => false,
                Access::ReadWrite | Access::Dirty => true,
                Access::Clean => self.hardware_flags.get(),
            };
        if is_write && !may_write {
            return Outcome::PermissionFault;
        }
        if self.hardware_flags.get() {
            let Some(updated) = self.update_flags(ipa, descriptor, is_write && access == Access::Clean)
            else {
                return Outcome::TranslationFault;
            };
            descriptor = updated;
        }
        if is_write && access == Access::Clean {
            self.dirtied.borrow_mut().insert(ipa.get());
        }
        let mut leaves = self.leaves.borrow_mut();
        leaves.retain(|leaf| leaf.ipa != base || leaf.level != level);
        leaves.push(CachedLeaf { ipa: base, level, descriptor, is_dying });
        Outcome::Reaches(descriptor.output().checked_add(ipa.get() - base).unwrap())
    }

    fn cached_leaf(&self, ipa: Ipa) -> Option<CachedLeaf> {
        let holds = |leaf: &&CachedLeaf| leaf.ipa == ipa.get() & !(leaf.level.size() - 1);
        self.leaves.borrow().iter().find(holds).copied()
    }

    /// Sets the access flag and marks a write in the entry in memory, if it is still what was cached.
    fn update_flags(&self, ipa: Ipa, cached: Descriptor, is_write: bool) -> Option<Descriptor> {
        let (entry, _) = self.leaf_entry(ipa)?;
        let mut found = load(entry);
        loop {
            if !found.is_valid() || found.output() != cached.output() {
                return None;
            }
            let mut new = found.with_accessed();
            if is_write {
                match found.attributes().access {
                    Access::Clean if !found.is_protected() => {
                        new = Descriptor::from_bits(new.bits() | 1 << 7)
                    }
                    Access::ReadWrite | Access::Dirty if !found.is_protected() => {}
                    // The permission has gone: hardware finds that out when it updates the entry.
                    _ => return None,
                }
            }
            match entry.compare_exchange(found.bits(), new.bits(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(new),
                Err(now) => found = Descriptor::from_bits(now),
            }
        }
    }

    /// A walk in memory, which may start at a cached table.
    fn walk(&self, ipa: Ipa) -> Option<Leaf> {
        let (entry, level) = self.leaf_entry(ipa)?;
        let descriptor = load(entry);
        let base = Ipa::new_truncate(ipa.get() & !(level.size() - 1));
        (descriptor.kind(level) == Kind::Leaf).then(|| Leaf::new(base, level, descriptor))
    }

    fn leaf_entry(&self, ipa: Ipa) -> Option<(&AtomicU64, Level)> {
        let (geometry, root) = self.root.get()?;
        let index = ipa.get() >> geometry.start().shift();
        let mut level = geometry.start();
        let mut frame = root.checked_add(index / 512).unwrap();
        let cached = self
            .tables
            .borrow()
            .iter()
            .rev()
            .find(|table| table.ipa == ipa.get() & !(table.level.size() - 1))
            .copied();
        if let Some(table) = cached {
            (level, frame) = (table.level.below().unwrap(), table.frame);
        }
        loop {
            let entry = &self.arena[self.index(frame)][(ipa.get() >> level.shift()) as usize % 512];
            let descriptor = load(entry);
            if descriptor.kind(level) != Kind::Table {
                return Some((entry, level));
            }
            frame = Frame::containing(descriptor.output());
            if self.fresh.borrow().contains(&frame.number()) {
                self.violation(format!("a walk reached {frame:?} before its zeroes were published"));
            }
            let base = ipa.get() & !(level.size() - 1);
            self.tables.borrow_mut().push(CachedTable { ipa: base, level, frame, is_dying: false });
            level = level.below().unwrap();
        }
    }

    /// The guest runs for a moment, and hardware walks as it likes.
    fn run(&self) {
        let touched = self.touched.borrow().clone();
        for (ipa, is_write) in touched {
            self.access(ipa, is_write);
            self.check_conflict(ipa);
        }
    }

    /// Notes a valid leaf in memory that contradicts what is cached for `ipa`.
    fn check_conflict(&self, ipa: Ipa) {
        let Some((entry, level)) = self.leaf_entry(ipa) else { return };
        let now = load(entry);
        let base = ipa.get() & !(level.size() - 1);
        for cached in self.leaves.borrow().iter() {
            if cached.ipa != ipa.get() & !(cached.level.size() - 1) || now.kind(level) != Kind::Leaf {
                continue;
            }
            let same = cached.level == level && cached.ipa == base && cached.descriptor.is_legal_change(now);
            if !same {
                self.violation(format!("break-before-make: {cached:x?}, now {level:?} {now:?} at {ipa}"));
            }
        }
    }

    /// What the TLB may hold agrees with the tables: call when an operation is complete.
    pub(crate) fn check_coherent(&self) {
        self.run();
        for cached in self.leaves.borrow().iter() {
            let ipa = Ipa::try_new(cached.ipa).unwrap();
            let Some(leaf) = self.walk(ipa) else {
                self.violation(format!("stale: {cached:x?}, unmapped now"));
                continue;
            };
            let same = leaf.level() == cached.level && leaf.pa() == cached.descriptor.output();
            let may_write = |d: Descriptor| d.bits() & 1 << 7 != 0;
            if !same || may_write(cached.descriptor) && !may_write(leaf.descriptor()) {
                self.violation(format!("stale: {cached:x?}, now {leaf:x?}"));
            }
        }
        let dirtied = core::mem::take(&mut *self.dirtied.borrow_mut());
        for ipa in dirtied {
            let Some(leaf) = self.walk(Ipa::try_new(ipa).unwrap()) else { continue };
            match leaf.attributes().access {
                Access::Clean => self.violation(format!("dirty state lost at {ipa:#x}: {leaf:x?}")),
                Access::Dirty => _ = self.dirtied.borrow_mut().insert(ipa),
                Access::ReadOnly | Access::ReadWrite => {}
            }
        }
    }

    /// Forgets what was written: the test is about to set a clean state on purpose.
    pub(crate) fn forget_dirtied(&self) {
        self.dirtied.borrow_mut().clear();
    }

    /// The entries of the tables in use, without what hardware writes itself.
    fn contents(&self) -> Vec<u64> {
        // The access flag, S2AP[1] of tracked leaves: hardware's own writes need no publishing.
        let own = |bits: u64| bits & !(1 << 10) & !(if bits & 1 << 51 != 0 { 1 << 7 } else { 0 });
        let taken = self.taken.borrow();
        let tables = self.arena.iter().zip(taken.iter()).filter(|(_, taken)| **taken);
        tables.flat_map(|(table, _)| table.iter()).map(|entry| own(entry.load(Ordering::Relaxed))).collect()
    }
}

impl TableMemory for FakeTables {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        let machine = &self.0;
        machine.allowance.set(machine.allowance.get().checked_sub(1)?);
        let count = 1 << order;
        let mut taken = machine.taken.borrow_mut();
        let first = (0..taken.len()).step_by(count).find(|first| {
            taken.get(*first..first + count).is_some_and(|range| range.iter().all(|taken| !taken))
        })?;
        taken[first..first + count].fill(true);
        let frame = machine.base.checked_add(first as u64)?;
        machine.fresh.borrow_mut().extend(frame.number()..frame.number() + count as u64);
        Some(frame)
    }

    fn free(&mut self, frame: Frame, order: u8) {
        let machine = &self.0;
        for index in machine.index(frame)..machine.index(frame) + (1 << order) {
            let number = machine.base.number() + index as u64;
            if !std::mem::replace(&mut machine.taken.borrow_mut()[index], false) {
                machine.violation(format!("frame {number:#x} freed twice"));
            }
            if machine.arena[index].iter().any(|entry| entry.load(Ordering::Relaxed) != 0) {
                machine.violation(format!("frame {number:#x} freed with contents"));
            }
            if machine.tables.borrow().iter().any(|table| table.frame.number() == number) {
                machine.violation(format!("frame {number:#x} freed while a walk may lead there"));
            }
        }
    }

    fn table(&self, frame: Frame) -> &Table {
        &self.0.arena[self.0.index(frame)]
    }
}

impl Maintenance for FakeTlb {
    fn publish(&self) {
        self.0.publish_count.set(self.0.publish_count.get() + 1);
        self.0.run();
        *self.0.published.borrow_mut() = self.0.contents();
        self.0.fresh.borrow_mut().clear();
        self.0.run();
    }

    fn invalidate(&self, ipa: Ipa, size: u64, leaf: Level, cached: Cached) {
        let machine = &self.0;
        machine.run();
        machine.invalidate_count.set(machine.invalidate_count.get() + 1);
        if *machine.published.borrow() != machine.contents() {
            machine.violation(format!("invalidation of {ipa} before the tables were published"));
        }
        let end = ipa.get() + size;
        // Whether one TLBI for each `leaf.size()` bytes hits what spans `[base, base + span)`.
        let hits = |base: u64, span: u64| {
            let first = base.max(ipa.get()).next_multiple_of(leaf.size());
            let before = ipa.get() & !(leaf.size() - 1);
            first < end && first < base + span || base <= before && before < base + span
        };
        for entry in machine.leaves.borrow_mut().iter_mut() {
            entry.is_dying |= hits(entry.ipa, entry.level.size());
        }
        if cached == Cached::LeavesAndTables {
            for table in machine.tables.borrow_mut().iter_mut() {
                table.is_dying |= hits(table.ipa, table.level.size());
            }
        }
        machine.run();
    }

    fn invalidate_all(&self) {
        self.0.run();
        self.0.leaves.borrow_mut().iter_mut().for_each(|leaf| leaf.is_dying = true);
        self.0.tables.borrow_mut().iter_mut().for_each(|table| table.is_dying = true);
        self.0.run();
    }

    fn synchronise(&self) {
        self.0.synchronise_count.set(self.0.synchronise_count.get() + 1);
        self.0.run();
        self.0.leaves.borrow_mut().retain(|leaf| !leaf.is_dying);
        self.0.tables.borrow_mut().retain(|table| !table.is_dying);
        self.0.run();
    }
}
