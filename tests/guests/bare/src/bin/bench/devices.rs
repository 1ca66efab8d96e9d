//! The cost of devices: a PL061 whose line software raises and masks, and the configuration space of PCI functions.
//!
//! | name | operation |
//! |---|---|
//! | `line` | interrupt of the PL061, from unmasking its line until its handler has masked it and returned |
//! | `pci_config_read` | read of the first word of device 1 on bus 0 |

use core::sync::atomic::Ordering;

use bare::fdt::Tree;
use bare::mmio::{read32, write32};
use bare::platform::Platform;
use bare::{gic, msr, say};

use crate::{BENCH_FLAGS, bench_line, bench_line_vectors, bench_read, measure};

/// Registers of a PL061 (Arm DDI 0190, "Summary of PrimeCell GPIO registers"). Each has a bit for each pin.
mod register {
    /// Direction: 1 for an output.
    pub(super) const DIRECTION: usize = 0x400;
    /// Sense: 1 for a level.
    pub(super) const SENSE: usize = 0x404;
    /// Event: 0 for a low level.
    pub(super) const EVENT: usize = 0x40c;
    /// Mask: 1 lets the pin's interrupt through.
    pub(super) const MASK: usize = 0x410;
    /// Interrupts before the mask.
    pub(super) const RAW_STATUS: usize = 0x414;
}

/// Offset of device 1, function 0 in the configuration space of bus 0.
const DEVICE_1: u64 = 1 << 15;

/// Devices in the guest's tree.
#[derive(Default)]
struct Found {
    gpio: Option<(u64, u32)>,
    configuration: Option<u64>,
}

/// Measures the devices that the tree describes.
pub(crate) fn measure_all(platform: &Platform) {
    let mut found = Found::default();
    if let Some(tree) = Tree::at(platform.tree.start) {
        tree.for_each(|node| {
            let base = node.region(0).map(|(base, _)| base);
            if node.is_compatible("arm,pl061") && node.is_enabled() {
                // SPIs begin at INTID 32.
                found.gpio = base.zip(node.interrupt_cell(1).map(|number| number + 32));
            } else if node.is_compatible("pci-host-ecam-generic") {
                found.configuration = base;
            }
        });
    }
    match found.gpio {
        Some((base, intid)) => measure_line(platform, base as usize, intid),
        None => say!("bench line skipped: no PL061"),
    }
    match found.configuration.map(|base| base + DEVICE_1) {
        Some(base) if read32(base as usize) != u32::MAX => {
            measure("pci_config_read", bench_read, base);
        }
        _ => say!("bench pci_config_read skipped: no device 1"),
    }
}

/// Measures the interrupt of the PL061 at `base`. Its pin 0 is an input that is low.
fn measure_line(platform: &Platform, base: usize, intid: u32) {
    write32(base + register::MASK, 0);
    write32(base + register::DIRECTION, 0);
    write32(base + register::SENSE, 1);
    write32(base + register::EVENT, 0);
    if read32(base + register::RAW_STATUS) & 1 == 0 {
        say!("bench line skipped: pin 0 is high");
        return;
    }
    let mask = (base + register::MASK) as u64;
    BENCH_FLAGS[0].mask.store(mask, Ordering::Relaxed);
    msr!("contextidr_el1", core::ptr::from_ref(&BENCH_FLAGS[0]) as u64);
    msr!("vbar_el1", &raw const bench_line_vectors as u64);
    gic::set_edge(intid, 0);
    gic::route(intid, platform.cpus()[0]);
    gic::enable(intid);
    bare::register::unmask_interrupts();
    measure("line", bench_line, mask);
    bare::register::mask_interrupts();
    gic::disable(intid);
}
