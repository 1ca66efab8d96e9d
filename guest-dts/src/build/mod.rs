//! The tree that a guest gets: the fixed platform, and what its configuration says.

mod memory;
pub mod platform;
mod writer;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write;

use crate::config::{BOOTARGS_LIMIT, Guest, Layout, MovableMemory};
use crate::image::BootPlan;
use platform::{
    GICD_BASE, GICD_SIZE, GICR_BASE, GICR_STRIDE, TIMER_PPIS, UART_BASE, UART_CLOCK_HZ, UART_SIZE,
};

pub use memory::{Choice, Reason};
use writer::{Writer, reg};

/// Phandles of Ballast's own nodes, far from those that `dtc` gives out from 1 on.
const GIC_PHANDLE: u32 = 0xba11_0001;
const CLOCK_PHANDLE: u32 = 0xba11_0002;

/// Interrupt type and flags of a specifier (binding `arm,gic-v3`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// What a guest's tree is made of.
#[derive(Clone, Copy, Debug)]
pub struct GuestTree<'a, 't> {
    /// The guest.
    pub guest: &'a Guest<'t>,
    /// Its RAM.
    pub layout: &'a Layout,
    /// Where its images lie.
    pub plan: &'a BootPlan,
    /// Seed for its kernel's address space layout, if there is one.
    pub kaslr_seed: Option<u64>,
    /// Seed for its random numbers, if there is one.
    pub rng_seed: Option<[u8; 32]>,
}

/// Why a tree cannot be built.
#[derive(Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The boot arguments, with what is added to them, are too long: their length.
    Bootargs(usize),
    /// The tree is larger than its room: its size.
    TooLarge(usize),
    /// The writer refused something.
    Writer(vm_fdt::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootargs(length) => {
                write!(
                    f,
                    "bootargs: {length} bytes with what is added to them; must be shorter than {BOOTARGS_LIMIT}"
                )
            }
            Self::TooLarge(size) => write!(f, "the guest's tree has {size} bytes; must be at most 2 MiB"),
            Self::Writer(error) => write!(f, "the guest's tree: {error}"),
        }
    }
}

impl core::error::Error for BuildError {}

impl From<vm_fdt::Error> for BuildError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer(error)
    }
}

impl GuestTree<'_, '_> {
    /// Writes the tree.
    ///
    /// # Errors
    /// Where it would be too large, or what the configuration adds to it is malformed.
    pub fn build(&self) -> Result<Vec<u8>, BuildError> {
        let choice = Choice::of(self.guest);
        let mut writer = Writer::new()?;
        let root = writer.begin("")?;
        writer.strings("compatible", &["ballast,virt", "linux,dummy-virt"])?;
        writer.string("model", "Ballast guest")?;
        writer.cells("#address-cells", &[2])?;
        writer.cells("#size-cells", &[2])?;
        writer.cells("interrupt-parent", &[GIC_PHANDLE])?;
        self.chosen(&mut writer, choice.mode)?;
        self.aliases(&mut writer)?;
        self.cpus(&mut writer, choice.mode)?;
        memory::write(&mut writer, self.guest, self.layout, choice.mode)?;
        self.psci(&mut writer)?;
        self.timer(&mut writer)?;
        self.interrupt_controller(&mut writer)?;
        self.clock(&mut writer)?;
        self.serial(&mut writer)?;
        writer.end(root)?;
        let blob = writer.finish()?;
        match blob.len() as u64 <= platform::TREE_SLOT_SIZE {
            true => Ok(blob),
            false => Err(BuildError::TooLarge(blob.len())),
        }
    }

    /// The boot arguments that the guest gets.
    ///
    /// # Errors
    /// Where they are too long.
    pub fn bootargs(&self) -> Result<String, BuildError> {
        let mut bootargs = String::from(self.guest.bootargs);
        if Choice::of(self.guest).mode == MovableMemory::Movablecore {
            let separator = if bootargs.is_empty() { "" } else { " " };
            // Sizes of blocks are multiples of 2 MiB.
            let _ = write!(bootargs, "{separator}movablecore={}M", self.guest.dmb_size() >> 20);
        }
        match bootargs.len() < BOOTARGS_LIMIT {
            true => Ok(bootargs),
            false => Err(BuildError::Bootargs(bootargs.len())),
        }
    }

    fn chosen(&self, writer: &mut Writer, _mode: MovableMemory) -> Result<(), BuildError> {
        let chosen = writer.begin("chosen")?;
        writer.string("bootargs", &self.bootargs()?)?;
        writer.string("stdout-path", "serial0:115200n8")?;
        if let Some(ramdisk) = self.plan.ramdisk {
            writer.number("linux,initrd-start", ramdisk.base().get())?;
            writer.number("linux,initrd-end", ramdisk.end())?;
        }
        if let Some(seed) = self.kaslr_seed {
            writer.number("kaslr-seed", seed)?;
        }
        if let Some(seed) = self.rng_seed {
            writer.bytes("rng-seed", &seed)?;
        }
        writer.end(chosen)
    }

    fn aliases(&self, writer: &mut Writer) -> Result<(), BuildError> {
        let aliases = writer.begin("aliases")?;
        writer.string("serial0", "/serial@9000000")?;
        writer.end(aliases)
    }

    fn cpus(&self, writer: &mut Writer, mode: MovableMemory) -> Result<(), BuildError> {
        let cpus = writer.begin("cpus")?;
        writer.cells("#address-cells", &[1])?;
        writer.cells("#size-cells", &[0])?;
        let numa_node =
            memory::first_numa_node(self.guest, self.layout).filter(|_| mode == MovableMemory::Numa);
        for index in 0..self.guest.vcpu_count {
            // Aff3 is 0, so one cell holds it.
            let mpidr = platform::mpidr(index) as u32;
            let cpu = writer.begin_at("cpu", mpidr.into())?;
            writer.string("device_type", "cpu")?;
            writer.string("compatible", "arm,armv8")?;
            writer.cells("reg", &[mpidr])?;
            writer.string("enable-method", "psci")?;
            if let Some(node) = numa_node {
                writer.cells("numa-node-id", &[node])?;
            }
            writer.end(cpu)?;
        }
        writer.end(cpus)
    }

    fn psci(&self, writer: &mut Writer) -> Result<(), BuildError> {
        let psci = writer.begin("psci")?;
        writer.strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
        writer.string("method", "hvc")?;
        writer.end(psci)
    }

    fn timer(&self, writer: &mut Writer) -> Result<(), BuildError> {
        let timer = writer.begin("timer")?;
        writer.string("compatible", "arm,armv8-timer")?;
        let [secure, physical, virtual_timer, hypervisor] = TIMER_PPIS;
        let ppi = |number| [PPI, number, LEVEL_HIGH];
        let interrupts = [ppi(secure), ppi(physical), ppi(virtual_timer), ppi(hypervisor)];
        writer.cells("interrupts", interrupts.as_flattened())?;
        writer.flag("always-on")?;
        writer.end(timer)
    }

    fn interrupt_controller(&self, writer: &mut Writer) -> Result<(), BuildError> {
        let gic = writer.begin_at("interrupt-controller", GICD_BASE)?;
        writer.string("compatible", "arm,gic-v3")?;
        let redistributors = GICR_STRIDE * u64::from(self.guest.vcpu_count);
        let regions = [reg(GICD_BASE, GICD_SIZE), reg(GICR_BASE, redistributors)];
        writer.cells("reg", regions.as_flattened())?;
        writer.cells("#interrupt-cells", &[3])?;
        writer.flag("interrupt-controller")?;
        writer.phandle(GIC_PHANDLE)?;
        writer.end(gic)
    }

    fn clock(&self, writer: &mut Writer) -> Result<(), BuildError> {
        let clock = writer.begin("apb-pclk")?;
        writer.string("compatible", "fixed-clock")?;
        writer.cells("#clock-cells", &[0])?;
        writer.cells("clock-frequency", &[UART_CLOCK_HZ])?;
        writer.string("clock-output-names", "clk24mhz")?;
        writer.phandle(CLOCK_PHANDLE)?;
        writer.end(clock)
    }

    fn serial(&self, writer: &mut Writer) -> Result<(), BuildError> {
        let serial = writer.begin_at("serial", UART_BASE)?;
        writer.strings("compatible", &["arm,pl011", "arm,primecell"])?;
        writer.cells("reg", &reg(UART_BASE, UART_SIZE))?;
        writer.cells("interrupts", &[SPI, platform::UART_SPI, LEVEL_HIGH])?;
        writer.cells("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE])?;
        writer.strings("clock-names", &["uartclk", "apb_pclk"])?;
        writer.end(serial)
    }
}
