//! The host, as its device tree describes it, in plain data.
//!
//! All knowledge about the host comes from here: RAM and the *controller* of each range, reservations, the CPUs and how they
//! are started (PSCI), the GICv3, the timer's interrupts, the console's UART, Ballast's command line, and the files that were
//! loaded with it. If a tree lacks something that Ballast needs, a [`Finding`] names node, property, value and rule.
//!
//! All vectors are bounded. The finding for a host that exceeds a limit names the limit.

mod bridge;
mod chosen;
mod console;
mod cpu;
mod gic;
mod interrupt;
mod intx;
mod psci;
mod ram;
mod reserved;
mod smmu;
mod streams;
mod timer;

pub use bridge::{BRIDGE_LIMIT, HostBridge, PCI_WINDOW_LIMIT, PciWindow};
pub use chosen::{Chosen, MODULE_LIMIT, Module, ModuleKind};
pub use console::Console;
pub use cpu::{CPU_LIMIT, Cpu, MAX_CPUS};
pub use gic::{Gic, REDISTRIBUTOR_REGION_LIMIT};
pub use guest_dts::range::PaRange;
pub use interrupt::{DEVICE_INTERRUPT_LIMIT, Interrupt, Trigger, device_interrupts};
pub use psci::{Conduit, Psci, PsciVersion};
pub use ram::{CONTROLLER_LIMIT, Controller, RAM_LIMIT, Ram, RamRange};
pub use reserved::{ALLOC_RANGE_LIMIT, Extent, RESERVATION_LIMIT, Reservation, ReservationKind};
pub use smmu::{SMMU_LIMIT, STREAM_LIMIT, Smmu, Stream, device_streams, has_stream};
pub use streams::StreamMap;
pub use timer::Timer;

use guest_dts::finding::Finding;
use guest_dts::tree::{Node, Tree};
use heapless::Vec;

/// The reason why a host's tree is refused.
pub type BoardError<'t> = Finding<'t>;

/// Maximum number of warnings that are kept.
pub const WARNING_LIMIT: usize = 16;

/// Warnings about a tree. Those beyond the limit are only counted.
#[derive(Clone, Debug, Default)]
pub struct Warnings<'t> {
    kept: Vec<Finding<'t>, WARNING_LIMIT>,
    dropped_count: u32,
}

impl<'t> Warnings<'t> {
    /// Adds `finding`.
    pub(super) fn push(&mut self, finding: Finding<'t>) {
        if self.kept.push(finding).is_err() {
            self.dropped_count += 1;
        }
    }

    /// Returns the warnings that were kept.
    pub fn iter(&self) -> impl Iterator<Item = &Finding<'t>> {
        self.kept.iter()
    }

    /// Returns the number of warnings beyond the limit.
    pub fn dropped_count(&self) -> u32 {
        self.dropped_count
    }
}

/// The host.
#[derive(Clone, Debug)]
pub struct Board<'t> {
    /// RAM and controllers.
    pub ram: Ram,
    /// Reservations: the reservation block and `/reserved-memory`.
    pub reservations: Vec<Reservation<'t>, RESERVATION_LIMIT>,
    /// CPUs in the tree's order. The index of a CPU is its number in Ballast.
    pub cpus: Vec<Cpu, CPU_LIMIT>,
    /// PSCI: version and conduit.
    pub psci: Psci,
    /// The interrupt controller.
    pub gic: Gic,
    /// The timer's interrupts.
    pub timer: Timer,
    /// The console's UART.
    pub console: Console,
    /// Second PL011, whose interrupt is not used.
    pub second_uart: Option<Console>,
    /// SMMUs that Ballast can use.
    pub smmus: Vec<Smmu<'t>, SMMU_LIMIT>,
    /// PCI host bridges that Ballast can use.
    pub bridges: Vec<HostBridge<'t>, BRIDGE_LIMIT>,
    /// Command line, initrd and boot modules.
    pub chosen: Chosen<'t>,
    /// Oddities that do not prevent a start.
    pub warnings: Warnings<'t>,
}

impl<'t> Board<'t> {
    /// Reads the host's tree.
    ///
    /// # Errors
    /// The first property that is missing or wrong.
    pub fn read(tree: &Tree<'t>) -> Result<Self, BoardError<'t>> {
        Self::read_with(tree, None)
    }

    /// Reads the host's tree. `command_line`, if given, replaces that of the tree.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with(tree: &Tree<'t>, command_line: Option<&'t str>) -> Result<Self, BoardError<'t>> {
        let mut warnings = Warnings::default();
        // The console comes first, since messages need it.
        let console = Console::read(tree)?;
        let mut chosen = Chosen::read(tree)?;
        chosen.bootargs = command_line.unwrap_or(chosen.bootargs);
        let ram = Ram::read(tree, chosen.bootargs, &mut warnings)?;
        let reservations = reserved::read(tree, &mut warnings)?;
        let psci = Psci::read(tree)?;
        let cpus = cpu::read(tree, &mut warnings)?;
        let gic = Gic::read(tree)?;
        let timer = Timer::read(tree)?;
        let second_uart = console.second(tree);
        let smmus = Smmu::read_all(tree, &mut warnings);
        let bridges = HostBridge::read_all(tree);
        Ok(Self {
            ram,
            reservations,
            cpus,
            psci,
            gic,
            timer,
            console,
            second_uart,
            smmus,
            bridges,
            chosen,
            warnings,
        })
    }
}

/// Tests whether DMA of `node` is coherent with the CPUs' caches: `dma-coherent` or `dma-noncoherent` in the node or in the
/// nearest ancestor that has one of them.
pub fn is_coherent(node: Node<'_>) -> bool {
    let holders = core::iter::once(node).chain(node.ancestors());
    let mut says =
        holders.filter_map(|holder| match (holder.has("dma-coherent"), holder.has("dma-noncoherent")) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        });
    says.next().unwrap_or(false)
}

/// Returns the node with `phandle` in the tree of `node`.
fn node_by_phandle<'t>(node: Node<'t>, phandle: u32) -> Option<Node<'t>> {
    node.tree_root().descendants().find(|node| node.phandle() == Some(phandle))
}

/// Removes a number of `cells` cells from the front of `bytes` and returns it.
fn take_cells(bytes: &mut &[u8], cells: u32) -> Option<u64> {
    let (number, rest) = bytes.split_at_checked(cells as usize * 4)?;
    *bytes = rest;
    Some(number.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests;
