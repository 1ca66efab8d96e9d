//! `/chosen`: Ballast's command line, and the files that were loaded with it.

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::range::PaRange;
use guest_dts::tree::{Cells, Node, Tree};
use heapless::Vec;

/// Maximum number of boot modules.
pub const MODULE_LIMIT: usize = 8;

/// The contents of `/chosen`.
#[derive(Clone, Debug, Default)]
pub struct Chosen<'t> {
    /// Ballast's command line.
    pub bootargs: &'t str,
    /// The initrd: the configuration blob.
    pub initrd: Option<PaRange>,
    /// Random bytes from the boot loader.
    pub rng_seed: &'t [u8],
    /// Boot modules, in the tree's order.
    pub modules: Vec<Module<'t>, MODULE_LIMIT>,
}

/// A file that was loaded into memory for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'t> {
    /// Kind of the module.
    pub kind: ModuleKind,
    /// Addresses of the module.
    pub range: PaRange,
    /// The guest's boot arguments, if the node of a kernel has them.
    pub bootargs: Option<&'t str>,
    /// Node of the module.
    pub node: Node<'t>,
}

/// The kind of a boot module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// `multiboot,kernel`.
    Kernel,
    /// `multiboot,ramdisk`.
    Ramdisk,
}

impl<'t> Chosen<'t> {
    /// Reads `/chosen`.
    #[inline(never)]
    pub(super) fn read(tree: &Tree<'t>) -> Result<Self, Finding<'t>> {
        let Some(node) = tree.find("/chosen") else { return Ok(Self::default()) };
        Ok(Self {
            bootargs: string(node, "bootargs")?.unwrap_or(""),
            initrd: initrd(node)?,
            rng_seed: node.property("rng-seed").map_or(&[], |seed| seed.bytes()),
            modules: modules(node)?,
        })
    }
}

#[inline(never)]
fn string<'t>(node: Node<'t>, name: &str) -> Result<Option<&'t str>, Finding<'t>> {
    match node.property(name) {
        None => Ok(None),
        // QEMU and U-Boot write an empty value if there is no command line.
        Some(property) if property.bytes().is_empty() => Ok(Some("")),
        Some(property) => match property.str() {
            Some(text) => Ok(Some(text)),
            None => Err(Finding::property(node, property, Rule::Must("be one string"))),
        },
    }
}

#[inline(never)]
fn initrd<'t>(node: Node<'t>) -> Result<Option<PaRange>, Finding<'t>> {
    let number = |name| match node.property(name) {
        None => Ok(None),
        Some(property) => match property.number() {
            Some(number) => Ok(Some(number)),
            None => Err(Finding::property(node, property, Rule::Must("be a number of one or two cells"))),
        },
    };
    match (number("linux,initrd-start")?, number("linux,initrd-end")?) {
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err(Finding::missing(node, "linux,initrd-end", Rule::Required("end of the initrd")))
        }
        (None, Some(_)) => {
            Err(Finding::missing(node, "linux,initrd-start", Rule::Required("start of the initrd")))
        }
        (Some(start), Some(end)) => match PaRange::between(start, end) {
            Some(range) if range.is_empty() => Ok(None),
            Some(range) => Ok(Some(range)),
            None => {
                let rule = Rule::Must("lie above `linux,initrd-start` and below 2^48");
                Err(Finding::new(node, Some("linux,initrd-end"), Value::Address(end), rule))
            }
        },
    }
}

#[inline(never)]
fn modules<'t>(chosen: Node<'t>) -> Result<Vec<Module<'t>, MODULE_LIMIT>, Finding<'t>> {
    let mut modules = Vec::new();
    let nodes = chosen.children().filter(|node| node.is_compatible("multiboot,module") && node.is_enabled());
    for (index, node) in nodes.enumerate() {
        let is_kernel = node.is_compatible("multiboot,kernel");
        let kind = match (is_kernel, node.is_compatible("multiboot,ramdisk")) {
            (true, false) => ModuleKind::Kernel,
            (false, true) => ModuleKind::Ramdisk,
            _ => {
                let rule = Rule::Must("list one of \"multiboot,kernel\" and \"multiboot,ramdisk\"");
                let value =
                    node.property("compatible").map_or(Value::Missing, |list| Value::Bytes(list.bytes()));
                return Err(Finding::new(node, Some("compatible"), value, rule));
            }
        };
        let range = module_range(chosen, node)?;
        let bootargs = string(node, "bootargs")?;
        modules.push(Module { kind, range, bootargs, node }).map_err(|_| {
            Finding::node(node, Rule::TooMany { index, limit: MODULE_LIMIT, what: "boot modules" })
        })?;
    }
    Ok(modules)
}

/// Reads `reg` of a module. QEMU's guest-loader always writes two address and two size cells, without `#address-cells` and
/// `#size-cells` in `/chosen`. U-Boot's scripts set both.
#[inline(never)]
fn module_range<'t>(chosen: Node<'t>, node: Node<'t>) -> Result<PaRange, Finding<'t>> {
    let length = node.property("reg").map_or(0, |reg| reg.bytes().len());
    let cells = if length == 16 && !chosen.has("#size-cells") {
        Cells { address: 2, size: 2 }
    } else if length == 8 && !chosen.has("#address-cells") {
        Cells { address: 1, size: 1 }
    } else {
        chosen.child_cells()?
    };
    let mut entries = node.pairs("reg", cells)?;
    let range = entries.next().and_then(|reg| PaRange::from_numbers(reg.base, reg.size));
    match range.filter(|range| !range.is_empty() && entries.next().is_none()) {
        Some(range) => Ok(range),
        None => {
            let value = node.property("reg").map_or(Value::Missing, |reg| Value::Bytes(reg.bytes()));
            Err(Finding::new(
                node,
                Some("reg"),
                value,
                Rule::Must("be one range that is not empty, below 2^48"),
            ))
        }
    }
}
