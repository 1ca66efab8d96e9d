//! Mapping a range, and the table frames that it takes.

use super::descriptor::{Attributes, Descriptor, ENTRIES, Kind, Level};
use super::error::TableError;
use super::walk::End;
use super::{Geometry, Maintenance, Stage2, Table, TableMemory, load};
use crate::addr::{Frame, Ipa, Pa};
use core::sync::atomic::Ordering;

/// The level of the largest leaf that `ipa` to `pa` may start with, `size` bytes being left.
fn leaf_level(start: Level, ipa: u64, pa: u64, size: u64) -> Level {
    let fits =
        |level: &Level| *level >= start && (ipa | pa) & (level.size() - 1) == 0 && size >= level.size();
    Level::LEAVES.into_iter().find(fits).unwrap_or(Level::L3)
}

/// A part of a range that is mapped by leaves of one level in one table.
struct Run {
    ipa: u64,
    pa: u64,
    level: Level,
    leaves: u64,
}

/// Cuts a range into runs, the largest leaves that fit.
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

/// Counts the table frames that a guest's ranges will take, before there are any tables.
#[derive(Clone, Debug)]
pub struct TableCount {
    geometry: Geometry,
    count: u64,
    /// For the tables of levels 1 to 3: which one was counted last.
    last: [Option<u64>; 3],
}

impl TableCount {
    /// The tables of the start level.
    pub const fn new(geometry: Geometry) -> Self {
        Self { geometry, count: geometry.root_tables(), last: [None; 3] }
    }

    /// Adds the tables for a range. The count is exact where ranges come by ascending IPA, and
    /// else may be too high by tables that ranges share.
    ///
    /// # Errors
    /// As [`Stage2::map`], but for memory and what is mapped already.
    pub fn add(&mut self, ipa: Ipa, pa: Pa, size: u64) -> Result<(), TableError> {
        self.geometry.check_ipa(ipa, size)?;
        self.geometry.check_pa(pa, size)?;
        self.add_missing(ipa, pa, size, |_, _| true);
        Ok(())
    }

    /// The table frames so far.
    pub const fn count(&self) -> u64 {
        self.count
    }

    fn add_missing(&mut self, ipa: Ipa, pa: Pa, size: u64, is_missing: impl Fn(u64, Level) -> bool) {
        let start = self.geometry.start();
        for run in (Runs { start, ipa: ipa.get(), pa: pa.get(), size }) {
            let mut level = run.level;
            while level > start {
                let Some(above) = level.above() else { break };
                let table = run.ipa >> above.shift();
                let last = &mut self.last[above as usize];
                if *last != Some(table) && is_missing(run.ipa, level) {
                    *last = Some(table);
                    self.count += 1;
                }
                level = above;
            }
        }
    }
}

/// Zeroed table frames taken in advance, chained through their first entries, which stay invalid.
pub(super) struct Spare {
    head: Option<Frame>,
}

impl Spare {
    pub(super) const fn empty() -> Self {
        Self { head: None }
    }

    /// Puts `frame` at the head. Its first entry keeps an invalid descriptor.
    pub(super) fn push<T: TableMemory>(&mut self, tables: &T, frame: Frame) {
        let next = self.head.map_or(0, |next| Descriptor::table(next).broken().bits());
        tables.table(frame)[0].store(next, Ordering::Relaxed);
        self.head = Some(frame);
    }

    /// Takes the head, every entry of it zero.
    fn pop<T: TableMemory>(&mut self, tables: &T) -> Option<Frame> {
        let frame = self.head?;
        let next = Descriptor::from_bits(tables.table(frame)[0].swap(0, Ordering::Relaxed));
        self.head = (next != Descriptor::EMPTY).then(|| next.table_frame());
        Some(frame)
    }

    /// Gives all back and says how many there were.
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
    /// The table frames that [`Self::map`] of this range would take now.
    ///
    /// # Errors
    /// As [`Self::map`], but for [`TableError::OutOfTables`].
    pub fn tables_needed(&self, ipa: Ipa, pa: Pa, size: u64) -> Result<u64, TableError> {
        self.geometry.check_ipa(ipa, size)?;
        self.geometry.check_pa(pa, size)?;
        if let Some(slot) = self.slots(ipa, size).next() {
            return Err(TableError::AlreadyMapped(slot.ipa.max(ipa)));
        }
        let mut count = TableCount { geometry: self.geometry, count: 0, last: [None; 3] };
        count.add_missing(ipa, pa, size, |ipa, level| match self.descend(ipa).0 {
            End::Hole(hole) => hole < level,
            End::Leaf(_) => false,
        });
        Ok(count.count)
    }

    /// Maps `[ipa, ipa + size)` to `[pa, pa + size)` by the largest leaves that fit. Nothing may be mapped
    /// there; the guest may run meanwhile.
    ///
    /// # Errors
    /// - [`TableError::Misaligned`], [`TableError::IpaOutside`], [`TableError::PaOutside`];
    /// - [`TableError::AlreadyMapped`] with the first address that is;
    /// - [`TableError::OutOfTables`] with the number of table frames that it takes.
    ///
    /// After an error nothing has changed.
    pub fn map(&mut self, ipa: Ipa, pa: Pa, size: u64, attributes: Attributes) -> Result<(), TableError> {
        let needed = self.tables_needed(ipa, pa, size)?;
        let mut spare = self.reserve(needed)?;
        for run in (Runs { start: self.geometry.start(), ipa: ipa.get(), pa: pa.get(), size }) {
            // `reserve` has every table that `tables_needed` counted.
            if let Some(table) = self.open(run.ipa, run.level, &mut spare) {
                fill(table, &run, attributes);
            }
        }
        // An entry that held nothing needs no invalidation: what faults is not cached (D8.13).
        self.maintenance.publish();
        self.table_count += needed - spare.free(&mut self.tables);
        Ok(())
    }

    /// Takes `needed` table frames, or none.
    pub(super) fn reserve(&mut self, needed: u64) -> Result<Spare, TableError> {
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

    /// The table of `level` that holds the entry for `ipa`; missing tables come from `spare`. `None` where
    /// `spare` runs out or a leaf is in the way.
    fn open(&self, ipa: u64, level: Level, spare: &mut Spare) -> Option<&Table> {
        let mut at = self.geometry.start();
        let mut table = self.root_table(ipa);
        while at < level {
            let entry = Self::entry_in(table, at, ipa);
            let mut descriptor = load(entry);
            if descriptor == Descriptor::EMPTY {
                descriptor = Descriptor::table(spare.pop(&self.tables)?);
                // The table is seen to be empty before it is seen at all.
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
