//! `interrupt-map` of a host bridge: from pins of PCI functions to interrupts of the GIC (Devicetree Specification,
//! "Interrupt Nexus Properties").

use guest_dts::finding::{Finding, Rule};
use guest_dts::tree::{Node, Property};

use super::bridge::HostBridge;
use super::interrupt::{self, Interrupt};
use super::{node_by_phandle, take_cells};

/// Cells of a PCI address and a pin.
const CHILD_CELLS: usize = 4;

impl<'t> HostBridge<'t> {
    /// Returns the interrupt of pin `pin` (1 to 4: INTA to INTD) of `device` on the bridge's first bus.
    ///
    /// # Errors
    /// The map is missing or malformed, has no entry for the pin, or the entry's interrupt is not one of a GICv3.
    #[inline(never)]
    pub fn interrupt(&self, device: u8, pin: u8) -> Result<Interrupt, Finding<'t>> {
        let node = self.node;
        let Some(map) = node.property("interrupt-map") else {
            let rule = Rule::Required("interrupts of PCI functions; guests have no MSIs");
            return Err(Finding::missing(node, "interrupt-map", rule));
        };
        let mask = mask(node)?;
        // phys.hi of the address: bus in bits 23:16, device in bits 15:11.
        let hi = u32::from(self.buses.0) << 16 | u32::from(device) << 11;
        let wanted = [hi, 0, 0, u32::from(pin)];
        let mut bytes = map.bytes();
        while !bytes.is_empty() {
            let (child, parent, specifier) = entry(node, map, &mut bytes)?;
            let is_match = (0..CHILD_CELLS).all(|at| (wanted[at] ^ child[at]) & mask[at] == 0);
            if is_match {
                return interrupt::decode_for(node, map, parent, specifier);
            }
        }
        Err(Finding::named(
            node,
            "interrupt-map",
            Rule::Must("have an entry for the pin of an assigned function"),
        ))
    }
}

/// Returns `interrupt-map-mask`; all bits without it.
#[inline(never)]
fn mask<'t>(node: Node<'t>) -> Result<[u32; CHILD_CELLS], Finding<'t>> {
    let Some(property) = node.property("interrupt-map-mask") else { return Ok([u32::MAX; CHILD_CELLS]) };
    let mut bytes = property.bytes();
    let mut mask = [0; CHILD_CELLS];
    for cell in &mut mask {
        *cell = take_cells(&mut bytes, 1).map_or(0, |cell| cell as u32);
    }
    match property.bytes().len() {
        16 => Ok(mask),
        _ => Err(Finding::property(node, property, Rule::Must("be four cells: a PCI address and a pin"))),
    }
}

/// Removes an entry from the front of `bytes`. Returns the address and pin, the interrupt controller and the specifier.
#[inline(never)]
fn entry<'t>(
    node: Node<'t>,
    map: Property<'t>,
    bytes: &mut &'t [u8],
) -> Result<([u32; CHILD_CELLS], Node<'t>, &'t [u8]), Finding<'t>> {
    let malformed = || {
        let rule = Rule::Must(
            "be entries of a PCI address, a pin, an interrupt controller, its address and a specifier",
        );
        Finding::property(node, map, rule)
    };
    let mut child = [0; CHILD_CELLS];
    for cell in &mut child {
        *cell = take_cells(bytes, 1).ok_or_else(malformed)? as u32;
    }
    let phandle = take_cells(bytes, 1).ok_or_else(malformed)? as u32;
    let parent = node_by_phandle(node, phandle).ok_or_else(malformed)?;
    let cells = |name: &str| parent.property(name).map(|property| property.u32());
    // Without the property, an interrupt controller has no addresses.
    let address = cells("#address-cells").unwrap_or(Some(0)).filter(|&cells| cells <= 3);
    let specifier = cells("#interrupt-cells").flatten().filter(|cells| (1..=4).contains(cells));
    let (Some(address), Some(specifier)) = (address, specifier) else { return Err(malformed()) };
    let (_, rest) = bytes.split_at_checked(address as usize * 4).ok_or_else(malformed)?;
    let (specifier, rest) = rest.split_at_checked(specifier as usize * 4).ok_or_else(malformed)?;
    *bytes = rest;
    Ok((child, parent, specifier))
}
