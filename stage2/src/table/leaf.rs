//! Changes of single leaves, on live tables.

use super::descriptor::{Attributes, Descriptor, ENTRIES, Kind, Level, Mark};
use super::error::TableError;
use super::unmap::is_in_motion;
use super::walk::{End, Leaf, Slot};
use super::{Cached, Maintenance, Stage2, TableMemory, break_entry, exchange, load};
use crate::addr::{Ipa, Pa};
use core::sync::atomic::{AtomicU64, Ordering};

/// Stands for an invalidation that was started. It is complete once [`Stage2::is_synchronised`] says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(u64);

impl Ticket {
    pub(super) const fn new(begun: u64) -> Self {
        Self(begun)
    }

    /// Whether the synchronisation number `completed` began after the invalidation.
    pub(super) const fn is_before(self, completed: u64) -> bool {
        completed > self.0
    }
}

/// Leaves side by side in one table that were broken together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BrokenRun {
    ipa: Ipa,
    level: Level,
    leaf_count: u16,
    ticket: Ticket,
}

impl BrokenRun {
    /// The run of no leaf.
    pub(crate) const EMPTY: Self =
        Self { ipa: Ipa::new_truncate(0), level: Level::L3, leaf_count: 0, ticket: Ticket(0) };

    /// Where the first leaf starts.
    pub const fn ipa(self) -> Ipa {
        self.ipa
    }

    /// The level of every leaf.
    pub const fn level(self) -> Level {
        self.level
    }

    /// How many there are, at most 512.
    pub const fn leaf_count(self) -> usize {
        self.leaf_count as usize
    }

    /// Stands for the invalidation of all.
    pub const fn ticket(self) -> Ticket {
        self.ticket
    }
}

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Breaks the leaf at `ipa` and up to `most - 1` after it of the same table, sets their marks from
    /// `from` to `to`, and starts their invalidation. The run ends before the first entry that is no valid
    /// leaf with the mark `from`; with [`Mark::NONE`], before one that is protected too.
    /// Each descriptor keeps its output address, attributes and last access and dirty state: `visit` gets
    /// it as it was at the last.
    ///
    /// # Errors
    /// [`TableError::NotMapped`]; [`TableError::InMotion`] where the run would be empty;
    /// [`TableError::SplitsLeaf`] where `ipa` is not the first address of a leaf.
    pub fn break_leaves(
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
            // Until it is broken hardware may still write; what this yields is final.
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

    /// Makes leaf number `index` of `run`: at `pa`, or with `None` where it was. Mark and protection go,
    /// all other attributes stay. Follow with [`Self::publish`], one for any number of leaves.
    ///
    /// # Errors
    /// [`TableError::NotBroken`] where the invalidation is not complete or the leaf was made already;
    /// [`TableError::PaOutside`] where `pa` is misaligned for the leaf or out of reach.
    pub fn make_leaf(&self, run: &BrokenRun, index: usize, pa: Option<Pa>) -> Result<Leaf, TableError> {
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

    /// Makes every leaf of `run` that is still broken, number `index` at `target(index)`, as
    /// [`Self::make_leaf`] does. Yields how many that were. Follow with [`Self::publish`].
    ///
    /// # Errors
    /// As [`Self::make_leaf`]; then the leaves before the one that failed are made.
    pub fn make_leaves(
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

    /// Moves the leaf at `ipa` to `pa` at once, by break-before-make, and yields it as it was at the last.
    /// The contents are the caller's: nobody may write to them meanwhile.
    ///
    /// # Errors
    /// As [`Self::break_leaves`] and [`Self::make_leaf`]; then the leaf is as it was.
    pub fn replace(&self, ipa: Ipa, pa: Pa) -> Result<Leaf, TableError> {
        let level = self.run(ipa)?.0.level;
        self.check_leaf_pa(pa, level)?;
        let mut old = Leaf::new(ipa, level, Descriptor::EMPTY);
        let run = self.break_leaves(ipa, 1, Mark::NONE, Mark::NONE, |leaf| old = leaf)?;
        self.synchronise();
        self.make_leaf(&run, 0, Some(pa))?;
        self.publish();
        Ok(old)
    }

    /// Withholds the guest's writes to the leaf at `ipa`, gives it `mark`, and starts its invalidation:
    /// once the ticket is complete no CPU writes there. Yields the leaf as it is now.
    ///
    /// # Errors
    /// [`TableError::NotMapped`], [`TableError::SplitsLeaf`], or [`TableError::InMotion`] where the leaf
    /// is broken, marked or protected.
    pub fn protect(&self, ipa: Ipa, mark: Mark) -> Result<(Leaf, Ticket), TableError> {
        let (slot, _) = self.run(ipa)?;
        if is_in_motion(slot.leaf()) {
            return Err(TableError::InMotion(ipa));
        }
        self.update(&slot, |leaf| leaf.protected().with_mark(mark))
    }

    /// Gives back what [`Self::protect`] withheld, and clears the mark. A CPU that still has the
    /// protected leaf cached faults once more until the ticket is complete.
    ///
    /// # Errors
    /// [`TableError::NotMapped`], [`TableError::SplitsLeaf`], or [`TableError::InMotion`] where the leaf is broken.
    pub fn unprotect(&self, ipa: Ipa) -> Result<(Leaf, Ticket), TableError> {
        let (slot, _) = self.run(ipa)?;
        self.update(&slot, |leaf| leaf.unprotected().with_mark(Mark::NONE))
    }

    /// Changes the permissions and flags of the leaf at `ipa` on the live entry, and starts its invalidation.
    ///
    /// # Errors
    /// [`TableError::BreakBeforeMake`] where the memory type differs; [`TableError::InMotion`] where the
    /// leaf is marked, protected or broken; [`TableError::NotMapped`], [`TableError::SplitsLeaf`].
    pub fn set_attributes(&self, ipa: Ipa, attributes: Attributes) -> Result<(Leaf, Ticket), TableError> {
        let (slot, _) = self.run(ipa)?;
        if is_in_motion(slot.leaf()) {
            return Err(TableError::InMotion(ipa));
        }
        self.update(&slot, |leaf| Descriptor::leaf(slot.level, leaf.output(), attributes))
    }

    /// Sets the access flag of the leaf that holds `ipa`: the answer to an access flag fault where
    /// hardware does not manage it. Yields whether it was clear. No invalidation: a leaf with the flag
    /// clear is not cached (DDI 0487J.a, D8.4, the access flag).
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

    /// Clears the access flags of `[ipa, ipa + size)`. `visit` gets every leaf that is not broken, with
    /// the access flag as it was found; the invalidation is started, once for each run of cleared leaves.
    /// Yields its ticket: until it is complete, accesses by cached entries go unseen.
    ///
    /// Its time grows with the leaves of the range: harvest much in several calls.
    pub fn harvest_accessed(&self, ipa: Ipa, size: u64, mut visit: impl FnMut(Leaf)) -> Ticket {
        let mut run: Option<(Ipa, u64, Level)> = None;
        for slot in self.slots(ipa, size) {
            let leaf = slot.leaf();
            if leaf.is_broken() {
                continue;
            }
            visit(leaf);
            if !leaf.descriptor().is_accessed() || !clear_accessed(slot.entry) {
                continue;
            }
            run = match run {
                Some((from, bytes, level)) if level == slot.level && from.get() + bytes == slot.ipa.get() => {
                    Some((from, bytes + level.size(), level))
                }
                earlier => {
                    if let Some((from, bytes, level)) = earlier {
                        self.invalidate(from, bytes, level);
                    }
                    Some((slot.ipa, slot.level.size(), slot.level))
                }
            };
        }
        match run {
            Some((from, bytes, level)) => self.invalidate(from, bytes, level),
            None => self.ticket(),
        }
    }

    /// Sets the access flags of `[ipa, ipa + size)`. `visit` gets every leaf that is not broken, with the access flag as
    /// it was found. No invalidation, as for [`Self::mark_accessed`].
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

    /// How many of the leaves from `ipa` on, up to `most` and to the end of their table, are pages at rest of which
    /// `is_wanted` holds for the physical address: those before the first that is not.
    pub fn leading(&self, ipa: Ipa, most: usize, mut is_wanted: impl FnMut(Pa) -> bool) -> usize {
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

    /// The slot of the leaf that starts at `ipa`, and its table's entries from there on.
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

    /// Changes a live leaf; hardware's updates of it meanwhile are taken along.
    fn update(
        &self,
        slot: &Slot<'_>,
        change: impl Fn(Descriptor) -> Descriptor,
    ) -> Result<(Leaf, Ticket), TableError> {
        let mut found = load(slot.entry);
        loop {
            if found.kind(slot.level) != Kind::Leaf {
                return Err(TableError::InMotion(slot.ipa));
            }
            let new = change(found);
            match exchange(slot.entry, slot.ipa, found, new)? {
                Ok(()) => {
                    let ticket = self.invalidate(slot.ipa, slot.level.size(), slot.level);
                    return Ok((Leaf::new(slot.ipa, slot.level, new), ticket));
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

/// Makes a broken leaf at `pa`, without mark and protection.
#[inline(always)]
fn make(entry: &AtomicU64, ipa: Ipa, broken: Descriptor, pa: Pa) -> Result<Descriptor, TableError> {
    let made = broken.made().unprotected().with_mark(Mark::NONE).with_output(pa);
    match exchange(entry, ipa, broken, made)? {
        Ok(()) => Ok(made),
        Err(_) => Err(TableError::NotBroken(ipa)),
    }
}

/// Clears the access flag of a leaf unless it has just been broken.
fn clear_accessed(entry: &AtomicU64) -> bool {
    let clear = |bits| {
        let found = Descriptor::from_bits(bits);
        found.is_valid().then(|| found.without_accessed().bits())
    };
    entry.fetch_update(Ordering::AcqRel, Ordering::Acquire, clear).is_ok()
}
