//! Unmapping of ranges, and release of the tables that it empties.

use super::descriptor::{Descriptor, ENTRIES, Kind, Level};
use super::error::TableError;
use super::leaf::StaleRun;
use super::map::Spare;
use super::walk::Leaf;
use super::{Cached, Maintenance, Stage2, Table, TableMemory, break_entry, load};
use crate::addr::{Frame, Ipa};
use core::sync::atomic::Ordering;

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Unmaps all leaves in `[ipa, ipa + size)`, which may have holes, and frees the tables that become empty.
    /// Returns the number of bytes unmapped.
    ///
    /// `visit` is called with the last valid state of each leaf, by ascending IPA, once no CPU of the guest can
    /// reach its frames any more.
    ///
    /// The time grows with the number of leaves: split a large range over several calls.
    ///
    /// # Errors
    /// - [`TableError::Misaligned`], [`TableError::IpaOutside`];
    /// - [`TableError::SplitsLeaf`] if the range starts or ends inside a leaf;
    /// - [`TableError::InMotion`] with the first leaf that is broken, protected or marked.
    ///
    /// After an error nothing has changed.
    pub fn unmap(&mut self, ipa: Ipa, size: u64, mut visit: impl FnMut(Leaf)) -> Result<u64, TableError> {
        self.geometry.check_ipa(ipa, size)?;
        let end = ipa.get() + size;
        for leaf in self.leaves(ipa, size) {
            if leaf.ipa() < ipa || leaf.ipa().get() + leaf.size() > end {
                return Err(TableError::SplitsLeaf { ipa: leaf.ipa(), level: leaf.level() });
            }
            if leaf.is_in_motion() {
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

    /// Breaks every leaf of the range, and completes the invalidation.
    fn break_range(&self, ipa: Ipa, size: u64) {
        let mut run = StaleRun::EMPTY;
        for slot in self.slots(ipa, size) {
            break_entry(slot.entry);
            self.extend_run(&mut run, &slot);
        }
        self.invalidate_run(run);
        self.synchronise();
    }

    /// Frees the empty tables of the range.
    ///
    /// A CPU may hold the pointer to an empty table in its TLB. So the frames are freed after an invalidation that
    /// reaches tables, and all their entries are invalid until then.
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

    /// Unlinks the empty tables below the table of `level` in `frame`, which translates addresses from `base` on.
    /// Recurses at most once per level.
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
