//! Assignment of the host's PCI functions and platform devices to guests: what the configuration names is found in the host's
//! tree, and checked.
//!
//! A function or device belongs to one guest, and so do its StreamIDs, its interrupt and its pages of registers. None of them
//! may belong to Ballast. DMA reaches only the guest's window: an SMMU sees to that, or the operator permits that nothing does
//! (`assign-without-smmu`). A guest that breaks a rule is refused as a whole.

mod device;
mod function;
mod registers;
mod reserved;
mod sharing;

use super::{Tell, give_back, tell_finding};
use crate::board::{Board, Interrupt, Stream, Trigger};
use alloc::vec::Vec;
use guest_dts::config::{Configuration, Guest, Layout, Severity};
use guest_dts::finding::{Finding, Rule};
use guest_dts::guest_tree::platform::{ASSIGNED_SPI_BASE, ASSIGNED_SPI_COUNT};
use guest_dts::guest_tree::{Assigned, AssignedDevice, GuestTree, PciBus, PciSlot};
use guest_dts::image::{BootPlan, Image};
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Tree};
use registers::Registers;
use stage2::addr::Pa;
use stage2::phys::alloc::Memory;

/// The host's devices that a guest gets, with their window and interrupts.
#[derive(Clone, Debug, Default)]
pub struct Assignment<'t> {
    /// The memory that the devices access.
    pub window: Option<Window>,
    /// PCI functions, in the configuration's order.
    pub functions: Vec<Function>,
    /// Platform devices, in the configuration's order.
    pub devices: Vec<Device<'t>>,
    /// Interrupts; the one at index i is the guest's SPI [`ASSIGNED_SPI_BASE`] + i.
    pub lines: Vec<Interrupt>,
}

/// A DMA window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First guest address, which is what devices use.
    pub ipa: u64,
    /// First physical address.
    pub pa: u64,
    /// Size in bytes.
    pub size: u64,
}

/// A PCI function of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Requester ID on the host.
    pub rid: u16,
    /// Index in [`Board::bridges`].
    pub bridge: u8,
    /// Configuration space, 4 KiB.
    pub config: Pa,
    /// Number of the device on the guest's bus 0.
    pub device: u8,
    /// Stream of the function's DMA; `None`: nothing isolates it.
    pub stream: Option<Stream>,
    /// Index in [`Assignment::lines`]; `None` if the function has no INTx.
    pub line: Option<u8>,
    /// True if DMA is coherent with the CPUs' caches.
    pub is_coherent: bool,
}

/// A platform device of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device<'t> {
    /// Node in the host's tree.
    pub node: Node<'t>,
    /// Whole pages to map: guest address and physical range. A page that an earlier device of the guest has is not repeated.
    pub pages: Vec<(u64, PaRange)>,
    /// Guest address and size of each entry of `reg`.
    pub regs: Vec<(u64, u64)>,
    /// Streams of the device's DMA; none: nothing isolates it.
    pub streams: Vec<Stream>,
    /// Index in [`Assignment::lines`] of each interrupt.
    pub lines: Vec<u8>,
    /// True if DMA is coherent with the CPUs' caches.
    pub is_coherent: bool,
}

/// Facts about PCI functions that only their configuration space tells. By default nothing is known, as on a PC.
pub trait Probe {
    /// Returns false if no function answers at `rid` of the bridge with index `bridge`.
    fn is_present(&self, bridge: u8, rid: u16) -> bool {
        let _ = (bridge, rid);
        true
    }

    /// Returns the pin at which INTx of `rid` arrives on the bridge's first bus, if that is known.
    fn root_pin(&self, bridge: u8, rid: u16) -> Option<RootPin> {
        let _ = (bridge, rid);
        None
    }
}

/// A pin on the first bus of a host bridge. Bridges below it swizzle the pins of functions behind them (PCI-to-PCI Bridge
/// Architecture Specification, "Interrupt Support").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootPin {
    /// Number of the device on the first bus.
    pub device: u8,
    /// 1 to 4 for INTA to INTD; 0: the function has no INTx.
    pub pin: u8,
}

/// The absence of knowledge about PCI functions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unprobed;

impl Probe for Unprobed {}

/// Resolves the devices of each guest, after memory was fitted. Returns the assignments by index in
/// [`Configuration::guests`]; `None` for a guest without a DMA window. Refuses guests that break a rule, and releases the
/// memory that was reserved for them.
pub fn resolve<'t>(
    board: &Board<'t>,
    tree: &Tree<'t>,
    memory: &Memory<'_>,
    configuration: &mut Configuration<'t>,
    probe: &dyn Probe,
    tell: &mut Tell<'_>,
) -> Vec<Option<Assignment<'t>>> {
    let mut done = Vec::new();
    let needs = |guest: &Guest<'t>| !guest.devices.is_empty();
    let registers = match configuration.guests.iter().any(needs) {
        true => Registers::read(tree),
        false => Registers::default(),
    };
    while let Some(guest) = configuration.guests.get(done.len()) {
        let host = Host { board, tree, registers: &registers, probe };
        match one(&host, configuration, guest, &done, tell) {
            Ok(assignment) => done.push(assignment),
            Err(finding) => {
                tell_finding(tell)(Severity::Error, finding.clone());
                give_back(memory, guest.reserved_ranges(), tell);
                configuration.refuse(done.len(), finding);
            }
        }
    }
    done
}

/// The host, as the rules need it.
struct Host<'a, 't> {
    board: &'a Board<'t>,
    tree: &'a Tree<'t>,
    registers: &'a Registers<'t>,
    probe: &'a dyn Probe,
}

/// Resolves the devices of `guest`. `before` are the assignments of the guests before it.
fn one<'t>(
    host: &Host<'_, 't>,
    configuration: &Configuration<'t>,
    guest: &Guest<'t>,
    before: &[Option<Assignment<'t>>],
    tell: &mut Tell<'_>,
) -> Result<Option<Assignment<'t>>, Finding<'t>> {
    let Some(node) = guest.node else { return Ok(None) };
    let Some((_, region)) = guest.dma_window() else { return Ok(None) };
    let layout = Layout::of(guest)?;
    let window = layout.window().zip(region.backing).map(|(ipa, pa)| Window {
        ipa: ipa.base().get(),
        pa: pa.base().get(),
        size: pa.size(),
    });
    let mut assignment = Assignment { window, ..Assignment::default() };
    function::add_all(host, guest, node, &mut assignment, tell)?;
    device::add_all(host, configuration, guest, node, &mut assignment, before, tell)?;
    sharing::check(host, node, &assignment, before)?;
    check_tree(host, guest, &layout, &assignment)?;
    Ok(Some(assignment))
}

/// Checks that the guest's tree can describe the devices.
fn check_tree<'t>(
    host: &Host<'_, 't>,
    guest: &Guest<'t>,
    layout: &Layout,
    assignment: &Assignment<'t>,
) -> Result<(), Finding<'t>> {
    // These were checked when the configuration was read.
    let Ok(image) = Image::parse(guest.kernel) else { return Ok(()) };
    let ramdisk_size = guest.ramdisk.map(|ramdisk| ramdisk.len() as u64);
    let Ok(plan) = BootPlan::new(&image, ramdisk_size, layout.regions()) else { return Ok(()) };
    let assigned = assignment.tree();
    let (plan, assigned) = (&plan, Some(&assigned));
    GuestTree { guest, layout, plan, assigned, kaslr_seed: None, rng_seed: None }.check(Some(host.tree))
}

/// Checks that `guest` may have a device that no SMMU isolates; `finding` makes the finding about the device.
fn permit_without_smmu<'t>(
    guest: &Guest<'t>,
    finding: impl FnOnce(Rule) -> Finding<'t>,
) -> Result<(), Finding<'t>> {
    if !guest.assigns_without_smmu {
        return Err(finding(Rule::Must(
            "be behind an SMMUv3 by the host's tree; `assign-without-smmu` in the guest permits it all the same, and then \
             nothing keeps the device out of other guests' memory or Ballast's",
        )));
    }
    match guest.dma_window() {
        Some((_, window)) if !window.is_pinned_in_place => {
            let rule = Rule::Add("it and `reg`: a device without an SMMU uses physical addresses");
            Err(match window.node {
                Some(node) => Finding::missing(node, "pinned-in-place", rule),
                None => finding(rule),
            })
        }
        _ => Ok(()),
    }
}

impl<'t> Assignment<'t> {
    /// Returns the index of the line for `interrupt`, which several devices of a guest may share.
    ///
    /// # Errors
    /// The rule that is broken.
    fn line(&mut self, board: &Board<'_>, interrupt: Interrupt) -> Result<u8, Rule> {
        if let Some(owner) = reserved::owner_of_interrupt(board, interrupt) {
            return Err(Rule::Must(owner));
        }
        if let Some(index) = self.lines.iter().position(|line| line.intid == interrupt.intid) {
            return Ok(index as u8);
        }
        let (index, limit) = (self.lines.len(), ASSIGNED_SPI_COUNT as usize);
        if index == limit {
            return Err(Rule::TooMany { index, limit, what: "interrupts of a guest's devices" });
        }
        self.lines.push(interrupt);
        Ok(index as u8)
    }

    /// Returns the streams of all functions and devices.
    pub fn streams(&self) -> Vec<Stream> {
        let mut streams: Vec<Stream> = self.functions.iter().filter_map(|function| function.stream).collect();
        self.devices.iter().for_each(|device| streams.extend_from_slice(&device.streams));
        streams
    }

    /// Returns true if there are neither functions nor devices: a DMA window alone is pinned RAM.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty() && self.devices.is_empty()
    }

    /// Returns the devices as the guest's tree describes them.
    pub fn tree(&self) -> Assigned<'t> {
        let spi = |line: u8| {
            let is_edge = self.lines.get(usize::from(line)).is_some_and(|line| line.trigger == Trigger::Edge);
            (ASSIGNED_SPI_BASE + u32::from(line), is_edge)
        };
        let slot = |function: &Function| PciSlot { device: function.device, spi: function.line.map(spi) };
        let pci = self.functions.first().map(|first| PciBus {
            slots: self.functions.iter().map(slot).collect(),
            is_coherent: first.is_coherent,
        });
        let device = |device: &Device<'t>| AssignedDevice {
            node: device.node,
            regs: device.regs.clone(),
            spis: device.lines.iter().copied().map(spi).collect(),
            is_coherent: device.is_coherent,
        };
        Assigned { pci, devices: self.devices.iter().map(device).collect() }
    }
}

#[cfg(test)]
mod tests;
