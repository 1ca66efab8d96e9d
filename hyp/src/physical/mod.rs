//! The layout of physical memory at boot: from the host's tree, the loader and the configuration to the boot memory map, and
//! the memory that is left for guests. Pure, so that `ballast check --host` on a PC reports what a host would report.

pub mod assignment;
mod designate;
mod owners;
mod pinned;
mod window;

pub use crate::board::MAX_CPUS;
use crate::board::{Board, Extent};
use core::fmt;
use designate::kind;
use guest_dts::config::{Configuration, ControllerRoom, Host, Severity};
use guest_dts::finding::Finding;
use guest_dts::tree::Tree;
pub use owners::{Owner, claim_window, set_owners};
pub use pinned::give_back;
use stage2::addr::{FRAME_SHIFT, FRAME_SIZE, PAGEBLOCK_SIZE};
use stage2::controller::ControllerId;
use stage2::phys::alloc::Memory;
use stage2::phys::frame::Footprint;
use stage2::phys::map::{BootMap, MapError, Reservation, ReservationKind};
use stage2::range::FrameRange;

/// NORMAL memory that is kept for Ballast and its tables, in frames: 8 MiB.
pub const NORMAL_FLOOR_FRAMES: u64 = 2048;

/// End of EL2's linear map: 64 TiB. Ballast puts none of its own data above.
pub const LINEAR_LIMIT: u64 = 1 << 46;

/// A receiver of messages: a severity and a line of text.
pub type Tell<'a> = dyn FnMut(Severity, fmt::Arguments<'_>) + 'a;

/// Returns a receiver of findings in the configuration, which passes them on to `tell`.
pub fn tell_finding<'t>(tell: &mut Tell<'_>) -> impl FnMut(Severity, Finding<'t>) {
    move |severity, finding| tell(severity, format_args!("configuration: {finding}"))
}

/// Memory in use that the host's tree does not list: addresses and sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Ballast's image with its zeroed data: address and size.
    pub image: Option<(u64, u64)>,
    /// The part of the image that is needed only during boot: address and size.
    pub start: Option<(u64, u64)>,
    /// The host's device tree: address and size.
    pub tree: Option<(u64, u64)>,
}

/// The reason why no map can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutError<'t> {
    /// The memory that could not be added.
    pub what: &'t str,
    /// The reason.
    pub error: MapError,
}

impl fmt::Display for LayoutError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

/// Fills the empty `map`: RAM, reservations, guests' pinned RAM, designated blocks and pools, DMA windows, and the frame table, whose frames
/// it returns. `tree` is that of `board`.
///
/// Errors in the configuration or in designations are passed to `tell`, and the layout continues without them.
///
/// # Errors
/// Ranges that overlap, more ranges than the map holds, or no room for the frame table.
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
        // A separate reservation, so that it can be released as a whole.
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
    // Designated memory is not a reservation in the map.
    for reservation in board.reservations.iter().filter(|reservation| kind(reservation).is_none()) {
        if let Extent::Static(range) = &reservation.extent {
            let kind = if reservation.is_no_map { ReservationKind::NoMap } else { ReservationKind::Firmware };
            let name = reservation.node.as_ref().map_or("reserved", |node| node.name());
            // EL2 maps its own memory and that of guests by pageblock, and must not map any part of a `no-map` range.
            let below = if kind.is_no_map() { PAGEBLOCK_SIZE - 1 } else { 0 };
            let base = range.base().get() & !below;
            let size = ((range.base().get() + range.size() + below) & !below) - base;
            reserve(base, size, kind, name)?;
        }
    }
    if let Some(configuration) = configuration.as_deref_mut() {
        // Guests that cannot run on this host reserve nothing.
        configuration.fit_nodes(tree, &mut tell_finding(tell));
        configuration.fit_cpus(board.cpus.len().min(MAX_CPUS) as u32, &mut tell_finding(tell));
        pinned::reserve(map, board, configuration, tell).map_err(failed("pinned memory"))?;
    }
    designate::designate(map, board, configuration.as_deref_mut(), tell);
    if let Some(configuration) = configuration {
        window::reserve(map, board, configuration, tell).map_err(failed("DMA windows"))?;
    }
    if map.ram().any(|(ram, _)| ram.end() > LINEAR_LIMIT >> FRAME_SHIFT) {
        map.restrict_to_movable(LINEAR_LIMIT >> FRAME_SHIFT, "above 64 TiB")
            .map_err(failed("RAM above 64 TiB"))?;
        tell(
            Severity::Note,
            format_args!(
                "RAM above {LINEAR_LIMIT:#x} (64 TiB) is used only for movable memory of guests: EL2 does not map it"
            ),
        );
    }
    map.carve(Footprint::of(map).bytes(), PAGEBLOCK_SIZE, "frame table").map_err(failed("frame table"))
}

/// Returns the name of a reservation that overlaps the boot-only part of the image, or "no RAM" if that is not in RAM. It cannot
/// be released then.
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

/// Refuses the guests of `configuration` for which this host, with `cpu_count` CPUs, lacks CPUs or memory, and releases the
/// memory that was reserved for them.
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

/// Returns the memory that is free for guests on this host.
pub fn room(board: &Board<'_>, memory: &Memory<'_>, cpu_count: usize) -> Host {
    // The controller with the most free NORMAL memory keeps the reserve.
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
