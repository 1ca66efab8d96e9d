//! PCI functions on bus 0, by ECAM.

use bare::mmio;

/// Base of the configuration space on Ballast's platform.
pub(crate) const ECAM: usize = 0x3000_0000;
/// Bytes of the configuration space: bus 0.
pub(crate) const ECAM_SIZE: usize = 0x10_0000;

/// Registers of a configuration space.
const COMMAND: usize = 0x04;
const CAPABILITIES: usize = 0x34;
const BAR: usize = 0x10;

/// COMMAND: memory space.
pub(crate) const MEMORY: u32 = 1 << 1;
/// COMMAND: bus master.
pub(crate) const BUS_MASTER: u32 = 1 << 2;

/// A function, by its configuration space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// Address of the configuration space.
    pub(crate) base: usize,
}

impl Function {
    /// Iterates over the functions that exist.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..256)
            .map(|number| Self { base: ECAM + (number << 12) })
            .filter(|function| function.id() != u32::MAX)
    }

    /// Returns vendor (low half) and device.
    pub(crate) fn id(self) -> u32 {
        self.read(0)
    }

    /// Returns the device and function number.
    pub(crate) fn number(self) -> usize {
        (self.base - ECAM) >> 12
    }

    /// Reads a word.
    pub(crate) fn read(self, offset: usize) -> u32 {
        mmio::read32(self.base + offset)
    }

    /// Writes a word.
    pub(crate) fn write(self, offset: usize, value: u32) {
        mmio::write32(self.base + offset, value);
    }

    /// Sets COMMAND.
    pub(crate) fn set_command(self, value: u32) {
        mmio::write16(self.base + COMMAND, value);
    }

    /// Returns the address in BAR `index`.
    pub(crate) fn bar(self, index: usize) -> usize {
        let low = self.read(BAR + 4 * index);
        let high = if low & 6 == 4 { self.read(BAR + 4 * index + 4) } else { 0 };
        (u64::from(high) << 32 | u64::from(low & !0xf)) as usize
    }

    /// Writes BAR `index`.
    pub(crate) fn set_bar(self, index: usize, value: u32) {
        self.write(BAR + 4 * index, value);
    }

    /// Iterates over the offsets of the capabilities with this identifier; the list may be broken.
    pub(crate) fn capabilities(self, id: u32) -> impl Iterator<Item = usize> {
        let mut at = mmio::read8(self.base + CAPABILITIES) as usize & !3;
        let mut left = 48;
        core::iter::from_fn(move || {
            while at >= 0x40 && left > 0 {
                left -= 1;
                let (here, header) = (at, self.read(at));
                at = (header >> 8 & 0xfc) as usize;
                if header & 0xff == id {
                    return Some(here);
                }
            }
            None
        })
    }
}
