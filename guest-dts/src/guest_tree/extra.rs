//! What the operator adds to a guest's tree: the node `device-tree` of the guest's configuration (the
//! *template*), and nodes of the host's tree.
//!
//! Nothing that Ballast writes itself can be replaced: neither its nodes nor its properties. Children of
//! `/chosen`, `/aliases` and `/reserved-memory` are added to those that are there.

use super::GuestTree;
use super::writer::{Writer, reg};
use crate::finding::{Finding, Rule, Value};
use crate::tree::{Cells, Node, Property, Tree};
use alloc::vec::Vec;

/// Nodes at the root that are Ballast's own, by their names without unit address.
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
/// Nodes whose properties and children are added to Ballast's own.
const MERGED_NODES: [&str; 3] = ["chosen", "aliases", "reserved-memory"];
/// Properties that are Ballast's own, of the root and of the merged nodes.
const OWN_ROOT_PROPERTIES: [&str; 5] =
    ["compatible", "model", "#address-cells", "#size-cells", "interrupt-parent"];
const OWN_CHOSEN_PROPERTIES: [&str; 4] =
    ["bootargs", "stdout-path", "linux,initrd-start", "linux,initrd-end"];
const OWN_ALIASES: [&str; 1] = ["serial0"];
/// Properties of a node of the host's tree that mean nothing in a guest's.
const HOST_PROPERTIES: [&str; 2] = ["interrupt-parent", "interrupts-extended"];

/// Bytes that all of it may have, as nodes and properties of the guest's tree: the heap that the tree is made on
/// is small.
const SIZE_LIMIT: usize = 16 << 10;

/// About how many bytes `node` without its children takes in a tree.
pub(super) fn weight(node: Node<'_>) -> usize {
    let properties = node.properties().map(|property| property.bytes().len() + property.name().len() + 16);
    properties.fold(node.name().len() + 16, usize::saturating_add)
}

/// Checks that all of it together is not too large.
#[inline(never)]
fn check_size<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    let template = input.guest.template.map(|template| (template, template.subtree()));
    let hosts = input.guest.host_nodes.iter().filter_map(|path| {
        let node = host?.find(path)?;
        Some((node, node.subtree()))
    });
    // Cells that are written as two become twice as many.
    let widened = hosts.clone().filter(|(node, _)| !has_root_cells(*node)).map(|(node, _)| weight(node));
    let mut size = widened.fold(super::reserved::repeated_weight(input, host), usize::saturating_add);
    for (top, nodes) in template.into_iter().chain(hosts) {
        size = nodes.map(weight).fold(size, usize::saturating_add);
        if size > SIZE_LIMIT {
            let rule = Rule::Must("have at most 16 KiB, with all else that is added to the guest's tree");
            return Err(Finding::node(top, rule).with_value(Value::Size(size as u64)));
        }
    }
    Ok(())
}

/// Checks all of it.
#[inline(never)]
pub(super) fn check<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    check_size(input, host)?;
    if let Some(template) = input.guest.template {
        check_own(template, &OWN_ROOT_PROPERTIES)?;
        for child in template.children() {
            match child.base_name() {
                "chosen" => check_own(child, &OWN_CHOSEN_PROPERTIES)?,
                "aliases" => check_own(child, &OWN_ALIASES)?,
                "reserved-memory" => {}
                name if OWN_NODES.contains(&name) => {
                    return Err(Finding::node(
                        child,
                        Rule::Must("not be there: Ballast writes the node itself"),
                    ));
                }
                _ => {}
            }
            // The names of reserved memory are checked where it is known what becomes of it.
            if child.base_name() != "reserved-memory" {
                child.subtree().try_for_each(check_name)?;
            }
            let twin = template
                .children()
                .take_while(|other| *other != child)
                .find(|other| other.name() == child.name());
            if twin.is_some() {
                return Err(Finding::node(child, Rule::Must("differ in name from its siblings")));
            }
        }
    }
    host_nodes(input, host)?;
    check_phandles(input, host)
}

/// Checks that phandles are unique: those of the template and of the host's tree were given out apart.
#[inline(never)]
fn check_phandles<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    let nodes = || {
        let hosts = input.guest.host_nodes.iter().filter_map(|path| host?.find(path));
        input.guest.template.into_iter().chain(hosts).flat_map(Node::subtree)
    };
    for (index, node) in nodes().enumerate() {
        let Some(phandle) = node.phandle() else { continue };
        let is_taken = [super::GIC_PHANDLE, super::CLOCK_PHANDLE].contains(&phandle)
            || nodes().take(index).any(|other| other.phandle() == Some(phandle));
        if is_taken {
            let rule = Rule::Must("differ from that of any other node that the guest's tree gets");
            return Err(Finding::new(node, Some("phandle"), Value::Address(phandle.into()), rule));
        }
    }
    Ok(())
}

/// Whether names and children of `node` are such as the writer takes.
pub(super) fn check_name(node: Node<'_>) -> Result<(), Finding<'_>> {
    // By bytes: searching text for text takes much of core.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b",._+-".contains(&byte);
    let name = node.base_name();
    let unit = node.unit_address().unwrap_or("0");
    let is_good = (1..=31).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(is_plain)
        && unit.bytes().all(is_plain);
    if !is_good {
        let rule = Rule::Must("be named by 1 to 31 letters, digits and `,._+-`, a letter first");
        return Err(Finding::node(node, rule));
    }
    for property in node.properties() {
        let name = property.name();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b",._+?#-".contains(&byte);
        if name.len() > 31 || !name.bytes().all(is_plain) {
            let rule = Rule::Must("be named by 1 to 31 letters, digits and `,._+?#-`");
            return Err(Finding::property(node, property, rule));
        }
    }
    Ok(())
}

fn check_own<'t>(node: Node<'t>, own: &[&str]) -> Result<(), Finding<'t>> {
    match node.properties().find(|property| own.contains(&property.name())) {
        Some(property) => {
            Err(Finding::property(node, property, Rule::Must("be left to Ballast, which sets it")))
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
        let Some(node) = host.find(path) else { return broken(Rule::Must("be in the host's tree")) };
        let parent = node.parent().map_or("", |parent| parent.name());
        // Told apart by the path elsewhere, so it has to be the plain one.
        let is_reserved =
            path.starts_with("/reserved-memory/") && host.find("/reserved-memory") == node.parent();
        if node.is_root() || (!is_reserved && !node.parent().is_some_and(|parent| parent.is_root())) {
            return broken(Rule::Must("name a child of the host's root or of its /reserved-memory"));
        }
        let before = input.guest.host_nodes.iter().take(index);
        if before.into_iter().any(|other| host.find(other) == Some(node)) {
            return broken(Rule::Must("name each node once"));
        }
        if OWN_NODES.contains(&node.base_name()) || MERGED_NODES.contains(&node.base_name()) {
            return broken(Rule::Must("not name a node that Ballast writes itself"));
        }
        if parent.is_empty() && !has_root_cells(node) {
            for name in ADDRESSES {
                rewritten(node, name)?;
            }
        }
        let is_in_template = |template: Node<'t>| template.child(node.name()).is_some();
        if parent.is_empty() && input.guest.template.is_some_and(is_in_template) {
            return broken(Rule::Must("not name a node that `device-tree` has as well"));
        }
        node.subtree().try_for_each(check_name)?;
    }
    Ok(())
}

/// Adds the template's properties of the root.
pub(super) fn write_root(writer: &mut Writer, input: &GuestTree<'_, '_>) {
    if let Some(template) = input.guest.template {
        write_properties(writer, template, &[]);
    }
}

/// Adds what the template has for the node `name` that is open: properties, and children.
pub(super) fn write_merged(writer: &mut Writer, input: &GuestTree<'_, '_>, name: &str) {
    let Some(node) = input.guest.template.and_then(|template| template.child(name)) else { return };
    write_properties(writer, node, &[]);
    node.children().for_each(|child| copy(writer, child, &[]));
}

/// Adds the nodes that are not merged into Ballast's own.
#[inline(never)]
pub(super) fn write_nodes<'t>(writer: &mut Writer, input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) {
    if let Some(template) = input.guest.template {
        for child in template.children().filter(|child| !MERGED_NODES.contains(&child.base_name())) {
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

/// Properties that hold addresses of the node's parent.
const ADDRESSES: [&str; 3] = ["reg", "ranges", "dma-ranges"];

/// Whether the addresses of `node` have two cells, and sizes too, as at a guest's root.
fn has_root_cells(node: Node<'_>) -> bool {
    node.own_cells() == Ok(Cells { address: 2, size: 2 })
}

/// Property `name` of `node`, one of [`ADDRESSES`], as a child of a guest's root has it.
#[inline(never)]
fn rewritten<'t>(node: Node<'t>, name: &'static str) -> Result<Option<Vec<u32>>, Finding<'t>> {
    let Some(property) = node.property(name) else { return Ok(None) };
    let parent = node.own_cells()?;
    if name == "reg" {
        let entries = node.pairs(name, parent)?;
        return Ok(Some(entries.flat_map(|entry| reg(entry.base, entry.size)).collect()));
    }
    let broken = |rule| Err(Finding::property(node, property, Rule::Must(rule)));
    // A bus's own addresses may have three cells (PCI).
    let count = |name, default| {
        let count = node.property(name).map_or(Some(default), |property| property.u32());
        count.filter(|count| *count <= 3).map(|count| count as usize)
    };
    let own = count("#address-cells", Cells::DEFAULT.address).zip(count("#size-cells", Cells::DEFAULT.size));
    let (Some((address, size)), Some(cells)) = (own, property.cells()) else {
        return broken("be cells, on a bus whose #address-cells and #size-cells are at most 3");
    };
    let cells: Vec<u32> = cells.collect();
    let stride = address + parent.address as usize + size;
    if stride == 0 || !cells.len().is_multiple_of(stride) {
        return broken("have entries of this node's address, its parent's address and this node's size");
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

/// Copies `node`, a child of the host's root, and all below it. Its addresses get the cells of a guest's root.
#[inline(never)]
fn copy_from_host(writer: &mut Writer, node: Node<'_>) {
    if has_root_cells(node) {
        return copy(writer, node, &HOST_PROPERTIES);
    }
    let without: Vec<&str> = HOST_PROPERTIES.into_iter().chain(ADDRESSES).collect();
    writer.begin(node.name());
    write_properties(writer, node, &without);
    for name in ADDRESSES {
        // That they can be was checked.
        if let Ok(Some(cells)) = rewritten(node, name) {
            writer.cells(name, &cells);
        }
    }
    node.children().for_each(|child| copy(writer, child, &HOST_PROPERTIES));
    writer.end();
}

/// Copies `node` and all below it, less the properties in `without`.
fn copy(writer: &mut Writer, node: Node<'_>, without: &[&str]) {
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

fn write_properties(writer: &mut Writer, node: Node<'_>, without: &[&str]) {
    let wanted =
        |property: &Property<'_>| !without.contains(&property.name()) && property.name() != "linux,phandle";
    for property in node.properties().filter(wanted) {
        match (property.name(), property.u32()) {
            ("phandle", Some(phandle)) => writer.phandle(phandle),
            (name, _) => writer.bytes(name, property.bytes()),
        }
    }
}
