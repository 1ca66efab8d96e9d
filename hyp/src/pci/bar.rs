//! Base address registers: their sizes and addresses.

use heapless::Vec;
use stage2::addr::{FRAME_SIZE, Pa};

use super::config::{BAR, Command, RegisterSpace, Rid, command, set_command};
use super::error::{Error, Fault};

/// The base address registers of a function that is not a bridge.
pub(super) const BAR_LIMIT: u8 = 6;

/// Bit 0: a BAR for I/O ports.
const IO: u32 = 1;
/// Bits 2:1 of a memory BAR: 00 for 32 bits, 10 for 64.
const TYPE: u32 = 0b110;
const TYPE_64: u32 = 0b100;
/// Bit 3 of a memory BAR.
const PREFETCHABLE: u32 = 1 << 3;
/// The bits of a memory BAR that are no address.
const FLAGS: u32 = 0xf;

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    /// The index of its (lower) register, 0 to 5.
    pub(super) index: u8,
    /// The size in bytes, a power of two from 16 on.
    pub(super) size: u64,
    /// The lower register's bits 3:0.
    pub(super) flags: u8,
    /// The address on the bus; 0: none yet.
    pub(super) address: u64,
    /// The CPU's address for `address`, once placed.
    pub(super) cpu: Pa,
    /// The guest's address, once given.
    pub(super) guest: u64,
}

impl Bar {
    /// Returns the offset of the (lower) register.
    pub(super) const fn register(&self) -> u16 {
        BAR + 4 * self.index as u16
    }

    /// Returns whether the BAR takes two registers.
    pub(super) const fn is_64(&self) -> bool {
        self.flags as u32 & TYPE == TYPE_64
    }

    /// Returns whether reads have no side effects and writes may merge.
    pub(super) const fn is_prefetchable(&self) -> bool {
        self.flags as u32 & PREFETCHABLE != 0
    }

    /// Returns the size in whole frames: what stage 2 maps.
    pub(crate) const fn mapped_size(&self) -> u64 {
        self.size.next_multiple_of(FRAME_SIZE)
    }

    /// Returns the CPU's address of the BAR.
    pub(crate) const fn cpu(&self) -> Pa {
        self.cpu
    }

    /// Returns the guest's address of the BAR.
    pub(crate) const fn guest(&self) -> u64 {
        self.guest
    }

    /// Returns both registers for a BAR at `address`: lower, upper.
    pub(super) const fn registers(&self, address: u64) -> [u32; 2] {
        [address as u32 & !FLAGS | self.flags as u32, (address >> 32) as u32]
    }
}

/// Runs `work` while the function decodes neither memory nor I/O, as changes of BARs require.
fn without_decoding<T>(space: &impl RegisterSpace, work: impl FnOnce() -> T) -> T {
    let before = command(space);
    set_command(space, before.with_memory(false).with_io(false));
    let value = work();
    set_command(space, before);
    value
}

/// Writes all ones to the register at `register`, and puts its value back. Returns value and writable bits.
fn size_register(space: &impl RegisterSpace, register: u16) -> (u32, u32) {
    let value = space.read32(register);
    space.write32(register, u32::MAX);
    let mask = space.read32(register);
    space.write32(register, value);
    (value, mask)
}

/// Reads and sizes the memory BARs in the first `count` registers of `rid` (PCI Local Bus Specification, "Address Maps").
/// BARs for I/O ports are left out.
pub(super) fn read(
    rid: Rid,
    space: &impl RegisterSpace,
    count: u8,
) -> Result<Vec<Bar, { BAR_LIMIT as usize }>, Error> {
    without_decoding(space, || {
        let (mut bars, mut index) = (Vec::new(), 0);
        while index < count {
            let register = BAR + 4 * u16::from(index);
            let (value, low) = size_register(space, register);
            let at = index;
            index += 1;
            if low == 0 || value & IO != 0 {
                continue;
            }
            let is_64 = value & TYPE == TYPE_64;
            if value & TYPE != 0 && !is_64 || is_64 && index == count {
                return Err(Fault::BarType { register, value }.of(rid));
            }
            let mut mask = u64::from(low & !FLAGS) | 0xffff_ffff_0000_0000;
            let mut address = u64::from(value & !FLAGS);
            if is_64 {
                let (upper, high) = size_register(space, register + 4);
                index += 1;
                mask = mask & 0xffff_ffff | u64::from(high) << 32;
                address |= u64::from(upper) << 32;
            }
            let size = mask.wrapping_neg();
            if !size.is_power_of_two() {
                return Err(Fault::BarSize { register, mask }.of(rid));
            }
            let flags = (value & FLAGS) as u8;
            let bar = Bar { index: at, size, flags, address, cpu: Pa::default(), guest: 0 };
            // At most six registers were read.
            let _ = bars.push(bar);
        }
        Ok(bars)
    })
}

/// Writes the addresses of `bars`, and reads them back.
pub(super) fn write(rid: Rid, space: &impl RegisterSpace, bars: &[Bar]) -> Result<(), Error> {
    without_decoding(space, || {
        for bar in bars {
            let count = if bar.is_64() { 2 } else { 1 };
            let registers = (bar.register()..).step_by(4).zip(bar.registers(bar.address)).take(count);
            for (register, written) in registers {
                space.write32(register, written);
                let read = space.read32(register);
                if read != written {
                    return Err(Fault::BarWrite { register, written, read }.of(rid));
                }
            }
        }
        Ok(())
    })
}

/// Returns COMMAND for a function at rest: it answers at its BARs, does not become bus master, and does not interrupt.
/// Other bits stay as in `before`.
pub(super) const fn at_rest(before: Command) -> Command {
    before.with_io(false).with_memory(true).with_bus_master(false).with_intx_disable(true)
}
