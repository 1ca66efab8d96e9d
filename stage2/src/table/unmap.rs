//! Unmapping a range, and the end of an address space.

use super::descriptor::{Descriptor, ENTRIES, Kind, Level, Mark};
use super::error::TableError;
use super::map::Spare;
use super::walk::Leaf;
use super::{Cached, Maintenance, Stage2, Table, TableMemory, break_entry, load};
use crate::addr::{Frame, Ipa};
use core::sync::atomic::Ordering;

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Unmaps what is mapped in `[ipa, ipa + size)`, holes or not, and gives back the tables that this
    /// leaves empty. `visit` gets each leaf as it was at the last, by ascending IPA, when no CPU can reach
    /// its frames by this guest's tables any more. Yields the bytes unmapped.
    ///
    /// Its time grows with the leaves in the range: unmap much in several calls.
    ///
    /// # Errors
    /// - [`TableError::Misaligned`], [`TableError::IpaOutside`];
    /// - [`TableError::SplitsLeaf`] where the range starts or ends inside a leaf;
    /// - [`TableError::InMotion`] with the first leaf that is marked, protected or broken by a move.
    ///
    /// After an error nothing has changed.
    pub fn unmap(&mut self, ipa: Ipa, size: u64, mut visit: impl FnMut(Leaf)) -> Result<u64, TableError> {
        self.geometry.check_ipa(ipa, size)?;
        let end = ipa.get() + size;
        for leaf in self.leaves(ipa, size) {
            if leaf.ipa() < ipa || leaf.ipa().get() + leaf.size() > end {
                return Err(TableError::SplitsLeaf { ipa: leaf.ipa(), level: leaf.level() });
            }
            if is_in_motion(leaf) {
                return Err(TableError::InMotion(leaf.ipa()));
            }
        }
        self.break_range(ipa, size);
        let mut bytes = 0;
        for slot in self.slots(ipa, size) {
            let broken = Descriptor::from_bits(slot.entry.swap(0, Ordering::AcqRel));
            visit(Leaf::new(slot.ipa, slot.level, broken.made()));
            bytes += slot.level.size();
        }
        self.prune(ipa, size);
        Ok(bytes)
    }

    /// Ends the address space: invalidates everything, shows each leaf to `visit`, in motion or not, by
    /// ascending IPA, and gives every table back. No vCPU of the guest may run, now or later.
    pub fn tear_down(mut self, mut visit: impl FnMut(Leaf)) -> T {
        let size = self.geometry.ipa_limit();
        for slot in self.slots(Ipa::default(), size) {
            break_entry(slot.entry);
        }
        self.maintenance.publish();
        self.maintenance.invalidate_all();
        self.synchronise();
        for slot in self.slots(Ipa::default(), size) {
            let broken = Descriptor::from_bits(slot.entry.swap(0, Ordering::AcqRel));
            visit(Leaf::new(slot.ipa, slot.level, broken.made()));
        }
        self.prune(Ipa::default(), size);
        self.tables.free(self.root, self.geometry.root_order());
        self.tables
    }

    /// Breaks every leaf of the range and completes the invalidation.
    fn break_range(&self, ipa: Ipa, size: u64) {
        let mut run: Option<(Ipa, u64, Level)> = None;
        for slot in self.slots(ipa, size) {
            break_entry(slot.entry);
            run = match run {
                Some((from, bytes, level)) if level == slot.level && from.get() + bytes == slot.ipa.get() => {
                    Some((from, bytes + level.size(), level))
                }
                earlier => {
                    self.invalidate_run(earlier);
                    Some((slot.ipa, slot.level.size(), slot.level))
                }
            };
        }
        self.invalidate_run(run);
        self.synchronise();
    }

    fn invalidate_run(&self, run: Option<(Ipa, u64, Level)>) {
        if let Some((ipa, bytes, level)) = run {
            self.maintenance.publish();
            self.maintenance.invalidate(ipa, bytes, level, Cached::Leaves);
        }
    }

    /// Gives back the tables of the range that are empty.
    ///
    /// A walk may have cached the way to a table that holds nothing, so the frames go only after an
    /// invalidation that reaches tables; until then their entries stay invalid.
    fn prune(&mut self, ipa: Ipa, size: u64) {
        let mut unlinked = Spare::empty();
        let start = self.geometry.start();
        let (first, last) = (ipa.get(), ipa.get() + (size - 1));
        for root in 0..self.geometry.root_tables() {
            let span = start.size() * ENTRIES as u64;
            let Some(frame) = self.root.checked_add(root) else { break };
            if root * span <= last && (root + 1) * span > first {
                self.prune_table(frame, start, root * span, (first, last), &mut unlinked);
            }
        }
        if unlinked.is_empty() {
            return;
        }
        self.maintenance.publish();
        self.maintenance.invalidate(ipa, size, Level::L2, Cached::LeavesAndTables);
        self.synchronise();
        self.table_count -= unlinked.free(&mut self.tables);
    }

    /// Unlinks the empty tables below the table of `level` in `frame`, which translates from `base` on.
    /// The depth of the recursion is that of the tables.
    fn prune_table(&self, frame: Frame, level: Level, base: u64, range: (u64, u64), unlinked: &mut Spare) {
        let Some(below) = level.below() else { return };
        let table = self.tables.table(frame);
        let entry_of = |address: u64| ((address.max(base) - base) >> level.shift()) as usize;
        let (first, last) = (entry_of(range.0), entry_of(range.1).min(ENTRIES - 1));
        for (index, entry) in table.iter().enumerate().take(last + 1).skip(first) {
            let descriptor = load(entry);
            if descriptor.kind(level) != Kind::Table {
                continue;
            }
            let child = descriptor.table_frame();
            self.prune_table(child, below, base + ((index as u64) << level.shift()), range, unlinked);
            if is_empty(self.tables.table(child)) {
                entry.store(0, Ordering::Release);
                unlinked.push(&self.tables, child);
            }
        }
    }
}

fn is_empty(table: &Table) -> bool {
    table.iter().all(|entry| entry.load(Ordering::Relaxed) == 0)
}

/// Whether a move has a hand on the leaf.
pub(super) fn is_in_motion(leaf: Leaf) -> bool {
    leaf.is_broken() || leaf.is_protected() || leaf.mark() != Mark::NONE
}
