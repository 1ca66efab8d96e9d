//! Reader for guests: the children of `/guests`.

use heapless::Vec;

use super::reader::{Reader, kind};
use super::{
    BOOTARGS_LIMIT, Configuration, DMB_LIMIT, GUEST_LIMIT, Guest, GuestMigration, HOST_NODE_LIMIT, Migration,
    MovableMemory, REGION_LIMIT, Refused, VCPU_LIMIT, devices, region,
};
use crate::finding::{Finding, Rule, Value};
use crate::image::{Image, ImageError, PageSize};
use crate::tree::Node;

const GUEST_PROPERTIES: [&str; 17] = [
    "#address-cells",
    "#size-cells",
    "status",
    "vcpus",
    "host-cpus",
    "bootargs",
    "kernel",
    "ramdisk",
    "start-manually",
    "page-size",
    "movable-memory",
    "host-nodes",
    "pci-functions",
    "devices",
    "assign-without-smmu",
    "no-migration",
    "migration-limit-kBps",
];
const GUEST_CHILDREN: [&str; 3] = ["memory", "dmb", "device-tree"];
const IMAGE_PROPERTIES: [&str; 1] = ["data"];
const MIGRATION_PROPERTIES: [&str; 3] = ["limit-kBps", "slice-us", "share-percent"];

/// Names that mean something else on the console.
const TAKEN_NAMES: [&str; 3] = ["ballast", "all", "monitor"];
/// Most characters in a guest's name.
const GUEST_NAME_LIMIT: usize = 31;

/// Reads all guests.
#[inline(never)]
pub(super) fn read_all<'t>(guests: Node<'t>, into: &mut Configuration<'t>, reader: &mut Reader<'_, 't>) {
    reader.check_names(guests, &["#address-cells", "#size-cells"], &["*"]);
    if let Some(images) = guests.tree_root().child("images") {
        reader.check_names(images, &["#address-cells", "#size-cells"], &["*"]);
        for image in images.children() {
            reader.check_names(image, &IMAGE_PROPERTIES, &[]);
        }
    }
    for (index, node) in guests.enabled_children().enumerate() {
        reader.begin();
        let guest = read(node, reader);
        let twin = guests.enabled_children().take(index).find(|other| other.name() == node.name());
        if let Some(twin) = twin {
            reader.error(Finding::node(node, Rule::SameAs(twin.id())));
        }
        if index >= GUEST_LIMIT {
            reader.error(Finding::node(node, Rule::TooMany { index, limit: GUEST_LIMIT, what: "guests" }));
            return;
        }
        // At most GUEST_LIMIT in all, so neither can be full.
        match (reader.take_error(), guest) {
            (None, Some(guest)) => {
                let _ = into.guests.push(guest);
            }
            (Some(finding), _) => {
                let _ = into.refused.push(Refused { name: node.name(), finding });
            }
            (None, None) => {}
        }
    }
    reader.begin();
    if into.guests.is_empty() && into.refused.is_empty() {
        reader.error(Finding::node(guests, Rule::Add("at least one guest")));
    }
}

#[inline(never)]
fn read<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<Guest<'t>> {
    reader.check_names(node, &GUEST_PROPERTIES, &GUEST_CHILDREN);
    check_name(node, reader);
    let vcpu_count = reader.number(node, "vcpus", 1, VCPU_LIMIT as u32);
    if !node.has("vcpus") {
        reader.error(Finding::missing(node, "vcpus", Rule::Add("the number of vCPUs")));
    }
    let kernel = read_kernel(node, reader);
    // Reports a phandle that leads nowhere.
    let ramdisk = if node.has("ramdisk") { image_data(node, "ramdisk", reader) } else { None };
    let mut guest = Guest {
        node: Some(node),
        name: node.name(),
        vcpu_count: vcpu_count.unwrap_or(1),
        cpus: read_cpus(node, vcpu_count, reader),
        bootargs: read_bootargs(node, reader),
        kernel: kernel.unwrap_or_default(),
        ramdisk,
        starts_at_boot: !reader.flag(node, "start-manually"),
        page_size: read_page_size(node, kernel.unwrap_or_default(), reader),
        movable_memory: read_movable_memory(node, reader),
        regions: alloc::vec::Vec::new(),
        dmbs: alloc::vec::Vec::new(),
        migration: GuestMigration {
            limit_bytes_per_s: reader
                .number(node, "migration-limit-kBps", 1, u32::MAX)
                .map(|limit| u64::from(limit) * 1000),
            is_opted_out: reader.flag(node, "no-migration"),
        },
        template: node.child("device-tree"),
        host_nodes: read_host_nodes(node, reader),
        pci_functions: devices::read_functions(node, reader),
        devices: devices::read_devices(node, reader),
        assigns_without_smmu: reader.flag(node, "assign-without-smmu"),
    };
    read_memory(node, &mut guest, reader);
    Some(guest)
}

#[inline(never)]
fn check_name<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) {
    let name = node.name();
    let is_plain =
        |character: u8| character.is_ascii_alphanumeric() || matches!(character, b'-' | b'_' | b'.');
    let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if name.len() > GUEST_NAME_LIMIT || !begins_well || !name.bytes().all(is_plain) {
        let rule = Rule::Must(
            "have a name of at most 31 letters, digits, `-`, `_` and `.` that begins with a letter or digit, and no unit address",
        );
        reader.error(Finding::node(node, rule));
    }
    if TAKEN_NAMES.contains(&name) || name.bytes().all(|character| character.is_ascii_digit()) {
        let rule = Rule::Must(
            "have another name: not a number, nor ballast, all or monitor, which the console uses",
        );
        reader.error(Finding::node(node, rule));
    }
}

#[inline(never)]
fn read_cpus<'t>(
    node: Node<'t>,
    vcpu_count: Option<u32>,
    reader: &mut Reader<'_, 't>,
) -> Vec<u16, VCPU_LIMIT> {
    let mut cpus = Vec::new();
    let Some(property) = node.property("host-cpus") else { return cpus };
    let Some(cells) = property.cells() else {
        reader.broken(node, property, Rule::Must("be a list of CPU numbers of the host, one cell each"));
        return cpus;
    };
    if vcpu_count.is_some_and(|count| count as usize != property.bytes().len() / 4) {
        reader.broken(node, property, Rule::Must("list as many CPUs as `vcpus` says"));
    }
    // `vcpus` is at most VCPU_LIMIT; a longer list was reported.
    for number in cells.take(VCPU_LIMIT) {
        match u16::try_from(number).ok().filter(|cpu| !cpus.contains(cpu)) {
            Some(cpu) => {
                let _ = cpus.push(cpu);
            }
            None => {
                let value = Value::Number(number.into());
                let rule = Rule::Must("be listed once and below 65536");
                reader.error(Finding::new(node, Some("host-cpus"), value, rule));
            }
        }
    }
    cpus
}

fn read_bootargs<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> &'t str {
    let Some(text) = reader.string(node, "bootargs") else { return "" };
    if text.len() >= BOOTARGS_LIMIT {
        let value = Value::Number(text.len() as u64);
        reader.error(Finding::new(node, Some("bootargs"), value, Rule::Must("be shorter than 2048 bytes")));
    }
    text
}

#[inline(never)]
fn read_page_size<'t>(node: Node<'t>, kernel: &[u8], reader: &mut Reader<'_, 't>) -> PageSize {
    let in_header = Image::parse(kernel).ok().and_then(|image| image.page_size());
    let Some(property) = node.property("page-size") else { return in_header.unwrap_or_default() };
    let size = match property.u32() {
        Some(0x1000) => PageSize::Size4K,
        Some(0x4000) => PageSize::Size16K,
        Some(0x1_0000) => PageSize::Size64K,
        _ => {
            let rule = Rule::Must("be 4, 16 or 64 KiB: <0x1000>, <0x4000> or <0x10000>");
            reader.broken(node, property, rule);
            return in_header.unwrap_or_default();
        }
    };
    if in_header.is_some_and(|in_header| in_header != size) {
        reader.broken(
            node,
            property,
            Rule::Must("equal the page size in the kernel's header, or be removed"),
        );
    }
    size
}

#[inline(never)]
fn read_movable_memory<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> MovableMemory {
    use MovableMemory::{Auto, Cma, Dmb, Movablecore, None, Numa};
    let Some(name) = reader.string(node, "movable-memory") else { return Auto };
    let modes = [Auto, Movablecore, Dmb, Cma, Numa, None];
    match modes.into_iter().find(|mode| mode.name() == name) {
        Some(mode) => mode,
        Option::None => {
            let rule = Rule::Must("be \"auto\", \"movablecore\", \"dmb\", \"cma\", \"numa\" or \"none\"");
            reader.error(Finding::new(node, Some("movable-memory"), Value::Text(name), rule));
            Auto
        }
    }
}

#[inline(never)]
fn read_host_nodes<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Vec<&'t str, HOST_NODE_LIMIT> {
    let mut paths = Vec::new();
    let Some(property) = node.property("host-nodes") else { return paths };
    if !property.is_strings() {
        reader.broken(node, property, Rule::Must("be a list of strings: paths of nodes of the host's tree"));
        return paths;
    }
    for (index, path) in property.strings().enumerate() {
        let rule = if !path.starts_with('/') || path.len() < 2 {
            Rule::Must("be the absolute path of a node of the host's tree other than its root")
        } else if paths.push(path).is_err() {
            Rule::TooMany { index, limit: HOST_NODE_LIMIT, what: "nodes of the host's tree" }
        } else {
            continue;
        };
        reader.error(Finding::new(node, Some("host-nodes"), Value::Text(path), rule));
        break;
    }
    paths
}

#[inline(never)]
fn read_memory<'t>(node: Node<'t>, guest: &mut Guest<'t>, reader: &mut Reader<'_, 't>) {
    let page = guest.page_size;
    let mut has_memory = false;
    // Disabled nodes are ignored (specification, 2.3.4).
    for child in node.enabled_children() {
        let is_dmb = match kind(child) {
            "memory" => false,
            "dmb" => true,
            _ => continue,
        };
        has_memory |= !is_dmb;
        let (region, list, limit, what) = match is_dmb {
            true => (region::read_dmb(child, page, reader), &mut guest.dmbs, DMB_LIMIT, "movable blocks"),
            false => (region::read(child, page, reader), &mut guest.regions, REGION_LIMIT, "regions of RAM"),
        };
        let Some(region) = region else { continue };
        if list.len() < limit {
            list.push(region);
        } else {
            reader.error(Finding::node(child, Rule::TooMany { index: limit, limit, what }));
        }
    }
    if !has_memory {
        let rule = Rule::Add("a node `memory`: a guest needs RAM besides its movable blocks");
        reader.error(Finding::node(node, rule));
    }
}

#[inline(never)]
fn read_kernel<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Option<&'t [u8]> {
    if !node.has("kernel") {
        reader.error(Finding::missing(node, "kernel", Rule::Add("the phandle of a child of /images")));
        return None;
    }
    let data = image_data(node, "kernel", reader)?;
    if let Err(error) = Image::parse(data) {
        let start = data.get(..data.len().min(8)).unwrap_or_default();
        reader.error(Finding::new(node, Some("kernel"), Value::Bytes(start), error.rule()));
        return None;
    }
    Some(data)
}

/// Returns the data of the image whose phandle is in property `name`.
fn image_data<'t>(node: Node<'t>, name: &'static str, reader: &mut Reader<'_, 't>) -> Option<&'t [u8]> {
    let rule = Rule::Must("be the phandle of a child of /images");
    let image = reader.target(node, name, rule)?;
    if image.parent().map(|parent| parent.name()) != Some("images") {
        reader.broken(node, node.property(name)?, rule);
        return None;
    }
    match image.property("data") {
        Some(data) if !data.bytes().is_empty() => Some(data.bytes()),
        Some(data) => {
            reader.broken(image, data, Rule::Must("not be empty"));
            None
        }
        None => {
            reader.error(Finding::missing(image, "data", Rule::Add("`data = /incbin/(\"FILE\");`")));
            None
        }
    }
}

/// Reads `/migration`.
#[inline(never)]
pub(super) fn read_migration<'t>(node: Node<'t>, reader: &mut Reader<'_, 't>) -> Migration {
    reader.check_names(node, &MIGRATION_PROPERTIES, &[]);
    let default = Migration::default();
    let limit = reader.number(node, "limit-kBps", 1, u32::MAX);
    Migration {
        limit_bytes_per_s: limit.map(|limit| u64::from(limit) * 1000),
        slice_us: reader.number(node, "slice-us", 10, 100_000).unwrap_or(default.slice_us),
        share_percent: reader.number(node, "share-percent", 1, 90).unwrap_or(default.share_percent),
    }
}

impl ImageError {
    /// Returns the error as a rule of the configuration.
    pub(crate) fn rule(&self) -> Rule {
        Rule::Must(self.must())
    }
}
