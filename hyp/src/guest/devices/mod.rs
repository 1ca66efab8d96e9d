//! Devices of guests: PCI functions and platform devices, the SMMUs that isolate them, their registers and interrupts.
//!
//! # Life
//! At boot, functions are probed and placed, and made quiet; every stream aborts (`setup`, `smmus`). When a guest starts, its
//! functions are attached last: configuration space, then streams, then interrupts. When it stops or is reset, and no vCPU is in
//! it, this is undone in the reverse order ([`Devices::detach`]) before its memory is freed or loaded again.
//!
//! A device reaches only its guest's DMA window, whose memory is reserved for that guest for ever. So even an access that is
//! late hits nobody else.
//!
//! # Locks
//! `state` → an SMMU's lock → the allocator's.

mod function;
#[allow(unsafe_code)]
mod registers;
mod report;
pub(crate) mod setup;
pub(crate) mod smmus;

pub(crate) use report::REPORT;

use super::Guest;
use crate::board::Stream;
use crate::observe::log;
use crate::pci::{self, Rid};
use crate::physical::assignment::Assignment;
use crate::smmu::WindowId;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use function::Function;
use guest_dts::guest_tree::Assigned;
use spin::Mutex;
use stage2::addr::{Ipa, Pa};

/// The devices of a guest.
#[derive(Default)]
pub(crate) struct Devices {
    assignment: Assignment<'static>,
    functions: Vec<Function>,
    /// Paths of the platform devices in the host's tree.
    paths: Vec<String>,
    /// The DMA window, for each SMMU that its devices are behind.
    windows: Vec<(u8, WindowId)>,
    /// By device, functions first.
    state: Mutex<Vec<State>>,
}

/// The state of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Its streams abort, and it is quiet.
    #[default]
    Off,
    /// The guest uses it.
    Attached,
    /// It could not be attached or stopped, for this reason. Its streams abort.
    Failed(String),
}

/// Registers to map for a guest: guest address, physical address, bytes.
pub(crate) type Page = (Ipa, Pa, u64);

impl Devices {
    /// Returns the devices as the guest's tree describes them; `None` if there are none.
    pub(crate) fn tree(&self) -> Option<Assigned<'static>> {
        let is_empty = self.functions.is_empty() && self.assignment.devices.is_empty();
        (!is_empty).then(|| self.assignment.tree())
    }

    /// Returns the assignment.
    pub(crate) fn assignment(&self) -> &Assignment<'static> {
        &self.assignment
    }

    /// Returns true if there are PCI functions, so that the guest has a host bridge.
    #[inline]
    pub(crate) fn has_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// Returns true if a device has `stream`.
    pub(crate) fn has_stream(&self, stream: Stream) -> bool {
        self.assignment.streams().any(|own| own == stream)
    }

    /// Iterates over the registers that the guest accesses without a trap.
    pub(crate) fn pages(&self) -> impl Iterator<Item = Page> {
        let bars = self.functions.iter().flat_map(|function| function.host.bars());
        let bars = bars.map(|bar| (Ipa::new_truncate(bar.guest()), bar.cpu(), bar.mapped_size()));
        let pages = self.assignment.devices.iter().flat_map(|device| &device.pages);
        bars.chain(pages.map(|&(ipa, range)| (Ipa::new_truncate(ipa), range.base(), range.size())))
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
        Some((self.functions.get(index)?, register))
    }

    /// Returns the streams of device `index`, functions first, and true if its DMA is coherent.
    fn streams_of(&self, index: usize) -> (Vec<Stream>, bool) {
        if let Some(function) = self.functions.get(index) {
            let assigned = function.assigned;
            return (assigned.stream.into_iter().collect(), assigned.is_coherent);
        }
        let device = self.assignment.devices.get(index - self.functions.len());
        device.map_or((Vec::new(), false), |device| (device.streams.clone(), device.is_coherent))
    }

    fn count(&self) -> usize {
        self.functions.len() + self.assignment.devices.len()
    }

    /// Returns the host's name of the device with `stream`.
    pub(crate) fn name_of(&self, stream: Stream) -> String {
        let index = (0..self.count()).find(|&index| self.streams_of(index).0.contains(&stream));
        index.map_or_else(String::new, |index| self.name(index))
    }

    fn name(&self, index: usize) -> String {
        match self.functions.get(index) {
            Some(function) => Rid::new(function.assigned.rid).to_string(),
            None => self.paths.get(index - self.functions.len()).cloned().unwrap_or_default(),
        }
    }

    /// Attaches all devices. No vCPU runs, and the guest's images are loaded. A device that fails is left out: its streams abort.
    pub(crate) fn attach(&self, guest: &Guest) {
        let mut state = self.state.lock();
        for index in 0..self.count() {
            let result = self.attach_one(index);
            if let Err(why) = &result {
                log::error!(
                    "{}: device {}: {}; it has no DMA",
                    guest.name(),
                    self.name(index).as_str(),
                    why.as_str()
                );
            }
            if let Some(state) = state.get_mut(index) {
                *state = result.map_or_else(State::Failed, |()| State::Attached);
            }
        }
    }

    fn attach_one(&self, index: usize) -> Result<(), String> {
        if let Some(function) = self.functions.get(index) {
            function.quiesce().map_err(|error| error.to_string())?;
            function.attach();
        }
        let (streams, is_coherent) = self.streams_of(index);
        for stream in streams {
            let window = self.windows.iter().find(|(smmu, _)| *smmu == stream.smmu);
            let (_, window) = *window.ok_or("it has no DMA window")?;
            smmus::with(stream.smmu, |smmu| smmu.attach(stream.id, is_coherent, window))?
                .map_err(|error| format!("SMMU {}: {error}", stream.smmu))?;
        }
        Ok(())
    }

    /// Detaches all devices. No vCPU is in the guest, and its interrupts are quiet. Then no device accesses its memory.
    pub(crate) fn detach(&self, guest: &Guest) {
        let mut state = self.state.lock();
        for index in 0..self.count() {
            let Some(state) = state.get_mut(index).filter(|state| **state != State::Off) else { continue };
            let mut result = Ok(());
            if let Some(function) = self.functions.get(index) {
                result = function.quiesce().map(drop).map_err(|error| error.to_string());
            }
            // Whatever the device does, its streams abort.
            for stream in self.streams_of(index).0 {
                let detached = smmus::with(stream.smmu, |smmu| {
                    let is_attached = smmu.streams().iter().any(|attached| attached.id == stream.id);
                    if is_attached { smmu.detach(stream.id) } else { Ok(()) }
                });
                if let Ok(Err(error)) = detached {
                    result = Err(format!("SMMU {}: {error}", stream.smmu));
                }
            }
            if let Err(why) = &result {
                log::error!(
                    "{}: device {} does not stop: {}",
                    guest.name(),
                    self.name(index).as_str(),
                    why.as_str()
                );
            }
            *state = result.map_or_else(State::Failed, |()| State::Off);
        }
    }
}
