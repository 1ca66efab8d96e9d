//! What the operator and the host's tree designate as movable, put into the boot memory map: `movablecore=` and
//! `kernelcore=` on Ballast's command line, `designated-movable-block`, `shared-dmb-pool` and reusable
//! `shared-dma-pool` nodes of `/reserved-memory`.
//!
//! All of it is checked before any of it holds. Where something is wrong nothing is designated, the nodes' memory stays
//! out of use, and the start goes on: what is missing is flexibility, not memory that somebody relies on.

use crate::board::{Board, Extent, Reservation, ReservationKind};
use crate::log;
use alloc::vec::Vec;
use stage2::dmb::{self, Core, CoreOption, DesignationError, Node, NodeKind, NodePlace, Wishes};
use stage2::map::BootMap;
use stage2::range::FrameRange;

/// What a reservation designates, if it does.
pub(super) fn kind(reservation: &Reservation<'_>) -> Option<NodeKind> {
    match reservation.kind {
        ReservationKind::DesignatedMovableBlock => Some(NodeKind::Block),
        ReservationKind::SharedDmbPool => Some(NodeKind::BlockPool),
        ReservationKind::SharedDmaPool if reservation.is_reusable => Some(NodeKind::Pool),
        _ => None,
    }
}

/// Designates what is asked for, once every reservation is in `map` and before anything is carved out of it.
#[inline(never)]
pub(super) fn designate(map: &mut BootMap, board: &Board<'_>) {
    let wanted =
        || board.reservations.iter().filter_map(|reservation| Some((reservation, kind(reservation)?)));
    let ranges: Vec<Vec<FrameRange>> = wanted().map(|(reservation, _)| allowed(reservation)).collect();
    let nodes: Vec<Node<'_>> =
        wanted().zip(&ranges).map(|((reservation, kind), within)| node(reservation, kind, within)).collect();
    match try_designate(map, board.chosen.bootargs, &nodes) {
        Ok(()) => {}
        Err(error) => {
            log::error!("designated movable blocks: {}; nothing is designated", error);
            if let Err(error) = dmb::withhold(map, &nodes) {
                log::error!("designated movable blocks: {}", error);
            }
        }
    }
}

fn try_designate(map: &mut BootMap, command_line: &str, nodes: &[Node<'_>]) -> Result<(), DesignationError> {
    let read = |option| Core::parse(option, dmb::option_values(command_line, option));
    let (movablecore, kernelcore) = (read(CoreOption::Movable)?, read(CoreOption::Kernel)?);
    let floor = dmb::default_floor(map);
    let wishes = Wishes { movablecore: movablecore.as_ref(), kernelcore: kernelcore.as_ref(), nodes, floor };
    let done = dmb::designate(map, &wishes)?;
    if let Some(warning) = done.warning {
        log::warn!("{}", warning);
    }
    for block in map.blocks() {
        log::info!("designated movable block of {} MiB at {}", block.range.bytes() >> 20, block.range.base());
    }
    Ok(())
}

/// `alloc-ranges` in frames: whole ones inside.
fn allowed(reservation: &Reservation<'_>) -> Vec<FrameRange> {
    match &reservation.extent {
        Extent::Static(_) => Vec::new(),
        Extent::Dynamic { within, .. } => {
            within.iter().filter_map(|range| FrameRange::inside(range.base().get(), range.size())).collect()
        }
    }
}

fn node<'a>(reservation: &'a Reservation<'_>, kind: NodeKind, within: &'a [FrameRange]) -> Node<'a> {
    let place = match reservation.extent {
        Extent::Static(range) => NodePlace::Static { base: range.base().get(), size: range.size() },
        Extent::Dynamic { size, alignment, .. } => NodePlace::Dynamic { size, alignment, within },
    };
    Node {
        name: reservation.node.as_ref().map_or("reserved", |node| node.name()),
        kind,
        place,
        entry: reservation.entry,
        is_reusable: reservation.is_reusable,
        is_no_map: reservation.is_no_map,
        is_cma_default: reservation.is_cma_default,
    }
}
