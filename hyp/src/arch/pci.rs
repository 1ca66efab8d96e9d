//! PCI configuration space and device registers, as `pci` reaches them.

use crate::arch::mmio::Registers;
use crate::pci::{Bus, RegisterSpace, Rid, Width};

/// Device memory keeps the order of accesses to one device, and its loads are load-acquire: what follows a read waits for it.
/// A write alone may be acknowledged early (Device-nGnRE).
impl RegisterSpace for Registers {
    #[inline(always)]
    fn read(&self, offset: u16, width: Width) -> u32 {
        let offset = offset.into();
        match width {
            Width::Byte => Registers::read8(*self, offset).into(),
            Width::Half => Registers::read16(*self, offset).into(),
            Width::Word => Registers::read32(*self, offset),
        }
    }

    fn write(&self, offset: u16, width: Width, value: u32) {
        let offset = offset.into();
        match width {
            Width::Byte => Registers::write8(*self, offset, value as u8),
            Width::Half => Registers::write16(*self, offset, value as u16),
            Width::Word => Registers::write32(*self, offset, value),
        }
    }
}

/// A host bridge's configuration space: 1 MiB a bus, 4 KiB a function (PCI Express Base Specification, "PCI Express Enhanced
/// Configuration Access Mechanism").
#[derive(Clone, Copy)]
pub(crate) struct Ecam {
    registers: Registers,
    first_bus: u8,
}

impl Ecam {
    /// Makes the space from its registers, which begin with those of `first_bus`.
    pub(crate) const fn new(registers: Registers, first_bus: u8) -> Self {
        Self { registers, first_bus }
    }
}

impl Bus for Ecam {
    type Space = Registers;

    fn function(&self, rid: Rid) -> Option<Registers> {
        let number = u32::from(rid.get()).checked_sub(u32::from(self.first_bus) << 8)?;
        self.registers.part((number as usize) << 12, 1 << 12)
    }
}
