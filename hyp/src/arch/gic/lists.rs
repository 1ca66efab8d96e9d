//! This CPU's list registers and virtual CPU interface (IHI 0069H, ICH_*).

use super::{cpu_interface, distributor};
use crate::arch::sysreg::{read, write};
use crate::arch::{cpu, trace};
use crate::device::vgic::common_registers;
use crate::device::vgic::list_register::{ListRegister, ListRegisters};
use crate::observe::trace::Kind;

/// ICH_HCR_EL2: En, UIE, LRENPIE, and the position of EOIcount.
const HCR_ENABLE: u64 = 1;
const HCR_UNDERFLOW: u64 = 1 << 1;
const HCR_NOT_PRESENT: u64 = 1 << 2;
const HCR_EOI_COUNT_SHIFT: u32 = 27;

/// The list registers of the CPU that this runs on.
pub(crate) struct Lists;

macro_rules! each_list_register {
    ($macro:ident, $index:expr, $($rest:tt)*) => {
        $macro!($index, $($rest)*;
            0 "S3_4_C12_C12_0", 1 "S3_4_C12_C12_1", 2 "S3_4_C12_C12_2", 3 "S3_4_C12_C12_3",
            4 "S3_4_C12_C12_4", 5 "S3_4_C12_C12_5", 6 "S3_4_C12_C12_6", 7 "S3_4_C12_C12_7",
            8 "S3_4_C12_C13_0", 9 "S3_4_C12_C13_1", 10 "S3_4_C12_C13_2", 11 "S3_4_C12_C13_3",
            12 "S3_4_C12_C13_4", 13 "S3_4_C12_C13_5", 14 "S3_4_C12_C13_6", 15 "S3_4_C12_C13_7")
    };
}

macro_rules! read_one {
    ($index:expr, ; $($number:literal $name:literal),*) => {
        match $index { $($number => read!($name),)* _ => 0 }
    };
}

macro_rules! write_one {
    ($index:expr, $value:expr; $($number:literal $name:literal),*) => {
        match $index { $($number => write!(interrupt $name, $value),)* _ => {} }
    };
}

impl ListRegisters for Lists {
    fn count(&self) -> usize {
        // ICH_VTR_EL2.ListRegs.
        (vtr() as usize & 0x1f) + 1
    }

    fn read(&self, index: usize) -> ListRegister {
        ListRegister::from_bits(each_list_register!(read_one, index,))
    }

    #[inline(always)]
    fn write(&self, index: usize, value: ListRegister) {
        each_list_register!(write_one, index, value.into_bits());
    }

    #[inline(always)]
    fn read_empty(&self) -> u64 {
        // ICH_ELRSR_EL2.
        read!("S3_4_C12_C11_5")
    }

    fn take_eoi_count(&self) -> u32 {
        let hcr = read!("S3_4_C12_C11_0");
        let count = hcr >> HCR_EOI_COUNT_SHIFT & 0x1f;
        if count != 0 {
            write!(interrupt "S3_4_C12_C11_0", hcr & !(0x1f << HCR_EOI_COUNT_SHIFT));
        }
        count as u32
    }

    fn request_maintenance(&self, underflow: bool, not_present: bool) {
        let mut hcr = HCR_ENABLE;
        if underflow {
            hcr |= HCR_UNDERFLOW;
        }
        if not_present {
            hcr |= HCR_NOT_PRESENT | common_registers::deactivation_trap(vtr());
        }
        write!(interrupt "S3_4_C12_C11_0", hcr);
    }

    fn is_line_high(&self, physical_intid: u32) -> bool {
        if physical_intid >= 32 {
            return distributor().is_some_and(|distributor| distributor.is_pending(physical_intid));
        }
        let redistributor = cpu::current().redistributor();
        redistributor.is_some_and(|redistributor| redistributor.pending() >> (physical_intid & 31) & 1 != 0)
    }

    fn activate(&self, physical_intid: u32) {
        if physical_intid >= 32 {
            if let Some(distributor) = distributor() {
                distributor.set_active(physical_intid);
            }
        } else if let Some(redistributor) = cpu::current().redistributor() {
            redistributor.set_active(1 << (physical_intid & 31));
        }
    }

    fn deactivate(&self, physical_intid: u32) {
        match distributor() {
            // Another CPU may have acknowledged it, and a guest may have deactivated it meanwhile.
            Some(distributor) if physical_intid >= 32 => distributor.clear_active(physical_intid),
            _ => cpu_interface::deactivate(physical_intid),
        }
    }

    fn set_pending(&self, physical_intid: u32) {
        if let Some(distributor) = distributor() {
            distributor.set_pending(physical_intid);
        }
    }

    fn clear_pending(&self, physical_intid: u32) {
        if let Some(distributor) = distributor() {
            distributor.clear_pending(physical_intid);
        }
    }

    fn enable_line(&self, physical_intid: u32, mpidr: u64) {
        if let Some(distributor) = distributor() {
            distributor.enable_at(physical_intid, mpidr);
        }
    }

    fn disable_line(&self, physical_intid: u32) {
        if let Some(distributor) = distributor() {
            distributor.disable(physical_intid);
        }
    }

    fn given(&self, intid: u32) {
        cpu::current().counters.count_injected();
        trace::record_here(Kind::Inject, u64::from(intid), 0);
    }

    fn set_physical_enable(&self, physical_intid: u32, is_enabled: bool) {
        if let Some(redistributor) = cpu::current().redistributor() {
            if is_enabled {
                redistributor.enable(1 << (physical_intid & 31));
            } else {
                redistributor.disable(1 << (physical_intid & 31));
            }
        }
    }
}

/// Reads ICH_VTR_EL2.
fn vtr() -> u64 {
    read!("S3_4_C12_C11_1")
}

/// Returns the bits of preemption, ICH_VTR_EL2.PREbits.
fn preemption_bits() -> u64 {
    (vtr() >> 26 & 7) + 1
}

impl common_registers::Interface for Lists {
    fn vtr(&self) -> u64 {
        vtr()
    }

    fn vmcr(&self) -> u64 {
        read!("S3_4_C12_C11_7")
    }

    fn set_vmcr(&self, value: u64) {
        write!(interrupt "S3_4_C12_C11_7", value);
    }

    /// Words beyond the first exist only with more than five bits of preemption.
    fn active_priorities(&self) -> [u64; 4] {
        let mut active = [read!("S3_4_C12_C8_0") | read!("S3_4_C12_C9_0"), 0, 0, 0];
        if preemption_bits() >= 6 {
            active[1] = read!("S3_4_C12_C8_1") | read!("S3_4_C12_C9_1");
        }
        if preemption_bits() >= 7 {
            active[2] = read!("S3_4_C12_C8_2") | read!("S3_4_C12_C9_2");
            active[3] = read!("S3_4_C12_C8_3") | read!("S3_4_C12_C9_3");
        }
        active
    }
}

impl Lists {
    /// Resets the interface: no interrupt, no active priority, groups disabled, all masked (ICH_VMCR_EL2 = 0).
    pub(crate) fn reset(&self) {
        write!(interrupt "S3_4_C12_C11_0", 0);
        for index in 0..self.count() {
            self.write(index, ListRegister::new());
        }
        // ICH_AP0R0_EL2, ICH_AP1R0_EL2. The others exist only with more than five bits of preemption.
        write!(interrupt "S3_4_C12_C8_0", 0);
        write!(interrupt "S3_4_C12_C9_0", 0);
        let preemption_bits = preemption_bits();
        if preemption_bits >= 6 {
            write!(interrupt "S3_4_C12_C8_1", 0);
            write!(interrupt "S3_4_C12_C9_1", 0);
        }
        if preemption_bits >= 7 {
            write!(interrupt "S3_4_C12_C8_2", 0);
            write!(interrupt "S3_4_C12_C8_3", 0);
            write!(interrupt "S3_4_C12_C9_2", 0);
            write!(interrupt "S3_4_C12_C9_3", 0);
        }
        // ICH_VMCR_EL2.
        write!(interrupt "S3_4_C12_C11_7", 0);
    }
}
