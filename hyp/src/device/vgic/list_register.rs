//! A list register: one virtual interrupt on its way to a vCPU (GICv3 and GICv4 architecture specification,
//! IHI 0069H, 12.4.4 ICH_LR<n>_EL2).

use bitfield_struct::bitfield;

/// The value of ICH_LR<n>_EL2.
#[bitfield(u64, order = Lsb)]
#[derive(PartialEq, Eq)]
pub struct ListRegister {
    /// The INTID that the guest sees.
    #[bits(32)]
    pub virtual_intid: u32,
    /// With `hardware`: the physical INTID that the guest's deactivation deactivates.
    #[bits(9)]
    pub physical_intid: u16,
    /// Without `hardware`: a maintenance interrupt on the guest's end of interrupt. Else bit 9 of the physical
    /// INTID.
    pub eoi_maintenance: bool,
    #[bits(6)]
    __: u8,
    /// Priority, 0 highest.
    #[bits(8)]
    pub priority: u8,
    #[bits(4)]
    __: u8,
    /// Group 1 where true, else group 0.
    pub group1: bool,
    /// Linked to a physical interrupt.
    pub hardware: bool,
    /// Pending; with `active` also active.
    pub pending: bool,
    /// Active.
    pub active: bool,
}

impl ListRegister {
    /// Whether the register is free for another interrupt.
    pub const fn is_empty(self) -> bool {
        !self.pending() && !self.active()
    }
}

/// The list registers and physical interrupt controller of the CPU that a vCPU owns. Called on that CPU only.
pub trait ListRegisters {
    /// How many there are, 1 to 16.
    fn count(&self) -> usize;
    /// Reads register `index`.
    fn read(&self, index: usize) -> ListRegister;
    /// Writes register `index`.
    fn write(&self, index: usize, value: ListRegister);
    /// Which of them are empty, a bit each (ICH_ELRSR_EL2).
    fn read_empty(&self) -> u64;
    /// How often the guest ended an interrupt that is in none of them, since the last call
    /// (ICH_HCR_EL2.EOIcount).
    fn take_eoi_count(&self) -> u32;
    /// Asks for maintenance interrupts: `underflow` when at most one is in use, `not_present` when the guest
    /// ends an interrupt that is in none; the latter also traps deactivation (ICH_HCR_EL2.UIE, LRENPIE, TDIR).
    fn request_maintenance(&self, underflow: bool, not_present: bool);
    /// Whether the line of a physical private interrupt of this CPU is high.
    fn is_line_high(&self, physical_intid: u32) -> bool;
    /// Makes a physical private interrupt of this CPU active, as if it had been acknowledged.
    fn activate(&self, physical_intid: u32);
    /// Deactivates a physical interrupt.
    fn deactivate(&self, physical_intid: u32);
    /// Enables or disables a physical private interrupt of this CPU.
    fn set_physical_enable(&self, physical_intid: u32, is_enabled: bool);
    /// Interrupt `intid` is pending in one of them now, and was not before: for statistics.
    fn given(&self, intid: u32) {
        let _ = intid;
    }
}
