//! The operator's additions to a guest's tree: the node `device-tree` of the guest's configuration (the *template*),
//! and nodes of the host's tree.
//!
//! Additions cannot replace nodes or properties that Ballast writes. Children of `/chosen`, `/aliases` and
//! `/reserved-memory` are merged with Ballast's own.

use super::GuestTree;
use super::assigned;
use super::writer::{Writer, reg};
use crate::finding::{Finding, Rule, Value};
use crate::tree::{Cells, Node, Property, Tree};
use alloc::vec::Vec;

/// Children of the root that Ballast writes, by name without unit address.
const OWN_NODES: [&str; 10] = [
    "aliases",
    "cpus",
    "memory",
    "psci",
    "timer",
    "interrupt-controller",
    "apb-pclk",
    "serial",
    "hypervisor",
    "distance-map",
];
/// Nodes whose properties and children are merged with Ballast's own.
const MERGED_NODES: [&str; 3] = ["chosen", "aliases", "reserved-memory"];
/// Properties of the root and of merged nodes that Ballast writes.
const OWN_ROOT_PROPERTIES: [&str; 5] =
    ["compatible", "model", "#address-cells", "#size-cells", "interrupt-parent"];
const OWN_CHOSEN_PROPERTIES: [&str; 4] =
    ["bootargs", "stdout-path", "linux,initrd-start", "linux,initrd-end"];
/// Likewise, for a guest with PCI functions.
const OWN_PCI_NODE: &str = "pcie";
const OWN_PCI_CHOSEN_PROPERTIES: [&str; 1] = ["linux,pci-probe-only"];
const OWN_ALIASES: [&str; 1] = ["serial0"];
/// Properties of a host node that have no meaning in a guest's tree.
const HOST_PROPERTIES: [&str; 2] = ["interrupt-parent", "interrupts-extended"];

/// Size limit of all additions in bytes, as nodes and properties of the guest's tree. The heap on which the tree is
/// built is small.
const SIZE_LIMIT: usize = 16 << 10;

/// Returns about how many bytes `node` takes in a tree, without its children.
pub(super) fn weight(node: Node<'_>) -> usize {
    let properties = node.properties().map(|property| property.bytes().len() + property.name().len() + 16);
    properties.fold(node.name().len() + 16, usize::saturating_add)
}

/// Checks the size of all additions together.
#[inline(never)]
fn check_size<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    let template = input.guest.template.map(|template| (template, template.subtree()));
    let hosts = input.guest.host_nodes.iter().filter_map(|path| {
        let node = host?.find(path)?;
        Some((node, node.subtree()))
    });
    let devices = assigned_nodes(input).map(|node| (node, node.subtree()));
    // Addresses and sizes of one cell are written as two.
    let widened = hosts.clone().filter(|(node, _)| !has_root_cells(*node)).map(|(node, _)| weight(node));
    let mut size = widened.fold(super::reserved::repeated_weight(input, host), usize::saturating_add);
    for (top, nodes) in template.into_iter().chain(hosts).chain(devices) {
        size = nodes.map(weight).fold(size, usize::saturating_add);
        if size > SIZE_LIMIT {
            let rule =
                Rule::Must("have at most 16 KiB, together with all other additions to the guest's tree");
            return Err(Finding::node(top, rule).with_value(Value::Size(size as u64)));
        }
    }
    Ok(())
}

/// Iterates over the nodes of the guest's platform devices in the host's tree.
fn assigned_nodes<'t>(input: &GuestTree<'_, 't>) -> impl Iterator<Item = Node<'t>> {
    input.assigned.into_iter().flat_map(|assigned| assigned.devices.iter().map(|device| device.node))
}

/// Tests whether Ballast writes `child`, a child of the root, itself.
fn is_own(input: &GuestTree<'_, '_>, child: Node<'_>) -> bool {
    let name = child.base_name();
    OWN_NODES.contains(&name) || (name == OWN_PCI_NODE && !input.guest.pci_functions.is_empty())
}

/// Tests whether `child` of the template is the bus with additions to the guest's devices.
fn is_device_bus(input: &GuestTree<'_, '_>, child: Node<'_>) -> bool {
    child.name() == assigned::BUS && !input.guest.devices.is_empty()
}

/// Checks all additions.
#[inline(never)]
pub(super) fn check<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    check_size(input, host)?;
    if let Some(template) = input.guest.template {
        check_own(template, &OWN_ROOT_PROPERTIES)?;
        for child in template.children() {
            match child.base_name() {
                "chosen" => {
                    check_own(child, &OWN_CHOSEN_PROPERTIES)?;
                    if !input.guest.pci_functions.is_empty() {
                        check_own(child, &OWN_PCI_CHOSEN_PROPERTIES)?;
                    }
                }
                "aliases" => check_own(child, &OWN_ALIASES)?,
                "reserved-memory" => {}
                _ if is_own(input, child) => {
                    return Err(Finding::node(
                        child,
                        Rule::Must("be removed: Ballast writes this node itself"),
                    ));
                }
                _ => {}
            }
            // `reserved` checks the names of reserved memory, since it knows which nodes are written.
            if child.base_name() != "reserved-memory" {
                child.subtree().try_for_each(check_name)?;
            }
            let twin = template
                .children()
                .take_while(|other| *other != child)
                .find(|other| other.name() == child.name());
            if twin.is_some() {
                return Err(Finding::node(
                    child,
                    Rule::Must("have another name: a sibling has the same one"),
                ));
            }
        }
    }
    host_nodes(input, host)?;
    check_phandles(input, host)
}

/// Checks that phandles are unique: the template and the host's tree were numbered independently.
#[inline(never)]
fn check_phandles<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    let hosts = input.guest.host_nodes.iter().filter_map(|path| host?.find(path));
    let additions = input.guest.template.into_iter().chain(hosts).flat_map(Node::subtree);
    let devices = assigned_nodes(input)
        .flat_map(|device| device.subtree().map(move |node| (node, assigned::inner_phandle(device, node))));
    let nodes = additions.map(|node| (node, node.phandle())).chain(devices);
    let mut taken = alloc::vec![super::GIC_PHANDLE, super::CLOCK_PHANDLE];
    for (node, phandle) in nodes {
        let Some(phandle) = phandle else { continue };
        let is_taken = taken.contains(&phandle);
        taken.push(phandle);
        if is_taken {
            let rule = Rule::Must("differ from the phandles of all other nodes of the guest's tree");
            return Err(Finding::new(node, Some("phandle"), Value::Address(phandle.into()), rule));
        }
    }
    Ok(())
}

/// Checks that the writer accepts the names of `node` and its properties.
pub(super) fn check_name(node: Node<'_>) -> Result<(), Finding<'_>> {
    // Compares bytes, since string search would add much of core to the image.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b",._+-".contains(&byte);
    let name = node.base_name();
    let unit = node.unit_address().unwrap_or("0");
    let is_good = (1..=31).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(is_plain)
        && unit.bytes().all(is_plain);
    if !is_good {
        let rule = Rule::Must("have a name of 1 to 31 letters, digits and `,._+-` that begins with a letter");
        return Err(Finding::node(node, rule));
    }
    for property in node.properties() {
        let name = property.name();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b",._+?#-".contains(&byte);
        if name.len() > 31 || !name.bytes().all(is_plain) {
            let rule = Rule::Must("have a name of 1 to 31 letters, digits and `,._+?#-`");
            return Err(Finding::property(node, property, rule));
        }
    }
    Ok(())
}

pub(super) fn check_own<'t>(node: Node<'t>, own: &[&str]) -> Result<(), Finding<'t>> {
    match node.properties().find(|property| own.contains(&property.name())) {
        Some(property) => {
            Err(Finding::property(node, property, Rule::Must("be removed: Ballast sets it itself")))
        }
        None => Ok(()),
    }
}

/// Checks the paths of nodes of the host's tree.
#[inline(never)]
fn host_nodes<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    let (Some(host), Some(guest)) = (host, input.guest.node) else { return Ok(()) };
    for (index, path) in input.guest.host_nodes.iter().enumerate() {
        let broken = |rule| Err(Finding::new(guest, Some("host-nodes"), Value::Text(path), rule));
        let Some(node) = host.find(path) else { return broken(Rule::Must("exist in the host's tree")) };
        let parent = node.parent().map_or("", |parent| parent.name());
        // Other functions recognize reserved memory by this prefix, so no alias may be used.
        let is_reserved =
            path.starts_with("/reserved-memory/") && host.find("/reserved-memory") == node.parent();
        if node.is_root() || (!is_reserved && !node.parent().is_some_and(|parent| parent.is_root())) {
            return broken(Rule::Must("be a child of the host's root or of its /reserved-memory"));
        }
        let before = input.guest.host_nodes.iter().take(index);
        if before.into_iter().any(|other| host.find(other) == Some(node)) {
            return broken(Rule::Must("be listed once"));
        }
        if is_own(input, node) || is_device_bus(input, node) || MERGED_NODES.contains(&node.base_name()) {
            return broken(Rule::Must("be another node: Ballast writes this one itself"));
        }
        if parent.is_empty() && !has_root_cells(node) {
            for name in ADDRESSES {
                rewritten(node, name)?;
            }
        }
        let is_in_template = |template: Node<'t>| template.child(node.name()).is_some();
        if parent.is_empty() && input.guest.template.is_some_and(is_in_template) {
            return broken(Rule::Must("be another node: `device-tree` already has one of this name"));
        }
        node.subtree().try_for_each(check_name)?;
    }
    Ok(())
}

/// Writes the template's properties of the root.
pub(super) fn write_root(writer: &mut Writer, input: &GuestTree<'_, '_>) {
    if let Some(template) = input.guest.template {
        write_properties(writer, template, &[]);
    }
}

/// Writes the template's properties and children of the merged node `name`, which is open.
pub(super) fn write_merged(writer: &mut Writer, input: &GuestTree<'_, '_>, name: &str) {
    let Some(node) = input.guest.template.and_then(|template| template.child(name)) else { return };
    write_properties(writer, node, &[]);
    node.children().for_each(|child| copy(writer, child, &[]));
}

/// Writes the nodes that are not merged with Ballast's own.
#[inline(never)]
pub(super) fn write_nodes<'t>(writer: &mut Writer, input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) {
    if let Some(template) = input.guest.template {
        let is_copied =
            |child: &Node<'_>| !MERGED_NODES.contains(&child.base_name()) && !is_device_bus(input, *child);
        for child in template.children().filter(is_copied) {
            copy(writer, child, &[]);
        }
    }
    for path in &input.guest.host_nodes {
        let Some(node) = host.and_then(|host| host.find(path)) else { continue };
        if node.parent().is_some_and(|parent| parent.is_root()) {
            copy_from_host(writer, node);
        }
    }
}

/// Properties that hold addresses in the address space of the node's parent.
const ADDRESSES: [&str; 3] = ["reg", "ranges", "dma-ranges"];

/// Tests whether addresses and sizes of `node` have two cells each, as at a guest's root.
fn has_root_cells(node: Node<'_>) -> bool {
    node.own_cells() == Ok(Cells { address: 2, size: 2 })
}

/// Converts property `name` of `node`, one of [`ADDRESSES`], to the cells of a guest's root.
#[inline(never)]
fn rewritten<'t>(node: Node<'t>, name: &'static str) -> Result<Option<Vec<u32>>, Finding<'t>> {
    let Some(property) = node.property(name) else { return Ok(None) };
    let parent = node.own_cells()?;
    if name == "reg" {
        let entries = node.pairs(name, parent)?;
        return Ok(Some(entries.flat_map(|entry| reg(entry.base, entry.size)).collect()));
    }
    let broken = |rule| Err(Finding::property(node, property, Rule::Must(rule)));
    // The addresses of a PCI bus have three cells.
    let count = |name, default| {
        let count = node.property(name).map_or(Some(default), |property| property.u32());
        count.filter(|count| *count <= 3).map(|count| count as usize)
    };
    let own = count("#address-cells", Cells::DEFAULT.address).zip(count("#size-cells", Cells::DEFAULT.size));
    let (Some((address, size)), Some(cells)) = (own, property.cells()) else {
        return broken("consist of cells, with #address-cells and #size-cells of at most 3");
    };
    let cells: Vec<u32> = cells.collect();
    let stride = address + parent.address as usize + size;
    if stride == 0 || !cells.len().is_multiple_of(stride) {
        return broken("have entries of three parts: child address, parent address, size");
    }
    let mut found = Vec::new();
    for entry in cells.chunks_exact(stride) {
        let (child, rest) = entry.split_at_checked(address).unwrap_or_default();
        let (base, length) = rest.split_at_checked(parent.address as usize).unwrap_or_default();
        let base = base.iter().fold(0u64, |base, &cell| base << 32 | u64::from(cell));
        found.extend_from_slice(child);
        found.extend([(base >> 32) as u32, base as u32]);
        found.extend_from_slice(length);
    }
    Ok(Some(found))
}

/// Copies `node`, a child of the host's root, and its descendants. Converts its addresses to the cells of a guest's
/// root.
#[inline(never)]
fn copy_from_host(writer: &mut Writer, node: Node<'_>) {
    if has_root_cells(node) {
        return copy(writer, node, &HOST_PROPERTIES);
    }
    let without: Vec<&str> = HOST_PROPERTIES.into_iter().chain(ADDRESSES).collect();
    writer.begin(node.name());
    write_properties(writer, node, &without);
    for name in ADDRESSES {
        // Checked before: the conversion does not fail.
        if let Ok(Some(cells)) = rewritten(node, name) {
            writer.cells(name, &cells);
        }
    }
    node.children().for_each(|child| copy(writer, child, &HOST_PROPERTIES));
    writer.end();
}

/// Copies `node` and its descendants, except properties in `without`.
pub(super) fn copy(writer: &mut Writer, node: Node<'_>, without: &[&str]) {
    let mut nodes = node.subtree();
    let mut open = 0;
    while let Some(node) = nodes.next() {
        for _ in nodes.depth()..open {
            writer.end();
        }
        writer.begin(node.name());
        open = nodes.depth() + 1;
        write_properties(writer, node, without);
    }
    for _ in 0..open {
        writer.end();
    }
}

pub(super) fn write_properties(writer: &mut Writer, node: Node<'_>, without: &[&str]) {
    let wanted =
        |property: &Property<'_>| !without.contains(&property.name()) && property.name() != "linux,phandle";
    for property in node.properties().filter(wanted) {
        match (property.name(), property.u32()) {
            ("phandle", Some(phandle)) => writer.phandle(phandle),
            (name, _) => writer.bytes(name, property.bytes()),
        }
    }
}
