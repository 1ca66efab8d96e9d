//! Reservations of firmware and the host's tree: the reservation block, and `/reserved-memory` with its designated movable
//! blocks and pools, as plain data. The memory map decides how each is used.

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::range::PaRange;
use guest_dts::tree::{Cells, Node, Reg, Tree};
use heapless::Vec;

use super::Warnings;

/// Maximum number of reservations; each entry of `reg` counts.
pub const RESERVATION_LIMIT: usize = 64;
/// Maximum number of entries of `alloc-ranges`.
pub const ALLOC_RANGE_LIMIT: usize = 4;

/// A reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation<'t> {
    /// Node; `None` for an entry of the reservation block.
    pub node: Option<Node<'t>>,
    /// Index in the node's `reg`. Linux has a handler only for the first entry.
    pub entry: usize,
    /// Place of the reservation.
    pub extent: Extent,
    /// Kind, from `compatible`.
    pub kind: ReservationKind,
    /// `no-map`: must not be mapped, not even for speculative access.
    pub is_no_map: bool,
    /// `reusable`: may hold movable memory while its owner does not need it.
    pub is_reusable: bool,
    /// `linux,cma-default`.
    pub is_cma_default: bool,
}

/// The place of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Fixed addresses: `reg`.
    Static(PaRange),
    /// Addresses of Ballast's choice.
    Dynamic {
        /// `size` in bytes.
        size: u64,
        /// `alignment` in bytes.
        alignment: Option<u64>,
        /// `alloc-ranges`; empty for anywhere.
        within: Vec<PaRange, ALLOC_RANGE_LIMIT>,
    },
}

/// The kind of a reservation, from `compatible`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationKind {
    /// An unknown kind: not used.
    Plain,
    /// `designated-movable-block`.
    DesignatedMovableBlock,
    /// `shared-dmb-pool`: a pool in a designated movable block.
    SharedDmbPool,
    /// `shared-dma-pool`: with `reusable` a pool of the contiguous allocator, else memory of a device.
    SharedDmaPool,
    /// `restricted-dma-pool`.
    RestrictedDmaPool,
}

/// Reads the reservation block and `/reserved-memory`.
#[inline(never)]
pub(super) fn read<'t>(
    tree: &Tree<'t>,
    warnings: &mut Warnings<'t>,
) -> Result<Vec<Reservation<'t>, RESERVATION_LIMIT>, Finding<'t>> {
    let mut found = Vec::new();
    for entry in tree.reservations().filter(|entry| entry.size != 0) {
        let value = Value::Range { base: entry.base, size: entry.size };
        let range = PaRange::from_numbers(entry.base, entry.size)
            .ok_or_else(|| Finding::reservation(value, Rule::Must("end below 2^48")))?;
        let reservation = Reservation {
            node: None,
            entry: 0,
            extent: Extent::Static(range),
            kind: ReservationKind::Plain,
            is_no_map: false,
            is_reusable: false,
            is_cma_default: false,
        };
        let index = found.len();
        found.push(reservation).map_err(|_| Finding::reservation(value, too_many(index)))?;
    }
    let Some(container) = tree.find("/reserved-memory") else { return Ok(found) };
    let cells = container_cells(tree, container, warnings)?;
    for node in container.enabled_children() {
        read_child(node, cells, &mut found, warnings)?;
    }
    Ok(found)
}

fn too_many(index: usize) -> Rule {
    Rule::TooMany { index, limit: RESERVATION_LIMIT, what: "reservations" }
}

/// Returns the cells of the container's children. Linux ignores a container without `ranges`, or with cells other than the
/// root's. Ballast does not: that costs some RAM at most, while ignoring it could overwrite memory of firmware.
#[inline(never)]
fn container_cells<'t>(
    tree: &Tree<'t>,
    container: Node<'t>,
    warnings: &mut Warnings<'t>,
) -> Result<Cells, Finding<'t>> {
    let cells = container.child_cells()?;
    let root = tree.root().child_cells()?;
    if cells != root {
        let rule = Rule::Must("have the root's #address-cells and #size-cells: Linux ignores all of it");
        warnings.push(Finding::node(container, rule));
    }
    if container.property("ranges").is_none_or(|ranges| !ranges.bytes().is_empty()) {
        let rule = Rule::Must("be there and empty: Linux ignores the reserved memory");
        warnings.push(match container.property("ranges") {
            Some(ranges) => Finding::property(container, ranges, rule),
            None => Finding::missing(container, "ranges", rule),
        });
    }
    Ok(cells)
}

#[inline(never)]
fn read_child<'t>(
    node: Node<'t>,
    cells: Cells,
    found: &mut Vec<Reservation<'t>, RESERVATION_LIMIT>,
    warnings: &mut Warnings<'t>,
) -> Result<(), Finding<'t>> {
    let (is_no_map, is_reusable) = (node.has("no-map"), node.has("reusable"));
    if is_no_map && is_reusable {
        warnings.push(Finding::named(node, "reusable", Rule::Must("not stand beside `no-map`")));
    }
    let mut add = |entry, extent| {
        let index = found.len();
        let reservation = Reservation {
            node: Some(node),
            entry,
            extent,
            kind: kind(node),
            is_no_map,
            is_reusable,
            is_cma_default: node.has("linux,cma-default"),
        };
        found.push(reservation).map_err(|_| Finding::node(node, too_many(index)))
    };
    // `reg` takes precedence over `size` (binding reserved-memory).
    if node.has("reg") {
        for (entry, reg) in node.pairs("reg", cells)?.enumerate() {
            if reg.size != 0 {
                add(entry, Extent::Static(below_limit(node, "reg", reg)?))?;
            }
        }
        return Ok(());
    }
    let Some(size) = sized(node, "size", cells)?.filter(|&size| size != 0) else {
        warnings.push(Finding::missing(node, "reg", Rule::Required("or `size`: what is reserved")));
        return Ok(());
    };
    let alignment = sized(node, "alignment", cells)?;
    if let (Some(alignment), Some(property)) = (alignment, node.property("alignment"))
        && !alignment.is_power_of_two()
    {
        return Err(Finding::property(node, property, Rule::Must("be a power of two")));
    }
    let mut within = Vec::new();
    if node.has("alloc-ranges") {
        for (index, reg) in node.pairs("alloc-ranges", cells)?.enumerate() {
            within.push(below_limit(node, "alloc-ranges", reg)?).map_err(|_| {
                let rule = Rule::TooMany { index, limit: ALLOC_RANGE_LIMIT, what: "alloc-ranges" };
                Finding::node(node, rule)
            })?;
        }
    }
    add(0, Extent::Dynamic { size, alignment, within })
}

#[inline(never)]
fn below_limit<'t>(node: Node<'t>, property: &'static str, reg: Reg) -> Result<PaRange, Finding<'t>> {
    PaRange::from_numbers(reg.base, reg.size).ok_or_else(|| {
        let value = Value::Range { base: reg.base, size: reg.size };
        Finding::new(node, Some(property), value, Rule::Must("end below 2^48"))
    })
}

/// Reads a size with the container's number of size cells.
#[inline(never)]
fn sized<'t>(node: Node<'t>, name: &str, cells: Cells) -> Result<Option<u64>, Finding<'t>> {
    let Some(property) = node.property(name) else { return Ok(None) };
    match property.number().filter(|_| property.bytes().len() == cells.size as usize * 4) {
        Some(size) => Ok(Some(size)),
        None => {
            Err(Finding::property(node, property, Rule::Must("be one size of the container's size cells")))
        }
    }
}

/// Returns the kind of a reservation, as a kernel with designated movable blocks would see it: a pool if `compatible` lists
/// one, and a block only if it lists nothing else.
fn kind(node: Node<'_>) -> ReservationKind {
    if node.is_compatible("shared-dmb-pool") {
        ReservationKind::SharedDmbPool
    } else if node.is_compatible("shared-dma-pool") {
        ReservationKind::SharedDmaPool
    } else if node.is_compatible("restricted-dma-pool") {
        ReservationKind::RestrictedDmaPool
    } else if node.is_compatible("designated-movable-block") {
        ReservationKind::DesignatedMovableBlock
    } else {
        ReservationKind::Plain
    }
}
