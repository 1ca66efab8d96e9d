//! `guest`: what one guest is made from, its device tree, and what backs its RAM.

use core::fmt::{self, Write};

use alloc::vec::Vec;
use guest_dts::tree::{Tree, TreeSource};
use stage2::controller::MAX_CONTROLLERS;
use stage2::migrate::Mobility;
use stage2::phys::placement::{Placement, Strictness};

use super::super::grammar::{Arguments, Failure};
use super::super::machine::{Machine, Region};
use super::super::region::pieces;
use super::super::report::{Report, Value};
use super::super::session::Session;
use super::super::units::Size;
use super::backing::{Part, Parts, parts};
use super::jobs::Placed;
use super::migrate::controller_name;

/// Shows a guest: in short, its tree, or the map of its RAM.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let guest = arguments.guest(0).unwrap_or(usize::MAX);
    match arguments.word(1) {
        Some("tree") => tree(session, guest),
        Some("map") => map(session, guest),
        _ => summary(session, guest),
    }
}

/// What a guest that was refused has none of.
fn refuse(session: &mut Session<'_>, guest: usize) -> Failure {
    let why = session.machine.guest(guest).map(|guest| guest.reason).unwrap_or_default();
    session.refuse(format_args!("the guest was refused: {why}"))
}

fn summary(session: &mut Session<'_>, at: usize) -> Result<(), Failure> {
    let machine = session.machine;
    let Some(guest) = machine.guest(at) else { return Err(refuse(session, at)) };
    let why = if guest.reason.is_empty() { Value::None } else { Value::Text(&guest.reason) };
    let Some(making) = machine.making(at) else {
        return session.report("guest", |report, _| {
            let values = [Value::Text(guest.name), Value::Text(guest.state.name()), why];
            report.fields("guest=Guest|state=State|reason=Reason", &values)
        });
    };
    let tree = Tree::new(making.tree).ok();
    let bootargs = tree.and_then(|tree| tree.find("/chosen")?.property("bootargs")?.str());
    let movable = fmt::from_fn(|f| write!(f, "{} ({})", making.movable.mode.name(), making.movable.reason));
    let vcpus = fmt::from_fn(|f| write!(f, "{}, {} on", guest.vcpu_count, guest.vcpu_on_count));
    let images = fmt::from_fn(|f| {
        write!(f, "kernel {}, ramdisk ", Size(making.kernel_bytes))?;
        match making.ramdisk_bytes {
            0 => f.write_str("none"),
            bytes => write!(f, "{}", Size(bytes)),
        }
    });
    let migration = fmt::from_fn(|f| match (making.is_held, making.limit_bytes_per_s) {
        (true, _) => f.write_str("never"),
        (false, Some(limit)) => write!(f, "at most {} kB/s", limit / 1000),
        (false, None) => f.write_str("no limit of its own"),
    });
    let limit = making.limit_bytes_per_s.map_or(Value::None, Value::Count);
    let list = "guest=Guest|state=State|reason=Reason|start_count=Starts|=vCPUs|vcpu_count=|vcpu_on_count=|cpus=CPUs|memory_bytes=RAM|resident_bytes=  has now|dmb_bytes=  movable blocks|table_bytes=  tables|movable_memory=Movable memory|=Images|kernel_bytes=|ramdisk_bytes=|=Migration|is_held=|limit_bytes_per_s=|bootargs=Boot arguments";
    let is_json = session.style.is_json;
    let lying = lying(session, at)?;
    session.report("guest", |report, machine| {
        report.fields(
            list,
            &[
                Value::Text(guest.name),
                Value::Text(guest.state.name()),
                why,
                Value::Count(guest.start_count),
                Value::Show(&vcpus),
                Value::Count(guest.vcpu_count as u64),
                Value::Count(guest.vcpu_on_count as u64),
                Value::Numbers(&guest.cpus),
                Value::Bytes(guest.memory_bytes),
                Value::Bytes(guest.resident_bytes),
                Value::Bytes(making.dmb_bytes),
                Value::Bytes(making.table_bytes),
                Value::Show(&movable),
                Value::Show(&images),
                Value::Bytes(making.kernel_bytes),
                Value::Bytes(making.ramdisk_bytes),
                Value::Show(&migration),
                Value::Flag(making.is_held),
                limit,
                Value::Text(bootargs.unwrap_or_default()),
            ],
        )?;
        placements(report, machine, at, &lying, is_json)
    })
}

/// Returns where each piece of a guest's RAM actually lies.
fn lying(session: &mut Session<'_>, at: usize) -> Result<Vec<Vec<Part>>, Failure> {
    let machine = session.machine;
    let pieces = machine.migration().into_iter().flat_map(|migration| pieces(migration, at));
    pieces.map(|piece| parts(session, at, piece.ipa, piece.size)).collect()
}

/// Lists the controllers that each region may lie behind, what decided that, and where the region lies now.
fn placements(
    report: &mut Report<'_>,
    machine: &dyn Machine,
    at: usize,
    lying: &[Vec<Part>],
    is_json: bool,
) -> fmt::Result {
    if !is_json && lying.is_empty() {
        return Ok(());
    }
    let all = || machine.migration().into_iter().flat_map(|migration| pieces(migration, at)).zip(lying);
    let list = "region=REGION|ipa=AT|size_bytes=SIZE|=ALLOWED|controllers=|mode=|is_strict=|is_pinned=|=SET BY|\
                resident_on=|resident_bytes=|=LIES BEHIND";
    report.table("placements", list, "", &mut |table| {
        for (piece, parts) in all() {
            let (set, strictness) = piece.placement.named();
            let ids = set.iter().filter(|id| id.index() < machine.controller_count());
            let names: heapless::Vec<&str, MAX_CONTROLLERS> =
                ids.map(|id| controller_name(machine, id)).collect();
            let (mode, set_by) = match (&piece.placement, piece.mobility) {
                (_, Mobility::PinnedInPlace) => ("in-place", "1:1"),
                (Placement::Any, _) => ("any", "-"),
                (Placement::Listed(..), _) => ("listed", "configuration"),
                (Placement::Interleave(..), _) => ("interleave", "configuration"),
            };
            let resident_on: Vec<&str> = parts
                .iter()
                .map(|part| machine.controller(part.controller).map_or("?", |controller| controller.name))
                .collect();
            let resident_bytes: Vec<u64> = parts.iter().map(|part| part.bytes).collect();
            table.row(&[
                Value::Show(&piece.name()),
                Value::Address(piece.ipa),
                Value::Bytes(piece.size),
                Value::Show(&Placed(machine, &piece.placement)),
                Value::Words(&names),
                Value::Text(mode),
                Value::Flag(strictness == Strictness::Strict),
                Value::Flag(piece.is_pinned),
                Value::Text(if piece.is_pinned { "pin" } else { set_by }),
                Value::Words(&resident_on),
                Value::Numbers(&resident_bytes),
                Value::Show(&Parts(machine, parts)),
            ])?;
        }
        Ok(())
    })
}

/// Prints the tree that the guest gets as source.
fn tree(session: &mut Session<'_>, at: usize) -> Result<(), Failure> {
    let making = session.machine.making(at);
    let Some(tree) = making.and_then(|making| Tree::new(making.tree).ok()) else {
        return Err(refuse(session, at));
    };
    if !session.style.is_json {
        return Ok(write!(session, "{}", TreeSource(tree))?);
    }
    session.report("guest_tree", |report, machine| {
        let name = machine.guest(at).map_or("", |guest| guest.name);
        report.fields("guest=|source=", &[Value::Text(name), Value::Show(&TreeSource(tree))])
    })
}

/// Shows the ranges of a guest's RAM and what backs them.
fn map(session: &mut Session<'_>, at: usize) -> Result<(), Failure> {
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
    let list = "ipa=IPA|size_bytes=SIZE|region=REGION|backing=IS|controller=BEHIND|backed_bytes=BACKED|large_count=1 GiB|medium_count=2 MiB|small_count=4 KiB";
    let is_json = session.style.is_json;
    session.report("guest_map", |report, machine| {
        report.fields("guest=", &[Value::Text(machine.guest(at).map_or("", |guest| guest.name))])?;
        report.table("regions", list, "It has no RAM.", &mut |table| {
            for (region, part) in &rows {
                let controller = part.and_then(|part| machine.controller(part.controller));
                let part = part.unwrap_or_default();
                let [large, medium, small] = part.units.map(Value::Count);
                table.row(&[
                    Value::Address(region.ipa),
                    Value::Bytes(region.bytes),
                    Value::Text(region.name),
                    Value::Text(region.backing.name()),
                    controller.as_ref().map_or(Value::None, |controller| Value::Text(controller.name)),
                    Value::Bytes(part.bytes),
                    large,
                    medium,
                    small,
                ])?;
            }
            Ok(())
        })?;
        placements(report, machine, at, &lying, is_json)
    })
}
