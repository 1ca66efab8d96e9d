//! The interrupt controller (binding `arm,gic-v3`).

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Tree};
use heapless::Vec;

use super::interrupt::{self, Interrupt};

/// Maximum number of redistributor regions.
pub const REDISTRIBUTOR_REGION_LIMIT: usize = 16;

/// Maximum number of interrupt translation services.
const TRANSLATOR_LIMIT: usize = 16;

/// A GICv3 or GICv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// Registers of the distributor.
    pub distributor: PaRange,
    /// Regions of contiguous redistributors.
    pub redistributors: Vec<PaRange, REDISTRIBUTOR_REGION_LIMIT>,
    /// Bytes from one redistributor to the next, if they differ from what GICR_TYPER implies: 2 frames of 64 KiB, 4 with
    /// virtual LPIs.
    pub redistributor_stride: Option<u64>,
    /// Control registers of the interrupt translation services.
    pub translators: Vec<PaRange, TRANSLATOR_LIMIT>,
    /// Maintenance interrupt.
    pub maintenance: Interrupt,
}

impl Gic {
    /// Reads the GIC's node.
    #[inline(never)]
    pub(super) fn read<'t>(tree: &Tree<'t>) -> Result<Self, Finding<'t>> {
        let mut nodes = tree.nodes();
        let node = nodes.find(|node| node.is_compatible("arm,gic-v3") && node.is_enabled());
        let node = node.ok_or_else(|| {
            Finding::no_node(
                "node compatible with \"arm,gic-v3\"",
                Rule::Required("the interrupt controller"),
            )
        })?;
        let regions = match node.property("#redistributor-regions") {
            None => 1,
            Some(property) => match property.u32() {
                Some(count) if (1..=REDISTRIBUTOR_REGION_LIMIT).contains(&(count as usize)) => count as usize,
                _ => {
                    let rule = Rule::Between(1, REDISTRIBUTOR_REGION_LIMIT as u64);
                    return Err(Finding::property(node, property, rule));
                }
            },
        };
        let mut ranges: Vec<PaRange, REDISTRIBUTOR_REGION_LIMIT> = Vec::new();
        let mut distributor = None;
        // With GICv2 compatibility, GICC, GICH and GICV follow, which are not used.
        for reg in node.cpu_reg::<{ REDISTRIBUTOR_REGION_LIMIT + 4 }>()?.iter().take(1 + regions) {
            let value = Value::Range { base: reg.base, size: reg.size };
            let range = PaRange::from_numbers(reg.base, reg.size).filter(|range| range.is_aligned(0x1_0000));
            let Some(range) = range else {
                let rule = Rule::Must("be whole frames of 64 KiB below 2^48");
                return Err(Finding::new(node, Some("reg"), value, rule));
            };
            if distributor.is_none() {
                distributor = Some(range);
            } else if range.size() < 0x2_0000 || ranges.push(range).is_err() {
                let rule = Rule::Must("have room for a redistributor, 128 KiB");
                return Err(Finding::new(node, Some("reg"), value, rule));
            }
        }
        let Some(distributor) = distributor.filter(|_| ranges.len() == regions) else {
            let rule = Rule::Must("have an entry for the distributor and one for each redistributor region");
            let value = node.property("reg").map_or(Value::Missing, |reg| Value::Bytes(reg.bytes()));
            return Err(Finding::new(node, Some("reg"), value, rule));
        };
        let redistributor_stride = match node.property("redistributor-stride") {
            None => None,
            Some(property) => match property.number() {
                Some(stride) if stride >= 0x2_0000 && stride.is_multiple_of(0x1_0000) => Some(stride),
                _ => {
                    let rule = Rule::Must("be a multiple of 64 KiB and at least 128 KiB");
                    return Err(Finding::property(node, property, rule));
                }
            },
        };
        let Some(&maintenance) = interrupt::read(node)?.first() else {
            return Err(Finding::missing(node, "interrupts", Rule::Required("the maintenance interrupt")));
        };
        if !(16..32).contains(&maintenance.intid) {
            let value = Value::Number(maintenance.intid.into());
            let rule = Rule::Must("name a PPI first, the maintenance interrupt");
            return Err(Finding::new(node, Some("interrupts"), value, rule));
        }
        let translators = Self::read_translators(node)?;
        Ok(Self { distributor, redistributors: ranges, redistributor_stride, translators, maintenance })
    }

    /// Reads the ITS nodes below the GIC's node (binding `arm,gic-v3-its`).
    #[inline(never)]
    fn read_translators<'t>(node: Node<'t>) -> Result<Vec<PaRange, TRANSLATOR_LIMIT>, Finding<'t>> {
        let mut translators = Vec::new();
        for its in node.enabled_children().filter(|child| child.is_compatible("arm,gic-v3-its")) {
            let registers = its.cpu_reg::<1>()?;
            let Some(reg) = registers.first() else {
                return Err(Finding::missing(its, "reg", Rule::Required("the control registers of an ITS")));
            };
            let value = Value::Range { base: reg.base, size: reg.size };
            let range = PaRange::from_numbers(reg.base, reg.size);
            let range = range.filter(|range| range.is_aligned(0x1_0000) && range.size() >= 0x1_0000);
            if range.is_none_or(|range| translators.push(range).is_err()) {
                let rule = Rule::Must("be whole frames of 64 KiB below 2^48, of at most 16 ITSs");
                return Err(Finding::new(its, Some("reg"), value, rule));
            }
        }
        Ok(translators)
    }
}
