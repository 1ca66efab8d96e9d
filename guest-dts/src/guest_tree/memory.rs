//! RAM and designated movable blocks in a guest's tree.

use alloc::vec::Vec;
use core::fmt;

use super::writer::{Writer, reg};
use crate::argument;
use crate::config::{Guest, Layout, MovableMemory, RamRange};

/// The method by which a guest learns of its movable memory, and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The method; never [`MovableMemory::Auto`].
    pub mode: MovableMemory,
    /// The reason.
    pub reason: Reason,
}

/// The reason for a [`Choice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The configuration sets `movable-memory`.
    Configured,
    /// The guest has no movable blocks.
    NoBlocks,
    /// The boot arguments already have this argument about movable memory.
    BootArgument(&'static str),
    /// The template has a movable block in its reserved memory.
    Template,
    /// Default: the method that every Linux supports.
    Default,
}

/// Distance between two NUMA nodes: the least that the binding allows, since all RAM is equally fast.
const REMOTE_DISTANCE: u32 = 11;
/// Distance of a NUMA node to itself.
const LOCAL_DISTANCE: u32 = 10;
/// Boot arguments by which the operator divides the guest's memory.
const MOVABLE_ARGUMENTS: [&str; 3] = ["movablecore", "kernelcore", "movable_node"];

impl Choice {
    /// Chooses the method for `guest`.
    pub fn of(guest: &Guest<'_>) -> Self {
        let (mode, reason) = match guest.movable_memory {
            MovableMemory::Auto if guest.dmbs.is_empty() => match template_mode(guest) {
                Some(mode) => (mode, Reason::Template),
                None => (MovableMemory::None, Reason::NoBlocks),
            },
            MovableMemory::Auto => match movable_argument(guest) {
                Some(name) => (MovableMemory::None, Reason::BootArgument(name)),
                None => match template_mode(guest) {
                    Some(mode) => (mode, Reason::Template),
                    None => (MovableMemory::Movablecore, Reason::Default),
                },
            },
            // Without blocks there is nothing to add to the command line.
            MovableMemory::Movablecore if guest.dmbs.is_empty() => (MovableMemory::None, Reason::NoBlocks),
            mode => (mode, Reason::Configured),
        };
        Self { mode, reason }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "movable memory: {} ({})", self.mode.name(), self.reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("as configured"),
            Self::NoBlocks => f.write_str("no movable blocks"),
            Self::BootArgument(name) => write!(f, "boot arguments have {name}"),
            Self::Template => f.write_str("device-tree has a movable block"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Returns the boot argument that divides the memory of `guest`, if there is one.
pub(crate) fn movable_argument(guest: &Guest<'_>) -> Option<&'static str> {
    let named = |name: &&str| argument::value(guest.bootargs, name).is_some();
    MOVABLE_ARGUMENTS.into_iter().find(named)
}

/// Returns the method that the template uses for its own movable blocks, if it has any.
fn template_mode(guest: &Guest<'_>) -> Option<MovableMemory> {
    let reserved = guest.template?.child("reserved-memory")?;
    let mut blocks = reserved.children().filter(|node| node.is_enabled());
    let block = blocks.find(|node| node.is_compatible("designated-movable-block"))?;
    Some(if block.is_compatible("shared-dma-pool") { MovableMemory::Cma } else { MovableMemory::Dmb })
}

/// Writes the `memory` nodes, the NUMA distances and `/hypervisor`.
#[inline(never)]
pub(super) fn write(writer: &mut Writer, guest: &Guest<'_>, layout: &Layout, mode: MovableMemory) {
    for ram in &layout.ranges {
        writer.begin_at("memory", ram.range.base().get());
        writer.string("device_type", "memory");
        writer.cells("reg", &reg(ram.range.base().get(), ram.range.size()));
        if mode == MovableMemory::Numa {
            writer.cells("numa-node-id", &[numa_node(guest, ram)]);
        }
        writer.end();
    }
    if mode == MovableMemory::Numa {
        distance_map(writer, guest, layout);
    }
    hypervisor(writer, layout);
}

/// Writes a node of reserved memory for each block: exactly `compatible`, and one `reg` entry each.
#[inline(never)]
pub(super) fn write_blocks(writer: &mut Writer, layout: &Layout, compatible: &[&str]) {
    for ram in layout.dmbs() {
        writer.begin_at("dmb", ram.range.base().get());
        writer.strings("compatible", compatible);
        writer.flag("reusable");
        writer.cells("reg", &reg(ram.range.base().get(), ram.range.size()));
        writer.end();
    }
}

/// Writes `/hypervisor`: the movable RAM, and the interrupt that signals the end of an operation on a pool. Linux
/// ignores it.
#[inline(never)]
fn hypervisor(writer: &mut Writer, layout: &Layout) {
    writer.begin("hypervisor");
    writer.string("compatible", "ballast,hypervisor");
    writer.cells("interrupts", &[super::SPI, super::platform::POOL_SPI, super::EDGE_RISING]);
    writer.cells("#address-cells", &[2]);
    writer.cells("#size-cells", &[2]);
    writer.flag("ranges");
    for ram in layout.dmbs() {
        writer.begin_at("dmb", ram.range.base().get());
        writer.string("compatible", "ballast,movable-memory");
        writer.cells("reg", &reg(ram.range.base().get(), ram.range.size()));
        writer.end();
    }
    writer.end();
}

/// Returns the NUMA node of a region or block: the number of its first controller.
fn numa_node(guest: &Guest<'_>, ram: &RamRange) -> u32 {
    let region = guest.ram(ram.source);
    let controller = region.and_then(|region| region.placement.controllers.first());
    controller.copied().unwrap_or(0).into()
}

/// Returns the NUMA node of the vCPUs: the one of the first region.
pub(super) fn first_numa_node(guest: &Guest<'_>, layout: &Layout) -> Option<u32> {
    layout.ranges.first().map(|ram| numa_node(guest, ram))
}

#[inline(never)]
fn distance_map(writer: &mut Writer, guest: &Guest<'_>, layout: &Layout) {
    // By ascending number; controller numbers have 8 bits.
    let is_there = |node: &u32| layout.ranges.iter().any(|ram| numa_node(guest, ram) == *node);
    let nodes: Vec<u32> = (0..256).filter(is_there).collect();
    let mut matrix = Vec::new();
    for &from in &nodes {
        for &to in &nodes {
            matrix.extend([from, to, if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE }]);
        }
    }
    writer.begin("distance-map");
    writer.string("compatible", "numa-distance-map-v1");
    writer.cells("distance-matrix", &matrix);
    writer.end();
}
