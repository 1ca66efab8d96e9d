//! The fast path of interrupt delivery: the state that a vCPU's own CPU uses without a lock.
//!
//! Invariant: an INTID is in at most one entry of `held`, and the entry of a list register is the INTID that was last written
//! to it. So if the list register in `slot` is empty, the interrupt is in no list register, and may be written to this one
//! again. Two list registers with the same INTID are UNPREDICTABLE (IHI 0069H, `ICH_LR<n>_EL2`).

use super::LINE_LIMIT;
use super::list_register::{ListRegister, ListRegisters};
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

/// No list register: ICH_ELRSR_EL2 never has this bit.
const NO_SLOT: u8 = 63;
/// No interrupt.
pub(super) const NO_INTID: u16 = u16::MAX;
/// Maximum number of list registers of an implementation.
pub(super) const MAX_LIST_REGISTERS: usize = 16;

/// Number of entries for shared hardware interrupts, by the low bits of the physical INTID.
pub(super) const LINE_ENTRIES: usize = 32;

/// The lock-free part of a vCPU's state, used on its own CPU only.
pub(crate) struct Local {
    /// By physical INTID: the value for a list register when the interrupt arrives; 0 for the slow path.
    direct: [Cell<u64>; 32],
    /// By physical INTID: the list register that last held it.
    slot: [Cell<u8>; 32],
    /// By list register: the virtual INTID that was last written to it.
    pub(super) held: [Cell<u16>; MAX_LIST_REGISTERS],
    /// Physical private interrupts that are enabled for the guest.
    pub(super) physical_enabled: Cell<u32>,
    /// `direct` of shared hardware interrupts (`lines`).
    line_direct: [Cell<u64>; LINE_ENTRIES],
    /// `slot` of shared hardware interrupts.
    line_slot: [Cell<u8>; LINE_ENTRIES],
    /// By line: its interrupts that this CPU has passed on. Only this CPU writes.
    line_count: [AtomicU64; LINE_LIMIT],
}

impl Local {
    /// Creates the state before a vCPU runs: all interrupts take the slow path. All zero, to be in the image's zeroed data;
    /// [`Self::forget`] must come before the first use.
    pub(crate) const fn new() -> Self {
        Self {
            direct: [const { Cell::new(0) }; 32],
            slot: [const { Cell::new(0) }; 32],
            held: [const { Cell::new(0) }; MAX_LIST_REGISTERS],
            physical_enabled: Cell::new(0),
            line_direct: [const { Cell::new(0) }; LINE_ENTRIES],
            line_slot: [const { Cell::new(0) }; LINE_ENTRIES],
            line_count: [const { AtomicU64::new(0) }; LINE_LIMIT],
        }
    }

    /// Injects the private interrupt of physical INTID `physical_intid`. Returns `None` if the slow path must do it.
    #[inline(always)]
    pub(crate) fn inject(&self, physical_intid: u32, lrs: &impl ListRegisters) -> Option<ListRegister> {
        let index = physical_intid as usize & 31;
        let value = self.direct[index].get();
        let slot = self.slot[index].get();
        if value == 0 || lrs.read_empty() >> slot & 1 == 0 {
            return None;
        }
        let value = ListRegister::from_bits(value);
        lrs.write(usize::from(slot), value);
        Some(value)
    }

    /// Injects the shared interrupt of physical INTID `physical_intid`, at least 32. Returns `None` if the slow path must do it.
    #[inline(always)]
    pub(crate) fn inject_line(&self, physical_intid: u32, lrs: &impl ListRegisters) -> Option<ListRegister> {
        let index = physical_intid as usize % LINE_ENTRIES;
        let value = ListRegister::from_bits(self.line_direct[index].get());
        let slot = self.line_slot[index].get();
        // An unused entry has INTID 0.
        if value.physical() != physical_intid || lrs.read_empty() >> slot & 1 == 0 {
            return None;
        }
        lrs.write(usize::from(slot), value);
        self.count_line(value.virtual_intid() as usize);
        Some(value)
    }

    /// Counts an interrupt of a line, by its INTID or its number.
    #[inline(always)]
    pub(super) fn count_line(&self, line: usize) {
        let count = &self.line_count[line % LINE_LIMIT];
        // No other CPU writes: an atomic addition is not needed.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Returns the number of interrupts of `line` that the CPU has passed on. Any CPU may call this.
    pub(crate) fn line_count(&self, line: usize) -> u64 {
        self.line_count.get(line).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Sets the value that [`Self::inject_line`] writes for an entry; `None` selects the slow path.
    pub(super) fn set_line_direct(&self, entry: usize, value: Option<ListRegister>) {
        self.line_direct[entry].set(value.map_or(0, ListRegister::into_bits));
    }

    /// Selects the slow path for every shared interrupt, and forgets their list registers. Not a part of [`Self::forget`], so that
    /// guests without lines do not pay for it.
    pub(super) fn clear_line_direct(&self) {
        self.line_direct.iter().for_each(|direct| direct.set(0));
        self.line_slot.iter().for_each(|slot| slot.set(NO_SLOT));
    }

    /// Sets the value that [`Self::inject`] writes for a physical INTID; `None` selects the slow path.
    pub(super) fn set_direct(&self, physical_intid: u32, value: Option<ListRegister>) {
        self.direct[physical_intid as usize].set(value.map_or(0, ListRegister::into_bits));
    }

    /// Records that list register `slot` holds `intid`, and where the fast path looks that up.
    pub(super) fn set_held(&self, slot: usize, intid: u32, entry: Option<Entry>) {
        self.held[slot].set(intid as u16);
        match entry {
            Some(Entry::Private(physical)) => self.slot[physical].set(slot as u8),
            Some(Entry::Line(index)) => self.line_slot[index].set(slot as u8),
            None => {}
        }
    }

    /// Forgets the contents of the list registers. A guest with lines also needs [`Self::clear_line_direct`].
    pub(super) fn forget(&self) {
        self.held.iter().for_each(|held| held.set(NO_INTID));
        self.slot.iter().for_each(|slot| slot.set(NO_SLOT));
    }

    /// Selects the slow path for every interrupt.
    pub(super) fn clear_direct(&self) {
        self.direct.iter().for_each(|direct| direct.set(0));
        self.clear_line_direct();
    }
}

/// An interrupt's place in the tables of the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A private interrupt, by its physical INTID.
    Private(usize),
    /// A shared one, by the low bits of its physical INTID.
    Line(usize),
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}
