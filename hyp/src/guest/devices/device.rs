//! A device of a guest: a PCI function or a platform device.

use super::function::Function;
use super::smmus;
use super::windows::Windows;
use crate::board::Stream;
use crate::guest::Guest;
use crate::observe::log;
use crate::pci::Rid;
use crate::physical::assignment;
use crate::smmu::Error;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use spin::Mutex;

/// A device of a guest.
pub(super) struct Device {
    pub(super) kind: Kind,
    /// Name on the host: requester ID, or path in the tree.
    pub(super) name: String,
    /// Streams of its DMA; none without an SMMU.
    pub(super) streams: Vec<Stream>,
    /// True if its DMA is coherent with the CPUs' caches.
    is_coherent: bool,
    /// The guest's lines that it raises.
    pub(super) lines: Vec<u8>,
    /// Locked for a moment only: the device's state is changed by the guest's home CPU alone, and read by the monitor.
    state: Mutex<State>,
}

/// The kind of a device.
pub(super) enum Kind {
    /// A PCI function.
    Function(Box<Function>),
    /// A platform device.
    Platform(assignment::Device<'static>),
}

/// The state of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Streams abort, and the device is quiet.
    Off,
    /// In use by the guest.
    Attached,
    /// Not attached or not stopped, for this reason, which says so if the streams do not abort.
    Failed(String),
}

impl Device {
    /// Makes a device of a PCI function.
    pub(super) fn function(function: Function) -> Self {
        let assigned = function.assigned;
        Self {
            name: Rid::new(assigned.rid).to_string(),
            streams: assigned.stream.into_iter().collect(),
            is_coherent: assigned.is_coherent,
            lines: assigned.line.into_iter().collect(),
            kind: Kind::Function(Box::new(function)),
            state: Mutex::new(State::Off),
        }
    }

    /// Makes a device of a platform device.
    pub(super) fn platform(device: assignment::Device<'static>) -> Self {
        Self {
            name: device.node.path().to_string(),
            streams: device.streams.clone(),
            is_coherent: device.is_coherent,
            lines: device.lines.clone(),
            kind: Kind::Platform(device),
            state: Mutex::new(State::Off),
        }
    }

    /// Returns the device's state.
    pub(super) fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Returns the PCI function, if the device is one.
    pub(super) fn as_function(&self) -> Option<&Function> {
        match &self.kind {
            Kind::Function(function) => Some(&**function),
            Kind::Platform(_) => None,
        }
    }

    /// Attaches the device. A device that fails is left out: the guest starts, but the device's streams abort.
    pub(super) fn attach(&self, guest: &Guest, windows: &Windows) {
        let result = self.let_translate(windows).map_err(|why| match self.abort() {
            Ok(()) => format!("{why}; it has no DMA"),
            Err(more) => format!("{why}; {more}"),
        });
        self.set_state(guest, result.map(|()| State::Attached));
    }

    /// Makes the device quiet, and lets its streams reach the DMA window.
    fn let_translate(&self, windows: &Windows) -> Result<(), String> {
        if let Some(function) = self.as_function() {
            function.quiesce().map_err(|error| error.to_string())?;
        }
        for stream in &self.streams {
            let window = windows.in_smmu(stream.smmu).ok_or("it has no DMA window")?;
            match smmus::lock(stream.smmu)?.attach(stream.id, self.is_coherent, window) {
                // Another device of the guest may have the same stream.
                Ok(()) | Err(Error::Attached(_)) => {}
                Err(error) => return Err(format!("SMMU {}: {error}", stream.smmu)),
            }
        }
        if let Some(function) = self.as_function() {
            // It is not bus master before the guest makes it so.
            function.attach();
        }
        Ok(())
    }

    /// Detaches the device, unless it is off. The device first stops by itself; whether or not it does, its streams abort then.
    pub(super) fn detach(&self, guest: &Guest) {
        if self.state() == State::Off {
            return;
        }
        let quiet = match self.as_function() {
            Some(function) => function.detach().map(drop).map_err(|error| error.to_string()),
            // Nothing is known of its registers: its streams abort, and nothing else stops it.
            None => Ok(()),
        };
        self.set_state(guest, self.abort().and(quiet).map(|()| State::Off));
    }

    /// Makes the device's streams abort.
    ///
    /// # Errors
    ///
    /// An SMMU that fails, and the state of the device's streams then.
    fn abort(&self) -> Result<(), String> {
        let mut result = Ok(());
        for stream in &self.streams {
            // An SMMU that cannot be used has no stream attached.
            let Ok(mut smmu) = smmus::lock(stream.smmu) else { continue };
            match smmu.detach(stream.id) {
                Ok(()) | Err(Error::NotAttached(_)) => {}
                Err(error) => {
                    let streams = smmus::streams_of_failed(smmu.is_closed());
                    result = Err(format!("SMMU {}: {error}; {streams}", stream.smmu));
                }
            }
        }
        result
    }

    /// Sets the state; an error is logged, and kept for the operator.
    fn set_state(&self, guest: &Guest, result: Result<State, String>) {
        let state = result.unwrap_or_else(|why| {
            log::error!("{}: device {}: {}", guest.name(), self.name.as_str(), why.as_str());
            State::Failed(why)
        });
        *self.state.lock() = state;
    }
}
