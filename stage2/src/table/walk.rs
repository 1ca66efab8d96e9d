//! Lookup of single leaves, and iteration over the leaves of a range.

use super::descriptor::{Attributes, Descriptor, ENTRIES, Kind, Level, Mark};
use super::{Maintenance, Stage2, Table, TableMemory, load};
use crate::addr::{Ipa, Pa};
use core::sync::atomic::AtomicU64;

/// Snapshot of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    ipa: Ipa,
    level: Level,
    descriptor: Descriptor,
}

impl Leaf {
    pub(super) const fn new(ipa: Ipa, level: Level, descriptor: Descriptor) -> Self {
        Self { ipa, level, descriptor }
    }

    /// Returns the start of the leaf.
    pub const fn ipa(self) -> Ipa {
        self.ipa
    }

    /// Returns the physical address that the start of the leaf leads to.
    pub const fn pa(self) -> Pa {
        self.descriptor.output()
    }

    /// Returns the level of the leaf.
    pub const fn level(self) -> Level {
        self.level
    }

    /// Returns the size of the leaf in bytes.
    pub const fn size(self) -> u64 {
        self.level.size()
    }

    /// Returns the attributes, as if the leaf were not protected or broken.
    pub const fn attributes(self) -> Attributes {
        self.descriptor.attributes()
    }

    /// Returns the mark of migration.
    pub const fn mark(self) -> Mark {
        self.descriptor.mark()
    }

    /// Tests whether the leaf is between break and make, so that every access faults.
    pub const fn is_broken(self) -> bool {
        !self.descriptor.is_valid()
    }

    /// Tests whether write permission is withheld, so that writes fault.
    pub const fn is_protected(self) -> bool {
        self.descriptor.is_protected()
    }

    /// Tests whether migration has broken, protected or marked the leaf.
    pub(crate) const fn is_in_motion(self) -> bool {
        self.is_broken() || self.is_protected() || self.mark().get() != Mark::NONE.get()
    }

    /// Returns the descriptor.
    pub const fn descriptor(self) -> Descriptor {
        self.descriptor
    }
}

/// The entry of a leaf, with its address and level.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) ipa: Ipa,
    pub(super) level: Level,
    pub(super) entry: &'a AtomicU64,
}

impl Slot<'_> {
    pub(super) fn leaf(&self) -> Leaf {
        Leaf::new(self.ipa, self.level, load(self.entry))
    }
}

/// End of a walk.
pub(super) enum End<'a> {
    /// The walk ends at a leaf, valid or broken.
    Leaf(Slot<'a>),
    /// The walk ends at an entry of this level that maps nothing, or at a broken table.
    Hole(Level),
}

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Walks the tables for `ipa`, which lies in the address space. Returns the end of the walk and the table that
    /// holds it.
    pub(super) fn descend(&self, ipa: u64) -> (End<'_>, &Table) {
        let mut level = self.geometry.start();
        let mut table = self.root_table(ipa);
        loop {
            let entry = Self::entry_in(table, level, ipa);
            let descriptor = load(entry);
            match (descriptor.kind(level), level.below()) {
                (Kind::Table, Some(below)) => {
                    level = below;
                    table = self.tables.table(descriptor.table_frame());
                }
                (Kind::Leaf | Kind::BrokenLeaf, _) => {
                    let ipa = Ipa::new_truncate(ipa & !(level.size() - 1));
                    return (End::Leaf(Slot { ipa, level, entry }), table);
                }
                _ => return (End::Hole(level), table),
            }
        }
    }

    /// Returns the slot of the leaf that holds `ipa`.
    pub(super) fn slot(&self, ipa: Ipa) -> Option<Slot<'_>> {
        if ipa.get() >= self.geometry.ipa_limit() {
            return None;
        }
        match self.descend(ipa.get()).0 {
            End::Leaf(slot) => Some(slot),
            End::Hole(_) => None,
        }
    }

    /// Returns the leaf that holds `ipa`, valid or broken. `None` outside the address space.
    pub fn leaf(&self, ipa: Ipa) -> Option<Leaf> {
        self.slot(ipa).map(|slot| slot.leaf())
    }

    /// Translates `ipa`, or returns `None` if a read by the guest would fault.
    pub fn translate(&self, ipa: Ipa) -> Option<Pa> {
        let leaf = self.leaf(ipa)?;
        if leaf.is_broken() {
            return None;
        }
        leaf.pa().checked_add(ipa.get() - leaf.ipa().get())
    }

    /// Returns the leaves of `[ipa, ipa + size)` by ascending IPA. The first and the last may reach beyond the range.
    /// The range may reach beyond the address space.
    pub fn leaves(&self, ipa: Ipa, size: u64) -> Leaves<'_, T, M> {
        Leaves { slots: self.slots(ipa, size) }
    }

    /// Returns the slots of the leaves of `[ipa, ipa + size)` by ascending IPA.
    pub(super) fn slots(&self, ipa: Ipa, size: u64) -> Slots<'_, T, M> {
        let end = ipa.get().saturating_add(size).min(self.geometry.ipa_limit());
        Slots { stage2: self, next: ipa.get(), end, table: None }
    }
}

/// Iterator over the slots of a range: [`Stage2::slots`].
pub(super) struct Slots<'a, T, M> {
    stage2: &'a Stage2<T, M>,
    next: u64,
    end: u64,
    /// The table that holds the entry for `next`, if it is known.
    table: Option<(&'a Table, Level)>,
}

impl<'a, T: TableMemory, M: Maintenance> Iterator for Slots<'a, T, M> {
    type Item = Slot<'a>;

    fn next(&mut self) -> Option<Slot<'a>> {
        while self.next < self.end {
            if let Some((table, level)) = self.table {
                let index = (self.next >> level.shift()) as usize % ENTRIES;
                let entry = &table[index];
                let kind = load(entry).kind(level);
                if !matches!(kind, Kind::Table) {
                    let ipa = self.next & !(level.size() - 1);
                    self.next = ipa + level.size();
                    if index == ENTRIES - 1 {
                        self.table = None;
                    }
                    if matches!(kind, Kind::Leaf | Kind::BrokenLeaf) {
                        return Some(Slot { ipa: Ipa::new_truncate(ipa), level, entry });
                    }
                    continue;
                }
            }
            match self.stage2.descend(self.next) {
                (End::Leaf(slot), table) => {
                    let (ipa, level) = (slot.ipa.get(), slot.level);
                    self.next = ipa + level.size();
                    self.enter(table, level);
                    return Some(slot);
                }
                (End::Hole(level), table) => {
                    self.next = (self.next & !(level.size() - 1)) + level.size();
                    self.enter(table, level);
                }
            }
        }
        None
    }
}

impl<'a, T, M> Slots<'a, T, M> {
    /// Remembers `table`, a table of `level`, unless `next` lies beyond it.
    fn enter(&mut self, table: &'a Table, level: Level) {
        let left = (self.next >> level.shift()).is_multiple_of(ENTRIES as u64);
        self.table = if left { None } else { Some((table, level)) };
    }
}

/// Iterator over the leaves of a range: [`Stage2::leaves`].
pub struct Leaves<'a, T, M> {
    slots: Slots<'a, T, M>,
}

impl<T: TableMemory, M: Maintenance> Iterator for Leaves<'_, T, M> {
    type Item = Leaf;

    fn next(&mut self) -> Option<Leaf> {
        self.slots.next().map(|slot| slot.leaf())
    }
}
