//! Demotion and promotion: the same frames by smaller or larger leaves.

use super::descriptor::{Descriptor, ENTRIES, Kind, Level, Mark};
use super::error::TableError;
use super::unmap::is_in_motion;
use super::walk::Leaf;
use super::{Cached, Maintenance, Stage2, Table, TableMemory, break_entry, load};
use crate::addr::{Frame, Ipa, Pa};
use core::sync::atomic::{AtomicU64, Ordering};

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Puts a table of 512 smaller leaves in the place of the leaf that holds `ipa`: same frames, same
    /// attributes, same access and dirty state. The guest may run; it faults on the leaf between break
    /// and make, for a few hundred instructions. Yields the leaf as it was at the last.
    ///
    /// # Errors
    /// [`TableError::NotMapped`]; [`TableError::NotDivisible`] for 4 KiB; [`TableError::InMotion`] where the
    /// leaf is marked, protected or broken; [`TableError::OutOfTables`]. Then nothing has changed.
    pub fn demote(&mut self, ipa: Ipa) -> Result<Leaf, TableError> {
        let leaf = self.leaf(ipa).ok_or(TableError::NotMapped(ipa))?;
        if is_in_motion(leaf) {
            return Err(TableError::InMotion(leaf.ipa()));
        }
        self.divide(leaf, 0, None)
    }

    /// Demotes leaves until none reaches over `ipa`: what is mapped on both sides of it can be unmapped each for itself.
    ///
    /// # Errors
    /// As [`Self::demote`]; the leaf is then as large as it was, or one level smaller.
    pub fn part(&mut self, ipa: Ipa) -> Result<(), TableError> {
        while self.leaf(ipa).is_some_and(|leaf| leaf.ipa() != ipa) {
            self.demote(ipa)?;
        }
        Ok(())
    }

    /// Demotes a protected leaf of which a move has copied the first `moved` parts to `target` on: these
    /// parts now lead there, the others to where they were. Protection and mark are gone from all.
    ///
    /// # Errors
    /// As [`Self::demote`], but [`TableError::InMotion`] where the leaf is broken, [`TableError::NotBroken`]
    /// where it is not protected, and [`TableError::PaOutside`] for a target misaligned for a part.
    pub fn split(&mut self, ipa: Ipa, moved: usize, target: Pa) -> Result<Leaf, TableError> {
        let leaf = self.leaf(ipa).ok_or(TableError::NotMapped(ipa))?;
        if leaf.is_broken() {
            return Err(TableError::InMotion(leaf.ipa()));
        }
        let writable = leaf.descriptor().unprotected() != leaf.descriptor();
        if !writable && leaf.mark() == Mark::NONE {
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
        // Filled before the break, so that the guest faults for as short as can be.
        let found = load(slot.entry);
        divide(found);
        let last = break_entry(slot.entry);
        if last != found {
            // Hardware set the access flag or the dirty state in between.
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

    /// Puts one leaf of `level` in the place of the table that holds `ipa` at that level, if its 512
    /// leaves are contiguous, aligned together and alike. The new leaf is accessed or dirty if any of them
    /// was. The guest may run; it faults on the range between break and make.
    ///
    /// # Errors
    /// [`TableError::NotMapped`] where no table is there; [`TableError::NotOneBlock`] or
    /// [`TableError::InMotion`] with the first leaf that stands in the way. Then nothing has changed.
    pub fn promote(&mut self, ipa: Ipa, level: Level) -> Result<Leaf, TableError> {
        let (entry, frame) = self.check_promotion(ipa, level)?;
        let base = Ipa::new_truncate(ipa.get() & !(level.size() - 1));
        let below = level.below().ok_or(TableError::NotDivisible(base))?;
        break_entry(entry);
        self.maintenance.publish();
        self.maintenance.invalidate(base, level.size(), below, Cached::LeavesAndTables);
        self.synchronise();
        // No CPU reaches the old leaves any more: what hardware has set in them is final.
        let block = self.tables.table(frame).iter().map(load).reduce(Descriptor::gathered);
        let block = block.unwrap_or(Descriptor::EMPTY).as_block();
        entry.store(block.bits(), Ordering::Release);
        self.maintenance.publish();
        clear(self.tables.table(frame));
        self.tables.free(frame, 0);
        self.table_count -= 1;
        Ok(Leaf::new(base, level, block))
    }

    /// Whether [`Self::promote`] would succeed, and if not why.
    ///
    /// # Errors
    /// As [`Self::promote`].
    pub fn can_promote(&self, ipa: Ipa, level: Level) -> Result<(), TableError> {
        self.check_promotion(ipa, level).map(|_| ())
    }

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
                Kind::Leaf if is_in_motion(Leaf::new(at, below, found)) => {
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

    /// The entry of `level` for `ipa`, if it leads to a table.
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

/// Fills a table that no CPU reaches yet with the parts of `whole`, a leaf of `level`. Short, since a guest may wait.
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
