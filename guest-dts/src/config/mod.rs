//! The configuration: guests, their RAM, and the host's designated movable blocks and pools.
//!
//! A configuration is a device tree with the root `compatible = "ballast,configuration"`, compiled by plain `dtc`.
//! guest-dts/bindings/ballast,configuration.yaml is its binding, and guest-dts/*.dts are examples. All of it is
//! checked before any guest starts: [`Configuration::read`] checks the blob by itself, [`Configuration::fit`] checks
//! it against the host. A guest with an error is *refused*: it does not start, the first error is kept as the reason,
//! and the other guests start.
//!
//! Each error, warning and note goes to a [`Sink`] as a [`Finding`], whether Ballast or the PC tool reads the
//! configuration.

mod check;
mod default;
mod devices;
mod fit;
mod guest;
mod layout;
mod pool;
mod reader;
mod region;

pub use fit::{ControllerRoom, Host};
pub use layout::{Layout, RamRange, RamSource};
pub use reader::{Severity, Sink, UnknownNames};

use heapless::Vec;

use crate::finding::{Finding, Rule};
use crate::image::PageSize;
use crate::range::{IpaRange, PaRange};
use crate::tree::{Node, Tree};

use reader::Reader;

/// `compatible` of the root.
pub(crate) const COMPATIBLE: &str = "ballast,configuration";
/// Most nodes of a configuration. Bounds the time of every search in it.
pub(crate) const NODE_LIMIT: usize = 1024;
/// Most findings that one pass reports.
pub(crate) const FINDING_LIMIT: usize = 100;
/// Most guests.
pub(crate) const GUEST_LIMIT: usize = 8;
/// Most vCPUs of a guest: the target list of one SGI names no more.
pub(crate) const VCPU_LIMIT: usize = 16;
/// Most regions of RAM of a guest.
pub(crate) const REGION_LIMIT: usize = 8;
/// Most designated movable blocks of a guest: kernels that support them take no more.
pub(crate) const DMB_LIMIT: usize = 7;
/// Most controllers in one `controllers` property.
pub const CONTROLLER_LIMIT: usize = stage2::controller::MAX_CONTROLLERS;
/// Most pools, and most designated movable blocks of the host.
pub(crate) const POOL_LIMIT: usize = 8;
/// Most nodes of the host's tree that one guest's tree may include.
pub(crate) const HOST_NODE_LIMIT: usize = 8;
/// Most PCI functions of a guest.
pub const FUNCTION_LIMIT: usize = 8;
/// Most platform devices of a guest.
pub const DEVICE_LIMIT: usize = 8;
/// Size limit of a guest's boot arguments in bytes, NUL included (COMMAND_LINE_SIZE of arm64 Linux).
pub(crate) const BOOTARGS_LIMIT: usize = 2048;

/// A configuration that was read and checked.
#[derive(Clone, Debug, Default)]
pub struct Configuration<'t> {
    /// The guests that can start, in the blob's order.
    pub guests: Vec<Guest<'t>, GUEST_LIMIT>,
    /// The guests that cannot start.
    pub refused: Vec<Refused<'t>, GUEST_LIMIT>,
    /// Blocks of the host's RAM to designate movable.
    pub blocks: Vec<Block<'t>, POOL_LIMIT>,
    /// Pools of the host.
    pub pools: Vec<Pool<'t>, POOL_LIMIT>,
    /// True if a block or a pool was refused. The caller must then designate none of them.
    pub has_refused_blocks: bool,
    /// The ranges of refused blocks and pools. They must stay unused, since their owners rely on them.
    pub withheld: alloc::vec::Vec<PaRange>,
    /// Limits of migration.
    pub migration: Migration,
}

/// A guest that cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<'t> {
    /// The guest's name.
    pub name: &'t str,
    /// The first error.
    pub finding: Finding<'t>,
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest<'t> {
    /// The guest's node; `None` for the default guest of a boot by modules.
    pub node: Option<Node<'t>>,
    /// The guest's name.
    pub name: &'t str,
    /// Number of vCPUs.
    pub vcpu_count: u32,
    /// Numbers of the host CPUs that the vCPUs own, by vCPU; empty: any CPUs.
    pub cpus: Vec<u16, VCPU_LIMIT>,
    /// Boot arguments from the configuration, without Ballast's additions.
    pub bootargs: &'t str,
    /// The kernel.
    pub kernel: &'t [u8],
    /// The ramdisk.
    pub ramdisk: Option<&'t [u8]>,
    /// True if Ballast starts the guest at boot, false if the operator starts it.
    pub starts_at_boot: bool,
    /// Page size of the kernel, from the configuration or else from the image's header; 4 KiB if neither states it.
    pub(crate) page_size: PageSize,
    /// Method by which the guest learns of its movable memory.
    pub movable_memory: MovableMemory,
    /// RAM, in the blob's order.
    pub regions: alloc::vec::Vec<RamRegion<'t>>,
    /// Designated movable blocks, in the blob's order. They are RAM too, above all regions.
    pub dmbs: alloc::vec::Vec<RamRegion<'t>>,
    /// The guest's limits of migration.
    pub migration: GuestMigration,
    /// The node `device-tree`: nodes and properties that the operator adds to the guest's tree.
    pub template: Option<Node<'t>>,
    /// Paths of nodes of the host's tree to copy into the guest's tree.
    pub(crate) host_nodes: Vec<&'t str, HOST_NODE_LIMIT>,
    /// Requester IDs of the host's PCI functions that the guest owns: bus << 8 | device << 3 | function. The function
    /// at index i is device i + 1 on the guest's bus.
    pub pci_functions: Vec<u16, FUNCTION_LIMIT>,
    /// Paths in the host's tree of the platform devices that the guest owns: at most [`DEVICE_LIMIT`].
    pub devices: alloc::vec::Vec<&'t str>,
    /// True if the guest may own devices that no SMMU isolates.
    pub assigns_without_smmu: bool,
}

/// A part of a guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamRegion<'t> {
    /// The region's node; `None` for the default guest's.
    pub node: Option<Node<'t>>,
    /// Size in bytes.
    pub size: u64,
    /// Guest addresses; `None`: Ballast chooses them.
    pub ipa: Option<IpaRange>,
    /// True if guest and physical addresses are equal (1:1). Such a region never migrates.
    pub is_pinned_in_place: bool,
    /// True if this is the RAM that the guest's devices access. It is contiguous and never migrates.
    pub is_dma_window: bool,
    /// Physical range that is reserved for the region: the same numbers as `ipa` if it is pinned in place. The range of
    /// another DMA window is found and written here at boot.
    pub backing: Option<PaRange>,
    /// The controllers that the memory comes from.
    pub placement: Placement,
    /// The largest stage 2 leaf to use.
    pub unit: Unit,
}

/// The controllers that memory comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Numbers of the controllers, most preferred first; empty: any.
    pub controllers: Vec<u8, CONTROLLER_LIMIT>,
    /// Distribution over these controllers.
    pub spread: Spread,
    /// Behaviour when these controllers are full.
    pub strictness: Strictness,
}

/// Distribution of memory over several controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// Fills the first controller, then the next.
    #[default]
    InOrder,
    /// Takes 2 MiB from each controller in turn.
    Interleaved,
}

/// Behaviour when the listed controllers are full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// The guest does not start.
    #[default]
    Strict,
    /// The memory comes from other controllers.
    Preferred,
}

/// The largest stage 2 leaf to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Medium,
    /// 1 GiB.
    Large,
    /// The largest that fits.
    #[default]
    Any,
}

impl Unit {
    /// Returns the unit's size in bytes; for [`Unit::Any`], the size of a pageblock.
    pub const fn alignment(self) -> u64 {
        match self {
            Self::Small => 1 << 12,
            Self::Medium | Self::Any => 1 << 21,
            Self::Large => 1 << 30,
        }
    }
}

/// Method by which a guest learns of its designated movable blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MovableMemory {
    /// [`MovableMemory::Movablecore`], unless the boot arguments or the template choose another method.
    #[default]
    Auto,
    /// `movablecore=` on its command line.
    Movablecore,
    /// Nodes `designated-movable-block`, for kernels that support them.
    Dmb,
    /// Nodes `"designated-movable-block", "shared-dma-pool"`: CMA areas.
    Cma,
    /// A NUMA node for each controller.
    Numa,
    /// None: the blocks are plain RAM to the guest.
    None,
}

impl MovableMemory {
    /// Returns the name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Movablecore => "movablecore",
            Self::Dmb => "dmb",
            Self::Cma => "cma",
            Self::Numa => "numa",
            Self::None => "none",
        }
    }
}

/// A guest's limits of migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestMigration {
    /// Most bytes a second; `None`: [`Migration::limit_bytes_per_s`] applies.
    pub limit_bytes_per_s: Option<u64>,
    /// True if the guest must never be migrated.
    pub is_opted_out: bool,
}

/// Limits of migration that hold for all guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Most bytes a second; `None`: no limit.
    pub limit_bytes_per_s: Option<u64>,
    /// Longest time that migration holds a CPU without a break, in microseconds.
    pub slice_us: u32,
    /// Share of a guest's CPU time that migration may take, in percent.
    pub share_percent: u32,
}

impl Default for Migration {
    fn default() -> Self {
        Self { limit_bytes_per_s: None, slice_us: 100, share_percent: 10 }
    }
}

/// A block of the host's RAM to designate movable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block<'t> {
    /// The block's node.
    pub node: Node<'t>,
    /// The block's range, or the rules for choosing one.
    pub extent: Extent,
}

/// A pool of the contiguous allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool<'t> {
    /// The pool's node. The pool has the node's name.
    pub node: Node<'t>,
    /// The pool's range, or the rules for choosing one.
    pub extent: Extent,
    /// True if the pool lies in a designated movable block (`shared-dmb-pool`) or outside all of them
    /// (`shared-dma-pool`).
    pub is_in_dmb: bool,
    /// Name of the guest that owns the pool; `None`: the operator owns it.
    pub owner: Option<&'t str>,
    /// True if the owner sees claimed ranges at their physical addresses (1:1).
    pub is_pinned_in_place: bool,
    /// Size of the huge units that the pool reserves for guests with this `unit-size`; [`Unit::Any`]: none.
    pub unit: Unit,
    /// Longest time that a starting guest waits for such a unit to be emptied, in milliseconds.
    pub unit_wait_ms: u32,
}

/// The range of a block or a pool in the host's RAM, or the rules for choosing one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// This range.
    Static(PaRange),
    /// A range that Ballast chooses.
    Dynamic {
        /// Size in bytes.
        size: u64,
        /// Alignment of the base in bytes.
        alignment: u64,
        /// Allowed controllers, most preferred first; empty: any.
        controllers: Vec<u8, CONTROLLER_LIMIT>,
    },
}

impl Extent {
    /// Returns the range, if the configuration gives one.
    pub fn range(&self) -> Option<PaRange> {
        match self {
            Self::Static(range) => Some(*range),
            Self::Dynamic { .. } => None,
        }
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Static(range) => range.size(),
            Self::Dynamic { size, .. } => *size,
        }
    }
}

impl<'t> Configuration<'t> {
    /// Reads and checks a configuration, and reports findings to `sink`. A guest with an error is refused. Unknown
    /// names are errors unless the root has the property `lenient`.
    ///
    /// # Errors
    /// The tree is not a configuration.
    pub fn read(tree: &Tree<'t>, sink: &mut dyn Sink<'t>) -> Result<Self, Finding<'t>> {
        Self::read_with(tree, UnknownNames::Refused, sink)
    }

    /// Reads and checks a configuration like [`Configuration::read`], with an explicit rule for unknown names.
    ///
    /// # Errors
    /// The tree is not a configuration.
    pub fn read_with(
        tree: &Tree<'t>,
        unknown_names: UnknownNames,
        sink: &mut dyn Sink<'t>,
    ) -> Result<Self, Finding<'t>> {
        let root = tree.root();
        if !root.is_compatible(COMPATIBLE) {
            let rule = Rule::Must("list \"ballast,configuration\"");
            return Err(match root.property("compatible") {
                Some(property) => Finding::property(root, property, rule),
                None => Finding::missing(root, "compatible", rule),
            });
        }
        if let Some(node) = tree.nodes().nth(NODE_LIMIT) {
            let rule = Rule::TooMany { index: NODE_LIMIT, limit: NODE_LIMIT, what: "nodes" };
            return Err(Finding::node(node, rule));
        }
        let mut configuration = Self::default();
        let mut reader = Reader::new(sink);
        if reader.flag(root, LENIENT) || unknown_names == UnknownNames::Allowed {
            reader.allow_unknown_names();
        }
        reader.check_names(root, &ROOT_PROPERTIES, &ROOT_CHILDREN);
        if let Some(node) = root.child("migration") {
            configuration.migration = guest::read_migration(node, &mut reader);
        }
        match root.child("guests") {
            Some(guests) => guest::read_all(guests, &mut configuration, &mut reader),
            None => reader.error(Finding::no_node("/guests", Rule::Add("it, with at least one guest"))),
        }
        pool::read_all(root, &mut configuration, &mut reader);
        check::check(&mut configuration, &mut reader);
        Ok(configuration)
    }

    /// Records that a block or a pool was refused, and withholds its range, if it has one.
    fn withhold(&mut self, range: Option<PaRange>) {
        self.has_refused_blocks = true;
        // Bounded by the number of nodes.
        self.withheld.extend(range);
    }

    /// Returns the index in `guests` of the guest called `name`.
    pub fn guest_index(&self, name: &str) -> Option<usize> {
        self.guests.iter().position(|guest| guest.name == name)
    }

    /// Moves the guest at `index` from `guests` to `refused`.
    pub fn refuse(&mut self, index: usize, finding: Finding<'t>) {
        if index < self.guests.len() {
            let guest = self.guests.remove(index);
            // As many places as for guests.
            let _ = self.refused.push(Refused { name: guest.name, finding });
        }
    }
}

impl<'t> Guest<'t> {
    /// Returns the region or block at `source`.
    pub fn ram(&self, source: RamSource) -> Option<&RamRegion<'t>> {
        match source {
            RamSource::Region(index) => self.regions.get(usize::from(index)),
            RamSource::Dmb(index) => self.dmbs.get(usize::from(index)),
        }
    }

    /// Returns the size of all RAM in bytes, movable blocks included.
    pub fn ram_size(&self) -> u64 {
        self.regions.iter().chain(&self.dmbs).fold(0, |sum, region| sum.saturating_add(region.size))
    }

    /// Returns the DMA window and its index in `regions`.
    pub fn dma_window(&self) -> Option<(usize, &RamRegion<'t>)> {
        self.regions.iter().enumerate().find(|(_, region)| region.is_dma_window)
    }

    /// Iterates over the physical ranges that are reserved for the guest.
    pub fn reserved_ranges(&self) -> impl Iterator<Item = PaRange> {
        self.regions.iter().filter_map(|region| region.backing)
    }

    /// Tests whether the guest owns PCI functions or platform devices of the host.
    pub fn has_devices(&self) -> bool {
        !self.pci_functions.is_empty() || !self.devices.is_empty()
    }

    /// Returns the size of all designated movable blocks in bytes.
    pub fn dmb_size(&self) -> u64 {
        self.dmbs.iter().fold(0, |sum, dmb| sum.saturating_add(dmb.size))
    }
}

/// Property of the root that turns errors about unknown names into warnings.
const LENIENT: &str = "lenient";
const ROOT_PROPERTIES: [&str; 5] = ["compatible", "model", "#address-cells", "#size-cells", LENIENT];
const ROOT_CHILDREN: [&str; 6] =
    ["guests", "images", "pools", "designated-movable-blocks", "migration", "__symbols__"];

#[cfg(test)]
mod tests;
