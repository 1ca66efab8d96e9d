//! Devices of guests: PCI functions and platform devices, the SMMUs that isolate them, their registers and interrupts.
//!
//! # Life
//! At boot, functions are probed and placed, and made quiet; every stream aborts (`setup`, `smmus`). When a guest starts, its
//! devices are attached last: reset, then streams, then configuration space, then interrupts. When it stops or is reset, and no
//! vCPU is in it, this is undone in the reverse order ([`Devices::detach`]) before its memory is freed or loaded again.
//!
//! A device reaches only its guest's DMA window, whose memory is reserved for that guest forever. So an access that is late, or
//! of a device that cannot be stopped, reaches nobody else.
//!
//! # Locks
//! An SMMU's lock → the allocator's. A device's `state` is a leaf: making a function quiet takes time, in which this CPU serves
//! interrupts and the monitor may run, so no lock is held meanwhile.

mod device;
mod function;
#[allow(unsafe_code)]
mod registers;
mod report;
pub(crate) mod setup;
pub(crate) mod smmus;
mod windows;

pub(crate) use report::REPORT;

use super::Guest;
use crate::board::{Interrupt, Stream};
use crate::pci;
use crate::physical::assignment::Window;
use alloc::string::String;
use alloc::vec::Vec;
use device::{Device, Kind};
use function::Function;
use stage2::addr::{Ipa, Pa};
use windows::Windows;

/// The devices of a guest.
#[derive(Default)]
pub(crate) struct Devices {
    /// PCI functions first: the one at index i is device i + 1 on the guest's bus.
    devices: Vec<Device>,
    /// Interrupts; the one at index i is the guest's line i.
    lines: Vec<Interrupt>,
    /// The DMA window.
    window: Option<Window>,
    /// The DMA window in the SMMUs.
    windows: Windows,
}

/// Registers to map for a guest: guest address, physical address, bytes.
pub(crate) type Page = (Ipa, Pa, u64);

impl Devices {
    /// Returns the physical interrupts, by the guest's line.
    pub(crate) fn lines(&self) -> &[Interrupt] {
        &self.lines
    }

    /// Returns true if there are PCI functions, so that the guest has a host bridge.
    #[inline]
    pub(crate) fn has_functions(&self) -> bool {
        self.devices.first().is_some_and(|first| first.as_function().is_some())
    }

    /// Returns the name on the host of the device with `stream`.
    fn name_of(&self, stream: Stream) -> Option<&str> {
        let device = self.devices.iter().find(|device| device.streams.contains(&stream))?;
        Some(&device.name)
    }

    /// Calls `map` with all registers that the guest accesses without a trap, until it fails.
    pub(crate) fn map_registers(
        &self,
        map: &mut dyn FnMut(Page) -> Result<(), String>,
    ) -> Result<(), String> {
        for device in &self.devices {
            match &device.kind {
                Kind::Function(function) => {
                    for bar in function.host.bars() {
                        map((Ipa::new_truncate(bar.guest()), bar.cpu(), bar.mapped_size()))?;
                    }
                }
                Kind::Platform(device) => {
                    for &(ipa, range) in &device.pages {
                        map((Ipa::new_truncate(ipa), range.base(), range.size()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the word at `offset` in the guest's PCI configuration space. Returns `None` if the function is absent, or if the
    /// offset is not that of a word in the first 256 bytes.
    #[inline(always)]
    pub(crate) fn config_word(&self, offset: u64) -> Option<u32> {
        let (index, register) = pci::word_slot(offset)?;
        self.devices.get(index)?.as_function()?.read_word(register)
    }

    /// Reads `size` bytes of the guest's PCI configuration space. An absent function reads as all ones.
    pub(crate) fn read_config(&self, offset: u64, size: u64) -> u64 {
        match self.function(offset) {
            Some((function, register)) => function.read(register, size as u8),
            None => u64::MAX,
        }
    }

    /// Writes `size` bytes of the guest's PCI configuration space.
    pub(crate) fn write_config(&self, offset: u64, size: u64, value: u64) {
        if let Some((function, register)) = self.function(offset) {
            function.write(register, size as u8, value);
        }
    }

    fn function(&self, offset: u64) -> Option<(&Function, u16)> {
        let (index, register) = pci::slot(offset)?;
        Some((self.devices.get(index)?.as_function()?, register))
    }

    /// Attaches all devices. No vCPU runs, and the guest's images are loaded. A device that fails is left out: its streams abort.
    pub(crate) fn attach(&self, guest: &Guest) {
        self.devices.iter().for_each(|device| device.attach(guest, &self.windows));
    }

    /// Detaches all devices. No vCPU is in the guest, and its interrupts are quiet. When this returns, no device accesses its
    /// memory, except one that failed: that one may still access the DMA window, if its SMMU failed too.
    pub(crate) fn detach(&self, guest: &Guest) {
        self.devices.iter().for_each(|device| device.detach(guest));
    }
}
