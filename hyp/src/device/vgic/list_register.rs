//! A list register, which holds one virtual interrupt for a vCPU (GICv3 and GICv4 architecture specification,
//! IHI 0069H, ICH_LR<n>_EL2).

use bitfield_struct::bitfield;

/// The value of ICH_LR<n>_EL2.
#[bitfield(u64, order = Lsb)]
#[derive(PartialEq, Eq)]
pub(crate) struct ListRegister {
    /// The INTID that the guest sees.
    #[bits(32)]
    pub(crate) virtual_intid: u32,
    /// With `hardware`: the physical INTID that is deactivated together with the virtual one.
    #[bits(9)]
    pub(crate) physical_intid: u16,
    /// Without `hardware`: request for a maintenance interrupt when the guest ends the interrupt. With it: bit 9 of the physical
    /// INTID.
    pub(crate) eoi_maintenance: bool,
    #[bits(6)]
    __: u8,
    /// Priority; 0 is the highest.
    #[bits(8)]
    pub(crate) priority: u8,
    #[bits(4)]
    __: u8,
    /// True for group 1, false for group 0.
    pub(crate) group1: bool,
    /// Linked to a physical interrupt.
    pub(crate) hardware: bool,
    /// Pending. May be set together with `active`.
    pub(crate) pending: bool,
    /// Active.
    pub(crate) active: bool,
}

impl ListRegister {
    /// Returns the physical INTID of 10 bits, which `hardware` uses.
    #[inline(always)]
    pub(crate) const fn physical(self) -> u32 {
        (self.into_bits() >> 32) as u32 & 0x3ff
    }

    /// Links the register to physical INTID `intid`, below 1020.
    pub(crate) const fn with_physical(self, intid: u32) -> Self {
        let low = self.with_hardware(true).with_physical_intid(intid as u16 & 0x1ff);
        low.with_eoi_maintenance(intid >> 9 & 1 != 0)
    }
}

#[cfg(test)]
impl ListRegister {
    /// Returns true if the register is free for another interrupt.
    pub(crate) const fn is_empty(self) -> bool {
        !self.pending() && !self.active()
    }
}

/// The list registers and the physical interrupt controller of the CPU that a vCPU owns. Used on that CPU only.
pub(crate) trait ListRegisters {
    /// Returns the number of list registers, 1 to 16.
    fn count(&self) -> usize;
    /// Reads register `index`.
    fn read(&self, index: usize) -> ListRegister;
    /// Writes register `index`.
    fn write(&self, index: usize, value: ListRegister);
    /// Returns the empty list registers, a bit each (ICH_ELRSR_EL2).
    fn read_empty(&self) -> u64;
    /// Returns how many interrupts outside the list registers the guest has ended since the last call
    /// (ICH_HCR_EL2.EOIcount).
    fn take_eoi_count(&self) -> u32;
    /// Requests maintenance interrupts: `underflow` when at most one list register is in use, `not_present` when the guest
    /// ends an interrupt that is in none. The latter also traps deactivation (ICH_HCR_EL2.UIE, LRENPIE, TDIR).
    fn request_maintenance(&self, underflow: bool, not_present: bool);
    /// Returns true if a physical interrupt, private to this CPU or shared, is pending: of a level-sensitive one, the line is
    /// high.
    fn is_line_high(&self, physical_intid: u32) -> bool;
    /// Activates a physical interrupt, private to this CPU or shared, as if it had been acknowledged.
    fn activate(&self, physical_intid: u32);
    /// Deactivates a physical interrupt.
    fn deactivate(&self, physical_intid: u32);
    /// Enables or disables a physical private interrupt of this CPU.
    fn set_physical_enable(&self, physical_intid: u32, is_enabled: bool);
    /// Makes a physical shared interrupt pending. Does nothing by default, for tests without lines.
    fn set_pending(&self, physical_intid: u32) {
        let _ = physical_intid;
    }
    /// Clears the pending state of a physical shared interrupt, except for a line that is high.
    fn clear_pending(&self, physical_intid: u32) {
        let _ = physical_intid;
    }
    /// Routes a physical shared interrupt to the CPU with MPIDR `mpidr`, and enables it.
    fn enable_line(&self, physical_intid: u32, mpidr: u64) {
        let _ = (physical_intid, mpidr);
    }
    /// Disables a physical shared interrupt, with effect when this returns.
    fn disable_line(&self, physical_intid: u32) {
        let _ = physical_intid;
    }
    /// Counts interrupt `intid`, which has become pending in a list register.
    fn given(&self, intid: u32) {
        let _ = intid;
    }
}
