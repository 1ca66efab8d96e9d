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
    /// Returns true if the line of a physical private interrupt of this CPU is high.
    fn is_line_high(&self, physical_intid: u32) -> bool;
    /// Activates a physical private interrupt of this CPU, as if it had been acknowledged.
    fn activate(&self, physical_intid: u32);
    /// Deactivates a physical interrupt.
    fn deactivate(&self, physical_intid: u32);
    /// Enables or disables a physical private interrupt of this CPU.
    fn set_physical_enable(&self, physical_intid: u32, is_enabled: bool);
    /// Counts interrupt `intid`, which has become pending in a list register.
    fn given(&self, intid: u32) {
        let _ = intid;
    }
}
