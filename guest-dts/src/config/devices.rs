//! Reader for a guest's devices, and the rules for its DMA window.

use heapless::Vec;

use stage2::addr::PAGEBLOCK_SIZE;

use super::layout::Layout;
use super::reader::Reader;
use super::{DEVICE_LIMIT, FUNCTION_LIMIT, Guest};
use crate::finding::{Finding, Rule, Value};
use crate::range::IpaRange;
use crate::tree::Node;

/// Size of the smallest window in bytes. Linux puts its bounce buffers and coherent memory in it.
const WINDOW_SMALLEST: u64 = 16 << 20;
/// Size of the largest window in bytes.
const WINDOW_LARGEST: u64 = 1 << 30;
/// End of the addresses that an SMMU's table for a window can translate.
const WINDOW_LIMIT: u64 = 1 << 39;
/// Size of the smallest window in bytes that leaves Linux before 6.12 enough room for bounce buffers: of 32 MiB it uses
/// 1 MiB, of 64 MiB it uses 32 MiB (measured with Linux 6.1).
const WINDOW_RECOMMENDED: u64 = 64 << 20;
/// End of the addresses that ZONE_DMA of arm64 Linux can have.
const ZONE_LIMIT: u64 = 1 << 32;

/// Reads the requester IDs in `pci-functions`.
#[inline(never)]
pub(super) fn read_functions<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Vec<u16, FUNCTION_LIMIT> {
    let mut functions = Vec::new();
    let Some(property) = node.property("pci-functions") else { return functions };
    let Some(cells) = property.cells().filter(|_| !property.bytes().is_empty()) else {
        let rule = "be a list of requester IDs, one cell each: bus << 8 | device << 3 | function";
        reader.broken(node, property, Rule::Must(rule));
        return functions;
    };
    // One more than the limit, to report that there are too many; no more, since the property may be long.
    for (index, cell) in cells.take(FUNCTION_LIMIT + 1).enumerate() {
        let rule = match u16::try_from(cell) {
            _ if index == FUNCTION_LIMIT => {
                Rule::TooMany { index, limit: FUNCTION_LIMIT, what: "PCI functions" }
            }
            Err(_) => Rule::Must("be a requester ID below 0x10000: bus << 8 | device << 3 | function"),
            Ok(rid) if functions.contains(&rid) => Rule::Must("be listed once"),
            Ok(rid) => {
                // At most FUNCTION_LIMIT turns come here.
                let _ = functions.push(rid);
                continue;
            }
        };
        reader.error(Finding::new(node, Some("pci-functions"), Value::Address(cell.into()), rule));
    }
    functions
}

/// Reads the paths in `devices`.
#[inline(never)]
pub(super) fn read_devices<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> alloc::vec::Vec<&'t str> {
    let mut paths = alloc::vec::Vec::new();
    let Some(property) = node.property("devices") else { return paths };
    if !property.is_strings() {
        reader.broken(
            node,
            property,
            Rule::Must("be a list of strings: paths of devices in the host's tree"),
        );
        return paths;
    }
    for (index, path) in property.strings().enumerate() {
        let rule = if !path.starts_with('/') || path.len() < 2 {
            Rule::Must("be the absolute path of a device in the host's tree")
        } else if paths.contains(&path) {
            Rule::Must("be listed once")
        } else if index == DEVICE_LIMIT {
            Rule::TooMany { index, limit: DEVICE_LIMIT, what: "devices" }
        } else {
            paths.push(path);
            continue;
        };
        reader.error(Finding::new(node, Some("devices"), Value::Text(path), rule));
        break;
    }
    paths
}

/// Checks the region `node`, which is a DMA window.
#[inline(never)]
pub(super) fn check_window<'t>(
    node: Node<'t>,
    (ipa, size): (Option<IpaRange>, Option<u64>),
    reader: &mut Reader<'_, 't>,
) {
    for name in ["interleave", "unit-size"] {
        if node.has(name) {
            let rule = "be removed: a `dma-window` is one contiguous range, in units of 2 MiB";
            reader.error(Finding::named(node, name, Rule::Must(rule)));
        }
    }
    let Some(size) = size else { return }; // Already reported.
    let (name, value) = match ipa {
        Some(ipa) => ("reg", Value::Range { base: ipa.base().get(), size }),
        None => ("size", Value::Size(size)),
    };
    let is_aligned = ipa.map_or(size.is_multiple_of(PAGEBLOCK_SIZE), |ipa| ipa.is_aligned(PAGEBLOCK_SIZE));
    if !is_aligned {
        reader.error(Finding::new(node, Some(name), value, Rule::MultipleOf(PAGEBLOCK_SIZE)));
    }
    if !(WINDOW_SMALLEST..=WINDOW_LARGEST).contains(&size) {
        let rule = Rule::Must("have a size from 16 MiB to 1 GiB: it is a `dma-window`");
        reader.error(Finding::new(node, Some(name), value, rule));
    } else if size < WINDOW_RECOMMENDED {
        let rule = Rule::Must(
            "have 64 MiB or more for Linux before 6.12, which uses little of a smaller `dma-window` for DMA",
        );
        reader.warning(Finding::new(node, Some(name), value, rule));
    }
    match ipa.map(|ipa| ipa.end()) {
        Some(end) if end > WINDOW_LIMIT => {
            let rule = Rule::Must("end at or below 2^39: an SMMU translates no more of a `dma-window`");
            reader.error(Finding::new(node, Some(name), value, rule));
        }
        Some(end) if end > ZONE_LIMIT => {
            let rule = Rule::Must(
                "end at or below 4 GiB: Linux has ZONE_DMA only there, and many devices reach no more",
            );
            reader.warning(Finding::new(node, Some(name), value, rule));
        }
        _ => {}
    }
}

/// Checks that `guest` has one DMA window if it has devices, and that no guest `before` it has the same devices.
#[inline(never)]
pub(super) fn check<'t>(
    guest: &Guest<'t>,
    node: Node<'t>,
    before: &[Guest<'t>],
    reader: &mut Reader<'_, 't>,
) {
    let mut windows =
        guest.regions.iter().filter(|region| region.is_dma_window).filter_map(|region| region.node);
    let window = windows.next();
    if let (Some(first), Some(second)) = (window, windows.next()) {
        reader.error(Finding::new(second, Some("dma-window"), Value::None, Rule::SameAs(first.id())));
    }
    match (window, guest.has_devices()) {
        (None, true) => {
            let name = if guest.pci_functions.is_empty() { "devices" } else { "pci-functions" };
            let rule =
                Rule::Must("come with a `memory` node that has `dma-window`: devices access only that RAM");
            reader.error(match node.property(name) {
                Some(property) => Finding::property(node, property, rule),
                None => Finding::named(node, name, rule),
            });
        }
        (Some(window), false) => {
            let rule = Rule::Must(
                "come with `pci-functions` or `devices`: without them it is only RAM that never moves",
            );
            reader.warning(Finding::named(window, "dma-window", rule));
        }
        _ => {}
    }
    if guest.assigns_without_smmu && !guest.has_devices() {
        let rule = Rule::Must("come with `pci-functions` or `devices` to have an effect");
        reader.warning(Finding::named(node, "assign-without-smmu", rule));
    }
    for other in before {
        let rule = match other.node {
            Some(node) => Rule::SameAs(node.id()),
            None => Rule::Must("belong to no other guest"),
        };
        for rid in guest.pci_functions.iter().filter(|rid| other.pci_functions.contains(rid)) {
            let value = Value::Address((*rid).into());
            reader.error(Finding::new(node, Some("pci-functions"), value, rule));
        }
        for path in guest.devices.iter().filter(|path| other.devices.contains(path)) {
            reader.error(Finding::new(node, Some("devices"), Value::Text(path), rule));
        }
    }
}

/// Warns of RAM with `reg` that Linux would use for DMA although devices do not reach it.
#[inline(never)]
pub(super) fn check_layout<'t>(guest: &Guest<'t>, layout: &Layout, reader: &mut Reader<'_, 't>) {
    let Some(window) = layout.window() else { return };
    let zone_end = zone_end(window);
    for region in &guest.regions {
        let (Some(node), Some(ipa), false) = (region.node, region.ipa, region.is_dma_window) else {
            continue;
        };
        let rule = if ipa.base() < window.base() {
            "lie above the `dma-window`: Linux takes lower RAM for DMA, too, and devices do not reach it"
        } else if ipa.base().get() < zone_end {
            "begin at or above the next power of two after the `dma-window`: Linux before 6.12 takes lower RAM for DMA, too"
        } else {
            continue;
        };
        let value = Value::Range { base: ipa.base().get(), size: ipa.size() };
        reader.warning(Finding::new(node, Some("reg"), value, Rule::Must(rule)));
    }
}

/// Returns the lowest address of RAM that Linux does not take for DMA if devices access `window`. Linux before 6.12 ends
/// ZONE_DMA at a power of two up to 4 GiB; later kernels end it with the window.
pub(super) fn zone_end(window: IpaRange) -> u64 {
    match window.end() {
        end @ ..=ZONE_LIMIT => end.next_power_of_two(),
        end => end,
    }
}
