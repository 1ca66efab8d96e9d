//! A PCI function of a guest: its registers, and the configuration space that the guest sees.

use super::registers;
use crate::arch::cpu;
use crate::arch::mmio::Registers;
use crate::arch::timer;
use crate::pci::{self, Clock, Error, Quiescence, VirtualConfig};
use crate::physical::assignment;
use alloc::string::{String, ToString};
use guest_dts::range::PaRange;

/// A PCI function of a guest.
pub(super) struct Function {
    /// The assignment that it comes from.
    pub(super) assigned: assignment::Function,
    /// The function on the host.
    pub(super) host: pci::Function,
    config: Registers,
    /// Common configuration of a virtio function.
    common: Option<Registers>,
    view: VirtualConfig,
}

/// EL2's clock. It serves this CPU's interrupts while it waits.
struct Wait;

impl Clock for Wait {
    fn wait(&mut self, microseconds: u32) {
        let end = timer::now() + timer::ticks(microseconds.into());
        while timer::now() < end {
            cpu::serve_interrupts();
            cpu::relax();
        }
    }
}

impl Function {
    /// Makes a function of `host`, which is placed on the host's bus and has guest addresses. It is made quiet, whatever
    /// firmware did with it.
    ///
    /// # Errors
    ///
    /// The function does not become quiet, or an SMMU would not isolate it.
    pub(super) fn new(
        assigned: assignment::Function,
        host: pci::Function,
        config: Registers,
    ) -> Result<Self, String> {
        let common = match host.common_config() {
            None => None,
            Some(place) => {
                let range = PaRange::from_numbers(place.frame.get(), place.mapped_size);
                let range = range.ok_or("its common configuration is beyond all addresses")?;
                let frame = registers::map(range)?;
                frame.part(place.offset.into(), frame.size() - usize::from(place.offset))
            }
        };
        let view = VirtualConfig::new(&host, &config);
        let function = Self { assigned, host, config, common, view };
        // A reset first: before it, a virtio device may not answer.
        function.quiesce().map_err(|error| error.to_string())?;
        if assigned.stream.is_some() && !function.host.is_isolated_by_smmu(function.common.as_ref()) {
            return Err(String::from(
                "virtio device without VIRTIO_F_ACCESS_PLATFORM: it would bypass the SMMU; with QEMU, add iommu_platform=on",
            ));
        }
        function.quiesce().map_err(|error| error.to_string())?;
        Ok(function)
    }

    /// Stops the function's DMA and interrupts, and resets it.
    pub(super) fn quiesce(&self) -> Result<Quiescence, Error> {
        pci::quiesce(&self.host, &self.config, self.common.as_ref(), &mut Wait)
    }

    /// Prepares the function, which is quiet, for a guest that starts.
    pub(super) fn attach(&self) {
        self.view.attach(&self.config);
    }

    /// Reads `size` bytes of the configuration space that the guest sees.
    pub(super) fn read(&self, register: u16, size: u8) -> u64 {
        self.view.read(&self.config, register, size)
    }

    /// Writes `size` bytes of the configuration space that the guest sees.
    pub(super) fn write(&self, register: u16, size: u8, value: u64) {
        self.view.write(&self.config, register, size, value);
    }
}
