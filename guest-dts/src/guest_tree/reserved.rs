//! Reserved memory from the operator's template or the host's tree in a guest's tree.
//!
//! The effect of a node depends on the guest's kernel (measured with Broadcom's Linux 5.10, and with 6.1, 6.12 and
//! 7.3). A kernel never uses reserved memory whose `compatible` it does not support. A kernel that supports
//! designated movable blocks checks nothing but their alignment before it allocates from them. Hence:
//!
//! | node | guest with support for movable blocks (`movable-memory = "dmb"`) | any other guest |
//! |---|---|---|
//! | `designated-movable-block` alone | unchanged | left out: plain RAM |
//! | `designated-movable-block` with `shared-dma-pool` | unchanged: a CMA area | unchanged: a CMA area |
//! | `shared-dmb-pool` | unchanged | `shared-dma-pool` if a `memory-region` refers to it, else left out |
//! | `shared-dma-pool`, `restricted-dma-pool`, anything else | unchanged | unchanged |
//!
//! The nodes are written into a container with the root's cells and an empty `ranges`. A `reusable` node with several
//! `reg` entries becomes one node for each entry. Memory that overlaps the kernel, the ramdisk, the tree, a movable
//! block or another node, or that is misaligned for the guest's pages, is refused.

use super::GuestTree;
use super::writer::{Writer, reg};
use crate::config::{DMB_LIMIT, MovableMemory};
use crate::finding::{Finding, Note, Rule, Value};
use crate::range::IpaRange;
use crate::tree::{Cells, Node, Reg, Tree};

/// Most nodes of reserved memory that a kernel takes.
const RESERVED_LIMIT: usize = 64;

/// The tree that a node of reserved memory comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Template,
    Host,
}

/// The treatment of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Treatment {
    Unchanged,
    /// Written with `compatible = "shared-dma-pool"`.
    AsDmaPool,
    LeftOut(Note),
}

/// Properties that are not copied: their cells depend on the container, or Ballast writes them.
const REWRITTEN: [&str; 7] =
    ["reg", "size", "alignment", "alloc-ranges", "compatible", "phandle", "linux,phandle"];

/// A node of reserved memory with its container.
struct Child<'t> {
    container: Node<'t>,
    node: Node<'t>,
    source: Source,
}

/// Iterates over all nodes of reserved memory from the template and the host's tree.
fn children<'a, 't>(
    input: &'a GuestTree<'_, 't>,
    host: Option<&'a Tree<'t>>,
) -> impl Iterator<Item = Child<'t>> + 'a {
    let container = input.guest.template.and_then(|template| template.child("reserved-memory"));
    let own = container.into_iter().flat_map(|container| {
        container.children().map(move |node| Child { container, node, source: Source::Template })
    });
    let paths = input.guest.host_nodes.iter().filter(|path| path.starts_with("/reserved-memory/"));
    let hosts = paths.filter_map(move |path| {
        let node = host?.find(path)?;
        Some(Child { container: node.parent()?, node, source: Source::Host })
    });
    own.chain(hosts)
}

/// Tests whether any node is written.
pub(super) fn is_any(input: &GuestTree<'_, '_>, host: Option<&Tree<'_>>) -> bool {
    children(input, host).any(|child| !is_left_out(input, host, &child))
}

/// Reports every node that is left out or changed.
#[inline(never)]
pub(super) fn notes<'t>(
    input: &GuestTree<'_, 't>,
    host: Option<&Tree<'t>>,
    note: &mut dyn FnMut(Finding<'t>),
) {
    // Nodes of the template were reported when there was no host's tree yet.
    let source = if host.is_some() { Source::Host } else { Source::Template };
    for child in children(input, host).filter(|child| child.source == source) {
        match treatment(input, host, &child) {
            Treatment::LeftOut(why) => note(Finding::node(child.node, Rule::Note(why))),
            Treatment::AsDmaPool => note(Finding::node(child.node, Rule::Note(Note::BecomesDmaPool))),
            Treatment::Unchanged => {}
        }
    }
}

/// Checks every node that is not left out.
#[inline(never)]
pub(super) fn check<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
    let written = |mode| if input.mode() == mode { input.guest.dmbs.len() } else { 0 };
    let (mut blocks, mut areas) = (written(MovableMemory::Dmb), written(MovableMemory::Cma));
    for (index, child) in children(input, host).enumerate() {
        if index == RESERVED_LIMIT {
            let rule = Rule::TooMany { index, limit: RESERVED_LIMIT, what: "nodes of reserved memory" };
            return Err(Finding::node(child.node, rule));
        }
        let treatment = treatment(input, host, &child);
        if matches!(treatment, Treatment::LeftOut(_)) {
            continue;
        }
        let node = child.node;
        super::extra::check_name(node)?;
        let mut before = children(input, host).take(index).filter(|other| !is_left_out(input, host, other));
        if before.any(|other| other.node.name() == node.name()) {
            let rule = Rule::Must("have another name: other reserved memory of the guest has the same one");
            return Err(Finding::node(node, rule));
        }
        if node.has("reusable") && node.has("no-map") {
            return Err(Finding::named(node, "no-map", Rule::Must("be removed: `reusable` excludes it")));
        }
        let (count, what) = match slot(node, treatment) {
            Some(Slot::Area) => (&mut areas, "CMA areas"),
            Some(Slot::Block) if input.mode() == MovableMemory::Dmb => {
                (&mut blocks, "movable blocks and pools")
            }
            _ => (&mut 0, ""),
        };
        if !what.is_empty() {
            *count += if node.has("reg") { entry_count(&child) } else { 1 };
            if *count > DMB_LIMIT {
                return Err(Finding::node(node, Rule::TooMany { index: *count - 1, limit: DMB_LIMIT, what }));
            }
        }
        let cells = child.container.child_cells()?;
        if !node.has("reg") {
            if !node.has("size") {
                return Err(Finding::missing(node, "reg", Rule::Add("it, or `size`")));
            }
            check_dynamic(input, node, cells)?;
            continue;
        }
        for (entry, reg) in node.pairs("reg", cells)?.enumerate() {
            check_entry(input, &child, reg)?;
            let before = children(input, host).take(index + 1).enumerate();
            for (place, other) in before.filter(|(_, other)| !is_left_out(input, host, other)) {
                let entries = other.node.pairs("reg", other.container.child_cells()?);
                for (number, range) in entries.into_iter().flatten().enumerate() {
                    let is_itself = place == index && number >= entry;
                    if !is_itself && overlaps(reg, range.base, range.size) {
                        return Err(finding(node, reg, Rule::OverlapsWith("other reserved memory")));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Writes every node that is not left out into the container that is open.
#[inline(never)]
pub(super) fn write<'t>(
    writer: &mut Writer,
    input: &GuestTree<'_, 't>,
    host: Option<&Tree<'t>>,
) -> Result<(), Finding<'t>> {
    for child in children(input, host) {
        let treatment = treatment(input, host, &child);
        if matches!(treatment, Treatment::LeftOut(_)) {
            continue;
        }
        let cells = child.container.child_cells()?;
        let node = child.node;
        if !node.has("reg") {
            write_dynamic(writer, input, node, cells, treatment)?;
        } else if node.has("reusable") {
            // The kernel reads only the first entry of a node.
            for (index, range) in node.pairs("reg", cells)?.enumerate() {
                match index {
                    0 => writer.begin(node.name()),
                    _ => writer.begin_at(node.base_name(), range.base),
                }
                writer.cells("reg", &reg(range.base, range.size));
                write_common(writer, node, treatment, index == 0);
                writer.end();
            }
        } else {
            writer.begin(node.name());
            let mut entries = alloc::vec::Vec::new();
            for range in node.pairs("reg", cells)? {
                entries.extend(reg(range.base, range.size));
            }
            writer.cells("reg", &entries);
            write_common(writer, node, treatment, true);
            writer.end();
        }
    }
    Ok(())
}

fn treatment(input: &GuestTree<'_, '_>, host: Option<&Tree<'_>>, child: &Child<'_>) -> Treatment {
    let node = child.node;
    let is_aware = input.mode() == MovableMemory::Dmb;
    if !node.is_enabled() {
        return Treatment::LeftOut(Note::Disabled);
    }
    if is_aware || node.is_compatible("shared-dma-pool") {
        return Treatment::Unchanged;
    }
    if node.is_compatible("shared-dmb-pool") {
        return match is_referenced(input, host, node) {
            true => Treatment::AsDmaPool,
            false => Treatment::LeftOut(Note::WouldBeLost),
        };
    }
    match node.is_compatible("designated-movable-block") {
        true => Treatment::LeftOut(Note::WouldBeLost),
        false => Treatment::Unchanged,
    }
}

fn is_left_out(input: &GuestTree<'_, '_>, host: Option<&Tree<'_>>, child: &Child<'_>) -> bool {
    matches!(treatment(input, host, child), Treatment::LeftOut(_))
}

/// A limited kernel resource that a node takes up.
enum Slot {
    /// A movable block, or a pool in one.
    Block,
    /// A CMA area.
    Area,
}

fn slot(node: Node<'_>, treatment: Treatment) -> Option<Slot> {
    let is_pool = node.is_compatible("shared-dma-pool") || matches!(treatment, Treatment::AsDmaPool);
    if is_pool && node.has("reusable") {
        return Some(Slot::Area);
    }
    let is_block = node.is_compatible("designated-movable-block") || node.is_compatible("shared-dmb-pool");
    is_block.then_some(Slot::Block)
}

/// Returns the number of entries in the `reg` of a node.
fn entry_count(child: &Child<'_>) -> usize {
    let cells = child.container.child_cells().ok();
    cells.and_then(|cells| child.node.pairs("reg", cells).ok()).map_or(0, Iterator::count)
}

/// Returns the bytes of properties that are written repeatedly, because several `reg` entries become a node each.
pub(super) fn repeated_weight<'t>(input: &GuestTree<'_, 't>, host: Option<&Tree<'t>>) -> usize {
    children(input, host)
        .filter(|child| child.node.has("reusable"))
        .map(|child| super::extra::weight(child.node).saturating_mul(entry_count(&child).saturating_sub(1)))
        .fold(0, usize::saturating_add)
}

/// Tests whether a node of the guest's tree refers to `node` in its `memory-region`.
#[inline(never)]
fn is_referenced(input: &GuestTree<'_, '_>, host: Option<&Tree<'_>>, node: Node<'_>) -> bool {
    let Some(phandle) = node.phandle() else { return false };
    let names = |user: Node<'_>| {
        let cells = user.property("memory-region").and_then(|property| property.cells());
        cells.is_some_and(|mut cells| cells.any(|cell| cell == phandle))
    };
    let in_template = input.guest.template.is_some_and(|template| template.descendants().any(names));
    let host_nodes = input.guest.host_nodes.iter().filter_map(|path| host?.find(path));
    in_template || host_nodes.into_iter().any(|node| node.subtree().any(names))
}

fn finding<'t>(node: Node<'t>, reg: Reg, rule: Rule) -> Finding<'t> {
    Finding::new(node, Some("reg"), Value::Range { base: reg.base, size: reg.size }, rule)
}

fn overlaps(reg: Reg, base: u64, size: u64) -> bool {
    let end = |base: u64, size: u64| base.saturating_add(size);
    reg.base < end(base, size) && base < end(reg.base, reg.size)
}

#[inline(never)]
fn check_entry<'t>(input: &GuestTree<'_, 't>, child: &Child<'t>, reg: Reg) -> Result<(), Finding<'t>> {
    let node = child.node;
    let broken = |rule| Err(finding(node, reg, rule));
    let Some(range) = IpaRange::from_numbers(reg.base, reg.size).filter(|range| !range.is_empty()) else {
        return broken(Rule::Must("not be empty, and end below 2^48"));
    };
    let ranges = || input.layout.ranges.iter();
    let is_outside = !ranges().any(|ram| ram.range.overlaps(&range));
    if node.has("reusable") {
        let size = input.guest.page_size.block_alignment();
        if !range.is_aligned(size) {
            return broken(Rule::MultipleOfForPages { size, page: input.guest.page_size.bytes() });
        }
        if !ranges().any(|ram| ram.range.contains(&range)) {
            return broken(Rule::Must("lie in one region of the guest's RAM, since it is `reusable`"));
        }
    }
    if child.source == Source::Host {
        let mut pinned = ranges()
            .filter(|ram| input.guest.ram(ram.source).is_some_and(|region| region.is_pinned_in_place));
        if !is_outside && !pinned.any(|ram| ram.range.contains(&range)) {
            return broken(Rule::Must(
                "lie outside the guest's RAM, or in a region that is `pinned-in-place`",
            ));
        }
    }
    let images = [(Some(input.plan.kernel), "the kernel"), (input.plan.ramdisk, "the ramdisk")];
    let images = images.into_iter().chain([(Some(input.plan.tree), "the guest's device tree")]);
    for (image, what) in images {
        if image.is_some_and(|image| image.overlaps(&range)) {
            return broken(Rule::OverlapsWith(what));
        }
    }
    let is_described = matches!(input.mode(), MovableMemory::Dmb | MovableMemory::Cma);
    if is_described && input.layout.dmbs().any(|ram| ram.range.overlaps(&range)) {
        return broken(Rule::OverlapsWith("a movable block of the guest"));
    }
    Ok(())
}

/// Checks a node whose address the kernel chooses.
#[inline(never)]
fn check_dynamic<'t>(input: &GuestTree<'_, 't>, node: Node<'t>, cells: Cells) -> Result<(), Finding<'t>> {
    if let Some(size) = number(node, "size", cells)? {
        let broken = |rule| Err(Finding::new(node, Some("size"), Value::Size(size), rule));
        if size == 0 {
            return broken(Rule::Must("be more than 0"));
        }
        let multiple = input.guest.page_size.block_alignment();
        if node.has("reusable") && !size.is_multiple_of(multiple) {
            let page = input.guest.page_size.bytes();
            return broken(Rule::MultipleOfForPages { size: multiple, page });
        }
    }
    if let (Some(alignment), Some(property)) = (number(node, "alignment", cells)?, node.property("alignment"))
        && !alignment.is_power_of_two()
    {
        return Err(Finding::property(node, property, Rule::Must("be a power of two")));
    }
    if node.has("alloc-ranges") {
        node.pairs("alloc-ranges", cells)?;
    }
    Ok(())
}

/// Reads a size of the container's `#size-cells`.
#[inline(never)]
fn number<'t>(node: Node<'t>, name: &str, cells: Cells) -> Result<Option<u64>, Finding<'t>> {
    let Some(property) = node.property(name) else { return Ok(None) };
    match property.number().filter(|_| property.bytes().len() == cells.size as usize * 4) {
        Some(number) => Ok(Some(number)),
        None => {
            Err(Finding::property(node, property, Rule::Must("be one size of the container's #size-cells")))
        }
    }
}

#[inline(never)]
fn write_dynamic<'t>(
    writer: &mut Writer,
    input: &GuestTree<'_, 't>,
    node: Node<'t>,
    cells: Cells,
    treatment: Treatment,
) -> Result<(), Finding<'t>> {
    writer.begin(node.name());
    if let Some(size) = number(node, "size", cells)? {
        writer.number("size", size);
    }
    let wanted = number(node, "alignment", cells)?;
    // Linux raises the alignment of the nodes that it supports; this aligns the others as well.
    let least = if node.has("reusable") { input.guest.page_size.block_alignment() } else { 0 };
    if let Some(alignment) = wanted.into_iter().chain([least]).max().filter(|&alignment| alignment != 0) {
        writer.number("alignment", alignment);
    }
    if node.has("alloc-ranges") {
        let mut entries = alloc::vec::Vec::new();
        for range in node.pairs("alloc-ranges", cells)? {
            entries.extend(reg(range.base, range.size));
        }
        writer.cells("alloc-ranges", &entries);
    }
    write_common(writer, node, treatment, true);
    writer.end();
    Ok(())
}

/// Writes the properties that do not depend on cells. Only one of several nodes made from `node` gets its phandle.
fn write_common(writer: &mut Writer, node: Node<'_>, treatment: Treatment, has_phandle: bool) {
    match (treatment, node.property("compatible")) {
        (Treatment::AsDmaPool, _) => writer.string("compatible", "shared-dma-pool"),
        (_, Some(compatible)) => writer.bytes("compatible", compatible.bytes()),
        (_, None) => {}
    }
    for property in node.properties().filter(|property| !REWRITTEN.contains(&property.name())) {
        writer.bytes(property.name(), property.bytes());
    }
    if let Some(phandle) = node.phandle().filter(|_| has_phandle) {
        writer.phandle(phandle);
    }
}
