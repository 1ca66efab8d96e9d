//! SMMUs (binding `arm,smmu-v3`), and the streams of devices behind them.

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Property, Tree};
use heapless::Vec;

use super::interrupt::{self, Interrupt};
use super::{Warnings, is_coherent, node_by_phandle};

/// Maximum number of SMMUs.
pub const SMMU_LIMIT: usize = 8;
/// Maximum number of streams of a device.
pub const STREAM_LIMIT: usize = 8;

/// An SMMUv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smmu<'t> {
    /// Node of the SMMU.
    pub node: Node<'t>,
    /// Registers: both pages of 64 KiB.
    pub registers: PaRange,
    /// True if the SMMU's accesses to its tables and queues are coherent with the CPUs' caches.
    pub is_coherent: bool,
    /// Interrupt of the event queue: `eventq` or `combined`.
    pub event_interrupt: Option<Interrupt>,
    /// Interrupt of global errors: `gerror` or `combined`.
    pub error_interrupt: Option<Interrupt>,
}

/// A stream of DMA accesses, as an SMMU tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Index of the SMMU in [`Board::smmus`](super::Board::smmus).
    pub smmu: u8,
    /// StreamID.
    pub id: u32,
}

impl<'t> Smmu<'t> {
    /// Reads the SMMUs that are enabled. One that is broken becomes a warning: only a guest that needs it is refused.
    #[inline(never)]
    pub(super) fn read_all(tree: &Tree<'t>, warnings: &mut Warnings<'t>) -> Vec<Self, SMMU_LIMIT> {
        let mut found = Vec::new();
        for node in tree.nodes().filter(|node| node.is_compatible("arm,smmu-v3") && node.is_enabled()) {
            match Self::read(node) {
                Ok(smmu) => {
                    if found.push(smmu).is_err() {
                        warnings.push(Finding::node(node, too_many()));
                        break;
                    }
                }
                Err(finding) => warnings.push(finding),
            }
        }
        found
    }

    /// Reads the SMMU at `node`.
    ///
    /// # Errors
    /// Missing or wrong registers or interrupts.
    #[inline(never)]
    fn read(node: Node<'t>) -> Result<Self, Finding<'t>> {
        let registers = node.cpu_reg::<4>()?;
        let registers = registers.first().and_then(|reg| PaRange::from_numbers(reg.base, reg.size));
        // Page 0 and page 1 of 64 KiB each (IHI 0070, "Memory map").
        let registers =
            registers.filter(|range| range.size() >= 0x2_0000 && range.base().is_aligned(0x1_0000));
        let Some(registers) = registers else {
            let value = node.property("reg").map_or(Value::Missing, |reg| Value::Bytes(reg.bytes()));
            let rule = Rule::Must("begin with the two register pages of an SMMUv3, 64 KiB each");
            return Err(Finding::new(node, Some("reg"), value, rule));
        };
        let (mut event_interrupt, mut error_interrupt) = (None, None);
        if let Some(names) = node.property("interrupt-names") {
            let interrupts = interrupt::read(node)?;
            let named = |name: &str| {
                let index = names.strings().position(|string| string == name)?;
                interrupts.get(index).copied().filter(|interrupt| interrupt.is_spi())
            };
            event_interrupt = named("eventq").or_else(|| named("combined"));
            error_interrupt = named("gerror").or_else(|| named("combined"));
        }
        Ok(Self { node, registers, is_coherent: is_coherent(node), event_interrupt, error_interrupt })
    }

    /// Returns the index in `smmus` of the SMMU with `phandle`, which `property` of `holder` names.
    ///
    /// # Errors
    /// The phandle does not name an SMMUv3 that Ballast can use.
    pub(super) fn find(
        smmus: &[Self],
        holder: Node<'t>,
        property: Property<'t>,
        phandle: u32,
    ) -> Result<u8, Finding<'t>> {
        let node = node_by_phandle(holder, phandle).filter(|node| node.is_compatible("arm,smmu-v3"));
        let Some(node) = node else {
            let rule =
                Rule::Must("name nodes compatible with \"arm,smmu-v3\"; Ballast has no driver for others");
            return Err(Finding::property(holder, property, rule));
        };
        if let Some(index) = smmus.iter().position(|smmu| smmu.node == node) {
            return Ok(index as u8);
        }
        if !node.is_enabled() {
            return Err(Finding::named(
                node,
                "status",
                Rule::Must("be \"okay\": a guest's device needs this SMMU"),
            ));
        }
        // The node's own error, which kept it out of the list.
        Err(Self::read(node).err().unwrap_or_else(|| Finding::node(node, too_many())))
    }
}

fn too_many() -> Rule {
    Rule::TooMany { index: SMMU_LIMIT, limit: SMMU_LIMIT, what: "SMMUs" }
}

/// Returns the streams in `iommus` of the platform device `node`; none if there is no such property.
///
/// # Errors
/// The property is malformed, names an SMMU that Ballast cannot use, or has too many entries.
#[inline(never)]
pub fn device_streams<'t>(
    smmus: &[Smmu<'t>],
    node: Node<'t>,
) -> Result<Vec<Stream, STREAM_LIMIT>, Finding<'t>> {
    let mut found = Vec::new();
    let Some(property) = node.property("iommus") else { return Ok(found) };
    let malformed = || {
        let rule = Rule::Must(
            "be entries of a phandle and one cell, the StreamID (`#iommu-cells` of an SMMUv3 is 1)",
        );
        Finding::property(node, property, rule)
    };
    let mut cells = property.cells().ok_or_else(malformed)?;
    let mut index = 0;
    while let Some(phandle) = cells.next() {
        let id = cells.next().ok_or_else(malformed)?;
        let smmu = Smmu::find(smmus, node, property, phandle)?;
        found.push(Stream { smmu, id }).map_err(|_| {
            Finding::property(node, property, Rule::TooMany { index, limit: STREAM_LIMIT, what: "streams" })
        })?;
        index += 1;
    }
    if found.is_empty() { Err(malformed()) } else { Ok(found) }
}

/// Tests whether `iommus` of `node` lists `stream`.
pub fn has_stream(smmus: &[Smmu<'_>], node: Node<'_>, stream: Stream) -> bool {
    let Some(smmu) = smmus.get(usize::from(stream.smmu)) else { return false };
    let Some(mut cells) = node.property("iommus").and_then(|property| property.cells()) else { return false };
    while let Some(phandle) = cells.next() {
        let target = node_by_phandle(node, phandle);
        let count = target.and_then(|target| target.property("#iommu-cells")).and_then(|count| count.u32());
        let is_it = cells.clone().next() == Some(stream.id) && target == Some(smmu.node);
        match count {
            Some(1) if is_it => return true,
            Some(count @ 1..=4) => {
                cells.nth(count as usize - 1);
            }
            Some(0) => {}
            // The rest cannot be taken apart.
            _ => return false,
        }
    }
    false
}
