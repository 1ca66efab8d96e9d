//! PCI host bridges (binding `pci-host-ecam-generic`): configuration space, buses and memory windows. `streams.rs` and
//! `intx.rs` read the maps from functions to streams and interrupts.

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Reg, Translation, Tree};
use heapless::Vec;
use stage2::addr::Pa;

use super::{is_coherent, take_cells};

/// Maximum number of host bridges.
pub const BRIDGE_LIMIT: usize = 4;
/// Maximum number of memory windows of a bridge.
pub const PCI_WINDOW_LIMIT: usize = 8;

/// Bytes of a function's configuration space in an ECAM (PCI Express Base Specification, "PCI Express Enhanced
/// Configuration Access Mechanism").
const FUNCTION_SHIFT: u32 = 12;
/// Bytes of a bus in an ECAM.
const BUS_SHIFT: u32 = 20;

/// A PCI host bridge with an ECAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBridge<'t> {
    /// Node of the bridge.
    pub node: Node<'t>,
    /// `linux,pci-domain`, if the node has it.
    pub domain: Option<u32>,
    /// Configuration space of all buses.
    pub ecam: PaRange,
    /// First and last bus.
    pub buses: (u8, u8),
    /// True if DMA of the bridge's functions is coherent with the CPUs' caches.
    pub is_coherent: bool,
    /// Memory windows, in the tree's order.
    pub windows: Vec<PciWindow, PCI_WINDOW_LIMIT>,
}

/// A memory window of a host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciWindow {
    /// First address on the PCI bus.
    pub pci: u64,
    /// Addresses as CPUs see them.
    pub cpu: PaRange,
    /// True for a window of 64-bit addresses.
    pub is_64_bit: bool,
    /// True if the window is prefetchable.
    pub is_prefetchable: bool,
}

impl<'t> HostBridge<'t> {
    /// Reads the bridges that Ballast can use. [`Self::errors`] explains the others.
    #[inline(never)]
    pub(super) fn read_all(tree: &Tree<'t>) -> Vec<Self, BRIDGE_LIMIT> {
        nodes(tree).filter_map(|node| Self::read(node).ok()).take(BRIDGE_LIMIT).collect()
    }

    /// Iterates over the errors of the bridges that Ballast cannot use.
    pub fn errors(tree: &Tree<'t>) -> impl Iterator<Item = Finding<'t>> {
        nodes(tree).filter_map(|node| Self::read(node).err())
    }

    /// Reads the bridge at `node`.
    ///
    /// # Errors
    /// The bridge has no ECAM of the generic shape, or a property is missing or wrong.
    #[inline(never)]
    fn read(node: Node<'t>) -> Result<Self, Finding<'t>> {
        if !node.is_compatible("pci-host-ecam-generic") {
            let rule =
                Rule::Must("list \"pci-host-ecam-generic\": guests get functions of no other host bridge");
            let value = node.property("compatible").map_or(Value::Missing, |list| Value::Bytes(list.bytes()));
            return Err(Finding::new(node, Some("compatible"), value, rule));
        }
        for (name, cells, rule) in
            [("#address-cells", 3, "be 3 on a PCI bus"), ("#size-cells", 2, "be 2 on a PCI bus")]
        {
            match node.property(name) {
                Some(property) if property.u32() == Some(cells) => {}
                Some(property) => return Err(Finding::property(node, property, Rule::Must(rule))),
                None => return Err(Finding::missing(node, name, Rule::Must(rule))),
            }
        }
        let (first, last) = bus_range(node)?;
        let registers = node.cpu_reg::<4>()?;
        let registers = registers.first().and_then(|reg| PaRange::from_numbers(reg.base, reg.size));
        let registers = registers
            .filter(|range| range.base().is_aligned(1 << FUNCTION_SHIFT) && range.size() >> BUS_SHIFT > 0);
        let Some(ecam) = registers else {
            let value = node.property("reg").map_or(Value::Missing, |reg| Value::Bytes(reg.bytes()));
            let rule = Rule::Must("begin with the bridge's ECAM, whole pages below 2^48 and 1 MiB or more");
            return Err(Finding::new(node, Some("reg"), value, rule));
        };
        // Linux, too, takes only the buses that the ECAM has room for.
        let room = u8::try_from((ecam.size() >> BUS_SHIFT) - 1).unwrap_or(u8::MAX);
        let buses = (first, last.min(first.saturating_add(room)));
        let domain = node.property("linux,pci-domain").and_then(|domain| domain.u32());
        let windows = windows(node)?;
        Ok(Self { node, domain, ecam, buses, is_coherent: is_coherent(node), windows })
    }

    /// Tests whether function `rid` is on one of the bridge's buses.
    pub fn has(&self, rid: u16) -> bool {
        let bus = (rid >> 8) as u8;
        (self.buses.0..=self.buses.1).contains(&bus)
    }

    /// Returns the address of the configuration space of function `rid`, 4 KiB, or `None` if the bridge does not have
    /// its bus.
    pub fn config_page(&self, rid: u16) -> Option<Pa> {
        let first = u64::from(self.buses.0) << 8;
        let offset = u64::from(rid).checked_sub(first)? << FUNCTION_SHIFT;
        self.has(rid).then(|| self.ecam.base().checked_add(offset))?
    }
}

/// Iterates over the nodes of host bridges: PCI nodes that are not children of PCI nodes.
fn nodes<'t>(tree: &Tree<'t>) -> impl Iterator<Item = Node<'t>> {
    let mut all = tree.nodes();
    // The depth of the bridge whose descendants are passed over.
    let mut inside: Option<usize> = None;
    core::iter::from_fn(move || {
        loop {
            let node = all.next()?;
            let depth = all.depth();
            if inside.is_some_and(|bridge| depth > bridge) {
                continue;
            }
            let is_pci = node.property("device_type").and_then(|kind| kind.str()) == Some("pci");
            inside = is_pci.then_some(depth);
            if is_pci && node.is_enabled() {
                return Some(node);
            }
        }
    })
}

/// Returns the first and the last bus; all of them without `bus-range`.
#[inline(never)]
fn bus_range<'t>(node: Node<'t>) -> Result<(u8, u8), Finding<'t>> {
    let Some(property) = node.property("bus-range") else { return Ok((0, 0xff)) };
    let (first, last) = (|| {
        let mut bytes = property.bytes();
        let (first, last) = (take_cells(&mut bytes, 1)?, take_cells(&mut bytes, 1)?);
        let (first, last) = (u8::try_from(first).ok()?, u8::try_from(last).ok()?);
        (bytes.is_empty() && first <= last).then_some((first, last))
    })()
    .ok_or_else(|| {
        Finding::property(node, property, Rule::Must("be the first and the last bus, 0 to 255"))
    })?;
    Ok((first, last))
}

/// Reads the memory windows in `ranges`. Windows of I/O and configuration space are left out.
#[inline(never)]
fn windows<'t>(node: Node<'t>) -> Result<Vec<PciWindow, PCI_WINDOW_LIMIT>, Finding<'t>> {
    let mut found = Vec::new();
    let Some(property) = node.property("ranges") else {
        return Err(Finding::missing(node, "ranges", Rule::Required("the bridge's memory windows")));
    };
    let parent = match node.parent() {
        Some(parent) => parent.child_cells()?.address,
        None => 2,
    };
    let malformed = || {
        let rule = Rule::Must("be entries of a PCI address of 3 cells, a CPU address, and a size of 2 cells");
        Finding::property(node, property, rule)
    };
    let mut bytes = property.bytes();
    while !bytes.is_empty() {
        let entry = (|| {
            let kind = take_cells(&mut bytes, 1)?;
            let pci = take_cells(&mut bytes, 2)?;
            Some((kind, pci, take_cells(&mut bytes, parent)?, take_cells(&mut bytes, 2)?))
        })();
        let (kind, pci, base, size) = entry.ok_or_else(malformed)?;
        // phys.hi (PCI Bus Binding to IEEE 1275, "Numerical representation of addresses"): space in bits 25:24.
        let space = kind >> 24 & 3;
        if space < 2 || size == 0 {
            continue;
        }
        let range = match node.translate(Reg { base, size })? {
            Translation::Address(base) => PaRange::from_numbers(base, size),
            Translation::Unreachable => None,
        };
        let cpu = range.filter(|_| pci.checked_add(size).is_some()).ok_or_else(malformed)?;
        let window = PciWindow { pci, cpu, is_64_bit: space == 3, is_prefetchable: kind >> 30 & 1 != 0 };
        found.push(window).map_err(|_| {
            let rule =
                Rule::TooMany { index: PCI_WINDOW_LIMIT, limit: PCI_WINDOW_LIMIT, what: "memory windows" };
            Finding::property(node, property, rule)
        })?;
    }
    Ok(found)
}
