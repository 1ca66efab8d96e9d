//! What a vCPU's own CPU knows of its interrupts without any lock: the fast path of interrupt delivery.
//!
//! Invariant: an INTID stands in at most one entry of `held`, and an entry that names an INTID is the last thing
//! that was written to that list register. So where `slot` names a list register and that register is empty,
//! the interrupt is in no list register at all and may be put there again. Two of one INTID at once are
//! UNPREDICTABLE (IHI 0069H, 12.4.4).

use super::list_register::{ListRegister, ListRegisters};
use core::cell::Cell;

/// No list register: ICH_ELRSR_EL2 never has this bit.
const NO_SLOT: u8 = 63;
/// No interrupt.
pub(super) const NO_INTID: u16 = u16::MAX;
/// Most list registers that an implementation can have.
pub(super) const MAX_LIST_REGISTERS: usize = 16;

/// The lock-free part, one a vCPU, touched on its own CPU only.
pub struct Local {
    /// By physical INTID: what to write to a list register when it arrives; 0 where the slow path must look.
    direct: [Cell<u64>; 32],
    /// By physical INTID: the list register that last held it.
    slot: [Cell<u8>; 32],
    /// By list register: the virtual INTID last written to it.
    pub(super) held: [Cell<u16>; MAX_LIST_REGISTERS],
    /// Physical private interrupts that are enabled for the guest's sake.
    pub(super) physical_enabled: Cell<u32>,
}

impl Local {
    /// Before a vCPU runs: everything goes the slow way, and `forget` comes first. All zero, so that it takes no room
    /// in an image.
    pub const fn new() -> Self {
        Self {
            direct: [const { Cell::new(0) }; 32],
            slot: [const { Cell::new(0) }; 32],
            held: [const { Cell::new(0) }; MAX_LIST_REGISTERS],
            physical_enabled: Cell::new(0),
        }
    }

    /// Injects the private interrupt that belongs to physical INTID `physical_intid` where that needs no
    /// thought. False: the slow path must.
    #[inline(always)]
    pub fn inject(&self, physical_intid: u32, lrs: &impl ListRegisters) -> Option<ListRegister> {
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

    /// Sets what `inject` writes for a physical INTID; `None` sends it the slow way.
    pub(super) fn set_direct(&self, physical_intid: u32, value: Option<ListRegister>) {
        self.direct[physical_intid as usize].set(value.map_or(0, ListRegister::into_bits));
    }

    /// Notes that list register `slot` holds `intid`, which physical INTID `physical_intid` stands for, if any.
    pub(super) fn set_held(&self, slot: usize, intid: u32, physical_intid: Option<u32>) {
        self.held[slot].set(intid as u16);
        if let Some(physical) = physical_intid {
            self.slot[physical as usize].set(slot as u8);
        }
    }

    /// Forgets what the list registers hold.
    pub(super) fn forget(&self) {
        self.held.iter().for_each(|held| held.set(NO_INTID));
        self.slot.iter().for_each(|slot| slot.set(NO_SLOT));
    }

    /// Sends every interrupt the slow way.
    pub(super) fn clear_direct(&self) {
        self.direct.iter().for_each(|direct| direct.set(0));
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}
