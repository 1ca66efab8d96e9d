//! The platform, from the device tree, or else from Ballast's specification.

use crate::console::Console;
use crate::fdt::{Node, Tree, text};

/// Maximum number of CPUs that a guest uses.
pub const MAX_CPUS: usize = 8;
/// Maximum number of ranges of RAM that a guest uses.
pub const MAX_RAM: usize = 8;

/// The host that answers the guest's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// QEMU's `virt` board, without a hypervisor.
    Bare,
    /// Xen.
    Xen,
    /// Ballast, or another hypervisor.
    Hypervisor,
}

/// The conduit of PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: usize,
    /// One past the last address.
    pub end: usize,
}

/// The machine as this guest sees it.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Host that answers calls.
    pub host: Host,
    /// PSCI's conduit.
    pub conduit: Conduit,
    /// Exception level at which the guest was entered.
    pub entry_level: u64,
    /// RAM, `ram_count` entries.
    pub ram: [Range; MAX_RAM],
    /// Number of entries of `ram`.
    pub ram_count: usize,
    /// Affinities, `cpu_count` entries.
    pub cpus: [u64; MAX_CPUS],
    /// Number of entries of `cpus`.
    pub cpu_count: usize,
    /// Base of the distributor.
    pub distributor: usize,
    /// Redistributor regions; unused entries are empty.
    pub redistributors: [Range; 4],
    /// Base of the PL011, if there is one.
    pub uart: Option<usize>,
    /// INTID of the PL011.
    pub uart_intid: u32,
    /// Boot arguments.
    pub bootargs: &'static str,
    /// Addresses of the device tree.
    pub tree: Range,
}

impl Range {
    /// Returns the range of `size` bytes at `start`.
    #[must_use]
    pub const fn sized(start: usize, size: usize) -> Self {
        Self { start, end: start.saturating_add(size) }
    }

    /// Returns the size in bytes.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.end - self.start
    }

    /// Returns true if `address` is in the range.
    #[must_use]
    pub const fn contains(&self, address: usize) -> bool {
        self.start <= address && address < self.end
    }
}

impl Platform {
    /// Reads the tree at `address`. Missing information comes from Ballast's specification.
    #[must_use]
    pub fn read(address: usize, entry_level: u64) -> Self {
        let mut platform = Self {
            host: Host::Hypervisor,
            conduit: Conduit::Hvc,
            entry_level,
            ram: [Range::default(); MAX_RAM],
            ram_count: 0,
            cpus: [0; MAX_CPUS],
            cpu_count: 0,
            distributor: 0x0800_0000,
            redistributors: [Range::default(); 4],
            uart: None,
            uart_intid: 33,
            bootargs: "",
            tree: Range::default(),
        };
        match Tree::at(address) {
            Some(tree) => {
                let (start, size) = tree.range();
                platform.tree = Range::sized(start, size);
                tree.for_each(|node| platform.learn(node));
            }
            None => platform.uart = Some(0x0900_0000),
        }
        platform.complete();
        platform
    }

    /// Returns the ranges of RAM.
    #[must_use]
    pub fn ram(&self) -> &[Range] {
        &self.ram[..self.ram_count]
    }

    /// Returns the affinities of all CPUs.
    #[must_use]
    pub fn cpus(&self) -> &[u64] {
        &self.cpus[..self.cpu_count]
    }

    /// Returns the console for output.
    #[must_use]
    pub fn console(&self) -> Console {
        match (self.host, self.uart) {
            (Host::Xen, _) => Console::Xen,
            (_, Some(base)) => Console::Pl011(base),
            (_, None) => Console::None,
        }
    }

    /// Returns the value of `key=value` in the boot arguments.
    #[must_use]
    pub fn argument(&self, key: &str) -> Option<&'static str> {
        self.bootargs.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Returns the number in `key=value` in the boot arguments.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        self.argument(key)?.parse().ok()
    }

    /// Returns all RAM except this image and the tree, in whole pages.
    pub fn free_ranges(&self) -> impl Iterator<Item = Range> {
        const PAGE: usize = 4096;
        let mut taken = [crate::boot::image(), self.tree];
        taken.sort_unstable_by_key(|range| range.start);
        self.ram().iter().flat_map(move |ram| {
            let mut start = ram.start;
            let mut pieces = [Range::default(); 3];
            for (piece, hole) in pieces.iter_mut().zip(taken.iter().chain(&[Range::sized(ram.end, 0)])) {
                let end = hole.start.clamp(start, ram.end);
                *piece = Range { start: start.next_multiple_of(PAGE), end: end & !(PAGE - 1) };
                start = hole.end.clamp(start, ram.end);
            }
            pieces.into_iter().filter(|piece| piece.start < piece.end)
        })
    }

    /// Returns the largest of these ranges, in whole blocks of 2 MiB.
    #[must_use]
    pub fn free_ram(&self) -> Range {
        const BLOCK: usize = 2 << 20;
        self.free_ranges()
            .map(|range| Range { start: range.start.next_multiple_of(BLOCK), end: range.end & !(BLOCK - 1) })
            .filter(|range| range.start < range.end)
            .max_by_key(Range::size)
            .unwrap_or_default()
    }

    fn learn(&mut self, node: &Node) {
        let named = |name: &str| node.name == name || node.name.split('@').next() == Some(name);
        if named("") {
            // The node of a hypervisor comes before the root. Ballast's root lists Ballast first, then the board.
            if self.host != Host::Xen && text(node.compatible) == "linux,dummy-virt" {
                self.host = Host::Bare;
            }
        } else if node.is_compatible("xen,xen") {
            self.host = Host::Xen;
        } else if text(node.device_type) == "memory" && node.is_enabled() {
            for (start, size) in (0..).map_while(|index| node.region(index)) {
                self.add_ram(Range::sized(start as usize, size as usize));
            }
        } else if text(node.device_type) == "cpu" && self.cpu_count < MAX_CPUS {
            if let Some((affinity, _)) = node.region(0) {
                self.cpus[self.cpu_count] = affinity;
                self.cpu_count += 1;
            }
        } else if node.is_compatible("arm,gic-v3") {
            self.learn_gic(node);
        } else if node.is_compatible("arm,pl011") && self.uart.is_none() && node.is_enabled() {
            self.uart = node.region(0).map(|(base, _)| base as usize);
            self.uart_intid = 32 + node.interrupt_cell(1).unwrap_or(1);
        } else if node.name == "psci" {
            if text(node.method) == "smc" {
                self.conduit = Conduit::Smc;
            }
        } else if node.name == "chosen" {
            self.bootargs = text(node.bootargs);
        }
    }

    fn learn_gic(&mut self, node: &Node) {
        if let Some((base, _)) = node.region(0) {
            self.distributor = base as usize;
        }
        for (index, slot) in self.redistributors.iter_mut().enumerate() {
            // Xen and QEMU list the regions of redistributors first, then the CPU interfaces of GICv2, which are smaller.
            if let Some((base, size)) = node.region(index + 1).filter(|(_, size)| *size >= 0x2_0000) {
                *slot = Range::sized(base as usize, size as usize);
            }
        }
    }

    fn add_ram(&mut self, range: Range) {
        if self.ram_count < MAX_RAM && range.size() > 0 {
            self.ram[self.ram_count] = range;
            self.ram_count += 1;
        }
    }

    fn complete(&mut self) {
        if self.cpu_count == 0 {
            self.cpus[0] = crate::register::affinity();
            self.cpu_count = 1;
        }
        // The boot CPU comes first.
        let own = crate::register::affinity();
        if let Some(place) = self.cpus().iter().position(|&cpu| cpu == own) {
            self.cpus.swap(0, place);
        }
        if self.ram_count == 0 {
            self.add_ram(Range::sized(0x4000_0000, 128 << 20));
        }
        if self.redistributors[0].size() == 0 {
            self.redistributors[0] = Range::sized(0x080a_0000, MAX_CPUS * 0x2_0000);
        }
    }
}
