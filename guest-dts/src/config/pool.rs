//! Readers for blocks of the host (`/designated-movable-blocks`) and pools (`/pools`).

use stage2::addr::PAGEBLOCK_SIZE;

use super::reader::Reader;
use super::region::read_unit;
use super::{Block, Configuration, Extent, POOL_LIMIT, Pool, Unit};
use crate::finding::{Finding, Rule, Value};
use crate::range::PaRange;
use crate::tree::Node;

const BLOCK_PROPERTIES: [&str; 7] =
    ["compatible", "reusable", "reg", "size", "alignment", "controllers", "status"];
const POOL_PROPERTIES: [&str; 11] = [
    "compatible",
    "reusable",
    "reg",
    "size",
    "alignment",
    "controllers",
    "owner",
    "pinned-in-place",
    "status",
    "unit-size",
    "unit-wait-ms",
];

/// Time in milliseconds that a starting guest waits for a unit: the default, and the most that a pool may set.
const DEFAULT_UNIT_WAIT_MS: u32 = 60_000;
const MAX_UNIT_WAIT_MS: u32 = 3_600_000;
const GIGABYTE: u64 = 1 << 30;

/// Reads all blocks and pools.
#[inline(never)]
pub(super) fn read_all<'t>(root: Node<'t>, into: &mut Configuration<'t>, reader: &mut Reader<'_, 't>) {
    if let Some(container) = root.child("designated-movable-blocks") {
        reader.check_names(container, &["#address-cells", "#size-cells"], &["*"]);
        for (index, node) in container.enabled_children().enumerate() {
            reader.begin();
            reader.check_names(node, &BLOCK_PROPERTIES, &[]);
            check_compatible(node, &["designated-movable-block"], reader);
            let extent = read_extent(node, reader);
            let block = extent.filter(|_| !reader.has_error()).map(|extent| Block { node, extent });
            if block.is_some_and(|block| into.blocks.push(block).is_err()) {
                let limit = POOL_LIMIT;
                reader.error(Finding::node(node, Rule::TooMany { index, limit, what: "movable blocks" }));
            }
            if reader.has_error() {
                into.withhold(named_range(node));
            }
        }
    }
    if let Some(container) = root.child("pools") {
        reader.check_names(container, &["#address-cells", "#size-cells"], &["*"]);
        for (index, node) in container.enabled_children().enumerate() {
            reader.begin();
            let pool = read_pool(node, reader).filter(|_| !reader.has_error());
            if pool.is_some_and(|pool| into.pools.push(pool).is_err()) {
                reader.error(Finding::node(node, Rule::TooMany { index, limit: POOL_LIMIT, what: "pools" }));
            }
            if reader.has_error() {
                into.withhold(named_range(node));
            }
        }
    }
    reader.begin();
}

/// Returns the first range in `reg` of `node`, whatever else is wrong with the node.
fn named_range(node: Node<'_>) -> Option<PaRange> {
    let reg = node.pairs("reg", node.own_cells().ok()?).ok()?.next()?;
    PaRange::from_numbers(reg.base, reg.size).filter(|range| !range.is_empty())
}

#[inline(never)]
fn read_pool<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<Pool<'t>> {
    reader.check_names(node, &POOL_PROPERTIES, &[]);
    let compatible = check_compatible(node, &["shared-dmb-pool", "shared-dma-pool"], reader);
    let extent = read_extent(node, reader);
    // Reports a phandle that leads nowhere.
    let owner = if node.has("owner") { read_owner(node, reader) } else { None };
    let is_pinned_in_place = reader.flag(node, "pinned-in-place");
    if is_pinned_in_place && !node.has("owner") {
        reader.error(Finding::missing(
            node,
            "owner",
            Rule::Add("the guest that sees the pool `pinned-in-place`"),
        ));
    }
    let unit = read_unit(node, reader);
    if let (Some(Unit::Small), Some(property)) = (unit, node.property("unit-size")) {
        reader.broken(node, property, Rule::Must("be 2 MiB or 1 GiB: pools reserve huge units only"));
    }
    if unit != Some(Unit::Any) && owner.is_some() {
        reader.error(Finding::named(
            node,
            "owner",
            Rule::Must("be removed: a pool with `unit-size` serves every guest"),
        ));
    }
    let wait = reader.number(node, "unit-wait-ms", 1, MAX_UNIT_WAIT_MS);
    if unit == Some(Unit::Any) && node.has("unit-wait-ms") {
        let rule = Rule::Add("the size of the units that `unit-wait-ms` limits the wait for");
        reader.error(Finding::missing(node, "unit-size", rule));
    }
    let unit = unit?;
    let extent = extent.and_then(|extent| whole_units(node, extent, unit, reader));
    Some(Pool {
        node,
        extent: extent?,
        is_in_dmb: compatible? == "shared-dmb-pool",
        owner,
        is_pinned_in_place,
        unit,
        unit_wait_ms: wait.unwrap_or(DEFAULT_UNIT_WAIT_MS),
    })
}

/// Checks that a pool that reserves units consists of whole ones, and aligns it for them.
fn whole_units<'t>(
    node: Node<'t>,
    extent: Extent,
    unit: Unit,
    reader: &mut Reader<'_, 't>,
) -> Option<Extent> {
    let bytes = match unit {
        Unit::Large => GIGABYTE,
        _ => return Some(extent),
    };
    let (name, value, is_whole) = match &extent {
        Extent::Static(range) => {
            let value = Value::Range { base: range.base().get(), size: range.size() };
            ("reg", value, range.is_aligned(bytes))
        }
        Extent::Dynamic { size, .. } => ("size", Value::Size(*size), size.is_multiple_of(bytes)),
    };
    if !is_whole {
        reader.error(Finding::new(node, Some(name), value, Rule::MultipleOf(bytes)));
        return None;
    }
    Some(match extent {
        Extent::Dynamic { size, alignment, controllers } => {
            Extent::Dynamic { size, alignment: alignment.max(bytes), controllers }
        }
        extent => extent,
    })
}

/// Checks `compatible`, `reusable` and the properties that exclude it. Returns the one of `allowed` that `compatible`
/// is.
fn check_compatible<'t>(
    node: Node<'t>,
    allowed: &[&'static str],
    reader: &mut Reader<'_, 't>,
) -> Option<&'static str> {
    let (rule, reusable) = match allowed {
        ["designated-movable-block"] => (
            Rule::Must("be \"designated-movable-block\""),
            Rule::Add("`reusable;` (the block is memory for guests)"),
        ),
        _ => (
            Rule::Must("be \"shared-dmb-pool\" or \"shared-dma-pool\""),
            Rule::Add("`reusable;` (guests may borrow the pool)"),
        ),
    };
    if !node.has("reusable") {
        reader.error(Finding::missing(node, "reusable", reusable));
    }
    for name in ["no-map", "linux,cma-default"] {
        if node.has(name) {
            reader.error(Finding::named(
                node,
                name,
                Rule::Must("be removed: the memory is `reusable` by guests"),
            ));
        }
    }
    let Some(property) = node.property("compatible") else {
        reader.error(Finding::missing(node, "compatible", rule));
        return None;
    };
    let found = property.str().and_then(|name| allowed.iter().find(|allowed| **allowed == name));
    if found.is_none() {
        reader.broken(node, property, rule);
    }
    found.copied()
}

#[inline(never)]
fn read_owner<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<&'t str> {
    let rule = Rule::Must("be the phandle of a child of /guests");
    let owner = reader.target(node, "owner", rule)?;
    if owner.parent().map(|parent| parent.name()) != Some("guests") {
        reader.broken(node, node.property("owner")?, rule);
        return None;
    }
    Some(owner.name())
}

#[inline(never)]
fn read_extent<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<Extent> {
    if node.has("reg") {
        return read_static(node, reader).map(Extent::Static);
    }
    if !node.has("size") {
        reader.error(Finding::missing(node, "size", Rule::Add("a size in bytes, or `reg`")));
        return None;
    }
    let size = reader.size(node, "size");
    if let Some(size) = size.filter(|size| !size.is_multiple_of(PAGEBLOCK_SIZE)) {
        let rule = Rule::MultipleOf(PAGEBLOCK_SIZE);
        reader.error(Finding::new(node, Some("size"), Value::Size(size), rule));
    }
    let alignment = match node.property("alignment") {
        Some(property) => {
            let alignment = reader.size(node, "alignment");
            if alignment.is_some_and(|alignment| !alignment.is_power_of_two()) {
                reader.broken(node, property, Rule::Must("be a power of two"));
            }
            alignment
        }
        None => Some(PAGEBLOCK_SIZE),
    };
    let controllers = reader.controllers(node);
    // A smaller alignment is raised, not refused, as for reserved memory without `reg`.
    Some(Extent::Dynamic { size: size?, alignment: alignment?.max(PAGEBLOCK_SIZE), controllers })
}

#[inline(never)]
fn read_static<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<PaRange> {
    let mut entries = reader.reg(node)?;
    let property = node.property("reg")?;
    for name in ["size", "alignment", "controllers"] {
        if node.has(name) {
            reader.error(Finding::named(node, name, Rule::Must("be removed: `reg` already gives the range")));
        }
    }
    let (Some(reg), None) = (entries.next(), entries.next()) else {
        reader.broken(node, property, Rule::Must("be one range"));
        return None;
    };
    let value = Value::Range { base: reg.base, size: reg.size };
    let Some(range) = PaRange::from_numbers(reg.base, reg.size).filter(|range| !range.is_empty()) else {
        reader.error(Finding::new(node, Some("reg"), value, Rule::Must("not be empty, and end below 2^48")));
        return None;
    };
    if !range.is_aligned(PAGEBLOCK_SIZE) {
        reader.error(Finding::new(node, Some("reg"), value, Rule::MultipleOf(PAGEBLOCK_SIZE)));
    }
    Some(range)
}
