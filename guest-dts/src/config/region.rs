//! Readers for a guest's RAM: regions (`memory`) and designated movable blocks (`dmb`).

use stage2::addr::{FRAME_SIZE, PAGEBLOCK_SIZE};

use super::reader::Reader;
use super::{Placement, RamRegion, Spread, Strictness, Unit};
use crate::finding::{Finding, Rule, Value};
use crate::guest_tree::platform;
use crate::image::PageSize;
use crate::range::{IpaRange, PaRange};
use crate::tree::Node;

const REGION_PROPERTIES: [&str; 10] = [
    "reg",
    "size",
    "controllers",
    "interleave",
    "preferred",
    "pinned-in-place",
    "dma-window",
    "unit-size",
    "device_type",
    "status",
];
const DMB_PROPERTIES: [&str; 6] = ["size", "controllers", "interleave", "preferred", "unit-size", "status"];

/// Reads a `memory` node of a guest with pages of `page_size`. Checks every property, even after an error in another.
#[inline(never)]
pub(super) fn read<'t>(
    node: Node<'t>,
    page_size: PageSize,
    reader: &mut Reader<'_, 't>,
) -> Option<RamRegion<'t>> {
    reader.check_names(node, &REGION_PROPERTIES, &[]);
    let has_reg = node.has("reg");
    let ipa = if has_reg { read_reg(node, reader) } else { None };
    let size = if has_reg { ipa.map(|ipa| ipa.size()) } else { read_size(node, reader) };
    let is_pinned_in_place = reader.flag(node, "pinned-in-place");
    if is_pinned_in_place && !has_reg {
        reader.error(Finding::missing(node, "reg", Rule::Add("the address range that is `pinned-in-place`")));
    }
    let is_dma_window = reader.flag(node, "dma-window");
    let unit = read_unit(node, reader);
    let placement = read_placement(node, reader);
    if let Some(size) = size {
        let own = unit.filter(|unit| *unit != Unit::Any).map_or(FRAME_SIZE, Unit::alignment);
        check_alignment(node, (ipa, size), own, page_size.bytes(), page_size, reader);
    }
    if is_dma_window {
        super::devices::check_window(node, (ipa, size), reader);
    }
    let in_place = ipa.filter(|_| is_pinned_in_place);
    Some(RamRegion {
        node: Some(node),
        size: size?,
        ipa,
        is_pinned_in_place,
        is_dma_window,
        backing: in_place.and_then(|ipa| PaRange::from_numbers(ipa.base().get(), ipa.size())),
        placement,
        unit: unit?,
    })
}

/// Reads a `dmb` node of a guest with pages of `page_size`. Checks every property, even after an error in another.
#[inline(never)]
pub(super) fn read_dmb<'t>(
    node: Node<'t>,
    page_size: PageSize,
    reader: &mut Reader<'_, 't>,
) -> Option<RamRegion<'t>> {
    reader.check_names(node, &DMB_PROPERTIES, &[]);
    let (size, unit) = (read_size(node, reader), read_unit(node, reader));
    let placement = read_placement(node, reader);
    if let Some(size) = size {
        let own = unit.map_or(PAGEBLOCK_SIZE, |unit| unit.alignment().max(PAGEBLOCK_SIZE));
        check_alignment(node, (None, size), own, page_size.block_alignment(), page_size, reader);
    }
    Some(RamRegion {
        node: Some(node),
        size: size?,
        ipa: None,
        is_pinned_in_place: false,
        is_dma_window: false,
        backing: None,
        placement,
        unit: unit?,
    })
}

fn read_size<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<u64> {
    if !node.has("size") {
        reader.error(Finding::missing(node, "size", Rule::Add("the size of the RAM in bytes")));
    }
    reader.size(node, "size")
}

#[inline(never)]
fn read_reg<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<IpaRange> {
    let mut entries = reader.reg(node)?;
    let property = node.property("reg")?;
    let (Some(reg), None) = (entries.next(), entries.next()) else {
        reader.broken(node, property, Rule::Must("be one range"));
        return None;
    };
    if node.has("size") {
        reader.error(Finding::named(node, "size", Rule::Must("be removed: `reg` already gives the size")));
    }
    let range = IpaRange::from_numbers(reg.base, reg.size).filter(|range| !range.is_empty());
    let is_inside =
        |range: &IpaRange| range.base().get() >= platform::RAM_BASE && range.end() <= platform::IPA_LIMIT;
    match range.filter(is_inside) {
        Some(range) => Some(range),
        None => {
            let value = Value::Range { base: reg.base, size: reg.size };
            let rule = Rule::Must("not be empty, begin at or above 0x40000000 and end below 2^40");
            reader.error(Finding::new(node, Some("reg"), value, rule));
            None
        }
    }
}

/// Reports each alignment that a region's range breaks: `own`, required by its units, and `for_pages`, by the guest's
/// pages.
#[inline(never)]
fn check_alignment<'t>(
    node: Node<'t>,
    (ipa, size): (Option<IpaRange>, u64),
    own: u64,
    for_pages: u64,
    page_size: PageSize,
    reader: &mut Reader<'_, 't>,
) {
    let (name, value) = match ipa {
        Some(ipa) => ("reg", Value::Range { base: ipa.base().get(), size }),
        None => ("size", Value::Size(size)),
    };
    let rules = [
        (own, Rule::MultipleOf(own)),
        (for_pages, Rule::MultipleOfForPages { size: for_pages, page: page_size.bytes() }),
    ];
    for (at, (alignment, rule)) in rules.into_iter().enumerate() {
        let is_aligned = match ipa {
            Some(ipa) => ipa.is_aligned(alignment),
            None => size.is_multiple_of(alignment),
        };
        // One message is enough if the pages require no more than the units.
        if !is_aligned && (at == 0 || for_pages > own) {
            reader.error(Finding::new(node, Some(name), value, rule));
        }
    }
}

#[inline(never)]
pub(super) fn read_unit<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<Unit> {
    let Some(property) = node.property("unit-size") else { return Some(Unit::Any) };
    match property.number() {
        Some(0x1000) => Some(Unit::Small),
        Some(0x20_0000) => Some(Unit::Medium),
        Some(0x4000_0000) => Some(Unit::Large),
        _ => {
            let rule = Rule::Must("be 4 KiB, 2 MiB or 1 GiB: <0x1000>, <0x200000> or <0x40000000>");
            reader.broken(node, property, rule);
            None
        }
    }
}

#[inline(never)]
fn read_placement<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Placement {
    let controllers = reader.controllers(node);
    let spread = match reader.flag(node, "interleave") {
        true => Spread::Interleaved,
        false => Spread::InOrder,
    };
    let strictness = match reader.flag(node, "preferred") {
        true => Strictness::Preferred,
        false => Strictness::Strict,
    };
    if strictness == Strictness::Preferred && controllers.is_empty() {
        reader.error(Finding::missing(
            node,
            "controllers",
            Rule::Add("the controllers that are `preferred`"),
        ));
    }
    if spread == Spread::Interleaved && controllers.is_empty() {
        let rule = Rule::Add("the controllers to `interleave`");
        reader.error(Finding::missing(node, "controllers", rule));
    }
    if spread == Spread::Interleaved && controllers.len() == 1 {
        reader.warning(Finding::named(
            node,
            "interleave",
            Rule::Must("have at least two controllers to have an effect"),
        ));
    }
    Placement { controllers, spread, strictness }
}
