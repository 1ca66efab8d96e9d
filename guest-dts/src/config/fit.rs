//! Checks of a configuration against the host: CPUs, controllers and free memory.

use heapless::Vec;
use stage2::name::Name;

use super::reader::Reader;
use super::{
    CONTROLLER_LIMIT, Configuration, Extent, Guest, Layout, Placement, REGION_LIMIT, RamRegion, Severity,
    Sink, Spread, Strictness,
};
use crate::finding::{Finding, Rule, Shortage, Value};
use crate::guest_tree::GuestTree;
use crate::image::{BootPlan, Image};
use crate::range::PaRange;
use crate::tree::{Node, Tree};

/// The host's resources for guests.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Number of CPUs.
    pub cpu_count: u32,
    /// The controllers.
    pub controllers: Vec<ControllerRoom, CONTROLLER_LIMIT>,
}

/// A controller and its free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerRoom {
    /// The controller's number.
    pub id: u8,
    /// Free bytes for guests.
    pub free: u64,
    /// The part of `free` that can hold memory that never moves: free bytes of NORMAL, less Ballast's reserve.
    pub unmovable: u64,
}

impl ControllerRoom {
    /// Returns the free bytes for memory that never moves or for memory that can move.
    fn bytes(&self, is_unmovable: bool) -> u64 {
        if is_unmovable { self.unmovable } else { self.free }
    }

    /// Subtracts at most `size` bytes and returns the number subtracted.
    fn take(&mut self, size: u64, is_unmovable: bool) -> u64 {
        let taken = size.min(self.bytes(is_unmovable));
        self.free -= taken;
        // Memory that can move goes into MOVABLE first.
        self.unmovable = if is_unmovable { self.unmovable - taken } else { self.unmovable.min(self.free) };
        taken
    }
}

impl<'t> Configuration<'t> {
    /// Refuses guests that do not fit `host`'s CPUs and memory, in the order of the configuration. CPUs count for all
    /// guests; memory counts only for guests that start at boot.
    pub fn fit(&mut self, host: &Host, sink: &mut dyn Sink<'t>) {
        while self.fit_some(host, sink).is_some() {}
    }

    /// Refuses guests like [`Configuration::fit`], but returns after refusing a guest with reserved memory, with the
    /// ranges of that memory. The caller releases them, which makes more room on `host`, and calls this again until
    /// it returns `None`.
    #[must_use]
    pub fn fit_some(&mut self, host: &Host, sink: &mut dyn Sink<'t>) -> Option<Vec<PaRange, REGION_LIMIT>> {
        let mut reader = Reader::new(sink);
        let mut left = host.clone();
        let mut index = 0;
        while let Some(guest) = self.guests.get(index) {
            reader.begin();
            let cpus_before = left.cpu_count;
            fit_cpus(guest, host, &mut left, &mut reader);
            let mut after = if guest.starts_at_boot { left.clone() } else { host.clone() };
            fit_memory(guest, &mut after, &mut reader);
            match reader.take_error() {
                Some(finding) => {
                    left.cpu_count = cpus_before;
                    let reserved: Vec<_, REGION_LIMIT> = guest.reserved_ranges().collect();
                    self.refuse(index, finding);
                    if !reserved.is_empty() {
                        return Some(reserved);
                    }
                }
                None => {
                    if guest.starts_at_boot {
                        left.controllers = after.controllers;
                    }
                    index += 1;
                }
            }
        }
        None
    }

    /// Refuses guests that a host with `cpu_count` CPUs could not even run alone, before memory is reserved for them.
    pub fn fit_cpus(&mut self, cpu_count: u32, sink: &mut dyn Sink<'t>) {
        let mut reader = Reader::new(sink);
        let host = Host { cpu_count, ..Host::default() };
        let mut index = 0;
        while let Some(guest) = self.guests.get(index) {
            reader.begin();
            fit_cpus(guest, &host, &mut host.clone(), &mut reader);
            match reader.take_error() {
                Some(finding) => self.refuse(index, finding),
                None => index += 1,
            }
        }
    }

    /// Refuses blocks and pools without `reg` that are larger than the free memory of every controller of `host`.
    /// Does not subtract them from `host`, since guests use their memory.
    pub fn fit_blocks(&mut self, host: &Host, sink: &mut dyn Sink<'t>) {
        let mut reader = Reader::new(sink);
        let before = self.blocks.len() + self.pools.len();
        self.blocks.retain(|block| has_room(block.node, &block.extent, host, &mut reader));
        self.pools.retain(|pool| has_room(pool.node, &pool.extent, host, &mut reader));
        self.has_refused_blocks |= self.blocks.len() + self.pools.len() < before;
    }

    /// Refuses pools whose name, cut to the length that the console keeps, equals one of `names`: those of the host's
    /// pools.
    pub fn differ_from<'n>(&mut self, names: impl Iterator<Item = &'n str> + Clone, sink: &mut dyn Sink<'t>) {
        let mut reader = Reader::new(sink);
        let mut refused = alloc::vec::Vec::new();
        self.pools.retain(|pool| {
            let name = Name::new(pool.node.name());
            let is_good = !names.clone().any(|other| Name::new(other) == name);
            if !is_good {
                let rule = Rule::Must(
                    "have a name whose first 31 characters differ from the names of the pools in the host's tree",
                );
                reader.error(Finding::node(pool.node, rule));
                refused.push(pool.extent.range());
            }
            is_good
        });
        refused.into_iter().for_each(|range| self.withhold(range));
    }

    /// Refuses guests whose `host-nodes` break a rule, and notes which of the other guests' nodes are left out or
    /// changed.
    pub fn fit_nodes(&mut self, host: &Tree<'t>, sink: &mut dyn Sink<'t>) {
        let mut reader = Reader::new(sink);
        let mut index = 0;
        while let Some(guest) = self.guests.get(index) {
            reader.begin();
            if !guest.host_nodes.is_empty() {
                fit_guest_nodes(guest, host, &mut reader);
            }
            match reader.take_error() {
                Some(finding) => self.refuse(index, finding),
                None => index += 1,
            }
        }
    }
}

impl<'t> Guest<'t> {
    /// Checks that the guest's memory fits into the free memory of `host`.
    ///
    /// # Errors
    /// The first region that does not fit, with the number of missing bytes and the controllers that have room.
    pub fn fit(&self, host: &Host) -> Result<(), Finding<'t>> {
        let mut first = None;
        let mut sink = |_: Severity, finding: Finding<'t>| {
            first.get_or_insert(finding);
        };
        fit_memory(self, &mut host.clone(), &mut Reader::new(&mut sink));
        first.map_or(Ok(()), Err)
    }
}

fn fit_guest_nodes<'t>(guest: &Guest<'t>, host: &Tree<'t>, reader: &mut Reader<'_, 't>) {
    // These were checked before and do not fail.
    let (Ok(layout), Ok(image)) = (Layout::of(guest), Image::parse(guest.kernel)) else { return };
    let ramdisk_size = guest.ramdisk.map(|ramdisk| ramdisk.len() as u64);
    let Ok(plan) = BootPlan::new(&image, ramdisk_size, layout.regions()) else { return };
    let tree =
        GuestTree { guest, layout: &layout, plan: &plan, assigned: None, kaslr_seed: None, rng_seed: None };
    match tree.check(Some(host)) {
        Ok(()) => tree.notes(Some(host), &mut |finding| reader.note(finding)),
        Err(finding) => reader.error(finding),
    }
}

/// Tests whether one of the allowed controllers has enough RAM for a block or pool; always true for one with `reg`.
fn has_room<'t>(node: Node<'t>, extent: &Extent, host: &Host, reader: &mut Reader<'_, 't>) -> bool {
    let Extent::Dynamic { size, controllers, .. } = extent else { return true };
    if let Some(id) = host.unknown(controllers) {
        let rule = Rule::NoController { count: host.controllers.len() };
        reader.error(Finding::new(node, Some("controllers"), Value::Number(id.into()), rule));
        return false;
    }
    let is_allowed = |room: &&ControllerRoom| controllers.is_empty() || controllers.contains(&room.id);
    let free = host.controllers.iter().filter(is_allowed).map(|room| room.free).max().unwrap_or(0);
    if free >= *size {
        return true;
    }
    let controller = controllers.first().copied().filter(|_| controllers.len() == 1);
    let rule = Rule::Shortage(host.shortage(*size, free, controller, false));
    reader.error(Finding::new(node, Some("size"), Value::Size(*size), rule));
    false
}

/// Subtracts the CPUs of `guest` from `left`, or reports that they are missing.
fn fit_cpus<'t>(guest: &Guest<'t>, host: &Host, left: &mut Host, reader: &mut Reader<'_, 't>) {
    let finding = |name, value, rule| match guest.node {
        Some(node) => Finding::new(node, Some(name), value, rule),
        None => Finding::argument(name, value, rule),
    };
    let vcpus = if guest.node.is_some() { "vcpus" } else { "cpus" };
    if let Some(&cpu) = guest.cpus.iter().find(|&&cpu| u32::from(cpu) >= host.cpu_count) {
        let rule = Rule::OnlyCpus { total: host.cpu_count, free: left.cpu_count };
        reader.error(finding("host-cpus", Value::Number(cpu.into()), rule));
    } else if guest.vcpu_count > left.cpu_count {
        let rule = Rule::OnlyCpus { total: host.cpu_count, free: left.cpu_count };
        reader.error(finding(vcpus, Value::Number(guest.vcpu_count.into()), rule));
    }
    left.cpu_count = left.cpu_count.saturating_sub(guest.vcpu_count);
}

/// Subtracts the memory of `guest` from `room`, or reports what is missing.
fn fit_memory<'t>(guest: &Guest<'t>, room: &mut Host, reader: &mut Reader<'_, 't>) {
    for region in guest.regions.iter().chain(&guest.dmbs) {
        if region.backing.is_some() {
            continue; // The memory map has reserved it, or decides whether this address is free.
        }
        if let Err(finding) = take(guest, region, room) {
            reader.error(finding);
        }
    }
}

/// Subtracts the memory for `region` from `room`.
fn take<'t>(guest: &Guest<'t>, region: &RamRegion<'t>, room: &mut Host) -> Result<(), Finding<'t>> {
    let placement = &region.placement;
    let finding = |name, value, rule| match region.node.or(guest.node) {
        Some(node) => Finding::new(node, Some(name), value, rule),
        None => Finding::argument("memory", value, rule),
    };
    if let Some(id) = room.unknown(&placement.controllers) {
        let rule = Rule::NoController { count: room.controllers.len() };
        return Err(finding("controllers", Value::Number(id.into()), rule));
    }
    let is_unmovable = guest.migration.is_opted_out || region.is_dma_window;
    let free = room.free_on(placement, is_unmovable);
    if region.size > free {
        let controller = placement.controllers.first().copied().filter(|_| placement.controllers.len() == 1);
        let shortage = room.shortage(region.size, free, controller, is_unmovable);
        let name = if region.ipa.is_some() { "reg" } else { "size" };
        return Err(finding(name, Value::Size(region.size), Rule::Shortage(shortage)));
    }
    room.subtract(placement, region.size, is_unmovable);
    Ok(())
}

impl Host {
    /// Returns the first of `controllers` that the host does not have.
    fn unknown(&self, controllers: &[u8]) -> Option<u8> {
        controllers.iter().copied().find(|id| !self.controllers.iter().any(|room| room.id == *id))
    }

    /// Describes how much of `size` is missing if `free` bytes are free, and which controller has room for all of it.
    fn shortage(&self, size: u64, free: u64, controller: Option<u8>, is_unmovable: bool) -> Shortage {
        let bytes = |other: &ControllerRoom| other.bytes(is_unmovable);
        Shortage {
            free,
            missing: size.saturating_sub(free),
            controller,
            fits_on: self.controllers.iter().find(|other| bytes(other) >= size).map(|other| other.id),
            free_in_all: self.controllers.iter().fold(0, |sum, other| sum.saturating_add(bytes(other))),
        }
    }

    /// Returns the free bytes on the controllers that `placement` allows.
    fn free_on(&self, placement: &Placement, is_unmovable: bool) -> u64 {
        let allowed = self.controllers.iter().filter(|controller| {
            placement.controllers.is_empty()
                || placement.strictness == Strictness::Preferred
                || placement.controllers.contains(&controller.id)
        });
        allowed.fold(0, |sum, controller| sum.saturating_add(controller.bytes(is_unmovable)))
    }

    /// Subtracts `size` bytes, which are free, as an allocation by `placement` would.
    fn subtract(&mut self, placement: &Placement, mut size: u64, is_unmovable: bool) {
        if placement.spread == Spread::Interleaved {
            let share = size.checked_div(placement.controllers.len() as u64).unwrap_or(0);
            for controller in &mut self.controllers {
                if placement.controllers.contains(&controller.id) {
                    size -= controller.take(share, is_unmovable);
                }
            }
        }
        for id in &placement.controllers {
            if let Some(controller) = self.controllers.iter_mut().find(|controller| controller.id == *id) {
                size -= controller.take(size, is_unmovable);
            }
        }
        for controller in &mut self.controllers {
            size -= controller.take(size, is_unmovable);
        }
    }
}
