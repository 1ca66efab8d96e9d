//! Designated movable blocks and pools in the boot memory map. They come from `movablecore=` and `kernelcore=` on Ballast's
//! command line, from `designated-movable-block`, `shared-dmb-pool` and reusable `shared-dma-pool` nodes of
//! `/reserved-memory`, and from the configuration's `/designated-movable-blocks` and `/pools`.
//!
//! All of them are checked before any takes effect. If one of them is wrong, none is designated, the nodes' memory is left
//! unused, and the boot continues: only flexibility is lost, not memory that a guest relies on.

use super::{Tell, tell_finding};
use crate::board::{Board, Extent, Reservation, ReservationKind};
use alloc::vec::Vec;
use core::fmt;
use guest_dts::config::{self, Configuration, ControllerRoom, Host, Severity};
use stage2::controller::ControllerId;
use stage2::phys::dmb;
use stage2::phys::dmb::{Core, CoreOption, DesignationError, Node, NodeKind, NodePlace, Source, Wishes};
use stage2::phys::map::BootMap;
use stage2::range::FrameRange;

/// Returns the kind of block or pool that a reservation designates, if any.
pub(super) fn kind(reservation: &Reservation<'_>) -> Option<NodeKind> {
    match reservation.kind {
        ReservationKind::DesignatedMovableBlock => Some(NodeKind::Block),
        ReservationKind::SharedDmbPool => Some(NodeKind::BlockPool),
        ReservationKind::SharedDmaPool if reservation.is_reusable => Some(NodeKind::Pool),
        _ => None,
    }
}

/// Designates all blocks and pools. Called when all reservations are in `map`, before anything is carved out of it.
#[inline(never)]
pub(super) fn designate(
    map: &mut BootMap,
    board: &Board<'_>,
    mut configuration: Option<&mut Configuration<'_>>,
    tell: &mut Tell<'_>,
) {
    if let Some(configuration) = configuration.as_deref_mut() {
        configuration.fit_blocks(&room(map, board), &mut tell_finding(tell));
    }
    let wanted =
        || board.reservations.iter().filter_map(|reservation| Some((reservation, kind(reservation)?)));
    if let Some(configuration) = configuration.as_deref_mut() {
        let pools = wanted().filter(|(_, kind)| *kind != NodeKind::Block);
        configuration.differ_from(pools.map(|(reservation, _)| name(reservation)), &mut tell_finding(tell));
    }
    let configuration = configuration.map(|configuration| &*configuration);
    let ranges: Vec<Vec<FrameRange>> = wanted().map(|(reservation, _)| allowed(reservation)).collect();
    let places: Vec<Vec<ControllerId>> =
        configured(configuration).map(|(_, _, extent)| controllers(board, extent)).collect();
    let host = wanted().zip(&ranges).map(|((reservation, kind), within)| node(reservation, kind, within));
    let configured = configured(configuration)
        .zip(&places)
        .map(|((name, kind, extent), controllers)| configured_node(name, kind, extent, controllers));
    let nodes: Vec<Node<'_>> = host.chain(configured).collect();
    let is_refused = configuration.is_some_and(|configuration| configuration.has_refused_blocks);
    let result = match is_refused {
        true => Err(None),
        false => try_designate(map, board.chosen.bootargs, &nodes, tell).map_err(Some),
    };
    let Err(why) = result else { return };
    let why: &dyn fmt::Display = match &why {
        Some(error) => error,
        None => &"errors in the configuration",
    };
    tell(Severity::Error, format_args!("designated movable blocks: {why}; nothing is designated"));
    let withheld = configuration.into_iter().flat_map(|configuration| &configuration.withheld);
    let withheld = withheld.map(|range| Node {
        place: NodePlace::Static { base: range.base().get(), size: range.size() },
        ..configured_node("withheld", NodeKind::Block, &config::Extent::Static(*range), &[])
    });
    let nodes: Vec<Node<'_>> = nodes.iter().copied().chain(withheld).collect();
    if let Err(error) = dmb::withhold(map, &nodes) {
        tell(Severity::Error, format_args!("designated movable blocks: {error}"));
    }
}

/// Returns the unreserved memory of each controller.
fn room(map: &BootMap, board: &Board<'_>) -> Host {
    let controllers = board.ram.controllers.iter().enumerate().filter_map(|(place, controller)| {
        let here = map
            .segments()
            .filter(|segment| segment.controller.index() == place && segment.reservation.is_none());
        let free = here.map(|segment| segment.range.bytes()).sum();
        Some(ControllerRoom { id: u8::try_from(controller.id).ok()?, free, unmovable: free })
    });
    Host { cpu_count: 0, controllers: controllers.collect() }
}

/// Returns the configuration's blocks and pools; blocks come first, since pools may lie in them.
fn configured<'a, 't>(
    configuration: Option<&'a Configuration<'t>>,
) -> impl Iterator<Item = (&'t str, NodeKind, &'a config::Extent)> {
    configuration.into_iter().flat_map(|configuration| {
        let blocks =
            configuration.blocks.iter().map(|block| (block.node.name(), NodeKind::Block, &block.extent));
        let pools = configuration.pools.iter().map(|pool| {
            let kind = if pool.is_in_dmb { NodeKind::BlockPool } else { NodeKind::Pool };
            (pool.node.name(), kind, &pool.extent)
        });
        blocks.chain(pools)
    })
}

/// Returns the controllers that `extent` names. Their existence was checked before.
fn controllers(board: &Board<'_>, extent: &config::Extent) -> Vec<ControllerId> {
    match extent {
        config::Extent::Static(_) => Vec::new(),
        config::Extent::Dynamic { controllers, .. } => {
            let place = |&id: &u8| board.ram.controller(id.into()).and_then(ControllerId::try_new);
            controllers.iter().filter_map(place).collect()
        }
    }
}

fn configured_node<'a>(
    name: &'a str,
    kind: NodeKind,
    extent: &config::Extent,
    controllers: &'a [ControllerId],
) -> Node<'a> {
    let place = match *extent {
        config::Extent::Static(range) => NodePlace::Static { base: range.base().get(), size: range.size() },
        config::Extent::Dynamic { size, alignment, .. } => NodePlace::Behind { size, alignment, controllers },
    };
    // The other attributes were checked when the configuration was read.
    Node {
        name,
        source: Source::Configuration,
        kind,
        place,
        entry: 0,
        is_reusable: true,
        is_no_map: false,
        is_cma_default: false,
    }
}

fn try_designate(
    map: &mut BootMap,
    command_line: &str,
    nodes: &[Node<'_>],
    tell: &mut Tell<'_>,
) -> Result<(), DesignationError> {
    let read = |option| Core::parse(option, dmb::option_values(command_line, option));
    let (movablecore, kernelcore) = (read(CoreOption::Movable)?, read(CoreOption::Kernel)?);
    let floor = dmb::default_floor(map);
    let wishes = Wishes { movablecore: movablecore.as_ref(), kernelcore: kernelcore.as_ref(), nodes, floor };
    let done = dmb::designate(map, &wishes)?;
    if let Some(warning) = done.warning {
        tell(Severity::Warning, format_args!("{warning}"));
    }
    for block in map.blocks() {
        let (range, name) = (block.range, block.name);
        let size = range.bytes() >> 20;
        tell(
            Severity::Note,
            format_args!("designated movable block {name} of {size} MiB at {}", range.base()),
        );
    }
    for pool in map.pools() {
        let (range, size) = (pool.range, pool.range.bytes() >> 20);
        tell(Severity::Note, format_args!("pool {} of {size} MiB at {}", pool.name, range.base()));
    }
    Ok(())
}

/// Returns the whole frames in each range of `alloc-ranges`.
fn allowed(reservation: &Reservation<'_>) -> Vec<FrameRange> {
    match &reservation.extent {
        Extent::Static(_) => Vec::new(),
        Extent::Dynamic { within, .. } => {
            within.iter().filter_map(|range| FrameRange::inside(range.base().get(), range.size())).collect()
        }
    }
}

fn name<'t>(reservation: &Reservation<'t>) -> &'t str {
    reservation.node.as_ref().map_or("reserved", |node| node.name())
}

fn node<'a>(reservation: &'a Reservation<'_>, kind: NodeKind, within: &'a [FrameRange]) -> Node<'a> {
    let place = match reservation.extent {
        Extent::Static(range) => NodePlace::Static { base: range.base().get(), size: range.size() },
        Extent::Dynamic { size, alignment, .. } => NodePlace::Dynamic { size, alignment, within },
    };
    Node {
        source: Source::Tree,
        name: name(reservation),
        kind,
        place,
        entry: reservation.entry,
        is_reusable: reservation.is_reusable,
        is_no_map: reservation.is_no_map,
        is_cma_default: reservation.is_cma_default,
    }
}
