//! A virtio block device of PCI (virtio 1.2, "Virtio Over PCI Bus"), with one request at a time.
//!
//! Every address that the device gets is the caller's choice, so that a request can point anywhere.

use crate::pci::{BUS_MASTER, Function, MEMORY};
use bare::mmio::{read8, read16, read32, write8, write16, write32, write64};
use bare::timer;

/// Vendor and device of a modern block device.
pub(crate) const BLOCK: u32 = 0x1042_1af4;
/// Vendor-specific capability.
const VENDOR: u32 = 0x09;

/// Registers of the common configuration.
const FEATURE_SELECT: usize = 0x08;
const FEATURE: usize = 0x0c;
const STATUS: usize = 0x14;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY: usize = 0x1e;
const QUEUE_DESCRIPTORS: usize = 0x20;
const QUEUE_AVAILABLE: usize = 0x28;
const QUEUE_USED: usize = 0x30;

/// Feature bits 63:32: VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM.
const FEATURES_HIGH: u32 = 1 << 0 | 1 << 1;
const QUEUE_LENGTH: usize = 8;
/// VIRTIO_BLK_T_GET_ID, and the size of its answer in bytes.
const GET_ID: u64 = 8;
const ID_SIZE: u32 = 20;

/// Status byte of a request before the device has answered.
const UNANSWERED: u32 = 0xff;

/// The places of a request in guest addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// Descriptors, available ring, used ring: a page each, in the memory that the program writes.
    pub(crate) rings: usize,
    /// Address of the rings as the device is told.
    pub(crate) told_rings: u64,
    /// Address of the data as the device is told.
    pub(crate) data: u64,
    /// Number of sectors; 0 asks for the disk's name instead.
    pub(crate) sectors: u32,
}

/// A block device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) function: Function,
    common: usize,
    notify: usize,
    isr: usize,
}

impl Block {
    /// Returns the first block device.
    pub(crate) fn find() -> Option<Self> {
        let function = Function::all().find(|function| function.id() == BLOCK)?;
        function.set_command(MEMORY | BUS_MASTER);
        let place = |kind: u32| {
            function.capabilities(VENDOR).find_map(|at| {
                let header = function.read(at);
                let bar = function.read(at + 4) as usize & 0xff;
                (header >> 24 == kind && bar < 6).then(|| function.bar(bar) + function.read(at + 8) as usize)
            })
        };
        Some(Self { function, common: place(1)?, notify: place(2)?, isr: place(3)? })
    }

    /// Resets the device. Returns true if it reports completion within a second.
    pub(crate) fn reset(&self) -> bool {
        write8(self.common + STATUS, 0);
        timer::wait_for(1_000_000, || read8(self.common + STATUS) == 0)
    }

    /// Initializes the device with one queue at `places`.
    pub(crate) fn start(&self, places: &Places) -> bool {
        self.function.set_command(MEMORY | BUS_MASTER);
        if !self.reset() {
            return false;
        }
        write8(self.common + STATUS, 1 | 2);
        for (select, value) in [(0, 0), (1, FEATURES_HIGH)] {
            write32(self.common + FEATURE_SELECT, select);
            write32(self.common + FEATURE, value);
        }
        write8(self.common + STATUS, 1 | 2 | 8);
        write16(self.common + QUEUE_SIZE - 2, 0);
        write16(self.common + QUEUE_SIZE, QUEUE_LENGTH as u32);
        for (register, page) in [(QUEUE_DESCRIPTORS, 0), (QUEUE_AVAILABLE, 1), (QUEUE_USED, 2)] {
            write64_halves(self.common + register, places.told_rings + page * 0x1000);
        }
        write16(self.common + QUEUE_ENABLE, 1);
        write8(self.common + STATUS, 1 | 2 | 8 | 4);
        read8(self.common + STATUS) & 8 != 0
    }

    /// Submits a read of `places.sectors` from sector 0, or of the disk's name, and does not wait for it.
    pub(crate) fn submit(&self, places: &Places) {
        let (header, status) = (places.rings + 0x3000, places.rings + 0x3100);
        let told = |address: usize| places.told_rings + (address - places.rings) as u64;
        let (kind, length) = if places.sectors == 0 { (GET_ID, ID_SIZE) } else { (0, 512 * places.sectors) };
        write64(header, kind);
        write64(header + 8, 0);
        write8(status, UNANSWERED);
        let descriptor = |index: usize, address: u64, length: u32, flags: u32, next: u32| {
            let at = places.rings + 16 * index;
            write64(at, address);
            write32(at + 8, length);
            write32(at + 12, flags | next << 16);
        };
        descriptor(0, told(header), 16, 1, 1);
        descriptor(1, places.data, length, 1 | 2, 2);
        descriptor(2, told(status), 1, 2, 0);
        let available = places.rings + 0x1000;
        let index = read16(available + 2);
        write16(available + 4 + 2 * (index as usize % QUEUE_LENGTH), 0);
        bare::instruction!("dsb sy");
        write16(available + 2, index + 1);
        bare::instruction!("dsb sy");
        write16(self.notify + self.notify_offset(), 0);
    }

    /// Waits for the answer to the last request, at most `microseconds`. Returns the status byte, if it was written.
    pub(crate) fn wait(&self, places: &Places, microseconds: u64) -> Option<u32> {
        let status = places.rings + 0x3100;
        let answered = timer::wait_for(microseconds, || read8(status) != UNANSWERED);
        answered.then(|| read8(status))
    }

    /// Clears the rings of `places`.
    pub(crate) fn clear(&self, places: &Places) {
        (places.rings..places.rings + 0x4000).step_by(8).for_each(|at| write64(at, 0));
    }

    /// Acknowledges the interrupt, which lowers its line.
    pub(crate) fn acknowledge(&self) -> u32 {
        read8(self.isr)
    }

    /// Returns the offset of queue 0's notification register.
    fn notify_offset(&self) -> usize {
        let capability = self.function.capabilities(VENDOR).find(|&at| self.function.read(at) >> 24 == 2);
        let multiplier = capability.map_or(0, |at| self.function.read(at + 16) as usize);
        read16(self.common + QUEUE_NOTIFY) as usize * multiplier
    }
}

/// Writes a register of 64 bits as two words, the only way that virtio guarantees.
fn write64_halves(address: usize, value: u64) {
    write32(address, value as u32);
    write32(address + 4, (value >> 32) as u32);
}

/// Returns the word at `address` in plain memory.
pub(crate) fn peek(address: usize) -> u32 {
    read32(address)
}
