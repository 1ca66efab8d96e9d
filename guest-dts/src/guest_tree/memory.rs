//! RAM in a guest's tree, and how it is told of its designated movable blocks.

use alloc::vec::Vec;
use core::fmt;

use super::writer::{Writer, reg};
use crate::argument;
use crate::config::{Bank, BankKind, Guest, Layout, MovableMemory};

/// How a guest is told of its movable memory, and why so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How; never [`MovableMemory::Auto`].
    pub mode: MovableMemory,
    /// Why.
    pub reason: Reason,
}

/// Why a guest is told of its movable memory as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The configuration says so.
    Configured,
    /// It has no movable blocks.
    NoBlocks,
    /// Its boot arguments say something about movable memory already: which.
    BootArgument(&'static str),
    /// A node of reserved memory in its template is a movable block.
    Template,
    /// What every Linux understands.
    Default,
}

/// Distance between two NUMA nodes: the least that the binding allows, since all RAM is equally near.
const REMOTE_DISTANCE: u32 = 11;
/// Distance of a NUMA node to itself.
const LOCAL_DISTANCE: u32 = 10;
/// Boot arguments by which the operator divides the guest's memory.
const MOVABLE_ARGUMENTS: [&str; 3] = ["movablecore", "kernelcore", "movable_node"];

impl Choice {
    /// How `guest` is told.
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
            Self::Template => f.write_str("its template has a movable block"),
            Self::Default => f.write_str("by default"),
        }
    }
}

/// The argument by which the operator divides the memory of `guest`, if there is one.
pub(crate) fn movable_argument(guest: &Guest<'_>) -> Option<&'static str> {
    let named = |name: &&str| argument::value(guest.bootargs, name).is_some();
    MOVABLE_ARGUMENTS.into_iter().find(named)
}

/// How the guest's template tells it of movable blocks of its own, if it does: what its kernel knows.
fn template_mode(guest: &Guest<'_>) -> Option<MovableMemory> {
    let reserved = guest.template?.child("reserved-memory")?;
    let mut blocks = reserved.children().filter(|node| node.is_enabled());
    let block = blocks.find(|node| node.is_compatible("designated-movable-block"))?;
    Some(if block.is_compatible("shared-dma-pool") { MovableMemory::Cma } else { MovableMemory::Dmb })
}

/// Writes the `memory` nodes and what describes the movable blocks.
#[inline(never)]
pub(super) fn write(writer: &mut Writer, guest: &Guest<'_>, layout: &Layout, mode: MovableMemory) {
    for bank in &layout.banks {
        writer.begin_at("memory", bank.range.base().get());
        writer.string("device_type", "memory");
        writer.cells("reg", &reg(bank.range.base().get(), bank.range.size()));
        if mode == MovableMemory::Numa {
            writer.cells("numa-node-id", &[numa_node(guest, bank)]);
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
    for bank in layout.dmbs() {
        writer.begin_at("dmb", bank.range.base().get());
        writer.strings("compatible", compatible);
        writer.flag("reusable");
        writer.cells("reg", &reg(bank.range.base().get(), bank.range.size()));
        writer.end();
    }
}

/// `/hypervisor`: tells whoever asks which RAM is movable, and by which interrupt operations on pools end. Linux reads nothing of it, and loses nothing by it.
#[inline(never)]
fn hypervisor(writer: &mut Writer, layout: &Layout) {
    writer.begin("hypervisor");
    writer.string("compatible", "ballast,hypervisor");
    writer.cells("interrupts", &[super::SPI, super::platform::POOL_SPI, super::EDGE_RISING]);
    writer.cells("#address-cells", &[2]);
    writer.cells("#size-cells", &[2]);
    writer.flag("ranges");
    for bank in layout.dmbs() {
        writer.begin_at("dmb", bank.range.base().get());
        writer.string("compatible", "ballast,movable-memory");
        writer.cells("reg", &reg(bank.range.base().get(), bank.range.size()));
        writer.end();
    }
    writer.end();
}

/// The NUMA node of a bank: the number of the first controller behind it.
fn numa_node(guest: &Guest<'_>, bank: &Bank) -> u32 {
    let region = match bank.kind {
        BankKind::Region(index) => guest.regions.get(usize::from(index)),
        BankKind::Dmb(index) => guest.dmbs.get(usize::from(index)),
    };
    let controller = region.and_then(|region| region.placement.controllers.first());
    controller.copied().unwrap_or(0).into()
}

/// The NUMA node that the vCPUs belong to: that of the first bank.
pub(super) fn first_numa_node(guest: &Guest<'_>, layout: &Layout) -> Option<u32> {
    layout.banks.first().map(|bank| numa_node(guest, bank))
}

#[inline(never)]
fn distance_map(writer: &mut Writer, guest: &Guest<'_>, layout: &Layout) {
    // By rising number: numbers of controllers have 8 bits.
    let is_there = |node: &u32| layout.banks.iter().any(|bank| numa_node(guest, bank) == *node);
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
