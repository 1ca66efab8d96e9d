//! Reading the tables: one leaf, all leaves of a range, contiguous extents.

use super::descriptor::{Access, Attributes, Descriptor, ENTRIES, Kind, Level, Mark};
use super::{Maintenance, Stage2, Table, TableMemory, load};
use crate::addr::{Ipa, Pa};
use core::sync::atomic::AtomicU64;

/// A leaf, as it was when it was read.
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

    /// Where it starts.
    pub const fn ipa(self) -> Ipa {
        self.ipa
    }

    /// The physical address that it starts at.
    pub const fn pa(self) -> Pa {
        self.descriptor.output()
    }

    /// Its level.
    pub const fn level(self) -> Level {
        self.level
    }

    /// Its bytes.
    pub const fn size(self) -> u64 {
        self.level.size()
    }

    /// What the guest is entitled to, whether or not the leaf is protected or broken at present.
    pub const fn attributes(self) -> Attributes {
        self.descriptor.attributes()
    }

    /// The mark of whoever moves it.
    pub const fn mark(self) -> Mark {
        self.descriptor.mark()
    }

    /// Whether it is between break and make: the guest faults on every access.
    pub const fn is_broken(self) -> bool {
        !self.descriptor.is_valid()
    }

    /// Whether the guest's writes are withheld: it faults on them.
    pub const fn is_protected(self) -> bool {
        self.descriptor.is_protected()
    }

    /// The descriptor itself.
    pub const fn descriptor(self) -> Descriptor {
        self.descriptor
    }
}

/// The entry of a leaf and where it stands.
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

/// Where a walk ends.
pub(super) enum End<'a> {
    /// At a leaf, valid or broken.
    Leaf(Slot<'a>),
    /// At an entry of this level that maps nothing (or at one that is being resized).
    Hole(Level),
}

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Follows `ipa`, which lies in the address space, to its end, and yields the table that holds it.
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

    /// The slot of the leaf that translates `ipa`.
    pub(super) fn slot(&self, ipa: Ipa) -> Option<Slot<'_>> {
        if ipa.get() >= self.geometry.ipa_limit() {
            return None;
        }
        match self.descend(ipa.get()).0 {
            End::Leaf(slot) => Some(slot),
            End::Hole(_) => None,
        }
    }

    /// The leaf that holds `ipa`, be it valid or broken. `None` also outside of the address space.
    pub fn leaf(&self, ipa: Ipa) -> Option<Leaf> {
        self.slot(ipa).map(|slot| slot.leaf())
    }

    /// The physical address behind `ipa`, or `None` where a guest's read would fault.
    pub fn translate(&self, ipa: Ipa) -> Option<Pa> {
        let leaf = self.leaf(ipa)?;
        if leaf.is_broken() {
            return None;
        }
        leaf.pa().checked_add(ipa.get() - leaf.ipa().get())
    }

    /// The leaves of `[ipa, ipa + size)` by ascending IPA, holes left out, beginning with the leaf that
    /// holds `ipa`. What lies outside of the address space is a hole.
    pub fn leaves(&self, ipa: Ipa, size: u64) -> Leaves<'_, T, M> {
        Leaves { slots: self.slots(ipa, size) }
    }

    /// The extents of `[ipa, ipa + size)`: leaves that continue each other in IPA, PA and attributes, as
    /// one. The first and the last may reach beyond the range.
    pub fn extents(&self, ipa: Ipa, size: u64) -> Extents<'_, T, M> {
        Extents { leaves: self.leaves(ipa, size), next: None }
    }

    pub(super) fn slots(&self, ipa: Ipa, size: u64) -> Slots<'_, T, M> {
        let end = ipa.get().saturating_add(size).min(self.geometry.ipa_limit());
        Slots { stage2: self, next: ipa.get(), end, table: None }
    }
}

/// The slots of a range by ascending IPA.
pub(super) struct Slots<'a, T, M> {
    stage2: &'a Stage2<T, M>,
    next: u64,
    end: u64,
    /// The table that holds the entry for `next`, if it was entered already.
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
    /// Stays in `table`, a table of `level`, unless `next` has just left it.
    fn enter(&mut self, table: &'a Table, level: Level) {
        let left = (self.next >> level.shift()).is_multiple_of(ENTRIES as u64);
        self.table = if left { None } else { Some((table, level)) };
    }
}

/// The leaves of a range by ascending IPA: [`Stage2::leaves`].
pub struct Leaves<'a, T, M> {
    slots: Slots<'a, T, M>,
}

impl<T: TableMemory, M: Maintenance> Iterator for Leaves<'_, T, M> {
    type Item = Leaf;

    fn next(&mut self) -> Option<Leaf> {
        self.slots.next().map(|slot| slot.leaf())
    }
}

/// Leaves that continue each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where it starts.
    pub ipa: Ipa,
    /// The physical address that it starts at.
    pub pa: Pa,
    /// Its bytes.
    pub size: u64,
    /// Its attributes. Access flag and dirty state are the first leaf's.
    pub attributes: Attributes,
    /// Its leaves of 1 GiB, 2 MiB and 4 KiB.
    pub leaf_counts: [u64; 3],
}

impl Extent {
    fn of(leaf: Leaf) -> Self {
        let mut leaf_counts = [0; 3];
        leaf_counts[leaf.level().max(Level::L1) as usize - 1] = 1;
        Self { ipa: leaf.ipa(), pa: leaf.pa(), size: leaf.size(), attributes: leaf.attributes(), leaf_counts }
    }

    /// Takes `next` in, or refuses it where it does not continue this extent.
    fn append(&mut self, next: &Self) -> bool {
        let continues = self.ipa.checked_add(self.size) == Some(next.ipa)
            && self.pa.checked_add(self.size) == Some(next.pa)
            && kept(self.attributes) == kept(next.attributes);
        if continues {
            self.size += next.size;
            for (count, more) in self.leaf_counts.iter_mut().zip(next.leaf_counts) {
                *count += more;
            }
        }
        continues
    }
}

/// The attributes without what hardware writes.
fn kept(attributes: Attributes) -> Attributes {
    let access = match attributes.access {
        Access::Dirty => Access::Clean,
        other => other,
    };
    Attributes { access, accessed: true, ..attributes }
}

/// The extents of a range by ascending IPA: [`Stage2::extents`].
pub struct Extents<'a, T, M> {
    leaves: Leaves<'a, T, M>,
    next: Option<Extent>,
}

impl<T: TableMemory, M: Maintenance> Iterator for Extents<'_, T, M> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let mut extent = match self.next.take() {
            Some(extent) => extent,
            None => Extent::of(self.leaves.next()?),
        };
        for leaf in self.leaves.by_ref() {
            let next = Extent::of(leaf);
            if !extent.append(&next) {
                self.next = Some(next);
                break;
            }
        }
        Some(extent)
    }
}
