//! `guest`: a guest's summary, its device tree, and the backing of its RAM.

use alloc::vec::Vec;
use guest_dts::tree::{Tree, TreeSource};
use stage2::controller::MAX_CONTROLLERS;
use stage2::migrate::Mobility;
use stage2::phys::placement::{Placement, Strictness};

use super::backing::{Part, Parts, parts};
use super::devices::{devices, windows};
use super::names::Placed;
use super::prelude::*;
use crate::monitor::machine::{Backing, Region};
use crate::monitor::region::pieces;
use crate::monitor::report::Report;

/// Shows a guest: its summary, its tree, or the map of its RAM.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let guest = arguments.guest(0).unwrap_or(usize::MAX);
    match arguments.word(1) {
        Some("tree") => tree(session, guest),
        Some("map") => map(session, guest),
        _ => summary(session, guest),
    }
}

/// Returns the refusal to show a part of a guest that was refused at boot.
fn refuse(session: &mut Session<'_>, guest: usize) -> Failure {
    let why = session.machine.guest(guest).map(|guest| guest.reason).unwrap_or_default();
    session.refuse(format_args!("the guest was refused: {why}"))
}

fn summary(session: &mut Session<'_>, at: usize) -> Done {
    let machine = session.machine;
    let Some(guest) = machine.guest(at) else { return Err(refuse(session, at)) };
    let head = [
        ("guest=Guest", Text(guest.name)),
        ("state=State", Text(guest.state.name())),
        ("reason=Reason", Text(&guest.reason).or_nothing()),
    ];
    let Some(making) = machine.making(at) else {
        return session.report("guest", |report, _| report.fields(&head));
    };
    let [guest_cell, state_cell, reason_cell] = head;
    let tree = Tree::new(making.tree).ok();
    let bootargs = tree.and_then(|tree| tree.find("/chosen")?.property("bootargs")?.str());
    let images = from_fn(|f| match making.ramdisk_bytes {
        0 => write!(f, "kernel {}, ramdisk none", Size(making.kernel_bytes)),
        bytes => write!(f, "kernel {}, ramdisk {}", Size(making.kernel_bytes), Size(bytes)),
    });
    let migration = from_fn(|f| match (making.is_held, making.limit_bytes_per_s) {
        (true, _) => f.write_str("never"),
        (false, Some(limit)) => write!(f, "at most {} kB/s", limit / 1000),
        (false, None) => f.write_str("no limit"),
    });
    let movable = making.movable;
    let lying = lying(session, at)?;
    let assigned = session.machine.assigned(Some(at));
    session.report("guest", |report, machine| {
        report.fields(&[
            guest_cell,
            state_cell,
            reason_cell,
            ("start_count=Starts", Count(guest.start_count)),
            ("=vCPUs", Show(&format_args!("{}, {} on", guest.vcpu_count, guest.vcpu_on_count))),
            ("vcpu_count", Count(guest.vcpu_count as u64)),
            ("vcpu_on_count", Count(guest.vcpu_on_count as u64)),
            ("cpus=CPUs", Numbers(&guest.cpus)),
            ("memory_bytes=RAM", Bytes(guest.memory_bytes)),
            ("resident_bytes=  resident", Bytes(guest.resident_bytes)),
            ("dmb_bytes=  in movable blocks", Bytes(making.dmb_bytes)),
            ("table_bytes=Stage 2 tables", Bytes(making.table_bytes)),
            (
                "movable_memory=Movable memory",
                Show(&format_args!("{} ({})", movable.mode.name(), movable.reason)),
            ),
            ("=Images", Show(&images)),
            ("kernel_bytes", Bytes(making.kernel_bytes)),
            ("ramdisk_bytes", Bytes(making.ramdisk_bytes)),
            ("=Migration", Show(&migration)),
            ("is_held", Flag(making.is_held)),
            ("limit_bytes_per_s", making.limit_bytes_per_s.map_or(Nothing, Count)),
            ("bootargs=Boot arguments", Text(bootargs.unwrap_or_default())),
        ])?;
        placements(report, machine, at, &lying)?;
        devices(report, &assigned, "")?;
        windows(report, machine, Some(at))
    })
}

/// Returns the backing of each piece of a guest's RAM.
fn lying(session: &mut Session<'_>, at: usize) -> Result<Vec<Vec<Part>>, Failure> {
    let machine = session.machine;
    let pieces = machine.migration().into_iter().flat_map(|migration| pieces(migration, at));
    pieces.map(|piece| parts(session, at, piece.ipa, piece.size)).collect()
}

/// Lists, for each region, the controllers that it may lie behind, the origin of that rule, and its present backing.
fn placements(report: &mut Report<'_>, machine: &dyn Machine, at: usize, lying: &[Vec<Part>]) -> fmt::Result {
    let all = machine.migration().into_iter().flat_map(|migration| pieces(migration, at)).zip(lying);
    report.table("placements", "", &mut |table| {
        for (piece, parts) in all.clone() {
            let (set, strictness) = piece.placement.named();
            let ids = set.iter().filter(|id| id.index() < machine.controller_count());
            let names: heapless::Vec<&str, MAX_CONTROLLERS> =
                ids.map(|id| machine.controller_name(id)).collect();
            let (mode, set_by) = match (&piece.placement, piece.mobility) {
                (_, Mobility::PinnedInPlace) => ("in-place", "1:1"),
                (_, Mobility::DmaWindow) => ("dma-window", "DMA window"),
                (Placement::Any, _) => ("any", "-"),
                (Placement::Listed(..), _) => ("listed", "configuration"),
                (Placement::Interleave(..), _) => ("interleave", "configuration"),
            };
            let name =
                |part: &Part| machine.controller(part.controller).map_or("?", |controller| controller.name);
            let resident_on: Vec<&str> = parts.iter().map(name).collect();
            let resident_bytes: Vec<u64> = parts.iter().map(|part| part.bytes).collect();
            table.row(&[
                ("region=REGION", Show(&piece.name())),
                ("ipa=AT", Address(piece.ipa)),
                ("size_bytes=SIZE", Bytes(piece.size)),
                ("=ALLOWED", Show(&Placed(machine, &piece.placement))),
                ("controllers", Words(&names)),
                ("mode", Text(mode)),
                ("is_strict", Flag(strictness == Strictness::Strict)),
                ("is_pinned", Flag(piece.is_pinned)),
                ("=SET BY", Text(if piece.is_pinned { "pin" } else { set_by })),
                ("resident_on", Words(&resident_on)),
                ("resident_bytes", Numbers(&resident_bytes)),
                ("=RESIDENT ON", Show(&Parts(machine, parts))),
            ])?;
        }
        Ok(())
    })
}

/// Prints the source of the device tree that the guest gets.
fn tree(session: &mut Session<'_>, at: usize) -> Done {
    let making = session.machine.making(at);
    let Some(tree) = making.and_then(|making| Tree::new(making.tree).ok()) else {
        return Err(refuse(session, at));
    };
    if !session.style.is_json {
        return Ok(write!(session, "{}", TreeSource(tree))?);
    }
    session.report("guest_tree", |report, machine| {
        let name = machine.guest(at).map_or("", |guest| guest.name);
        report.fields(&[("guest", Text(name)), ("source", Show(&TreeSource(tree)))])
    })
}

/// Shows the ranges of a guest's RAM and their backing.
fn map(session: &mut Session<'_>, at: usize) -> Done {
    if session.machine.making(at).is_none() {
        return Err(refuse(session, at));
    }
    let mut rows: Vec<(Region<'_>, Option<Part>)> = Vec::new();
    let machine = session.machine;
    for region in (0..).map_while(|number| machine.region(at, number)) {
        let parts = parts(session, at, region.ipa, region.bytes)?;
        if parts.is_empty() {
            rows.push((region, None));
        }
        rows.extend(parts.into_iter().map(|part| (region, Some(part))));
    }
    let lying = lying(session, at)?;
    session.report("guest_map", |report, machine| {
        report.fields(&[("guest", Text(machine.guest(at).map_or("", |guest| guest.name)))])?;
        report.list("regions", "The guest has no RAM.", rows.iter(), |table, (region, part)| {
            let controller = part.and_then(|part| machine.controller(part.controller));
            let part = part.unwrap_or_default();
            let [large, medium, small] = part.units.map(Count);
            table.row(&[
                ("ipa=IPA", Address(region.ipa)),
                ("size_bytes=SIZE", Bytes(region.bytes)),
                ("region=REGION", Text(region.name)),
                ("backing", Text(region.backing.name())),
                ("=MIGRATABLE", Flag(region.backing == Backing::Movable)),
                ("controller=ON", controller.map_or(Nothing, |controller| Text(controller.name))),
                ("backed_bytes=BACKED", Bytes(part.bytes)),
                ("large_count=1 GiB", large),
                ("medium_count=2 MiB", medium),
                ("small_count=4 KiB", small),
            ])
        })?;
        placements(report, machine, at, &lying)
    })
}
