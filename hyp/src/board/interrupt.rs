//! Interrupt specifiers of a GICv3 (binding `arm,gic-v3`), and the interrupt parent of a node.

use guest_dts::finding::{Finding, Rule};
use guest_dts::tree::{Node, Property};
use heapless::Vec;

/// An interrupt of the GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// INTID: 16 to 31 for private interrupts (PPI), from 32 for shared ones (SPI).
    pub intid: u32,
    /// Trigger of the interrupt.
    pub trigger: Trigger,
}

impl Interrupt {
    /// Returns true for an SPI that is not extended (GICv3 architecture, 2.2).
    pub fn is_spi(self) -> bool {
        (32..1020).contains(&self.intid)
    }
}

/// The trigger of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Edge-triggered.
    Edge,
    /// Level-sensitive.
    Level,
}

/// Maximum number of interrupts of a node that are read: one more than an assigned device may have.
const INTERRUPT_LIMIT: usize = DEVICE_INTERRUPT_LIMIT + 1;
/// Maximum number of interrupts of an assigned device.
pub const DEVICE_INTERRUPT_LIMIT: usize = 16;

/// Reads the interrupts of a platform device, which are all SPIs; none if the node has none.
///
/// # Errors
/// An interrupt is malformed, is not an SPI, does not go to the GICv3, or there are too many.
#[inline(never)]
pub fn device_interrupts<'t>(node: Node<'t>) -> Result<Vec<Interrupt, DEVICE_INTERRUPT_LIMIT>, Finding<'t>> {
    let Some(property) = node.property("interrupts-extended").or_else(|| node.property("interrupts")) else {
        return Ok(Vec::new());
    };
    let found = read(node)?;
    if !found.iter().all(|interrupt| interrupt.is_spi()) {
        let rule =
            Rule::Must("be shared interrupts of type 0 (SPI): private and extended ones are not assigned");
        return Err(Finding::property(node, property, rule));
    }
    Vec::from_slice(&found).map_err(|_| {
        let (index, limit) = (DEVICE_INTERRUPT_LIMIT, DEVICE_INTERRUPT_LIMIT);
        Finding::property(node, property, Rule::TooMany { index, limit, what: "interrupts of a device" })
    })
}

/// Reads the interrupts of `node` from `interrupts-extended` or `interrupts`. All must go to a GICv3.
#[inline(never)]
pub(super) fn read<'t>(node: Node<'t>) -> Result<Vec<Interrupt, INTERRUPT_LIMIT>, Finding<'t>> {
    match (node.property("interrupts-extended"), node.property("interrupts")) {
        (Some(extended), _) => read_extended(node, extended),
        (None, Some(interrupts)) => {
            let cells = specifier_cells(parent(node)?)?;
            let bytes = interrupts.bytes();
            if bytes.is_empty() || !bytes.len().is_multiple_of(cells * 4) {
                let rule = Rule::Must("have entries of as many cells as the GIC's `#interrupt-cells`");
                return Err(Finding::property(node, interrupts, rule));
            }
            let mut found = Vec::new();
            // No caller needs the interrupts beyond the limit.
            for specifier in bytes.chunks_exact(cells * 4).take(INTERRUPT_LIMIT) {
                let _ = found.push(decode(node, interrupts, specifier)?);
            }
            Ok(found)
        }
        (None, None) => Err(Finding::missing(node, "interrupts", Rule::Required("the device's interrupts"))),
    }
}

#[inline(never)]
fn read_extended<'t>(
    node: Node<'t>,
    property: Property<'t>,
) -> Result<Vec<Interrupt, INTERRUPT_LIMIT>, Finding<'t>> {
    let malformed =
        || Finding::property(node, property, Rule::Must("be entries of a phandle and a specifier"));
    let mut found = Vec::new();
    let mut rest = property.bytes();
    while !rest.is_empty() && !found.is_full() {
        let (phandle, after) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let gic = by_phandle(node, property, u32::from_be_bytes(*phandle))?;
        let cells = specifier_cells(gic)?;
        let (specifier, after) = after.split_at_checked(cells * 4).ok_or_else(malformed)?;
        let _ = found.push(decode(node, property, specifier)?);
        rest = after;
    }
    if found.is_empty() { Err(malformed()) } else { Ok(found) }
}

/// Returns the interrupt parent of `node`: `interrupt-parent` of the node itself or of its nearest ancestor that has one
/// (specification, 2.4).
#[inline(never)]
fn parent<'t>(node: Node<'t>) -> Result<Node<'t>, Finding<'t>> {
    for holder in core::iter::once(node).chain(node.ancestors()) {
        if let Some(property) = holder.property("interrupt-parent") {
            let phandle = property.u32();
            let phandle =
                phandle.ok_or_else(|| Finding::property(holder, property, Rule::Must("be one phandle")))?;
            return by_phandle(holder, property, phandle);
        }
        // Without the property, a node below the interrupt controller belongs to it.
        if holder != node && holder.is_compatible("arm,gic-v3") {
            return Ok(holder);
        }
    }
    Err(Finding::missing(node, "interrupt-parent", Rule::Required("here or above, the interrupt controller")))
}

#[inline(never)]
fn by_phandle<'t>(node: Node<'t>, property: Property<'t>, phandle: u32) -> Result<Node<'t>, Finding<'t>> {
    match super::node_by_phandle(node, phandle).filter(|found| found.is_compatible("arm,gic-v3")) {
        Some(gic) => Ok(gic),
        None => {
            Err(Finding::property(node, property, Rule::Must("name a node compatible with \"arm,gic-v3\"")))
        }
    }
}

/// Returns `#interrupt-cells` of `gic`: type, number, flags and, as a fourth cell, a partition that is not read.
fn specifier_cells<'t>(gic: Node<'t>) -> Result<usize, Finding<'t>> {
    let name = "#interrupt-cells";
    let Some(property) = gic.property(name) else {
        return Err(Finding::missing(gic, name, Rule::Required("cells of an interrupt specifier")));
    };
    match property.u32() {
        Some(cells @ 3..=4) => Ok(cells as usize),
        _ => Err(Finding::property(gic, property, Rule::Must("be 3 or 4"))),
    }
}

/// Decodes `specifier` of an `interrupt-map` entry for the interrupt controller `gic`.
#[inline(never)]
pub(super) fn decode_for<'t>(
    node: Node<'t>,
    property: Property<'t>,
    gic: Node<'t>,
    specifier: &[u8],
) -> Result<Interrupt, Finding<'t>> {
    if !gic.is_compatible("arm,gic-v3") {
        return Err(Finding::property(
            node,
            property,
            Rule::Must("name a node compatible with \"arm,gic-v3\""),
        ));
    }
    specifier_cells(gic)?;
    let interrupt = decode(node, property, specifier)?;
    if !interrupt.is_spi() {
        return Err(Finding::property(node, property, Rule::Must("name shared interrupts of type 0 (SPI)")));
    }
    Ok(interrupt)
}

#[inline(never)]
fn decode<'t>(node: Node<'t>, property: Property<'t>, specifier: &[u8]) -> Result<Interrupt, Finding<'t>> {
    let cell = |index: usize| {
        let bytes = specifier.get(index * 4..index * 4 + 4).unwrap_or_default();
        bytes.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte))
    };
    // First INTID and count of SPIs, PPIs, extended SPIs and extended PPIs (GICv3 architecture, 2.2).
    let (first, count) = match cell(0) {
        0 => (32, 988),
        1 => (16, 16),
        2 => (4096, 1024),
        3 => (1056, 64),
        _ => return Err(Finding::property(node, property, Rule::Must("begin with a type of 0 to 3"))),
    };
    if cell(1) >= count {
        return Err(Finding::property(node, property, Rule::Must("name an interrupt that its type has")));
    }
    let trigger = if cell(2) & 0xf <= 2 { Trigger::Edge } else { Trigger::Level };
    Ok(Interrupt { intid: first + cell(1), trigger })
}
