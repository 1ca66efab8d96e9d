//! The physical map before anything runs: from what the host's tree, the loader and the configuration say to the boot
//! memory map, and what is left of it for guests. Pure, so that a PC can tell an operator what a host would say.

mod designate;
mod pinned;

pub use crate::board::MAX_CPUS;
use crate::board::{Board, Extent};
use core::fmt;
use designate::kind;
use guest_dts::config::{Configuration, ControllerRoom, Host, Severity};
use guest_dts::finding::Finding;
use guest_dts::tree::Tree;
pub use pinned::give_back;
use stage2::addr::{FRAME_SHIFT, FRAME_SIZE, PAGEBLOCK_SIZE};
use stage2::controller::ControllerId;
use stage2::phys::alloc::Memory;
use stage2::phys::frame::Footprint;
use stage2::phys::map::{BootMap, MapError, Reservation, ReservationKind};
use stage2::range::FrameRange;

/// NORMAL memory that guests leave for Ballast and its tables, in frames: 8 MiB.
pub const NORMAL_FLOOR_FRAMES: u64 = 2048;

/// First physical address without a place in EL2's linear map (64 TiB): Ballast keeps nothing of its own from there on.
pub const LINEAR_LIMIT: u64 = 1 << 46;

/// Takes what is found on the way: a line of text, and how much it matters.
pub type Tell<'a> = dyn FnMut(Severity, fmt::Arguments<'_>) + 'a;

/// Tells of findings in a configuration, as such.
pub fn tell_finding<'t>(tell: &mut Tell<'_>) -> impl FnMut(Severity, Finding<'t>) {
    move |severity, finding| tell(severity, format_args!("configuration: {finding}"))
}

/// What lies in RAM besides what the host's tree says, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The image with its zeroed data: address and size.
    pub image: Option<(u64, u64)>,
    /// What of it the start alone needs: address and size.
    pub start: Option<(u64, u64)>,
    /// The host's device tree: address and size.
    pub tree: Option<(u64, u64)>,
}

/// Why there is no map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutError<'t> {
    /// What could not be put there.
    pub what: &'t str,
    /// Why.
    pub error: MapError,
}

impl fmt::Display for LayoutError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

/// Lays out `map`, which is empty: RAM, what is taken of it, guests' pinned RAM, designated blocks and pools, and the
/// frame table, whose frames are returned. `tree` is the board's.
///
/// # Errors
/// Memory that cannot be described: ranges that overlap, more of them than the map holds, no room for the frame table.
/// What is wrong with the configuration or with what is designated is told, and the rest goes on without it.
pub fn lay_out<'t>(
    map: &mut BootMap,
    tree: &Tree<'t>,
    board: &Board<'t>,
    loaded: &Loaded,
    mut configuration: Option<&mut Configuration<'t>>,
    tell: &mut Tell<'_>,
) -> Result<FrameRange, LayoutError<'t>> {
    let failed = |what| move |error| LayoutError { what, error };
    for ram in &board.ram.ranges {
        let Some(id) = ControllerId::try_new(ram.controller) else { continue };
        map.add_ram(id, ram.range.base().get(), ram.range.size()).map_err(failed("RAM"))?;
    }
    let mut reserve =
        |base, size, kind, name: &'t str| map.reserve(base, size, kind, name).map_err(failed(name));
    if let Some((base, size)) = loaded.image {
        reserve(base, size, ReservationKind::Image, "Ballast")?;
    }
    if let Some((base, size)) = loaded.start {
        // A reservation of its own, so that it can be given back as a whole.
        reserve(base, size, ReservationKind::Image, "start")?;
    }
    if let Some((base, size)) = loaded.tree {
        reserve(base, size, ReservationKind::DeviceTree, "device tree")?;
    }
    if let Some(initrd) = &board.chosen.initrd {
        reserve(initrd.base().get(), initrd.size(), ReservationKind::Module, "configuration")?;
    }
    for module in &board.chosen.modules {
        reserve(module.range.base().get(), module.range.size(), ReservationKind::Module, "boot module")?;
    }
    // What is designated lies in the map as such, not as reserved.
    for reservation in board.reservations.iter().filter(|reservation| kind(reservation).is_none()) {
        if let Extent::Static(range) = &reservation.extent {
            let kind = if reservation.is_no_map { ReservationKind::NoMap } else { ReservationKind::Firmware };
            let name = reservation.node.as_ref().map_or("reserved", |node| node.name());
            // EL2 maps what it and guests have by pageblock, which must not reach what is not to be mapped.
            let below = if kind.is_no_map() { PAGEBLOCK_SIZE - 1 } else { 0 };
            let base = range.base().get() & !below;
            let size = ((range.base().get() + range.size() + below) & !below) - base;
            reserve(base, size, kind, name)?;
        }
    }
    if let Some(configuration) = configuration.as_deref_mut() {
        // What cannot run here keeps nothing.
        configuration.fit_nodes(tree, &mut tell_finding(tell));
        configuration.fit_cpus(board.cpus.len().min(MAX_CPUS) as u32, &mut tell_finding(tell));
        pinned::reserve(map, board, configuration, tell).map_err(failed("pinned memory"))?;
    }
    designate::designate(map, board, configuration, tell);
    if map.ram().any(|(ram, _)| ram.end() > LINEAR_LIMIT >> FRAME_SHIFT) {
        map.restrict_to_movable(LINEAR_LIMIT >> FRAME_SHIFT, "above 64 TiB")
            .map_err(failed("RAM above 64 TiB"))?;
        tell(
            Severity::Note,
            format_args!(
                "RAM above {LINEAR_LIMIT:#x} (64 TiB) is for guests' movable memory: EL2 does not map it for itself"
            ),
        );
    }
    map.carve(Footprint::of(map).bytes(), PAGEBLOCK_SIZE, "frame table").map_err(failed("frame table"))
}

/// What some of that which the start alone needs lies in besides, so that it cannot be given back: a reservation of the
/// host's tree's, or no RAM at all.
pub fn other_in_start<'m>(map: &'m BootMap, loaded: &Loaded) -> Option<&'m str> {
    let range = loaded.start.and_then(|(base, size)| FrameRange::covering(base, size))?;
    let is_others =
        |other: &&Reservation| other.kind != ReservationKind::Image && other.range.overlaps(range);
    if let Some(other) = map.reservations().iter().find(is_others) {
        return Some(other.name.as_str());
    }
    let is_ram = map.ram_at(range.first()).is_some_and(|(ram, _)| ram.contains_range(range));
    (!is_ram).then_some("no RAM")
}

/// Refuses the guests of `configuration` that this host, with `cpu_count` CPUs, has no CPUs or no memory for, and gives
/// back what was kept for them.
pub fn fit<'t>(
    board: &Board<'_>,
    memory: &Memory<'_>,
    cpu_count: usize,
    configuration: &mut Configuration<'t>,
    tell: &mut Tell<'_>,
) {
    loop {
        let host = room(board, memory, cpu_count);
        let refused = configuration.fit_some(&host, &mut tell_finding(tell));
        let Some(ranges) = refused else { break };
        give_back(memory, ranges.into_iter(), tell);
    }
}

/// What `memory` has for guests on this host now.
pub fn room(board: &Board<'_>, memory: &Memory<'_>, cpu_count: usize) -> Host {
    // The controller with most of NORMAL is the one that keeps the floor.
    let normal_free = |id: &ControllerId| memory.controller_totals(*id).normal.free;
    let keeper = memory.controllers().iter().max_by_key(normal_free);
    let controllers = board.ram.controllers.iter().enumerate().filter_map(|(place, controller)| {
        let id = ControllerId::try_new(place as u8)?;
        let floor = if Some(id) == keeper { NORMAL_FLOOR_FRAMES } else { 0 };
        let totals = memory.controller_totals(id);
        let bytes = |frames: u64| frames.saturating_sub(floor) * FRAME_SIZE;
        let (free, unmovable) = (bytes(totals.free()), bytes(totals.normal.free));
        Some(ControllerRoom { id: u8::try_from(controller.id).ok()?, free, unmovable })
    });
    Host { cpu_count: cpu_count as u32, controllers: controllers.collect() }
}

#[cfg(test)]
mod tests;
