//! Fake table memory and TLB, which record violations of the architecture's rules.
//!
//! The TLB holds as much as the architecture allows. At every barrier and invalidation it walks a set of addresses,
//! from the root or from a cached table, and keeps leaves and tables until they are invalidated and the
//! invalidation is complete.
//!
//! Violations are:
//! - a valid leaf that contradicts a cached one (break-before-make);
//! - an invalidation before the table writes were published;
//! - a table that is freed while a cached walk leads to it;
//! - a table that is not zero when it is freed.
//!
//! With `hardware_flags`, walks set the access flag, as FEAT_HAFDBS does with VTCR_EL2.HA.

use super::descriptor::{Access, Descriptor, Kind};
use super::{Cached, Geometry, Leaf, Level, Maintenance, Stage2, Table, TableMemory, load};
use crate::addr::{Frame, Ipa, Pa};
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeSet;
use std::rc::Rc;

/// A leaf in the TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CachedLeaf {
    ipa: u64,
    level: Level,
    descriptor: Descriptor,
    is_dying: bool,
}

/// A pointer to a table in the TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CachedTable {
    ipa: u64,
    /// Level of the entry that leads to the table.
    level: Level,
    frame: Frame,
    is_dying: bool,
}

/// Table memory, TLB and the guest that uses them.
pub(crate) struct Machine {
    base: Frame,
    arena: Vec<Box<Table>>,
    taken: RefCell<Vec<bool>>,
    /// Number of allocations that may still succeed.
    pub(crate) allowance: Cell<u64>,
    root: Cell<Option<(Geometry, Frame)>>,
    published: RefCell<Vec<u64>>,
    /// Frames whose zeroes no barrier has published yet.
    fresh: RefCell<BTreeSet<u64>>,
    leaves: RefCell<Vec<CachedLeaf>>,
    tables: RefCell<Vec<CachedTable>>,
    /// Addresses that the guest accesses at every step, and whether it writes to them.
    touched: RefCell<Vec<(Ipa, bool)>>,
    hardware_flags: Cell<bool>,
    violations: RefCell<Vec<String>>,
    pub(crate) publish_count: Cell<u64>,
    pub(crate) invalidate_count: Cell<u64>,
    pub(crate) synchronise_count: Cell<u64>,
}

/// Table memory of a [`Machine`].
#[derive(Clone)]
pub(crate) struct FakeTables(pub(crate) Rc<Machine>);

/// TLB of a [`Machine`].
#[derive(Clone)]
pub(crate) struct FakeTlb(pub(crate) Rc<Machine>);

pub(crate) type FakeStage2 = Stage2<FakeTables, FakeTlb>;

/// Result of an access by the guest.
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

    /// Lets the guest access these addresses at every step from now on; `true` means a write.
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

    /// Returns the violations so far.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.borrow().clone()
    }

    /// Accesses `ipa` as the guest does: through the TLB if it has the leaf, otherwise by a walk that fills it.
    pub(crate) fn access(&self, ipa: Ipa, is_write: bool) -> Outcome {
        let cached = self.cached_leaf(ipa);
        // A hit does not renew an entry that is being invalidated.
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
        let may_write = !descriptor.is_protected() && descriptor.attributes().access == Access::ReadWrite;
        if is_write && !may_write {
            return Outcome::PermissionFault;
        }
        if self.hardware_flags.get() {
            let Some(updated) = self.set_access_flag(ipa, descriptor) else {
                return Outcome::TranslationFault;
            };
            descriptor = updated;
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

    /// Sets the access flag of the entry in memory, if it still leads where the cached entry does.
    fn set_access_flag(&self, ipa: Ipa, cached: Descriptor) -> Option<Descriptor> {
        let (entry, _) = self.leaf_entry(ipa)?;
        let mut found = load(entry);
        loop {
            if !found.is_valid() || found.output() != cached.output() {
                return None;
            }
            let new = found.with_accessed();
            match entry.compare_exchange(found.bits(), new.bits(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(new),
                Err(now) => found = Descriptor::from_bits(now),
            }
        }
    }

    /// Walks the tables in memory, from the root or from a cached table.
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

    /// Runs the guest for one step.
    fn run(&self) {
        let touched = self.touched.borrow().clone();
        for (ipa, is_write) in touched {
            self.access(ipa, is_write);
            self.check_conflict(ipa);
        }
    }

    /// Records a violation if the valid leaf for `ipa` in memory contradicts a cached one.
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

    /// Records a violation if the TLB disagrees with the tables, after an operation is complete.
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
    }

    /// Returns the entries of the tables in use, without access flags: hardware's own writes need no publication.
    fn contents(&self) -> Vec<u64> {
        let without_flag = |bits| Descriptor::from_bits(bits).without_accessed().bits();
        let taken = self.taken.borrow();
        let tables = self.arena.iter().zip(taken.iter()).filter(|(_, taken)| **taken);
        tables
            .flat_map(|(table, _)| table.iter())
            .map(|entry| without_flag(entry.load(Ordering::Relaxed)))
            .collect()
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
        // Tests whether one TLBI per `leaf.size()` bytes reaches an entry for `[base, base + span)`.
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

    fn synchronise(&self) {
        self.0.synchronise_count.set(self.0.synchronise_count.get() + 1);
        self.0.run();
        self.0.leaves.borrow_mut().retain(|leaf| !leaf.is_dying);
        self.0.tables.borrow_mut().retain(|table| !table.is_dying);
        self.0.run();
    }
}
