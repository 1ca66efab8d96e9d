//! The device tree of a guest: the fixed platform and the contents of its configuration.

mod assigned;
mod extra;
mod memory;
pub mod platform;
mod reserved;
mod writer;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write;

use crate::argument;
use crate::config::{BOOTARGS_LIMIT, Guest, Layout, MovableMemory};
use crate::finding::Finding;
use crate::image::BootPlan;
use crate::tree::{Node, Tree};
use platform::{
    GICD_BASE, GICD_SIZE, GICR_BASE, GICR_STRIDE, TIMER_PPIS, UART_BASE, UART_CLOCK_HZ, UART_SIZE,
};

pub use assigned::{Assigned, AssignedDevice, PciBus, PciSlot};
pub(crate) use memory::movable_argument;
pub use memory::{Choice, Reason};
use writer::{Writer, reg};

/// Phandles of Ballast's own nodes, far above those of `dtc`, which counts from 1.
const GIC_PHANDLE: u32 = 0xba11_0001;
const CLOCK_PHANDLE: u32 = 0xba11_0002;

/// Interrupt type and flags of a specifier (binding `arm,gic-v3`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
const EDGE_RISING: u32 = 1;

/// The input of a guest's tree.
#[derive(Clone, Copy, Debug)]
pub struct GuestTree<'a, 't> {
    /// The guest.
    pub guest: &'a Guest<'t>,
    /// The guest's RAM.
    pub layout: &'a Layout,
    /// The placement of the guest's images.
    pub plan: &'a BootPlan,
    /// The host's devices that the guest owns; `None`: they are not in the tree.
    pub assigned: Option<&'a Assigned<'t>>,
    /// Seed for the kernel's address space layout.
    pub kaslr_seed: Option<u64>,
    /// Seed for the kernel's random numbers.
    pub rng_seed: Option<[u8; 32]>,
}

/// An error while building a tree.
#[derive(Debug, PartialEq, Eq)]
pub enum BuildError<'t> {
    /// The boot arguments, Ballast's additions included, are too long; the value is their length.
    Bootargs(usize),
    /// The tree does not fit into its slot; the value is its size in bytes.
    TooLarge(usize),
    /// The operator's additions to the tree break a rule.
    Finding(Finding<'t>),
    /// vm-fdt refused a node or property.
    Writer(vm_fdt::Error),
}

impl fmt::Display for BuildError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootargs(length) => {
                write!(
                    f,
                    "bootargs: {length} bytes, Ballast's additions included; must be shorter than {BOOTARGS_LIMIT}"
                )
            }
            Self::TooLarge(size) => {
                write!(f, "the guest's device tree has {size} bytes; must have at most 2 MiB")
            }
            Self::Finding(finding) => write!(f, "{finding}"),
            Self::Writer(error) => write!(f, "the guest's device tree: {error}"),
        }
    }
}

impl core::error::Error for BuildError<'_> {}

impl<'t> From<Finding<'t>> for BuildError<'t> {
    fn from(finding: Finding<'t>) -> Self {
        Self::Finding(finding)
    }
}

impl From<vm_fdt::Error> for BuildError<'_> {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer(error)
    }
}

/// Returns the node of the generic timer in a host's tree (binding `arm,armv8-timer`).
pub fn timer_node<'t>(host: &Tree<'t>) -> Option<Node<'t>> {
    host.nodes().find(|node| {
        node.is_enabled() && (node.is_compatible("arm,armv8-timer") || node.is_compatible("arm,armv7-timer"))
    })
}

/// Returns the frequency of the host's counter in Hz, if the host's tree states one because firmware leaves
/// CNTFRQ_EL0 wrong or zero.
fn counter_frequency(host: &Tree<'_>) -> Option<u32> {
    timer_node(host)?.property("clock-frequency")?.u32().filter(|&frequency| frequency != 0)
}

impl<'t> GuestTree<'_, 't> {
    /// Builds the tree without nodes of the host's tree.
    ///
    /// # Errors
    /// As [`GuestTree::build_with_host`].
    pub fn build(&self) -> Result<Vec<u8>, BuildError<'t>> {
        self.build_with_host(None)
    }

    /// Checks the operator's additions to the tree without building it. Checks nodes of the host's tree if `host` is
    /// given.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check(&self, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
        extra::check(self, host)?;
        assigned::check(self)?;
        reserved::check(self, host)
    }

    /// Reports reserved memory that is changed or left out of the tree.
    pub fn notes(&self, host: Option<&Tree<'t>>, note: &mut dyn FnMut(Finding<'t>)) {
        reserved::notes(self, host, note);
    }

    /// Builds the tree, with the nodes of the tree `host` that the configuration lists.
    ///
    /// # Errors
    /// The tree is too large, or the operator's additions break a rule.
    pub fn build_with_host(&self, host: Option<&Tree<'t>>) -> Result<Vec<u8>, BuildError<'t>> {
        self.check(host)?;
        let bootargs = self.bootargs()?;
        let mode = self.mode();
        let mut writer = Writer::new();
        writer.begin("");
        writer.strings("compatible", &["ballast,virt", "linux,dummy-virt"]);
        writer.string("model", "Ballast guest");
        writer.cells("#address-cells", &[2]);
        writer.cells("#size-cells", &[2]);
        writer.cells("interrupt-parent", &[GIC_PHANDLE]);
        extra::write_root(&mut writer, self);
        self.chosen(&mut writer, &bootargs);
        self.aliases(&mut writer);
        self.cpus(&mut writer, mode);
        memory::write(&mut writer, self.guest, self.layout, mode);
        self.reserved_memory(&mut writer, host)?;
        self.psci(&mut writer);
        self.timer(&mut writer, host.and_then(counter_frequency));
        self.interrupt_controller(&mut writer);
        self.clock(&mut writer);
        self.serial(&mut writer);
        assigned::write(&mut writer, self);
        extra::write_nodes(&mut writer, self, host);
        writer.end();
        let blob = writer.finish()?;
        match blob.len() as u64 <= platform::TREE_SLOT_SIZE {
            true => Ok(blob),
            false => Err(BuildError::TooLarge(blob.len())),
        }
    }

    /// Returns the guest's boot arguments, with Ballast's additions.
    ///
    /// # Errors
    /// They are too long.
    #[inline(never)]
    pub fn bootargs(&self) -> Result<String, BuildError<'t>> {
        // Arguments after `--` are for init, not for the kernel.
        let (for_kernel, for_init) = argument::split_at_init(self.guest.bootargs);
        let mut bootargs = String::from(for_kernel);
        if Choice::of(self.guest).mode == MovableMemory::Movablecore {
            let separator = if bootargs.is_empty() { "" } else { " " };
            // Sizes of blocks are multiples of 2 MiB.
            let _ = write!(bootargs, "{separator}movablecore={}M", self.guest.dmb_size() >> 20);
        }
        if self.is_without_default_cma() {
            let separator = if bootargs.is_empty() { "" } else { " " };
            let _ = write!(bootargs, "{separator}cma=0");
        }
        if let Some(slots) = self.bounce_slots() {
            let separator = if bootargs.is_empty() { "" } else { " " };
            let _ = write!(bootargs, "{separator}swiotlb={slots}");
        }
        bootargs.push_str(for_init);
        match bootargs.len() < BOOTARGS_LIMIT {
            true => Ok(bootargs),
            false => Err(BuildError::Bootargs(bootargs.len())),
        }
    }

    /// Tests whether the kernel should have no default CMA area: it would take up the DMA window, where Linux puts it. The
    /// areas of reserved memory remain, unless one of them is to be the default itself.
    fn is_without_default_cma(&self) -> bool {
        let has_default = |template: Node<'t>| {
            let reserved = template.child("reserved-memory");
            reserved.is_some_and(|node| node.children().any(|area| area.has("linux,cma-default")))
        };
        self.layout.window().is_some()
            && argument::value(self.guest.bootargs, "cma").is_none()
            && !self.guest.template.is_some_and(has_default)
    }

    /// Returns the number of slots of 2 KiB for swiotlb if its default size, 64 MiB, is more than half of the DMA window: drivers
    /// also allocate their rings in the window. Linux 6.1 would leave them nothing of 64 MiB.
    fn bounce_slots(&self) -> Option<u64> {
        const SLOT_SIZE: u64 = 2 << 10;
        const DEFAULT_SIZE: u64 = 64 << 20;
        let half = self.layout.window()?.size() / 2;
        let is_needed = half < DEFAULT_SIZE && argument::value(self.guest.bootargs, "swiotlb").is_none();
        is_needed.then_some(half / SLOT_SIZE)
    }

    /// Returns the method by which the guest learns of its movable memory.
    pub(crate) fn mode(&self) -> MovableMemory {
        Choice::of(self.guest).mode
    }

    /// Writes `/reserved-memory`, unless it would be empty. Linux silently ignores the node unless it has the root's
    /// cells and an empty `ranges`.
    #[inline(never)]
    fn reserved_memory(&self, writer: &mut Writer, host: Option<&Tree<'t>>) -> Result<(), Finding<'t>> {
        let blocks: &[&str] = match self.mode() {
            MovableMemory::Dmb => &["designated-movable-block"],
            MovableMemory::Cma => &["designated-movable-block", "shared-dma-pool"],
            _ => &[],
        };
        if blocks.is_empty() && !reserved::is_any(self, host) {
            return Ok(());
        }
        writer.begin("reserved-memory");
        writer.cells("#address-cells", &[2]);
        writer.cells("#size-cells", &[2]);
        writer.flag("ranges");
        if !blocks.is_empty() {
            memory::write_blocks(writer, self.layout, blocks);
        }
        reserved::write(writer, self, host)?;
        writer.end();
        Ok(())
    }

    #[inline(never)]
    fn chosen(&self, writer: &mut Writer, bootargs: &str) {
        writer.begin("chosen");
        writer.string("bootargs", bootargs);
        writer.string("stdout-path", "serial0:115200n8");
        if let Some(ramdisk) = self.plan.ramdisk {
            writer.number("linux,initrd-start", ramdisk.base().get());
            writer.number("linux,initrd-end", ramdisk.end());
        }
        if let Some(seed) = self.kaslr_seed {
            writer.number("kaslr-seed", seed);
        }
        if let Some(seed) = self.rng_seed {
            writer.bytes("rng-seed", &seed);
        }
        assigned::write_chosen(writer, self.assigned);
        extra::write_merged(writer, self, "chosen");
        writer.end();
    }

    fn aliases(&self, writer: &mut Writer) {
        writer.begin("aliases");
        writer.string("serial0", "/serial@9000000");
        extra::write_merged(writer, self, "aliases");
        writer.end();
    }

    #[inline(never)]
    fn cpus(&self, writer: &mut Writer, mode: MovableMemory) {
        writer.begin("cpus");
        writer.cells("#address-cells", &[1]);
        writer.cells("#size-cells", &[0]);
        let numa_node =
            memory::first_numa_node(self.guest, self.layout).filter(|_| mode == MovableMemory::Numa);
        for index in 0..self.guest.vcpu_count {
            // One cell is enough, since Aff3 is 0.
            let mpidr = platform::mpidr(index) as u32;
            writer.begin_at("cpu", mpidr.into());
            writer.string("device_type", "cpu");
            writer.string("compatible", "arm,armv8");
            writer.cells("reg", &[mpidr]);
            writer.string("enable-method", "psci");
            if let Some(node) = numa_node {
                writer.cells("numa-node-id", &[node]);
            }
            writer.end();
        }
        writer.end();
    }

    #[inline(never)]
    fn psci(&self, writer: &mut Writer) {
        writer.begin("psci");
        writer.strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"]);
        writer.string("method", "hvc");
        writer.end();
    }

    #[inline(never)]
    fn timer(&self, writer: &mut Writer, frequency_hz: Option<u32>) {
        writer.begin("timer");
        writer.string("compatible", "arm,armv8-timer");
        let [secure, physical, virtual_timer, hypervisor] = TIMER_PPIS;
        let ppi = |number| [PPI, number, LEVEL_HIGH];
        let interrupts = [ppi(secure), ppi(physical), ppi(virtual_timer), ppi(hypervisor)];
        writer.cells("interrupts", interrupts.as_flattened());
        // Guests read the host's CNTFRQ_EL0, which is wrong in this case.
        if let Some(frequency) = frequency_hz {
            writer.cells("clock-frequency", &[frequency]);
        }
        writer.flag("always-on");
        writer.end();
    }

    #[inline(never)]
    fn interrupt_controller(&self, writer: &mut Writer) {
        writer.begin_at("interrupt-controller", GICD_BASE);
        writer.string("compatible", "arm,gic-v3");
        let redistributors = GICR_STRIDE * u64::from(self.guest.vcpu_count);
        let regions = [reg(GICD_BASE, GICD_SIZE), reg(GICR_BASE, redistributors)];
        writer.cells("reg", regions.as_flattened());
        writer.cells("#interrupt-cells", &[3]);
        // The interrupt-map of a host bridge gives no address of this node.
        if self.assigned.is_some_and(|assigned| assigned.pci.is_some()) {
            writer.cells("#address-cells", &[0]);
        }
        writer.flag("interrupt-controller");
        writer.phandle(GIC_PHANDLE);
        writer.end();
    }

    #[inline(never)]
    fn clock(&self, writer: &mut Writer) {
        writer.begin("apb-pclk");
        writer.string("compatible", "fixed-clock");
        writer.cells("#clock-cells", &[0]);
        writer.cells("clock-frequency", &[UART_CLOCK_HZ]);
        writer.string("clock-output-names", "clk24mhz");
        writer.phandle(CLOCK_PHANDLE);
        writer.end();
    }

    #[inline(never)]
    fn serial(&self, writer: &mut Writer) {
        writer.begin_at("serial", UART_BASE);
        writer.strings("compatible", &["arm,pl011", "arm,primecell"]);
        writer.cells("reg", &reg(UART_BASE, UART_SIZE));
        writer.cells("interrupts", &[SPI, platform::UART_SPI, LEVEL_HIGH]);
        writer.cells("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE]);
        writer.strings("clock-names", &["uartclk", "apb_pclk"]);
        writer.end();
    }
}

#[cfg(test)]
mod tests;
