//! The fast path of interrupt delivery: the state that a vCPU's own CPU uses without a lock.
//!
//! Invariant: an INTID is in at most one entry of `held`, and the entry of a list register is the INTID that was last written
//! to it. So if the list register in `slot` is empty, the interrupt is in no list register, and may be written to this one
//! again. Two list registers with the same INTID are UNPREDICTABLE (IHI 0069H, `ICH_LR<n>_EL2`).

use super::list_register::{ListRegister, ListRegisters};
use core::cell::Cell;

/// No list register: ICH_ELRSR_EL2 never has this bit.
const NO_SLOT: u8 = 63;
/// No interrupt.
pub(super) const NO_INTID: u16 = u16::MAX;
/// Maximum number of list registers of an implementation.
pub(super) const MAX_LIST_REGISTERS: usize = 16;

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

    /// Sets the value that [`Self::inject`] writes for a physical INTID; `None` selects the slow path.
    pub(super) fn set_direct(&self, physical_intid: u32, value: Option<ListRegister>) {
        self.direct[physical_intid as usize].set(value.map_or(0, ListRegister::into_bits));
    }

    /// Records that list register `slot` holds `intid`, and its physical INTID, if it has one.
    pub(super) fn set_held(&self, slot: usize, intid: u32, physical_intid: Option<u32>) {
        self.held[slot].set(intid as u16);
        if let Some(physical) = physical_intid {
            self.slot[physical as usize].set(slot as u8);
        }
    }

    /// Forgets the contents of the list registers.
    pub(super) fn forget(&self) {
        self.held.iter().for_each(|held| held.set(NO_INTID));
        self.slot.iter().for_each(|slot| slot.set(NO_SLOT));
    }

    /// Selects the slow path for every interrupt.
    pub(super) fn clear_direct(&self) {
        self.direct.iter().for_each(|direct| direct.set(0));
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}
