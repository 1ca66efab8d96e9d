//! Mapping of ranges, and allocation of the tables that they need.

use super::descriptor::{Attributes, Descriptor, ENTRIES, Kind, Level};
use super::error::TableError;
use super::walk::End;
use super::{Maintenance, Stage2, Table, TableMemory, load};
use crate::addr::{Frame, Ipa, Pa};
use core::sync::atomic::Ordering;

/// Returns the level of the largest leaf that can map the start of a range of `size` bytes from `ipa` to `pa`.
fn leaf_level(start: Level, ipa: u64, pa: u64, size: u64) -> Level {
    let fits =
        |level: &Level| *level >= start && (ipa | pa) & (level.size() - 1) == 0 && size >= level.size();
    Level::LEAVES.into_iter().find(fits).unwrap_or(Level::L3)
}

/// Part of a range that leaves of one level in one table map.
struct Run {
    ipa: u64,
    pa: u64,
    level: Level,
    leaves: u64,
}

/// Iterator over the runs of a range, with the largest leaves that fit.
struct Runs {
    start: Level,
    ipa: u64,
    pa: u64,
    size: u64,
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.size == 0 {
            return None;
        }
        let level = leaf_level(self.start, self.ipa, self.pa, self.size);
        let index = (self.ipa >> level.shift()) % ENTRIES as u64;
        let leaves = (ENTRIES as u64 - index).min(self.size >> level.shift());
        let run = Run { ipa: self.ipa, pa: self.pa, level, leaves };
        let bytes = leaves << level.shift();
        self.ipa += bytes;
        self.pa += bytes;
        self.size -= bytes;
        Some(run)
    }
}

/// List of table frames, linked through their first entries. The links are invalid descriptors; all other entries
/// are zero.
pub(super) struct Spare {
    head: Option<Frame>,
}

impl Spare {
    pub(super) const fn empty() -> Self {
        Self { head: None }
    }

    /// Adds `frame` to the list.
    pub(super) fn push<T: TableMemory>(&mut self, tables: &T, frame: Frame) {
        let next = self.head.map_or(0, |next| Descriptor::table(next).broken().bits());
        tables.table(frame)[0].store(next, Ordering::Relaxed);
        self.head = Some(frame);
    }

    /// Takes a frame from the list, with every entry zero.
    fn pop<T: TableMemory>(&mut self, tables: &T) -> Option<Frame> {
        let frame = self.head?;
        let next = Descriptor::from_bits(tables.table(frame)[0].swap(0, Ordering::Relaxed));
        self.head = (next != Descriptor::EMPTY).then(|| next.table_frame());
        Some(frame)
    }

    /// Frees all frames of the list, and returns their number.
    pub(super) fn free<T: TableMemory>(&mut self, tables: &mut T) -> u64 {
        let mut count = 0;
        while let Some(frame) = self.pop(tables) {
            tables.free(frame, 0);
            count += 1;
        }
        count
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.head.is_none()
    }
}

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Returns the number of table frames that [`Self::map`] would allocate for this range.
    ///
    /// # Errors
    /// As [`Self::map`], except [`TableError::OutOfTables`].
    pub(super) fn tables_needed(&self, ipa: Ipa, pa: Pa, size: u64) -> Result<u64, TableError> {
        self.geometry.check_ipa(ipa, size)?;
        self.geometry.check_pa(pa, size)?;
        if let Some(slot) = self.slots(ipa, size).next() {
            return Err(TableError::AlreadyMapped(slot.ipa.max(ipa)));
        }
        let start = self.geometry.start();
        let mut count = 0;
        // The table counted last, by the level of the entry that leads to it.
        let mut last: [Option<u64>; 3] = [None; 3];
        for run in (Runs { start, ipa: ipa.get(), pa: pa.get(), size }) {
            let mut level = run.level;
            while level > start
                && let Some(above) = level.above()
            {
                let table = Some(run.ipa >> above.shift());
                if last[above as usize] != table && self.lacks_table(run.ipa, level) {
                    last[above as usize] = table;
                    count += 1;
                }
                level = above;
            }
        }
        Ok(count)
    }

    /// Tests whether there is no table of `level` for `ipa`.
    fn lacks_table(&self, ipa: u64, level: Level) -> bool {
        match self.descend(ipa).0 {
            End::Hole(hole) => hole < level,
            End::Leaf(_) => false,
        }
    }

    /// Maps `[ipa, ipa + size)` to `[pa, pa + size)` with the largest leaves that fit. The guest may run meanwhile.
    ///
    /// # Errors
    /// - [`TableError::Misaligned`], [`TableError::IpaOutside`], [`TableError::PaOutside`];
    /// - [`TableError::AlreadyMapped`] with the first address of the range that is mapped;
    /// - [`TableError::OutOfTables`] with the number of table frames that the range needs.
    ///
    /// After an error nothing has changed.
    pub fn map(&mut self, ipa: Ipa, pa: Pa, size: u64, attributes: Attributes) -> Result<(), TableError> {
        let needed = self.tables_needed(ipa, pa, size)?;
        let mut spare = self.reserve(needed)?;
        for run in (Runs { start: self.geometry.start(), ipa: ipa.get(), pa: pa.get(), size }) {
            // Never `None`: `spare` has as many frames as `tables_needed` counted.
            if let Some(table) = self.open(run.ipa, run.level, &mut spare) {
                fill(table, &run, attributes);
            }
        }
        // Entries that were invalid need no invalidation: a TLB does not hold what faults (Arm ARM,
        // "Translation Lookaside Buffers").
        self.maintenance.publish();
        self.table_count += needed - spare.free(&mut self.tables);
        Ok(())
    }

    /// Allocates `needed` table frames, or none.
    fn reserve(&mut self, needed: u64) -> Result<Spare, TableError> {
        let mut spare = Spare::empty();
        for available in 0..needed {
            let Some(frame) = self.tables.allocate(0) else {
                spare.free(&mut self.tables);
                return Err(TableError::OutOfTables { needed, available });
            };
            spare.push(&self.tables, frame);
        }
        Ok(spare)
    }

    /// Returns the table of `level` that holds the entry for `ipa`, and takes missing tables from `spare`. `None` if
    /// `spare` is empty or a leaf is in the way.
    fn open(&self, ipa: u64, level: Level, spare: &mut Spare) -> Option<&Table> {
        let mut at = self.geometry.start();
        let mut table = self.root_table(ipa);
        while at < level {
            let entry = Self::entry_in(table, at, ipa);
            let mut descriptor = load(entry);
            if descriptor == Descriptor::EMPTY {
                descriptor = Descriptor::table(spare.pop(&self.tables)?);
                // Hardware must not follow the new entry before it can see the zeroes behind it.
                self.maintenance.publish();
                entry.store(descriptor.bits(), Ordering::Release);
            }
            if descriptor.kind(at) != Kind::Table {
                return None;
            }
            table = self.tables.table(descriptor.table_frame());
            at = at.below()?;
        }
        Some(table)
    }
}

fn fill(table: &Table, run: &Run, attributes: Attributes) {
    let first = (run.ipa >> run.level.shift()) as usize % ENTRIES;
    let mut pa = run.pa;
    for entry in table.iter().skip(first).take(run.leaves as usize) {
        let leaf = Descriptor::leaf(run.level, Pa::new_truncate(pa), attributes);
        entry.store(leaf.bits(), Ordering::Release);
        pa += run.level.size();
    }
}
