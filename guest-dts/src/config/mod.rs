//! The configuration: the guests that run, their RAM, and the blocks and pools of the host.
//!
//! It is one device tree, compiled by plain `dtc`, with the root `compatible = "ballast,configuration"`. Its
//! binding is guest-dts/bindings/ballast,configuration.yaml, and guest-dts/*.dts are examples. All of it is
//! checked before any guest starts: [`Configuration::read`] checks what the blob alone can tell,
//! [`Configuration::fit`] what depends on the host. A guest in which something is wrong is *refused*: it is
//! left out with the first thing found, and the others start.
//!
//! Everything that is wrong or odd is given to a [`Sink`] as a [`Finding`], on the console and on a PC alike.

mod check;
mod default;
mod fit;
mod guest;
mod layout;
mod pool;
mod reader;
mod region;

pub use fit::{ControllerRoom, Host};
pub use layout::{BANK_LIMIT, Bank, BankKind, Layout};
pub use reader::{Severity, Sink, UnknownNames};

use heapless::Vec;

use crate::finding::{Finding, Rule};
use crate::range::{IpaRange, PaRange};
use crate::tree::{Node, Tree};

use reader::Reader;

/// `compatible` of the root.
pub const COMPATIBLE: &str = "ballast,configuration";
/// How many nodes a configuration may have, so that no search in it takes long.
pub const NODE_LIMIT: usize = 1024;
/// How many findings are told of in one reading.
pub const FINDING_LIMIT: usize = 100;
/// How many guests are taken.
pub const GUEST_LIMIT: usize = 8;
/// How many vCPUs a guest may have: what the target list of one SGI names.
pub const VCPU_LIMIT: usize = 16;
/// How many regions of RAM a guest may have.
pub const REGION_LIMIT: usize = 8;
/// How many designated movable blocks a guest may have: what a kernel that knows them takes.
pub const DMB_LIMIT: usize = 7;
/// How many controllers may be listed in one place.
pub const CONTROLLER_LIMIT: usize = stage2::controller::MAX_CONTROLLERS;
/// How many pools, and how many blocks of the host, are taken.
pub const POOL_LIMIT: usize = 8;
/// How many nodes of the host's tree may be passed to a guest.
pub const HOST_NODE_LIMIT: usize = 8;
/// How many bytes the boot arguments of a guest may have (COMMAND_LINE_SIZE of arm64 Linux, with the NUL).
pub const BOOTARGS_LIMIT: usize = 2048;

/// What is to run.
#[derive(Clone, Debug, Default)]
pub struct Configuration<'t> {
    /// The guests that can start, in the blob's order.
    pub guests: Vec<Guest<'t>, GUEST_LIMIT>,
    /// The guests that cannot.
    pub refused: Vec<Refused<'t>, GUEST_LIMIT>,
    /// Blocks of the host to be designated movable.
    pub blocks: Vec<Block<'t>, POOL_LIMIT>,
    /// Pools of the host.
    pub pools: Vec<Pool<'t>, POOL_LIMIT>,
    /// Whether a block or a pool was refused. Then none of them is to take effect.
    pub has_refused_blocks: bool,
    /// Where refused blocks and pools lie: memory that is to stay out of use, since its owner relies on it.
    pub withheld: alloc::vec::Vec<PaRange>,
    /// How migration behaves.
    pub migration: Migration,
}

/// A guest that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<'t> {
    /// Its name.
    pub name: &'t str,
    /// The first thing that is wrong.
    pub finding: Finding<'t>,
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest<'t> {
    /// Its node; `None` for the default guest of a boot by modules.
    pub node: Option<Node<'t>>,
    /// Its name.
    pub name: &'t str,
    /// How many vCPUs it has.
    pub vcpu_count: u32,
    /// The numbers of the host's CPUs that its vCPUs own, in the order of the vCPUs; empty: any.
    pub cpus: Vec<u16, VCPU_LIMIT>,
    /// Boot arguments, as the operator wrote them.
    pub bootargs: &'t str,
    /// The kernel.
    pub kernel: &'t [u8],
    /// The ramdisk.
    pub ramdisk: Option<&'t [u8]>,
    /// Whether it starts with Ballast, or when the operator says so.
    pub starts_at_boot: bool,
    /// The size of the kernel's pages, as far as it is known: from the configuration, or from the image.
    pub page_size: PageSize,
    /// How it is told of its movable memory.
    pub movable_memory: MovableMemory,
    /// RAM, in the blob's order.
    pub regions: Vec<Region<'t>, REGION_LIMIT>,
    /// Its designated movable blocks, in the blob's order: RAM too, at the top.
    pub dmbs: Vec<Region<'t>, DMB_LIMIT>,
    /// How it is migrated.
    pub migration: GuestMigration,
    /// Nodes and properties of the operator's that its tree gets as well: the node `device-tree`.
    pub template: Option<Node<'t>>,
    /// Paths of nodes of the host's tree that are copied into its tree.
    pub host_nodes: Vec<&'t str, HOST_NODE_LIMIT>,
}

/// A part of a guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region<'t> {
    /// Its node; `None` for the default guest's.
    pub node: Option<Node<'t>>,
    /// Size in bytes.
    pub size: u64,
    /// Where the guest sees it; `None`: where there is room.
    pub ipa: Option<IpaRange>,
    /// Whether physical and guest addresses are the same (1:1). It never migrates then.
    pub is_pinned_in_place: bool,
    /// The controllers behind it.
    pub placement: Placement,
    /// The unit wanted.
    pub unit: Unit,
}

/// Which controllers memory comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Numbers of controllers, best first; empty: any.
    pub controllers: Vec<u8, CONTROLLER_LIMIT>,
    /// How it is spread over them.
    pub spread: Spread,
    /// What happens when they are full.
    pub strictness: Strictness,
}

/// How memory is spread over several controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// The first as long as it has room, then the next.
    #[default]
    InOrder,
    /// In turns of 2 MiB.
    Interleaved,
}

/// What happens when the controllers named are full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// The guest does not start.
    #[default]
    Strict,
    /// Another controller helps out.
    Preferred,
}

/// The largest stage-2 leaf that is wanted.
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
    /// The unit's size in bytes; that of a pageblock for [`Unit::Any`].
    pub const fn alignment(self) -> u64 {
        match self {
            Self::Small => 1 << 12,
            Self::Medium | Self::Any => 1 << 21,
            Self::Large => 1 << 30,
        }
    }
}

/// The size of a kernel's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    #[default]
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl PageSize {
    /// The page's size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 4 << 10,
            Self::Size16K => 16 << 10,
            Self::Size64K => 64 << 10,
        }
    }

    /// What base and size of a movable block have to be multiples of: the largest block of the kernel's
    /// allocator, or its pageblock, whichever is larger.
    pub const fn block_alignment(self) -> u64 {
        match self {
            Self::Size4K => 4 << 20,
            Self::Size16K => 32 << 20,
            Self::Size64K => 512 << 20,
        }
    }
}

/// How a guest is told of its designated movable blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MovableMemory {
    /// [`MovableMemory::Movablecore`], unless boot arguments or the template say otherwise.
    #[default]
    Auto,
    /// `movablecore=` on its command line.
    Movablecore,
    /// Nodes `designated-movable-block`, for kernels that know them.
    Dmb,
    /// Nodes `"designated-movable-block", "shared-dma-pool"`: CMA areas.
    Cma,
    /// A NUMA node for each controller.
    Numa,
    /// Not at all: plain RAM.
    None,
}

impl MovableMemory {
    /// Its name in the configuration.
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

/// How a guest is migrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestMigration {
    /// At most so many bytes a second; `None`: as [`Migration::limit_bytes_per_s`].
    pub limit_bytes_per_s: Option<u64>,
    /// Whether it is never migrated.
    pub is_opted_out: bool,
}

/// How migration behaves, whichever guest it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// At most so many bytes a second; `None`: no limit.
    pub limit_bytes_per_s: Option<u64>,
    /// How long a CPU is held, in microseconds.
    pub slice_us: u32,
    /// The part of a guest's time that migration may take, in percent.
    pub share_percent: u32,
}

impl Default for Migration {
    fn default() -> Self {
        Self { limit_bytes_per_s: None, slice_us: 100, share_percent: 10 }
    }
}

/// A block of the host's RAM that is to be designated movable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block<'t> {
    /// Its node.
    pub node: Node<'t>,
    /// Where it lies.
    pub extent: Extent,
}

/// A pool of the contiguous allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool<'t> {
    /// Its node; the node's name is the pool's.
    pub node: Node<'t>,
    /// Where it lies.
    pub extent: Extent,
    /// Whether it lies in a designated movable block (`shared-dmb-pool`), or outside all (`shared-dma-pool`).
    pub is_in_dmb: bool,
    /// The name of the guest that owns it; `None`: the operator.
    pub owner: Option<&'t str>,
    /// Whether what the owner claims appears at its physical address (1:1).
    pub is_pinned_in_place: bool,
    /// The huge units that it keeps for guests that ask for such; [`Unit::Any`]: none.
    pub unit: Unit,
    /// How long a guest that starts waits until such a unit is won back, in milliseconds.
    pub unit_wait_ms: u32,
}

/// Where a block or a pool lies in the host's RAM, or where it may be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// There.
    Static(PaRange),
    /// Wherever there is room.
    Dynamic {
        /// Size in bytes.
        size: u64,
        /// Its base is to be a multiple of so many bytes.
        alignment: u64,
        /// On these controllers, best first; empty: any.
        controllers: Vec<u8, CONTROLLER_LIMIT>,
    },
}

impl Extent {
    /// Its range, where that is said.
    pub fn range(&self) -> Option<PaRange> {
        match self {
            Self::Static(range) => Some(*range),
            Self::Dynamic { .. } => None,
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Static(range) => range.size(),
            Self::Dynamic { size, .. } => *size,
        }
    }
}

impl<'t> Configuration<'t> {
    /// Reads and checks a configuration. Every finding is given to `sink`; a guest with an error is refused. Unknown names
    /// are errors unless the root says `lenient`.
    ///
    /// # Errors
    /// The tree is not a configuration.
    pub fn read(tree: &Tree<'t>, sink: &mut dyn Sink<'t>) -> Result<Self, Finding<'t>> {
        Self::read_with(tree, UnknownNames::Refused, sink)
    }

    /// Reads and checks a configuration as [`Configuration::read`] does, with the severity of unknown names given.
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
            None => reader.error(Finding::no_node("/guests", Rule::Required("the guests"))),
        }
        pool::read_all(root, &mut configuration, &mut reader);
        check::check(&mut configuration, &mut reader);
        Ok(configuration)
    }

    /// Refuses a block or a pool: its range, where it has one, is withheld.
    fn withhold(&mut self, range: Option<PaRange>) {
        self.has_refused_blocks = true;
        // No more than there are nodes.
        self.withheld.extend(range);
    }

    /// The number of the guest called `name` among those that can start.
    pub fn guest_index(&self, name: &str) -> Option<usize> {
        self.guests.iter().position(|guest| guest.name == name)
    }

    /// Moves the guest at `index` to the refused ones.
    pub fn refuse(&mut self, index: usize, finding: Finding<'t>) {
        if index < self.guests.len() {
            let guest = self.guests.remove(index);
            // As many as there are guests.
            let _ = self.refused.push(Refused { name: guest.name, finding });
        }
    }
}

impl Guest<'_> {
    /// Bytes of RAM in all, movable blocks included.
    pub fn ram_size(&self) -> u64 {
        self.regions.iter().chain(&self.dmbs).fold(0, |sum, region| sum.saturating_add(region.size))
    }

    /// Bytes in designated movable blocks.
    pub fn dmb_size(&self) -> u64 {
        self.dmbs.iter().fold(0, |sum, dmb| sum.saturating_add(dmb.size))
    }
}

/// Property of the root that makes unknown names warnings.
const LENIENT: &str = "lenient";
const ROOT_PROPERTIES: [&str; 5] = ["compatible", "model", "#address-cells", "#size-cells", LENIENT];
const ROOT_CHILDREN: [&str; 6] =
    ["guests", "images", "pools", "designated-movable-blocks", "migration", "__symbols__"];

#[cfg(test)]
mod tests;
