//! The stage-2 translation tables of one guest (VMSAv8-64, 4 KiB granule, up to 48-bit IPA).
//!
//! Words:
//! - a *leaf* is a descriptor that ends a walk: 1 GiB at level 1, 2 MiB at level 2, 4 KiB at level 3;
//! - *break* clears a descriptor's valid bit and keeps the rest; *make* sets a valid one where there is none;
//! - a leaf is *protected* while a write permission of the guest's is withheld;
//! - to *demote* is to put a table of 512 smaller leaves in a leaf's place, to *promote* is the reverse.
//!
//! # Who may do what
//! Hardware walks the tables at any time, and with VTCR_EL2.HA and HD it also sets the access flag and
//! S2AP\[1\] of *valid* leaves, atomically (DDI 0487J.a, D8.4, hardware updates). So every change here of
//! an entry that may be valid is a compare-exchange or an atomic AND that carries such updates along.
//!
//! Among CPUs at EL2: operations that add or remove tables take `&mut self`; those that change leaves, or
//! read, take `&self` and may run on several CPUs at once, as long as two of them do not *move* the same
//! leaf (see `migrate`). `hyp` keeps each guest's `Stage2` behind one lock, which no copy is made under.
//!
//! # Break-before-make (DDI 0487J.a, D8.14.1)
//! A change of output address, size or memory type of a live entry goes in this order:
//! 1. break: the valid bit is cleared by an atomic operation, which yields the last access and dirty state;
//! 2. [`Maintenance::publish`] (DSB ISHST): no walk after it finds the old entry;
//! 3. [`Maintenance::invalidate`] (TLBI IPAS2E1IS and kin) for what the entry translated;
//! 4. [`Maintenance::synchronise`] (DSB ISH; TLBI VMALLE1IS; DSB ISH; ISB): the invalidations are complete
//!    on every CPU, those of combined stage 1 and 2 entries too;
//! 5. make, and publish again.
//!
//! Steps 1 to 3 are one call, step 4 serves any number of them, and step 5 demands the [`Ticket`] of step
//! 3 and refuses it while step 4 is outstanding. Any other change of a live entry is checked against the
//! bits that the architecture lets change, and refused by name ([`TableError::BreakBeforeMake`]).
#![forbid(unsafe_code)]

mod descriptor;
mod error;
mod geometry;
mod leaf;
mod map;
mod resize;
mod unmap;
mod walk;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod tests;

pub use descriptor::{Access, Attributes, Descriptor, ENTRIES, Execute, Kind, Level, Mark, Memory};
pub use error::TableError;
pub use geometry::Geometry;
pub use leaf::{BrokenRun, Ticket};
pub use map::TableCount;
pub use walk::{Extent, Extents, Leaf, Leaves};

use crate::addr::{Frame, Ipa, Pa};
use core::sync::atomic::{AtomicU64, Ordering};

/// A table as it lies in memory.
#[cfg(not(all(miri, test)))]
pub type Table = [AtomicU64; ENTRIES];
/// A table: behind one reference more, for the reason given at [`crate::sync::Part`].
#[cfg(all(miri, test))]
pub type Table = Box<[AtomicU64; ENTRIES]>;

/// Where table frames come from.
pub trait TableMemory {
    /// `1 << order` contiguous frames, aligned to their size, every byte zero. `order` is at most 4, and
    /// 0 but for the tables that the lookup starts at.
    fn allocate(&mut self, order: u8) -> Option<Frame>;

    /// Takes back what [`Self::allocate`] gave, every byte zero again. No CPU can reach it any more.
    fn free(&mut self, frame: Frame, order: u8);

    /// The table in `frame`, which [`Self::allocate`] gave, alone or as one of several.
    fn table(&self, frame: Frame) -> &Table;
}

/// What an invalidation has to reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cached {
    /// Copies of leaves only (TLBI IPAS2LE1IS, or RIPAS2LE1IS for a range).
    Leaves,
    /// Copies of leaves and of the tables on the way to them (TLBI IPAS2E1IS, RIPAS2E1IS).
    LeavesAndTables,
}

/// Barriers and TLB invalidation for the guest's VMID, on all CPUs (DDI 0487J.a, D8.14).
pub trait Maintenance {
    /// Makes table writes before it visible to the walks of every CPU: DSB ISHST.
    fn publish(&self);

    /// Starts the invalidation of what is cached for `[ipa, ipa + size)`, where no leaf was smaller than
    /// an entry of `leaf`: one TLBI for each `leaf.size()` bytes, or by range. It may invalidate more, up
    /// to the whole VMID, where that is cheaper. It is complete after [`Self::synchronise`].
    fn invalidate(&self, ipa: Ipa, size: u64, leaf: Level, cached: Cached);

    /// Starts the invalidation of all that is cached for the VMID: TLBI VMALLS12E1IS.
    fn invalidate_all(&self);

    /// Completes the invalidations before it: DSB ISH, then TLBI VMALLE1IS for the entries that combine
    /// both stages and that invalidation by IPA need not reach, DSB ISH, ISB.
    fn synchronise(&self);
}

/// The stage-2 tables of one guest.
///
/// Dropping it gives nothing back: [`Stage2::tear_down`] does.
#[derive(Debug)]
pub struct Stage2<T, M> {
    geometry: Geometry,
    /// The first of the tables that the lookup starts at.
    root: Frame,
    tables: T,
    maintenance: M,
    table_count: u64,
    /// Synchronisations begun; a ticket holds the number at its invalidation.
    begun: AtomicU64,
    /// The highest number of a synchronisation that is complete.
    completed: AtomicU64,
}

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Tables for an empty address space.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`] where the contiguous tables of the start level cannot be had.
    pub fn new(geometry: Geometry, mut tables: T, maintenance: M) -> Result<Self, TableError> {
        let needed = geometry.root_tables();
        let Some(root) = tables.allocate(geometry.root_order()) else {
            return Err(TableError::OutOfTables { needed, available: 0 });
        };
        maintenance.publish();
        Ok(Self {
            geometry,
            root,
            tables,
            maintenance,
            table_count: needed,
            begun: AtomicU64::new(0),
            completed: AtomicU64::new(0),
        })
    }

    /// The size of the address space.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The address of the first table, for VTTBR_EL2.BADDR.
    pub const fn root(&self) -> Pa {
        self.root.pa()
    }

    /// Table frames in use, the start level's included.
    pub const fn table_count(&self) -> u64 {
        self.table_count
    }

    /// What barriers and invalidations go through.
    pub const fn maintenance(&self) -> &M {
        &self.maintenance
    }

    /// Makes leaves that were made before visible to the walks of every CPU.
    pub fn publish(&self) {
        self.maintenance.publish();
    }

    /// Completes all invalidations that this CPU started before, and with them their tickets. A DSB waits
    /// for the TLBI instructions of its own CPU only (DDI 0487J.a, D8.14): whoever starts an invalidation
    /// synchronises it, before it lets go of the lock that guards the guest's tables.
    pub fn synchronise(&self) {
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        self.maintenance.synchronise();
        self.completed.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether the invalidation that `ticket` stands for is complete on every CPU.
    pub fn is_synchronised(&self, ticket: Ticket) -> bool {
        ticket.is_before(self.completed.load(Ordering::Acquire))
    }

    /// A ticket for invalidations that were started just now.
    fn ticket(&self) -> Ticket {
        Ticket::new(self.begun.load(Ordering::Acquire))
    }

    /// The table of the start level that holds the entry for `ipa`.
    #[inline(always)]
    fn root_table(&self, ipa: u64) -> &Table {
        let index = (ipa >> self.geometry.start().shift()) / ENTRIES as u64;
        // `ipa` was checked against the address space, so this is one of the concatenated tables.
        let frame = self.root.checked_add(index).unwrap_or(self.root);
        self.tables.table(frame)
    }

    /// The entry for `ipa` in `table`, a table of `level`.
    fn entry_in(table: &Table, level: Level, ipa: u64) -> &AtomicU64 {
        &table[(ipa >> level.shift()) as usize % ENTRIES]
    }
}

/// Reads an entry. Acquire: what a table holds is read after the entry that leads to it.
#[inline(always)]
pub(crate) fn load(entry: &AtomicU64) -> Descriptor {
    Descriptor::from_bits(entry.load(Ordering::Acquire))
}

/// Sets an entry from `old` to `new` if it still holds `old`, and else yields what it holds.
///
/// # Errors
/// [`TableError::BreakBeforeMake`] where the architecture does not allow that change at once.
#[inline(always)]
fn exchange(
    entry: &AtomicU64,
    ipa: Ipa,
    old: Descriptor,
    new: Descriptor,
) -> Result<Result<(), Descriptor>, TableError> {
    if !old.is_legal_change(new) {
        return Err(TableError::BreakBeforeMake { ipa, old, new });
    }
    Ok(entry
        .compare_exchange(old.bits(), new.bits(), Ordering::AcqRel, Ordering::Acquire)
        .map(|_| ())
        .map_err(Descriptor::from_bits))
}

/// Breaks an entry and yields what it held at the last moment, as made.
#[inline(always)]
fn break_entry(entry: &AtomicU64) -> Descriptor {
    Descriptor::from_bits(entry.fetch_and(!1, Ordering::AcqRel))
}
