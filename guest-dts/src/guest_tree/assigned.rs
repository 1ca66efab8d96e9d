//! The host's devices in a guest's tree.

use alloc::vec::Vec;

use crate::tree::Node;

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
