//! A PCI function of a guest: its registers, and the configuration space that the guest sees.

use super::registers;
use crate::arch::mmio::Registers;
use crate::arch::{cpu, timer};
use crate::pci::{self, Clock, CommonConfig, Error, Quiescence, VirtualConfig};
use crate::physical::assignment;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, Ordering};
use guest_dts::range::PaRange;

/// A PCI function of a guest.
pub(super) struct Function {
    /// The assignment that it comes from.
    pub(super) assigned: assignment::Function,
    /// The function on the host.
    pub(super) host: pci::Function,
    /// Configuration space on the host.
    config: Registers,
    /// Common configuration of a virtio function: its status and features.
    common: Option<Registers>,
    /// Configuration space as the guest sees it.
    view: VirtualConfig,
    /// True while the guest has it. A function that failed is absent from the guest's bus, so that nobody makes it bus master.
    is_present: AtomicBool,
}

/// The clock of this CPU, which serves its interrupts while it waits. So the caller holds no lock.
struct ServingClock;

impl Clock for ServingClock {
    fn wait(&mut self, microseconds: u32) {
        let end = timer::now() + timer::ticks(microseconds.into());
        while timer::now() < end {
            cpu::serve_interrupts();
            cpu::relax();
        }
    }
}

impl Function {
    /// Makes a function of `host`, which is placed on the host's bus and has guest addresses. `config` is its configuration
    /// space. Whatever firmware did with the function, it is quiet then.
    ///
    /// # Errors
    ///
    /// The function does not become quiet, or an SMMU would not isolate it.
    pub(super) fn new(
        assigned: assignment::Function,
        host: pci::Function,
        config: Registers,
    ) -> Result<Self, String> {
        let common = host.common_config().map(map_common_config).transpose()?;
        let view = VirtualConfig::new(&host, &config);
        let is_present = AtomicBool::new(false);
        let function = Self { assigned, host, config, common, view, is_present };
        // First, since a virtio device that is in use need not answer.
        function.quiesce().map_err(|error| error.to_string())?;
        if assigned.stream.is_some() && !function.host.is_isolated_by_smmu(function.common.as_ref()) {
            return Err(String::from(
                "virtio device without VIRTIO_F_ACCESS_PLATFORM: it would bypass the SMMU; with QEMU, add iommu_platform=on",
            ));
        }
        Ok(function)
    }

    /// Stops the function's DMA and interrupts, and resets it.
    pub(super) fn quiesce(&self) -> Result<Quiescence, Error> {
        pci::quiesce(&self.host, &self.config, self.common.as_ref(), &mut ServingClock)
    }

    /// Shows the function, which is quiet, to a guest that starts.
    pub(super) fn attach(&self) {
        self.view.attach(&self.config);
        self.is_present.store(true, Ordering::Relaxed);
    }

    /// Hides the function from its guest, of which no vCPU runs, and makes it quiet.
    pub(super) fn detach(&self) -> Result<Quiescence, Error> {
        self.is_present.store(false, Ordering::Relaxed);
        self.quiesce()
    }

    /// Reads word `number` of the first 256 bytes of the configuration space that the guest sees.
    #[inline(always)]
    pub(super) fn read_word(&self, number: u8) -> Option<u32> {
        self.is_present.load(Ordering::Relaxed).then(|| self.view.word(&self.config, number))
    }

    /// Reads `size` bytes of the configuration space that the guest sees.
    pub(super) fn read(&self, register: u16, size: u8) -> u64 {
        match self.is_present.load(Ordering::Relaxed) {
            true => self.view.read(&self.config, register, size),
            false => u64::MAX,
        }
    }

    /// Writes `size` bytes of the configuration space that the guest sees.
    pub(super) fn write(&self, register: u16, size: u8, value: u64) {
        if self.is_present.load(Ordering::Relaxed) {
            self.view.write(&self.config, register, size, value);
        }
    }
}

/// Maps the common configuration of a virtio function.
fn map_common_config(place: CommonConfig) -> Result<Registers, String> {
    let range = PaRange::from_numbers(place.frame.get(), place.mapped_size);
    let frames = registers::map(range.ok_or("its common configuration is beyond all addresses")?)?;
    let (offset, size) = (usize::from(place.offset), frames.size());
    Ok(frames.part(offset, size - offset).ok_or("its common configuration is too small")?)
}
