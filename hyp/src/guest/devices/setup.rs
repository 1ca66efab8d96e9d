//! Devices at boot: the functions and platform devices of each guest are found, checked, placed and made quiet, after the SMMUs
//! were taken over.

use super::device::Device;
use super::function::Function;
use super::windows::Windows;
use super::{Devices, registers, smmus};
use crate::arch::gic;
use crate::arch::mmio::Registers;
use crate::arch::pci::Ecam;
use crate::board::{Board, HostBridge};
use crate::guest;
use crate::hyp_mem::pages;
use crate::observe::log;
use crate::pci::{self, Bus, Rid, Survey, Window};
use crate::physical::assignment::{self, Assignment, Probe, RootPin};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{OnceCell, RefCell};
use guest_dts::config::Configuration;
use guest_dts::guest_tree::platform::{PCI_MEMORY_BASE, PCI_MEMORY_SIZE};
use guest_dts::range::PaRange;

/// A host bridge, mapped and surveyed when the first guest needs it.
struct Bridge {
    board: &'static HostBridge<'static>,
    /// Windows to the memory of its bus, for BARs.
    windows: Vec<Window>,
    ecam: OnceCell<Result<Ecam, String>>,
    survey: RefCell<Option<Survey>>,
}

/// The host's bridges, by their index in the board.
pub(crate) struct Bridges(Vec<Bridge>);

impl Bridges {
    /// Makes the bridges of `board`.
    pub(crate) fn new(board: &'static Board<'static>) -> Self {
        Self(board.bridges.iter().map(Bridge::new).collect())
    }

    fn get(&self, index: u8) -> Option<&Bridge> {
        self.0.get(usize::from(index))
    }
}

impl Bridge {
    fn new(board: &'static HostBridge<'static>) -> Self {
        let windows = board.windows.iter().map(|window| Window {
            bus: window.pci,
            cpu: window.cpu.base().get(),
            size: window.cpu.size(),
            is_prefetchable: window.is_prefetchable,
        });
        Self { board, windows: windows.collect(), ecam: OnceCell::new(), survey: RefCell::new(None) }
    }

    /// Returns the configuration space of all functions, which is mapped by the first call.
    fn ecam(&self) -> Result<Ecam, String> {
        let map = || Ok(Ecam::new(registers::map(self.board.ecam)?, self.board.buses.0));
        self.ecam.get_or_init(map).clone()
    }

    /// Probes function `rid`, and gives its BARs addresses on the host's bus. Returns it with its configuration space.
    fn place(&self, rid: Rid) -> Result<(pci::Function, Registers), String> {
        let ecam = self.ecam()?;
        let (first, last) = self.board.buses;
        let mut survey = self.survey.borrow_mut();
        let survey = survey.get_or_insert_with(|| {
            Survey::scan(&ecam, first, last, &mut |error| log::warn!("PCI: {}", error))
        });
        let mut function = pci::Function::probe(&ecam, rid).map_err(|error| error.to_string())?;
        survey.place(&ecam, &mut function, &self.windows).map_err(|error| error.to_string())?;
        let space = ecam.function(rid).ok_or("no configuration space")?;
        Ok((function, space))
    }
}

impl Probe for Bridges {
    fn is_present(&self, bridge: u8, rid: u16) -> bool {
        self.root_pin(bridge, rid).is_some()
    }

    fn root_pin(&self, bridge: u8, rid: u16) -> Option<RootPin> {
        let bridge = self.get(bridge)?;
        let ecam = bridge.ecam().ok()?;
        let (device, pin) = pci::root_pin(&ecam, bridge.board.buses.0, Rid::new(rid))?;
        Some(RootPin { device, pin })
    }
}

/// Takes over the SMMUs, and finds the devices of each guest of `configuration`, by its index there. Guests whose devices break a
/// rule are refused.
pub(crate) fn resolve(
    board: &'static Board<'static>,
    bridges: &Bridges,
    configuration: Option<&mut Configuration<'static>>,
) -> Vec<Option<Assignment<'static>>> {
    let assignments = match (configuration, crate::host::tree()) {
        (Some(configuration), Some(tree)) => {
            assignment::resolve(board, tree, &pages::MEMORY, configuration, bridges, &mut guest::tell)
        }
        _ => Vec::new(),
    };
    let mut streams = Vec::new();
    assignments.iter().flatten().for_each(|assignment| streams.append(&mut assignment.streams()));
    if let Some(distributor) = gic::distributor() {
        smmus::init(board, &streams, distributor);
    }
    assignments
}

impl Devices {
    /// Makes the devices of a guest: its functions are placed and quiet, and its DMA window is in the SMMUs.
    ///
    /// # Errors
    ///
    /// The device that cannot be used, and the reason. Nothing is left in the SMMUs then.
    pub(crate) fn new(bridges: &Bridges, assignment: Assignment<'static>) -> Result<Self, String> {
        let windows = Windows::new(&assignment)?;
        let (mut hosts, mut spaces) = (Vec::new(), Vec::new());
        for assigned in &assignment.functions {
            let bridge = bridges.get(assigned.bridge).ok_or("there is no such host bridge")?;
            let (host, space) = bridge.place(Rid::new(assigned.rid))?;
            hosts.push(host);
            spaces.push(space);
        }
        pci::give_guest_addresses(&mut hosts, PCI_MEMORY_BASE, PCI_MEMORY_SIZE)
            .map_err(|error| error.to_string())?;
        let mut devices = Vec::new();
        for ((&assigned, host), space) in assignment.functions.iter().zip(hosts).zip(spaces) {
            let rid = host.rid();
            // The bridge's windows come from the host's tree.
            let is_ram = |bar: &pci::Bar| {
                PaRange::from_numbers(bar.cpu().get(), bar.mapped_size()).is_none_or(registers::has_ram)
            };
            if let Some(bar) = host.bars().iter().find(|bar| is_ram(bar)) {
                let (size, at) = (bar.mapped_size(), bar.cpu());
                return Err(format!("{rid}: BAR of {size:#x} bytes at {at}: RAM lies there"));
            }
            let function = Function::new(assigned, host, space).map_err(|why| format!("{rid}: {why}"))?;
            devices.push(Device::function(function));
        }
        devices.extend(assignment.devices.into_iter().map(Device::platform));
        Ok(Self { devices, lines: assignment.lines, window: assignment.window, windows })
    }
}
