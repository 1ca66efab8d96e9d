//! Benchmarks: the cost of a guest's operations in instructions, under Ballast, under Xen and without a hypervisor.
//!
//! The same bare-metal guest runs on the same machine in each case, and time counts instructions. Linux boots to its
//! `/init`, without a hypervisor with the same device tree as under Ballast.

mod allocator;
mod claims;
mod devices;
mod linux;
mod mbind;
mod migration;
mod mitigations;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::boot::{Boot, Module};
use crate::error::{AtPath, Error, Result};
use crate::image::{Image, build_payloads};
use crate::machine::Machine;
use crate::session::Session;
use crate::size::{GIB, MIB};
use crate::{configuration, place, store};

/// Time limit, which only ends hangs.
const PATIENCE: Duration = Duration::from_secs(900);
const LINUX: &str = "6.12";
/// Most instructions of a fast exit, which the time at EL2 does not include and `stats` counts.
const QUICK_EXIT: u64 = 100;

/// The contents of `qemu/bench.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    columns: Vec<String>,
    operation: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    name: String,
    title: String,
    limit: u32,
    #[serde(default = "one")]
    cpus: u32,
    others: Vec<u32>,
}

/// Instructions by operation.
type Figures = BTreeMap<String, f64>;

/// The hypervisor below the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    None,
    Xen,
    Ballast,
}

/// Runs all benchmarks and prints their tables. Returns `true` if Ballast meets all limits.
///
/// # Errors
/// Something cannot be built, fetched or started, or a guest does not finish.
pub fn run() -> Result<bool> {
    let plan = plan()?;
    let image = Image::build()?;
    let guest = build_payloads()?.join("bench.img");
    let mut is_kept = traps(&plan, &image, &guest)?;

    mitigations::run(&plan, &image, &guest)?;
    watching(&image, &guest)?;
    println!("\n{}", image.describe());
    is_kept &= image.fits();
    is_kept &= linux::run(&image)?;
    is_kept &= devices::run(&image, &guest)?;
    is_kept &= migration::run(&image)?;
    is_kept &= claims::run(&image)?;
    is_kept &= allocator::run()?;
    Ok(is_kept)
}

/// Measures only the operations of `qemu/bench.toml`.
///
/// # Errors
/// As [`run`].
pub fn run_traps() -> Result<bool> {
    traps(&plan()?, &Image::build()?, &build_payloads()?.join("bench.img"))
}

/// Measures only devices.
///
/// # Errors
/// As [`run`].
pub fn run_devices() -> Result<bool> {
    devices::run(&Image::build()?, &build_payloads()?.join("bench.img"))
}

/// Measures only the start of Linux.
///
/// # Errors
/// As [`run`].
pub fn run_linux() -> Result<bool> {
    linux::run(&Image::build()?)
}

/// Measures only the mitigations of speculative execution.
///
/// # Errors
/// As [`run`].
pub fn run_mitigations() -> Result<bool> {
    mitigations::run(&plan()?, &Image::build()?, &build_payloads()?.join("bench.img"))?;
    Ok(true)
}

/// Measures only the log and the trace.
///
/// # Errors
/// As [`run`].
pub fn run_watching() -> Result<bool> {
    watching(&Image::build()?, &build_payloads()?.join("bench.img"))?;
    Ok(true)
}

fn watching(image: &Image, guest: &Path) -> Result<()> {
    println!("\ncost of log and trace at EL2, in instructions\n\n{}", costs(image, guest)?.trim_end());
    Ok(())
}

/// Measures only migration.
///
/// # Errors
/// As [`run`].
pub fn run_migration() -> Result<bool> {
    migration::run(&Image::build()?)
}

/// Measures only the allocator.
///
/// # Errors
/// The benchmark cannot be built or does not finish.
pub fn run_allocator() -> Result<bool> {
    allocator::run()
}

/// Measures only claims.
///
/// # Errors
/// As [`run`].
pub fn run_claims() -> Result<bool> {
    claims::run(&Image::build()?)
}

/// Measures the operations of `plan` and prints their table. Returns `true` if all limits are met.
fn traps(plan: &Plan, image: &Image, guest: &Path) -> Result<bool> {
    let bare = measure(Below::None, plan, image, guest)?;
    let xen = match measure(Below::Xen, plan, image, guest) {
        Ok(figures) => figures,
        Err(error) => {
            println!("skipping Xen: {error}");
            Figures::new()
        }
    };
    let ballast = measure(Below::Ballast, plan, image, guest)?;
    print!(
        "\ninstructions per operation, cortex-a72, mitigations=off\n\n{}",
        table(plan, &bare, &xen, &ballast)
    );
    Ok(plan.operation.iter().all(|operation| is_within(operation, &ballast)))
}

fn plan() -> Result<Plan> {
    let path = place::root().join("qemu/bench.toml");
    let text = fs::read_to_string(&path).at(&path)?;
    toml::from_str(&text).map_err(|error| Error::Data { path, reason: error.to_string() })
}

/// Runs the guest with each number of CPUs in the plan.
fn measure(below: Below, plan: &Plan, image: &Image, guest: &Path) -> Result<Figures> {
    let mut figures = Figures::new();
    for cpus in [1, 2] {
        println!("measuring with {cpus} CPU, hypervisor: {below:?}");
        let said = run_guest(below, cpus, image, guest)?;
        let wanted = plan.operation.iter().filter(|operation| operation.cpus == cpus);
        figures.extend(wanted.filter_map(|operation| {
            let figure = figure(&said, &operation.name)?;
            Some((operation.name.clone(), figure))
        }));
    }
    Ok(figures)
}

/// Finds the figure in the guest's line `bench NAME INSTRUCTIONS`.
fn figure(said: &str, name: &str) -> Option<f64> {
    let mut lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.find_map(|words| match words.as_slice() {
        [.., "bench", found, figure] if *found == name => figure.parse().ok(),
        _ => None,
    })
}

fn run_guest(below: Below, cpus: u32, image: &Image, guest: &Path) -> Result<String> {
    let machine = Machine::with_controllers(cpus, &[GIB]);
    let mut boot = match below {
        Below::None => {
            let mut boot = Boot::new(machine, guest);
            boot.board = "virt,gic-version=3".into();
            boot
        }
        Below::Xen => {
            let mut boot = Boot::new(machine, store::get("xen")?.file);
            boot.append = "dom0_mem=256M console=dtuart dtuart=/pl011@9000000 bootscrub=0".into();
            boot.append.push_str(&format!(" dom0_max_vcpus={cpus}"));
            boot.modules = vec![Module::Kernel(guest.into(), "console=hvc0".into())];
            boot
        }
        Below::Ballast => {
            let mut boot = under_ballast(cpus, image, guest)?;
            // The limits hold for cores without mitigations; the emulated cortex-a72 would get some.
            boot.append = "mitigations=off".into();
            boot
        }
    };
    boot.counts_instructions = true;
    let mut session = Session::start(&boot)?;
    if below == Below::Ballast {
        bring_guest_to_front(&mut session)?;
    }
    session.expect("bench done", PATIENCE).map_err(|error| with_transcript(&error, &session))
}

/// Returns a boot of Ballast with the benchmark's guest, on `cpus` CPUs.
fn under_ballast(cpus: u32, image: &Image, guest: &Path) -> Result<Boot> {
    let mut boot = Boot::new(Machine::with_controllers(cpus, &[GIB]), image.bin.clone());
    let images = format!("kernel: kernel {{ data = /incbin/(\"{}\"); }};", guest.display());
    boot.ramdisk = Some(configuration("bench", &images, "", cpus, 256 * MIB)?);
    Ok(boot)
}

/// Runs Ballast's command `cost`, with the log as text and as frames, and formats its figures.
fn costs(image: &Image, guest: &Path) -> Result<String> {
    let mut figures: BTreeMap<String, u64> = BTreeMap::new();
    for log in ["log=text", "log=frames"] {
        let mut boot = under_ballast(1, image, guest)?;
        boot.append = log.into();
        boot.counts_instructions = true;
        let mut session = Session::start(&boot)?;
        let ask = |session: &mut Session| {
            session.expect("ballast> ", PATIENCE)?;
            session.send("cost --json\r")?;
            session.expect(r#"\{"report":"cost".*\}\r\n"#, PATIENCE)
        };
        let said = ask(&mut session).map_err(|error| with_transcript(&error, &session))?;
        let wrong = || Error::Data { path: "cost".into(), reason: said.clone() };
        let report = said.find("{\"report\":\"cost\"").map_or("", |start| said[start..].trim());
        let report: serde_json::Value = serde_json::from_str(report).map_err(|_| wrong())?;
        for cost in report["costs"].as_array().ok_or_else(wrong)? {
            let (what, picoseconds) = (cost["what"].as_str(), cost["picoseconds"].as_u64());
            let (what, picoseconds) = what.zip(picoseconds).ok_or_else(wrong)?;
            figures.insert(what.into(), picoseconds);
        }
    }
    let width = figures.keys().map(String::len).max().unwrap_or(0);
    let line =
        |(what, picoseconds): (&String, &u64)| format!("{what:width$}  {:6}\n", (picoseconds + 500) / 1000);
    Ok(figures.iter().map(line).collect())
}

fn bring_guest_to_front(session: &mut Session) -> Result<()> {
    let ready = session.expect("ballast> |cannot start", PATIENCE);
    let said = ready.map_err(|error| with_transcript(&error, session))?;
    if said.ends_with("cannot start") {
        let _ = session.expect("\n", Duration::from_secs(10));
        return Err(Error::Data { path: session.command().into(), reason: session.transcript() });
    }
    session.send("\x1d1")
}

/// Compiles a configuration of one guest.
fn configuration(name: &str, images: &str, more: &str, vcpus: u32, ram: u64) -> Result<PathBuf> {
    let source = format!(
        "/dts-v1/;\n/ {{\n\tcompatible = \"ballast,configuration\";\n\timages {{ {images} }};\n\tguests {{ bench {{\n\
         \t\tvcpus = <{vcpus}>;\n\t\tkernel = <&kernel>;\n\t\t{more}\n\
         \t\tmemory {{ size = <{:#x} {:#x}>; }};\n\t}}; }};\n}};\n",
        ram >> 32,
        ram & 0xffff_ffff,
    );
    let path = place::target().join(format!("{name}-{vcpus}.dts"));
    fs::write(&path, source).at(&path)?;
    let out = path.with_extension("dtb");
    configuration::compile(&path, LINUX, &out)?;
    Ok(out)
}

fn is_within(operation: &Operation, ballast: &Figures) -> bool {
    ballast.get(&operation.name).is_some_and(|&figure| figure <= f64::from(operation.limit))
}

fn table(plan: &Plan, bare: &Figures, xen: &Figures, ballast: &Figures) -> String {
    let measured =
        |figures: &Figures, name: &str| figures.get(name).map_or("-".into(), |f| format!("{f:.0}"));
    let mut columns = vec!["operation".to_owned(), "bare".into()];
    columns.extend(plan.columns.iter().cloned());
    columns.extend(["Xen".into(), "Ballast".into(), "limit".into(), String::new()]);
    let mut rows = vec![columns];
    for operation in &plan.operation {
        let mut row = vec![operation.title.clone(), measured(bare, &operation.name)];
        let others = (0..plan.columns.len()).map(|at| operation.others.get(at));
        row.extend(others.map(|other| other.map_or("-".into(), u32::to_string)));
        row.extend([measured(xen, &operation.name), measured(ballast, &operation.name)]);
        let verdict = if is_within(operation, ballast) { "" } else { "MISSED" };
        row.extend([operation.limit.to_string(), verdict.into()]);
        rows.push(row);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &rows {
        let mut line = format!("{:width$}", row[0], width = width(0));
        for (column, cell) in row.iter().enumerate().skip(1) {
            line.push_str(&format!("  {cell:>width$}", width = width(column)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn with_transcript(error: &Error, session: &Session) -> Error {
    let reason = format!("{error}\n{}\n{}", session.transcript(), session.complaints());
    Error::Data { path: session.command().into(), reason }
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_after_a_prefix() {
        let said = "bench start\r\n(XEN) bench sgi_self 12.50\r\nbench timer_virtual 7.00\r\n";
        assert_eq!(figure(said, "sgi_self"), Some(12.5));
        assert_eq!(figure(said, "timer_virtual"), Some(7.0));
        assert_eq!(figure(said, "hvc"), None);
    }

    #[test]
    fn the_table_marks_missed_limits() {
        let plan = plan().unwrap();
        let figures =
            |figure: f64| plan.operation.iter().map(|o| (o.name.clone(), figure)).collect::<Figures>();
        let text = table(&plan, &figures(1.0), &Figures::new(), &figures(130.4));
        let row = |title: &str| text.lines().find(|line| line.starts_with(title)).unwrap().to_owned();
        assert!(row("HVC").ends_with("130     50  MISSED"), "{text}");
        assert!(row("SGI").ends_with("-      130    190"), "{text}");
    }
}
