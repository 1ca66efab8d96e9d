//! Demotion and promotion of leaves.

use super::descriptor::{Descriptor, ENTRIES, Kind, Level, Mark};
use super::error::TableError;
use super::walk::Leaf;
use super::{Cached, Maintenance, Stage2, Table, TableMemory, break_entry, load};
use crate::addr::{Frame, Ipa, Pa};
use core::sync::atomic::{AtomicU64, Ordering};

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Replaces the leaf that holds `ipa` by a table of 512 smaller leaves with the same frames, attributes and
    /// access flag. Returns the last state of the leaf.
    ///
    /// The guest may run. Its accesses fault between break and make, for a few hundred instructions.
    ///
    /// # Errors
    /// [`TableError::NotMapped`]; [`TableError::NotDivisible`] for a page; [`TableError::InMotion`] if the leaf is
    /// broken, protected or marked; [`TableError::OutOfTables`]. After an error nothing has changed.
    pub(crate) fn demote(&mut self, ipa: Ipa) -> Result<Leaf, TableError> {
        let leaf = self.leaf(ipa).ok_or(TableError::NotMapped(ipa))?;
        if leaf.is_in_motion() {
            return Err(TableError::InMotion(leaf.ipa()));
        }
        self.divide(leaf, 0, None)
    }

    /// Demotes leaves until none crosses `ipa`, so that the two sides can be unmapped separately.
    ///
    /// # Errors
    /// [`TableError::InMotion`] if the leaf is broken, protected or marked; [`TableError::NotDivisible`] if `ipa` is not
    /// the start of a frame; [`TableError::OutOfTables`]. The leaf may have been demoted by one level.
    pub fn split_at(&mut self, ipa: Ipa) -> Result<(), TableError> {
        while self.leaf(ipa).is_some_and(|leaf| leaf.ipa() != ipa) {
            self.demote(ipa)?;
        }
        Ok(())
    }

    /// Demotes a protected leaf that migration has copied in part: the first `moved` parts lead to `target` and the
    /// following addresses, the other parts to their old frames. Clears protection and mark of all.
    ///
    /// # Errors
    /// As [`Self::demote`], except: [`TableError::InMotion`] only if the leaf is broken; [`TableError::NotBroken`] if
    /// it is neither protected nor marked; [`TableError::PaOutside`] if `target` is misaligned for a part.
    pub(crate) fn split(&mut self, ipa: Ipa, moved: usize, target: Pa) -> Result<Leaf, TableError> {
        let leaf = self.leaf(ipa).ok_or(TableError::NotMapped(ipa))?;
        if leaf.is_broken() {
            return Err(TableError::InMotion(leaf.ipa()));
        }
        if !leaf.is_in_motion() {
            return Err(TableError::NotBroken(leaf.ipa()));
        }
        let part = leaf.level().below().ok_or(TableError::NotDivisible(leaf.ipa()))?;
        let size = leaf.size();
        if !target.is_aligned(part.size()) {
            return Err(TableError::PaOutside { pa: target, size, pa_bits: self.geometry.pa_bits() });
        }
        self.geometry.check_pa(target, size)?;
        self.divide(leaf, moved, Some(target))
    }

    /// Replaces `leaf` by a table. With `target`, the first `moved` parts lead there, and protection and mark go.
    fn divide(&mut self, leaf: Leaf, moved: usize, target: Option<Pa>) -> Result<Leaf, TableError> {
        let level = leaf.level();
        if level.below().is_none() {
            return Err(TableError::NotDivisible(leaf.ipa()));
        }
        let Some(frame) = self.tables.allocate(0) else {
            return Err(TableError::OutOfTables { needed: 1, available: 0 });
        };
        let Some(slot) = self.slot(leaf.ipa()) else {
            self.tables.free(frame, 0);
            return Err(TableError::NotMapped(leaf.ipa()));
        };
        let table = self.tables.table(frame);
        let divide = |whole: Descriptor| fill_parts(table, whole, level, moved, target);
        // The table is filled before the break, to keep the time short in which the guest faults.
        let found = load(slot.entry);
        divide(found);
        let last = break_entry(slot.entry);
        if last != found {
            // Hardware has set the access flag meanwhile.
            divide(last);
        }
        self.maintenance.publish();
        self.maintenance.invalidate(leaf.ipa(), leaf.size(), level, Cached::Leaves);
        self.synchronise();
        slot.entry.store(Descriptor::table(frame).bits(), Ordering::Release);
        self.maintenance.publish();
        self.table_count += 1;
        Ok(Leaf::new(leaf.ipa(), level, last))
    }

    /// Replaces the table below the entry of `level` for `ipa` by one leaf, if its 512 leaves are contiguous, have
    /// equal attributes, and start at a multiple of the new size. The new leaf has the access flag set if any of
    /// them had. Returns the new leaf.
    ///
    /// The guest may run. Its accesses to the range fault between break and make.
    ///
    /// # Errors
    /// [`TableError::NotMapped`] if there is no table; [`TableError::NotOneBlock`] or [`TableError::InMotion`] with
    /// the first leaf that does not fit. After an error nothing has changed.
    pub(crate) fn promote(&mut self, ipa: Ipa, level: Level) -> Result<Leaf, TableError> {
        let (entry, frame) = self.check_promotion(ipa, level)?;
        let base = Ipa::new_truncate(ipa.get() & !(level.size() - 1));
        let below = level.below().ok_or(TableError::NotDivisible(base))?;
        break_entry(entry);
        self.maintenance.publish();
        self.maintenance.invalidate(base, level.size(), below, Cached::LeavesAndTables);
        self.synchronise();
        // No CPU reaches the old leaves any more, so their access flags are final.
        let block = self.tables.table(frame).iter().map(load).reduce(Descriptor::gathered);
        let block = block.unwrap_or(Descriptor::EMPTY).as_block();
        entry.store(block.bits(), Ordering::Release);
        self.maintenance.publish();
        clear(self.tables.table(frame));
        self.tables.free(frame, 0);
        self.table_count -= 1;
        Ok(Leaf::new(base, level, block))
    }

    /// Tests whether [`Self::promote`] would succeed.
    ///
    /// # Errors
    /// As [`Self::promote`].
    pub(crate) fn can_promote(&self, ipa: Ipa, level: Level) -> Result<(), TableError> {
        self.check_promotion(ipa, level).map(|_| ())
    }

    /// Returns the entry that [`Self::promote`] replaces, and the frame of its table.
    fn check_promotion(&self, ipa: Ipa, level: Level) -> Result<(&AtomicU64, Frame), TableError> {
        let base = Ipa::new_truncate(ipa.get() & !(level.size() - 1));
        let below = level.below().filter(|_| level.has_leaves()).ok_or(TableError::NotDivisible(base))?;
        let entry = self.table_entry(ipa, level).ok_or(TableError::NotMapped(base))?;
        let frame = load(entry).table_frame();
        let table = self.tables.table(frame);
        let first = load(&table[0]);
        for (index, entry) in table.iter().enumerate() {
            let found = load(entry);
            let offset = (index as u64) << below.shift();
            let at = Ipa::new_truncate(base.get() + offset);
            match found.kind(below) {
                Kind::Leaf if Leaf::new(at, below, found).is_in_motion() => {
                    return Err(TableError::InMotion(at));
                }
                Kind::BrokenLeaf | Kind::BrokenTable => return Err(TableError::InMotion(at)),
                Kind::Leaf => {}
                Kind::Empty | Kind::Table => return Err(TableError::NotOneBlock(at)),
            }
            let aligned = first.output().is_aligned(level.size());
            let continues = found.output().get() == first.output().get() + offset;
            if !aligned || !continues || !first.is_alike(found) {
                return Err(TableError::NotOneBlock(at));
            }
        }
        Ok((entry, frame))
    }

    /// Returns the entry of `level` for `ipa`, if it leads to a table.
    fn table_entry(&self, ipa: Ipa, level: Level) -> Option<&AtomicU64> {
        if ipa.get() >= self.geometry.ipa_limit() || level < self.geometry.start() {
            return None;
        }
        let mut at = self.geometry.start();
        let mut table = self.root_table(ipa.get());
        loop {
            let entry = Self::entry_in(table, at, ipa.get());
            let descriptor = load(entry);
            if descriptor.kind(at) != Kind::Table {
                return None;
            }
            if at == level {
                return Some(entry);
            }
            table = self.tables.table(descriptor.table_frame());
            at = at.below()?;
        }
    }
}

/// Fills a table that no CPU reaches yet with the parts of `whole`, a leaf of `level`.
fn fill_parts(table: &Table, whole: Descriptor, level: Level, moved: usize, target: Option<Pa>) {
    let mut whole = whole;
    if target.is_some() {
        whole = whole.unprotected().with_mark(Mark::NONE);
    }
    let there = target.map_or(whole, |target| whole.with_output(target));
    let step = level.below().map_or(0, Level::size);
    let (at_target, at_source) = table.split_at(moved.min(ENTRIES));
    for (entries, leaf, first) in [(at_target, there, 0), (at_source, whole, at_target.len())] {
        let Some(part) = leaf.part(level, first) else { continue };
        let mut bits = part.bits();
        for entry in entries {
            entry.store(bits, Ordering::Relaxed);
            bits += step;
        }
    }
}

fn clear(table: &Table) {
    for entry in table {
        entry.store(0, Ordering::Relaxed);
    }
}
