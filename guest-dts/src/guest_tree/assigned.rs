//! The host's devices in a guest's tree: a PCI host bridge, and a bus with platform devices.
//!
//! Both buses state by `dma-ranges` that their devices access only the guest's DMA window. Linux then puts coherent
//! memory and bounce buffers there and bounces all other DMA. BARs are set before the guest starts, so
//! `linux,pci-probe-only` tells Linux to leave them.
//!
//! The node of a platform device is a copy of the host's, without properties that refer to other nodes of the host.
//! The template may add properties and nodes to it: `device-tree { bus { ethernet { … }; }; };`.

use alloc::vec::Vec;

use super::extra::{self, check_own};
use super::platform::{PCI_ECAM_BASE, PCI_ECAM_SIZE, PCI_MEMORY_BASE, PCI_MEMORY_SIZE};
use super::writer::{Writer, reg};
use super::{EDGE_RISING, GIC_PHANDLE, GuestTree, LEVEL_HIGH, SPI};
use crate::finding::{Finding, Rule};
use crate::range::IpaRange;
use crate::tree::{Node, Property};

/// The host's devices that a guest owns, as the guest sees them.
#[derive(Clone, Debug, Default)]
pub struct Assigned<'t> {
    /// The guest's PCI bus.
    pub pci: Option<PciBus>,
    /// The platform devices.
    pub devices: Vec<AssignedDevice<'t>>,
}

/// A guest's PCI bus: a host bridge whose functions all lie on bus 0.
#[derive(Clone, Debug)]
pub struct PciBus {
    /// The functions.
    pub slots: Vec<PciSlot>,
    /// True if DMA is coherent with the CPUs' caches.
    pub is_coherent: bool,
}

/// A PCI function: function 0 of a device on the guest's bus.
#[derive(Clone, Copy, Debug)]
pub struct PciSlot {
    /// The device's number on the guest's bus.
    pub device: u8,
    /// The guest's SPI for INTx, from [`platform::ASSIGNED_SPI_BASE`](super::platform::ASSIGNED_SPI_BASE), and true if it
    /// is edge-triggered.
    pub spi: Option<(u32, bool)>,
}

/// A platform device.
#[derive(Clone, Debug)]
pub struct AssignedDevice<'t> {
    /// The device's node in the host's tree.
    pub node: Node<'t>,
    /// The guest addresses and sizes of its registers, by entry of `reg`.
    pub regs: Vec<(u64, u64)>,
    /// The guest's SPIs, by entry of `interrupts`, each with true if it is edge-triggered.
    pub spis: Vec<(u32, bool)>,
    /// True if DMA is coherent with the CPUs' caches.
    pub is_coherent: bool,
}

/// Name of the bus with platform devices.
pub(super) const BUS: &str = "bus";
/// Properties of that bus that Ballast writes.
const OWN_BUS_PROPERTIES: [&str; 5] = ["compatible", "#address-cells", "#size-cells", "ranges", "dma-ranges"];
/// Properties of a device that Ballast writes, or that would contradict them.
const OWN_DEVICE_PROPERTIES: [&str; 8] = [
    "reg",
    "ranges",
    "dma-ranges",
    "dma-coherent",
    "interrupts",
    "interrupts-extended",
    "interrupt-parent",
    "iommus",
];
/// Other properties that refer to nodes outside the device, with the names for the references.
const REFERENCES: [&str; 28] = [
    "access-controllers",
    "clocks",
    "clock-names",
    "dmas",
    "dma-names",
    "hwlocks",
    "interconnects",
    "interconnect-names",
    "io-channels",
    "iommu-map",
    "iommu-map-mask",
    "mboxes",
    "mbox-names",
    "memory-region",
    "memory-region-names",
    "msi-map",
    "msi-map-mask",
    "msi-parent",
    "nvmem",
    "nvmem-cells",
    "nvmem-cell-names",
    "operating-points-v2",
    "phys",
    "phy-names",
    "power-domains",
    "power-domain-names",
    "resets",
    "reset-names",
];
/// Beginnings and ends of the names of further such properties.
const REFERENCE_BEGINNINGS: [&str; 2] = ["assigned-clock", "pinctrl-"];
const REFERENCE_ENDS: [&str; 3] = ["gpio", "gpios", "-supply"];
/// Properties that refer to one node, usually a child of the device itself. They are kept in this case.
const INNER_REFERENCES: [&str; 3] = ["phy-handle", "phy", "phy-device"];

/// Writes `linux,pci-probe-only` into `/chosen`, which is open.
pub(super) fn write_chosen(writer: &mut Writer, assigned: Option<&Assigned<'_>>) {
    if assigned.is_some_and(|assigned| assigned.pci.is_some()) {
        writer.cells("linux,pci-probe-only", &[1]);
    }
}

/// Writes the host bridge and the bus with platform devices.
#[inline(never)]
pub(super) fn write(writer: &mut Writer, input: &GuestTree<'_, '_>) {
    let Some(assigned) = input.assigned else { return };
    let window = input.layout.window();
    if let Some(bus) = &assigned.pci {
        write_bridge(writer, bus, window);
    }
    if assigned.devices.is_empty() {
        return;
    }
    writer.begin(BUS);
    writer.string("compatible", "simple-bus");
    writer.cells("#address-cells", &[2]);
    writer.cells("#size-cells", &[2]);
    writer.flag("ranges");
    if let Some(window) = window {
        let [high, low, rest @ ..] = reg(window.base().get(), window.size());
        writer.cells("dma-ranges", [[high, low].as_slice(), &[high, low], &rest].concat().as_slice());
    }
    if let Some(bus) = template_bus(input) {
        extra::write_properties(writer, bus, &[]);
    }
    for device in &assigned.devices {
        write_device(writer, device, addition(input, device));
    }
    writer.end();
}

/// Writes a host bridge with one bus (bindings `host-generic-pci` and `pci-host-bridge`).
#[inline(never)]
fn write_bridge(writer: &mut Writer, bus: &PciBus, window: Option<IpaRange>) {
    /// First cells of an address: memory space of 32 and of 64 bits, not prefetchable (IEEE 1275, PCI bus binding).
    const MEMORY_32: u32 = 0x0200_0000;
    const MEMORY_64: u32 = 0x0300_0000;
    let range = |space: u32, base: u64, size: u64| {
        let [high, low, size_high, size_low] = reg(base, size);
        [space, high, low, high, low, size_high, size_low]
    };
    writer.begin_at("pcie", PCI_ECAM_BASE);
    writer.string("compatible", "pci-host-ecam-generic");
    writer.string("device_type", "pci");
    writer.cells("reg", &reg(PCI_ECAM_BASE, PCI_ECAM_SIZE));
    writer.cells("bus-range", &[0, 0]);
    writer.cells("linux,pci-domain", &[0]);
    writer.cells("#address-cells", &[3]);
    writer.cells("#size-cells", &[2]);
    writer.cells("ranges", &range(MEMORY_32, PCI_MEMORY_BASE, PCI_MEMORY_SIZE));
    if let Some(window) = window {
        let space = if window.end() <= 1 << 32 { MEMORY_32 } else { MEMORY_64 };
        writer.cells("dma-ranges", &range(space, window.base().get(), window.size()));
    }
    if bus.is_coherent {
        writer.flag("dma-coherent");
    }
    writer.cells("#interrupt-cells", &[1]);
    // All bits of the device's number, and the pin.
    writer.cells("interrupt-map-mask", &[0xf800, 0, 0, 7]);
    let mut map = Vec::new();
    for slot in &bus.slots {
        let Some((spi, is_edge)) = slot.spi else { continue };
        for pin in 1..=4 {
            let [kind, spi, flags] = specifier(spi, is_edge);
            map.extend([u32::from(slot.device) << 11, 0, 0, pin, GIC_PHANDLE, kind, spi, flags]);
        }
    }
    if !map.is_empty() {
        writer.cells("interrupt-map", &map);
    }
    writer.end();
}

/// Returns the specifier of an SPI (binding `arm,gic-v3`).
fn specifier(spi: u32, is_edge: bool) -> [u32; 3] {
    [SPI, spi, if is_edge { EDGE_RISING } else { LEVEL_HIGH }]
}

/// Writes a device with the template's additions to it.
#[inline(never)]
fn write_device(writer: &mut Writer, device: &AssignedDevice<'_>, addition: Option<Node<'_>>) {
    let node = device.node;
    begin(writer, device);
    let regs: Vec<_> = device.regs.iter().map(|&(base, size)| reg(base, size)).collect();
    writer.cells("reg", regs.as_flattened());
    let interrupts: Vec<_> = device.spis.iter().map(|&(spi, is_edge)| specifier(spi, is_edge)).collect();
    if !interrupts.is_empty() {
        writer.cells("interrupts", interrupts.as_flattened());
    }
    if device.is_coherent {
        writer.flag("dma-coherent");
    }
    let is_replaced = |name: &str| addition.is_some_and(|addition| addition.has(name));
    for property in node.properties().filter(|property| is_kept(node, *property)) {
        if !is_replaced(property.name()) && !OWN_DEVICE_PROPERTIES.contains(&property.name()) {
            writer.bytes(property.name(), property.bytes());
        }
    }
    if let Some(addition) = addition {
        extra::write_properties(writer, addition, &[]);
        addition.children().for_each(|child| extra::copy(writer, child, &[]));
    }
    for child in node.children() {
        if addition.is_none_or(|addition| addition.child(child.name()).is_none()) {
            write_inner(writer, node, child);
        }
    }
    writer.end();
}

/// Begins the node of `device`, named after its guest address.
fn begin(writer: &mut Writer, device: &AssignedDevice<'_>) {
    match device.regs.first() {
        Some(&(base, _)) => writer.begin_at(device.node.base_name(), base),
        None => writer.begin(device.node.name()),
    }
}

/// Copies `top`, a child of the device `device`, and its descendants.
fn write_inner(writer: &mut Writer, device: Node<'_>, top: Node<'_>) {
    let mut nodes = top.subtree();
    let mut open = 0;
    while let Some(node) = nodes.next() {
        for _ in nodes.depth()..open {
            writer.end();
        }
        writer.begin(node.name());
        open = nodes.depth() + 1;
        for property in node.properties().filter(|property| is_kept(device, *property)) {
            // Interrupts of inner nodes go to controllers that the guest does not have.
            if !property.name().starts_with("interrupt") {
                writer.bytes(property.name(), property.bytes());
            }
        }
        if let Some(phandle) = inner_phandle(device, node) {
            writer.phandle(phandle);
        }
    }
    for _ in 0..open {
        writer.end();
    }
}

/// Tests whether a property of `device` or of a node in it has a meaning in the guest's tree.
fn is_kept(device: Node<'_>, property: Property<'_>) -> bool {
    let name = property.name();
    if INNER_REFERENCES.contains(&name) {
        return device
            .subtree()
            .skip(1)
            .any(|node| node.phandle().is_some_and(|own| property.u32() == Some(own)));
    }
    let is_reference = REFERENCES.contains(&name)
        || REFERENCE_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || REFERENCE_ENDS.iter().any(|end| name.ends_with(end));
    !is_reference && !["phandle", "linux,phandle", "status"].contains(&name)
}

/// Returns the phandle of `node` if a node of the same device refers to it. Others are left out, since they may be equal
/// to phandles in the template.
pub(super) fn inner_phandle(device: Node<'_>, node: Node<'_>) -> Option<u32> {
    let phandle = node.phandle().filter(|_| node != device)?;
    let refers = |user: Node<'_>| {
        user.properties()
            .any(|property| INNER_REFERENCES.contains(&property.name()) && property.u32() == Some(phandle))
    };
    device.subtree().any(refers).then_some(phandle)
}

/// Returns the template's node with additions to the devices.
fn template_bus<'t>(input: &GuestTree<'_, 't>) -> Option<Node<'t>> {
    input.guest.template?.children().find(|child| child.name() == BUS)
}

/// Returns the template's additions to `device`: the child of its `bus` with the name of the device's node in the guest's
/// tree, or else with this name without unit address.
fn addition<'t>(input: &GuestTree<'_, 't>, device: &AssignedDevice<'t>) -> Option<Node<'t>> {
    let bus = template_bus(input)?;
    let name = device.node.base_name();
    let is_at = |unit: &str| match device.regs.first() {
        Some(&(base, _)) => u64::from_str_radix(unit, 16) == Ok(base),
        None => device.node.unit_address() == Some(unit),
    };
    let exact =
        bus.children().find(|child| child.base_name() == name && child.unit_address().is_some_and(is_at));
    exact.or_else(|| bus.children().find(|child| child.name() == name))
}

/// Checks the nodes of the devices and the template's additions to them.
#[inline(never)]
pub(super) fn check<'t>(input: &GuestTree<'_, 't>) -> Result<(), Finding<'t>> {
    let Some(assigned) = input.assigned else { return Ok(()) };
    for (index, device) in assigned.devices.iter().enumerate() {
        let node = device.node;
        if let Some(property) = node.property("ranges") {
            let rule =
                Rule::Must("be removed, or the devices behind it be assigned instead: this node is a bus");
            return Err(Finding::property(node, property, rule));
        }
        node.subtree().try_for_each(extra::check_name)?;
        let is_twin = |other: &AssignedDevice<'t>| {
            let unit = |device: &AssignedDevice<'t>| device.regs.first().map(|&(base, _)| base);
            other.node.base_name() == node.base_name()
                && unit(other) == unit(device)
                && (unit(device).is_some() || other.node.name() == node.name())
        };
        if assigned.devices.iter().take(index).any(is_twin) {
            return Err(Finding::node(
                node,
                Rule::Must("have another name: another device of the guest has it"),
            ));
        }
    }
    if assigned.devices.is_empty() {
        return Ok(());
    }
    let Some(bus) = template_bus(input) else { return Ok(()) };
    check_own(bus, &OWN_BUS_PROPERTIES)?;
    for child in bus.children() {
        if !assigned.devices.iter().any(|device| addition(input, device) == Some(child)) {
            let rule = "be named after one of the guest's `devices`, which get its properties";
            return Err(Finding::node(child, Rule::Must(rule)));
        }
        check_own(child, &OWN_DEVICE_PROPERTIES)?;
    }
    Ok(())
}
