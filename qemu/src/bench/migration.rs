//! The cost of migrating a guest's memory, and the stalls of the guest.

use std::fs;

use serde_json::Value;

use super::claims::{ask, wait};
use super::mbind::{self, Mbind};
use super::{LINUX, PATIENCE, with_transcript};
use crate::boot::Boot;
use crate::error::{AtPath, Error, Result};
use crate::image::{Image, build_payloads};
use crate::machine::Machine;
use crate::session::Session;
use crate::size::{GIB, MIB};
use crate::{configuration, place};

/// Bytes moved there and back.
const MOVED: u64 = 64 * MIB;
/// RAM for Ballast in addition to the guest's.
const ROOM: u64 = 512 * MIB;
/// Sizes of the guest's RAM.
const SIZES: [u64; 4] = [256 * MIB, GIB, 4 * GIB, 16 * GIB];

/// A size of units and its limits in instructions.
struct Unit {
    size: u64,
    name: &'static str,
    per_page: f64,
    stall: f64,
    /// Cost of a page in Linux.
    linux: fn(&Mbind) -> f64,
}

/// Instructions of a page's copy: 64 lines, each invalidated, read, written, cleaned and stepped over.
const COPY: f64 = 5.0 * 64.0 + 2.0;

const UNITS: [Unit; 2] = [
    Unit { size: 4096, name: "4 KiB", per_page: 700.0, stall: 1000.0 + COPY, linux: |mbind| mbind.small },
    Unit { size: 2 * MIB, name: "2 MiB", per_page: 330.0, stall: 20_000.0, linux: |mbind| mbind.huge },
];

/// The results for one guest, in instructions.
#[derive(Clone, Copy, Default)]
pub(super) struct Figure {
    pub(super) moving: f64,
    scrubbing: f64,
}

/// Measures and prints the tables. Returns `true` if all limits are met.
pub(super) fn run(image: &Image) -> Result<bool> {
    let guest = build_payloads()?.join("pattern.img");
    let mut is_kept = true;
    println!("\nmeasuring mbind between two NUMA nodes in Linux {LINUX}");
    let mbind = mbind::measure()?;
    println!("\nmigration of a guest's memory, instructions per 4 KiB\n");
    println!("units  guest's RAM    moving    limit  scrubbing  Linux, mbind");
    for unit in &UNITS {
        for ram in SIZES {
            if ram > room_for_memory() {
                println!("{}  {:>7} MiB  skipped: no space for the controllers' files", unit.name, ram / MIB);
                continue;
            }
            let figure = cost(image, &guest, unit, ram)?;
            let is_good = figure.moving <= unit.per_page;
            is_kept &= is_good;
            println!(
                "{}  {:>7} MiB  {:>8.0}  {:>7.0}  {:>9.0}  {:>12.0}{}",
                unit.name,
                ram / MIB,
                figure.moving,
                unit.per_page,
                figure.scrubbing,
                (unit.linux)(&mbind),
                if is_good { "" } else { "  MISSED" },
            );
        }
    }
    println!(
        "\nstalls of a guest that writes while its memory migrates, in instructions; migration runs in slices on the\n\
         guest's only CPU, or on a second CPU. The emulator runs one CPU at a time, so the other CPU's instructions\n\
         count too.\n"
    );
    println!("units  CPUs    count   median     99 %  maximum    limit");
    for (unit, cpus) in UNITS.iter().flat_map(|unit| [(unit, 1), (unit, 2)]) {
        let stalls = stalls(image, &guest, unit, cpus)?;
        let of = |key: &str| stalls[key].as_f64().unwrap_or(0.0);
        let is_good = of("max_ns") <= unit.stall;
        is_kept &= is_good;
        println!(
            "{}  {cpus:>4}  {:>7.0}  {:>7.0}  {:>7.0}  {:>7.0}  {:>7.0}{}",
            unit.name,
            of("count"),
            of("p50_ns"),
            of("p99_ns"),
            of("max_ns"),
            unit.stall,
            if is_good { "" } else { "  MISSED" },
        );
    }
    Ok(is_kept)
}

/// Returns the size of the largest guest whose controllers' files fit into half of the free space in memory or in the
/// target folder.
fn room_for_memory() -> u64 {
    let room = |path: &std::path::Path| {
        rustix::fs::statvfs(path).map_or(0, |room| room.f_bavail * room.f_frsize / 2)
    };
    room("/dev/shm".as_ref()).max(room(&place::target())).saturating_sub(2 * ROOM)
}

/// Migrates [`MOVED`] bytes of a guest that sleeps on the only CPU there and back.
fn cost(image: &Image, guest: &std::path::Path, unit: &Unit, ram: u64) -> Result<Figure> {
    there_and_back(&mut boot(image, guest, unit, ram, "mode=idle", 1)?, MOVED, 0x4000_0000)
}

/// Migrates the range of `size` bytes at `base` to the other controller and back. The guest is called `bench`.
pub(super) fn there_and_back(session: &mut Session, size: u64, base: u64) -> Result<Figure> {
    let mut figure = Figure::default();
    let before = scrubbed(session)?;
    let mut pages = 0.0;
    for controller in ["mc1", "mc0"] {
        let report = migrate(session, size, base, controller)?;
        pages += report["moved_bytes"].as_f64().unwrap_or(0.0) / 4096.0;
        figure.moving += report["worked_ns"].as_f64().unwrap_or(0.0);
    }
    figure.scrubbing = (scrubbed(session)? - before) / pages;
    figure.moving = figure.moving / pages - figure.scrubbing;
    Ok(figure)
}

/// Migrates the memory of a guest that writes to it all the time there and back.
fn stalls(image: &Image, guest: &std::path::Path, unit: &Unit, cpus: u32) -> Result<Value> {
    let mut session = boot(image, guest, unit, 256 * MIB, "mode=write", cpus)?;
    for controller in ["mc1", "mc0", "mc1", "mc0"] {
        migrate(&mut session, MOVED, 0x4000_0000, controller)?;
    }
    let report = ask(&mut session, "stats migration")?;
    Ok(report["stalls"][0].clone())
}

fn scrubbed(session: &mut Session) -> Result<f64> {
    let report = ask(session, "stats migration")?;
    Ok(report["guests"][0]["scrub_ns"].as_f64().unwrap_or(0.0))
}

/// Migrates `size` bytes at `base` and returns the report of the job.
fn migrate(session: &mut Session, size: u64, base: u64, controller: &str) -> Result<Value> {
    let job = ask(session, &format!("migrate bench {}M@{base:#x} {controller}", size / MIB))?["job"].clone();
    let report = wait(session, &format!("job {job}"), |report| report["state"] == "finished")?;
    match report["unmoved_bytes"].as_u64() {
        Some(0) => Ok(report),
        _ => Err(Error::Data { path: "Ballast".into(), reason: report.to_string() }),
    }
}

fn boot(
    image: &Image,
    guest: &std::path::Path,
    unit: &Unit,
    ram: u64,
    arguments: &str,
    cpus: u32,
) -> Result<Session> {
    let source = format!(
        "/dts-v1/;\n/ {{ compatible = \"ballast,configuration\"; #address-cells = <2>; #size-cells = <2>;\n\
         images {{ kernel: kernel {{ data = /incbin/(\"{}\"); }}; }};\n\
         guests {{ bench {{ vcpus = <1>; kernel = <&kernel>; bootargs = \"{arguments} limit={}\"; \
         memory {{ size = <{:#x} {:#x}>; controllers = <0>; preferred; unit-size = <{:#x}>; }}; }}; }};\n}};\n",
        guest.display(),
        MOVED / MIB,
        ram >> 32,
        ram & 0xffff_ffff,
        unit.size,
    );
    let path =
        place::target().join(format!("bench-migration-{}-{}-{cpus}-{arguments}.dts", unit.size, ram / MIB));
    fs::write(&path, source).at(&path)?;
    let blob = path.with_extension("dtb");
    configuration::compile(&path, LINUX, &blob)?;
    let mut boot = Boot::new(Machine::with_controllers(cpus, &[ram + ROOM, ROOM]), image.bin.clone());
    boot.ramdisk = Some(blob);
    boot.counts_instructions = true;
    let mut session = Session::start(&boot)?;
    session.expect("ballast> ", PATIENCE).map_err(|error| with_transcript(&error, &session))?;
    session.send("\x1d1")?;
    session.expect("pattern ready", PATIENCE).map_err(|error| with_transcript(&error, &session))?;
    session.send("\x1dm")?;
    Ok(session)
}
