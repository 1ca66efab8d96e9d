//! Stage-2 translation tables of one guest: VMSAv8-64, 4 KiB granule, IPAs of up to 48 bits.
//!
//! Titles in quotation marks are those of sections of the Arm ARM.
//!
//! # Words
//! - A *leaf* is a block or page descriptor: 1 GiB at level 1, 2 MiB at level 2, 4 KiB at level 3.
//! - To *break* an entry is to clear its valid bit and to keep its other bits; to *make* it is to set the valid
//!   bit again.
//! - A leaf is *protected* while its write permission is withheld, so that its contents can be copied.
//! - A leaf is *in motion* while it is broken, protected or marked: migration owns it then.
//! - To *demote* a leaf is to replace it by a table of 512 smaller leaves; to *promote* is the reverse.
//!
//! # Concurrency
//! The guest's CPUs walk the tables at any time, and with VTCR_EL2.HA they set the access flag of valid leaves
//! atomically ("Hardware management of the Access flag"). VTCR_EL2.HD is 0, so hardware never changes permissions.
//! Every change of an entry that may be valid is a compare-exchange or an atomic AND, so that no access flag is lost.
//!
//! EL2 uses the tables under the lock of the guest's [`Space`](crate::migrate::Space). The worker does not hold that
//! lock while it copies. Methods that add or remove tables take `&mut self`. Methods that read or change leaves take
//! `&self`; a concurrent walk or access flag update cannot break their changes.
//!
//! # Break-before-make
//! The output address, the size or the memory type of a valid leaf changes in five steps ("Using break-before-make when
//! updating translation table entries"):
//! 1. Break the leaf atomically. The operation returns the leaf with its final access flag.
//! 2. [`Maintenance::publish`] (DSB ISHST): later walks see the invalid entry.
//! 3. [`Maintenance::invalidate`] (TLBI IPAS2E1IS or a variant) for all that the leaf translated.
//! 4. [`Maintenance::synchronise`] (DSB ISH; TLBI VMALLE1IS; DSB ISH; ISB): the invalidation is complete on every
//!    CPU, also for TLB entries that combine stage 1 and stage 2.
//! 5. Make the leaf, then publish it.
//!
//! `Stage2::break_leaves` does steps 1 to 3 for a run of leaves and returns a ticket with it. One
//! [`Stage2::synchronise`] completes the tickets of any number of runs. `Stage2::make_leaf` does step 5, and
//! refuses a run whose ticket is not complete.
//!
//! Changes of permissions, access flag or mark need no break. `exchange` compares each change of a valid leaf with
//! the bits that the architecture allows to change, and refuses all others with [`TableError::BreakBeforeMake`].
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

#[cfg(test)]
pub(crate) use descriptor::Kind;
pub use descriptor::{Access, Attributes, Descriptor, ENTRIES, Execute, Level, Mark, Memory};
pub use error::TableError;
pub use geometry::Geometry;
pub(crate) use leaf::{BrokenRun, Ticket};
pub use walk::{Leaf, Leaves};

use crate::addr::{Frame, Ipa, Pa};
use core::sync::atomic::{AtomicU64, Ordering};

/// A translation table in memory.
#[cfg(not(all(miri, test)))]
pub type Table = [AtomicU64; ENTRIES];
/// A translation table, boxed for the reason given at [`crate::sync::Part`].
#[cfg(all(miri, test))]
pub type Table = Box<[AtomicU64; ENTRIES]>;

/// Allocator of table frames, and access to them.
pub trait TableMemory {
    /// Allocates `1 << order` contiguous frames, aligned to their size and zeroed. `order` is at most 4, and
    /// above 0 only for the tables of the start level.
    fn allocate(&mut self, order: u8) -> Option<Frame>;

    /// Frees what [`Self::allocate`] returned. Every byte is zero again, and no CPU can reach the frames.
    fn free(&mut self, frame: Frame, order: u8);

    /// Returns the table in `frame`, which is part of an allocation.
    fn table(&self, frame: Frame) -> &Table;
}

/// Kinds of TLB entries that an invalidation has to reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cached {
    /// Copies of leaves only (TLBI IPAS2LE1IS, or RIPAS2LE1IS for a range).
    Leaves,
    /// Copies of leaves and of the tables on the way to them (TLBI IPAS2E1IS, RIPAS2E1IS).
    LeavesAndTables,
}

/// Barriers, and TLB invalidation for the guest's VMID on all CPUs ("TLB maintenance").
pub trait Maintenance {
    /// Makes earlier table writes visible to the walks of every CPU: DSB ISHST.
    fn publish(&self);

    /// Starts the invalidation of the TLB entries for `[ipa, ipa + size)`. No leaf in the range was smaller than
    /// an entry of level `leaf`, so one TLBI per `leaf.size()` bytes will do. The implementation may invalidate
    /// more, up to the whole VMID. The invalidation is complete after [`Self::synchronise`].
    fn invalidate(&self, ipa: Ipa, size: u64, leaf: Level, cached: Cached);

    /// Completes earlier invalidations: DSB ISH, then TLBI VMALLE1IS for TLB entries that combine both stages,
    /// which an invalidation by IPA need not reach, then DSB ISH, ISB.
    fn synchronise(&self);
}

/// The stage-2 tables of one guest.
///
/// Dropping it frees nothing. [`Stage2::unmap`] frees the tables of a range; those of the start level stay.
#[derive(Debug)]
pub struct Stage2<T, M> {
    geometry: Geometry,
    /// First of the concatenated tables of the start level.
    root: Frame,
    tables: T,
    maintenance: M,
    table_count: u64,
    /// Number of synchronisations that began. A ticket holds the number at its invalidation.
    begun: AtomicU64,
    /// Highest number of a complete synchronisation.
    completed: AtomicU64,
}

impl<T: TableMemory, M: Maintenance> Stage2<T, M> {
    /// Creates the tables of an empty address space.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`] if the contiguous tables of the start level cannot be allocated.
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

    /// Returns the size of the address space.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Returns the address of the first table, for VTTBR_EL2.BADDR.
    pub const fn root(&self) -> Pa {
        self.root.pa()
    }

    /// Returns the number of table frames in use, including those of the start level.
    pub const fn table_count(&self) -> u64 {
        self.table_count
    }

    /// Returns the implementation of barriers and invalidations.
    pub const fn maintenance(&self) -> &M {
        &self.maintenance
    }

    /// Makes earlier table writes visible to the walks of every CPU.
    pub(crate) fn publish(&self) {
        self.maintenance.publish();
    }

    /// Completes all invalidations that this CPU started, and with them their tickets.
    ///
    /// A DSB waits for the TLBI instructions of its own CPU only ("Ordering and completion of TLB maintenance
    /// instructions"). So the CPU that starts an invalidation calls this before it releases the lock that guards the
    /// guest's tables.
    pub fn synchronise(&self) {
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        self.maintenance.synchronise();
        self.completed.fetch_max(number, Ordering::AcqRel);
    }

    /// Tests whether the invalidation of `ticket` is complete on every CPU.
    fn is_synchronised(&self, ticket: Ticket) -> bool {
        ticket.is_before(self.completed.load(Ordering::Acquire))
    }

    /// Returns the ticket of the invalidations that have just been started.
    fn ticket(&self) -> Ticket {
        Ticket::new(self.begun.load(Ordering::Acquire))
    }

    /// Returns the table of the start level that holds the entry for `ipa`.
    #[inline(always)]
    fn root_table(&self, ipa: u64) -> &Table {
        let index = (ipa >> self.geometry.start().shift()) / ENTRIES as u64;
        // The caller has checked `ipa` against the address space, so `index` is that of a concatenated table.
        let frame = self.root.checked_add(index).unwrap_or(self.root);
        self.tables.table(frame)
    }

    /// Returns the entry for `ipa` in `table`, a table of `level`.
    fn entry_in(table: &Table, level: Level, ipa: u64) -> &AtomicU64 {
        &table[(ipa >> level.shift()) as usize % ENTRIES]
    }
}

/// Reads an entry. Acquire, so that the contents of a table are read after the entry that leads to it.
#[inline(always)]
pub(crate) fn load(entry: &AtomicU64) -> Descriptor {
    Descriptor::from_bits(entry.load(Ordering::Acquire))
}

/// Replaces `old` by `new` in an entry. Returns the present contents in the inner `Err` if they are not `old`.
///
/// # Errors
/// [`TableError::BreakBeforeMake`] if the change needs break-before-make.
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

/// Breaks a valid entry, and returns its last valid contents.
#[inline(always)]
fn break_entry(entry: &AtomicU64) -> Descriptor {
    Descriptor::from_bits(entry.fetch_and(!1, Ordering::AcqRel))
}
