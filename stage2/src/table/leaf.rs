//! Changes of single leaves while the guest runs.

use super::descriptor::{Descriptor, ENTRIES, Kind, Level, Mark};
use super::error::TableError;
use super::walk::{End, Leaf, Slot};
use super::{Cached, Maintenance, Stage2, TableMemory, break_entry, exchange, load};
use crate::addr::{Ipa, Pa};
use core::sync::atomic::{AtomicU64, Ordering};

/// An invalidation that was started. It is complete after the next [`Stage2::synchronise`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket(u64);

impl Ticket {
    pub(super) const fn new(begun: u64) -> Self {
        Self(begun)
    }

    /// Tests whether synchronisation number `completed` began after the invalidation.
    pub(super) const fn is_before(self, completed: u64) -> bool {
        completed > self.0
    }
}

/// Consecutive leaves of one table that were broken together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BrokenRun {
    ipa: Ipa,
    level: Level,
    leaf_count: u16,
    ticket: Ticket,
}

impl BrokenRun {
    /// The empty run.
    pub(crate) const EMPTY: Self =
        Self { ipa: Ipa::new_truncate(0), level: Level::L3, leaf_count: 0, ticket: Ticket(0) };

    /// Returns the start of the first leaf.
    pub(crate) const fn ipa(self) -> Ipa {
        self.ipa
    }

    /// Returns the number of leaves, at most 512.
    pub(crate) const fn leaf_count(self) -> usize {
        self.leaf_count as usize
    }
}

/// Consecutive leaves of one level, to be invalidated together.
#[derive(Clone, Copy)]
pub(super) struct StaleRun {
    ipa: Ipa,
    size: u64,
    level: Level,
}

impl StaleRun {
    /// The empty run.
    pub(super) const EMPTY: Self = Self { ipa: Ipa::new_truncate(0), size: 0, level: Level::L3 };
}

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Breaks up to `most` leaves from `ipa` on in one table, changes their marks from `from` to `to`, and starts
    /// their invalidation. The run ends before the first entry that is not a valid leaf with the mark `from`. If
    /// `from` is [`Mark::NONE`], it also ends before a protected leaf.
    ///
    /// A broken leaf keeps its output address, attributes and access flag. `visit` is called with the last valid
    /// state of each leaf.
    ///
    /// # Errors
    /// - [`TableError::NotMapped`];
    /// - [`TableError::InMotion`] if the run would be empty;
    /// - [`TableError::SplitsLeaf`] if `ipa` is not the start of a leaf.
    pub(crate) fn break_leaves(
        &self,
        ipa: Ipa,
        most: usize,
        from: Mark,
        to: Mark,
        mut visit: impl FnMut(Leaf),
    ) -> Result<BrokenRun, TableError> {
        let (slot, entries) = self.run(ipa)?;
        let mut leaf_count = 0;
        for entry in entries.iter().take(most.max(1)) {
            let found = load(entry);
            let free = found.mark() == from && (from != Mark::NONE || !found.is_protected());
            if found.kind(slot.level) != Kind::Leaf || !free {
                break;
            }
            // Hardware may set the access flag until here.
            let last = break_entry(entry);
            entry.store(last.broken().with_mark(to).bits(), Ordering::Release);
            let at = ipa.get() + (u64::from(leaf_count) << slot.level.shift());
            visit(Leaf::new(Ipa::new_truncate(at), slot.level, last));
            leaf_count += 1;
        }
        if leaf_count == 0 {
            return Err(TableError::InMotion(ipa));
        }
        let size = (leaf_count as u64) << slot.level.shift();
        let ticket = self.invalidate(ipa, size, slot.level);
        Ok(BrokenRun { ipa, level: slot.level, leaf_count, ticket })
    }

    /// Makes leaf number `index` of `run`, with output address `pa` or, if that is `None`, with its old one. Clears
    /// mark and protection; the attributes stay. The caller publishes, once for any number of leaves.
    ///
    /// # Errors
    /// - [`TableError::NotBroken`] if the invalidation is not complete, or the leaf has already been made;
    /// - [`TableError::PaOutside`] if `pa` is misaligned for the leaf or beyond physical addresses.
    pub(crate) fn make_leaf(
        &self,
        run: &BrokenRun,
        index: usize,
        pa: Option<Pa>,
    ) -> Result<Leaf, TableError> {
        let ipa = Ipa::new_truncate(run.ipa.get() + ((index as u64) << run.level.shift()));
        if index >= run.leaf_count() || !self.is_synchronised(run.ticket) {
            return Err(TableError::NotBroken(ipa));
        }
        let slot = self.slot(ipa).ok_or(TableError::NotMapped(ipa))?;
        let broken = load(slot.entry);
        if slot.level != run.level || broken.is_valid() {
            return Err(TableError::NotBroken(ipa));
        }
        let pa = pa.unwrap_or(broken.output());
        self.check_leaf_pa(pa, run.level)?;
        make(slot.entry, ipa, broken, pa).map(|made| Leaf::new(ipa, slot.level, made))
    }

    /// Makes every leaf of `run` that is still broken, as [`Self::make_leaf`] does; number `index` leads to
    /// `target(index)`. Returns the number of leaves made. The caller publishes.
    ///
    /// # Errors
    /// As [`Self::make_leaf`]. The leaves before the one that failed have been made.
    pub(crate) fn make_leaves(
        &self,
        run: &BrokenRun,
        mut target: impl FnMut(usize) -> Pa,
    ) -> Result<usize, TableError> {
        let (slot, entries) = self.run(run.ipa)?;
        if slot.level != run.level || !self.is_synchronised(run.ticket) {
            return Err(TableError::NotBroken(run.ipa));
        }
        let mut made_count = 0;
        for (index, entry) in entries.iter().take(run.leaf_count()).enumerate() {
            let broken = load(entry);
            if broken.kind(run.level) == Kind::BrokenLeaf {
                let pa = target(index);
                self.check_leaf_pa(pa, run.level)?;
                make(entry, run.ipa, broken, pa)?;
                made_count += 1;
            }
        }
        Ok(made_count)
    }

    /// Withholds the write permission of the leaf at `ipa`, sets its mark, and starts its invalidation. After the next
    /// [`Self::synchronise`], no CPU of the guest writes to it. Returns the new state of the leaf.
    ///
    /// # Errors
    /// [`TableError::NotMapped`], [`TableError::SplitsLeaf`], or [`TableError::InMotion`] if the leaf is broken,
    /// marked or protected.
    pub(crate) fn protect(&self, ipa: Ipa, mark: Mark) -> Result<Leaf, TableError> {
        let (slot, _) = self.run(ipa)?;
        if slot.leaf().is_in_motion() {
            return Err(TableError::InMotion(ipa));
        }
        self.update(&slot, |leaf| leaf.protected().with_mark(mark))
    }

    /// Restores the write permission that [`Self::protect`] withheld, clears the mark, and starts the invalidation. Until
    /// the next [`Self::synchronise`], writes of a CPU that has the protected leaf in its TLB fault.
    ///
    /// # Errors
    /// [`TableError::NotMapped`], [`TableError::SplitsLeaf`], or [`TableError::InMotion`] if the leaf is broken.
    pub(crate) fn unprotect(&self, ipa: Ipa) -> Result<(), TableError> {
        let (slot, _) = self.run(ipa)?;
        self.update(&slot, |leaf| leaf.unprotected().with_mark(Mark::NONE)).map(|_| ())
    }

    /// Sets the access flag of the leaf that holds `ipa`, to resolve an access flag fault on a CPU that does not
    /// manage the flag. Returns whether it was clear. Nothing is invalidated, because a leaf whose access flag is
    /// clear is not held in a TLB (Arm ARM, "The Access flag").
    pub fn mark_accessed(&self, ipa: Ipa) -> bool {
        let Some(slot) = self.slot(ipa) else { return false };
        let mut found = load(slot.entry);
        while found.is_valid() && !found.is_accessed() {
            match exchange(slot.entry, slot.ipa, found, found.with_accessed()) {
                Ok(Ok(())) => {
                    self.publish();
                    return true;
                }
                Ok(Err(now)) => found = now,
                Err(_) => return false,
            }
        }
        false
    }

    /// Clears the access flags of `[ipa, ipa + size)`, and starts the invalidation of the leaves whose flag it
    /// cleared. `visit` is called with every leaf that is not broken, in its state before. Accesses through stale
    /// TLB entries go unnoticed until the next [`Self::synchronise`].
    ///
    /// The time grows with the number of leaves: split a large range over several calls.
    pub fn harvest_accessed(&self, ipa: Ipa, size: u64, mut visit: impl FnMut(Leaf)) {
        let mut run = StaleRun::EMPTY;
        for slot in self.slots(ipa, size) {
            let leaf = slot.leaf();
            if leaf.is_broken() {
                continue;
            }
            visit(leaf);
            if !leaf.descriptor().is_accessed() || !clear_accessed(slot.entry) {
                continue;
            }
            self.extend_run(&mut run, &slot);
        }
        self.invalidate_run(run);
    }

    /// Sets the access flags of `[ipa, ipa + size)`. `visit` is called with every leaf that is not broken, in its
    /// state before. Nothing is invalidated, as in [`Self::mark_accessed`].
    pub fn mark_all_accessed(&self, ipa: Ipa, size: u64, mut visit: impl FnMut(Leaf)) {
        for slot in self.slots(ipa, size) {
            let leaf = slot.leaf();
            if leaf.is_broken() {
                continue;
            }
            visit(leaf);
            if !leaf.descriptor().is_accessed() {
                self.mark_accessed(slot.ipa);
            }
        }
    }

    /// Counts the consecutive pages from `ipa` on that are not in motion and whose physical address satisfies
    /// `is_wanted`, up to `most` pages and the end of their table.
    pub(crate) fn leading(&self, ipa: Ipa, most: usize, mut is_wanted: impl FnMut(Pa) -> bool) -> usize {
        let Ok((slot, entries)) = self.run(ipa) else { return 0 };
        let mut is_next = |entry: &AtomicU64| {
            let found = load(entry);
            let is_at_rest = found.mark() == Mark::NONE && !found.is_protected();
            found.kind(Level::L3) == Kind::Leaf && is_at_rest && is_wanted(found.output())
        };
        if slot.level != Level::L3 {
            return 0;
        }
        entries.iter().take(most).take_while(|entry| is_next(entry)).count()
    }

    /// Returns the slot of the leaf that starts at `ipa`, and the entries of its table from there on.
    fn run(&self, ipa: Ipa) -> Result<(Slot<'_>, &[AtomicU64]), TableError> {
        if ipa.get() >= self.geometry.ipa_limit() {
            return Err(TableError::NotMapped(ipa));
        }
        let (End::Leaf(slot), table) = self.descend(ipa.get()) else {
            return Err(TableError::NotMapped(ipa));
        };
        if slot.ipa != ipa {
            return Err(TableError::SplitsLeaf { ipa: slot.ipa, level: slot.level });
        }
        let index = (ipa.get() >> slot.level.shift()) as usize % ENTRIES;
        Ok((slot, &table[index..]))
    }

    /// Changes a valid leaf without losing a concurrent update by hardware, and starts its invalidation.
    fn update(&self, slot: &Slot<'_>, change: impl Fn(Descriptor) -> Descriptor) -> Result<Leaf, TableError> {
        let mut found = load(slot.entry);
        loop {
            if found.kind(slot.level) != Kind::Leaf {
                return Err(TableError::InMotion(slot.ipa));
            }
            let new = change(found);
            match exchange(slot.entry, slot.ipa, found, new)? {
                Ok(()) => {
                    self.invalidate(slot.ipa, slot.level.size(), slot.level);
                    return Ok(Leaf::new(slot.ipa, slot.level, new));
                }
                Err(now) => found = now,
            }
        }
    }

    /// Publishes, and starts the invalidation of leaves.
    fn invalidate(&self, ipa: Ipa, size: u64, level: Level) -> Ticket {
        self.maintenance.publish();
        self.maintenance.invalidate(ipa, size, level, Cached::Leaves);
        self.ticket()
    }

    /// Adds a leaf to `run`. If it does not continue the run, starts the invalidation of the run and begins the
    /// next.
    pub(super) fn extend_run(&self, run: &mut StaleRun, slot: &Slot<'_>) {
        let end = run.ipa.get() + run.size;
        if run.size == 0 || slot.level != run.level || slot.ipa.get() != end {
            self.invalidate_run(*run);
            *run = StaleRun { ipa: slot.ipa, size: 0, level: slot.level };
        }
        run.size += slot.level.size();
    }

    /// Starts the invalidation of the leaves of `run`.
    pub(super) fn invalidate_run(&self, run: StaleRun) {
        if run.size > 0 {
            self.invalidate(run.ipa, run.size, run.level);
        }
    }

    /// Checks that a leaf of `level` can lead to `pa`.
    #[inline(always)]
    fn check_leaf_pa(&self, pa: Pa, level: Level) -> Result<(), TableError> {
        let size = level.size();
        if pa.get() & (size - 1) == 0 && pa.get() <= (1 << self.geometry.pa_bits()) - size {
            return Ok(());
        }
        self.refuse_leaf_pa(pa, size)
    }

    #[cold]
    fn refuse_leaf_pa(&self, pa: Pa, size: u64) -> Result<(), TableError> {
        if !pa.is_aligned(size) {
            return Err(TableError::PaOutside { pa, size, pa_bits: self.geometry.pa_bits() });
        }
        self.geometry.check_pa(pa, size)
    }
}

/// Makes a broken leaf with output address `pa`, without mark and protection.
#[inline(always)]
fn make(entry: &AtomicU64, ipa: Ipa, broken: Descriptor, pa: Pa) -> Result<Descriptor, TableError> {
    let made = broken.made().unprotected().with_mark(Mark::NONE).with_output(pa);
    match exchange(entry, ipa, broken, made)? {
        Ok(()) => Ok(made),
        Err(_) => Err(TableError::NotBroken(ipa)),
    }
}

/// Clears the access flag of a leaf. Returns false if the leaf has been broken meanwhile.
fn clear_accessed(entry: &AtomicU64) -> bool {
    let clear = |bits| {
        let found = Descriptor::from_bits(bits);
        found.is_valid().then(|| found.without_accessed().bits())
    };
    entry.fetch_update(Ordering::AcqRel, Ordering::Acquire, clear).is_ok()
}
