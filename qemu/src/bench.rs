//! Benchmarks: the cost of a guest's operations in instructions, under Ballast, under Xen and without a hypervisor.
//!
//! The same bare-metal guest runs on the same machine in each case, and time counts instructions. Linux boots to its
//! `/init`, without a hypervisor with the same device tree as under Ballast.

mod allocator;
mod claims;
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
use crate::{configuration, place, ramdisk, store};

/// Time limit, which only ends hangs.
const PATIENCE: Duration = Duration::from_secs(900);
/// Limit for Linux under Ballast, as a multiple of the instructions without a hypervisor.
const LINUX_LIMIT: f64 = 1.001;
const LINUX: &str = "6.12";
/// Most instructions of a fast exit, which the time at EL2 does not include and `stats` counts.
const QUICK_EXIT: u64 = 100;
/// Number of boots of Linux for the mean, each with different random numbers.
const LINUX_BOOTS: u8 = 3;
/// RAM of the guest that boots Linux.
const LINUX_RAM: u64 = 512 * MIB;

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
    let bare = measure(Below::None, &plan, &image, &guest)?;
    let xen = match measure(Below::Xen, &plan, &image, &guest) {
        Ok(figures) => figures,
        Err(error) => {
            println!("skipping Xen: {error}");
            Figures::new()
        }
    };
    let ballast = measure(Below::Ballast, &plan, &image, &guest)?;
    print!(
        "\ninstructions per operation, cortex-a72, mitigations=off\n\n{}",
        table(&plan, &bare, &xen, &ballast)
    );
    let mut is_kept = plan.operation.iter().all(|operation| is_within(operation, &ballast));

    mitigations::run(&plan, &image, &guest)?;
    watching(&image, &guest)?;
    println!("\n{}", image.describe());
    is_kept &= image.fits();
    is_kept &= linux(&image)?;
    is_kept &= migration::run(&image)?;
    is_kept &= claims::run(&image)?;
    is_kept &= allocator::run()?;
    Ok(is_kept)
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

/// Boots Linux to its `/init` several times, under Ballast and without it, and prints the instructions.
///
/// The kernel's own clock at `/init` differs by some percent between any two boots, since the position of timer ticks
/// decides which thread waits for which. The limit therefore applies to the instructions at EL2, which are counted
/// exactly.
fn linux(image: &Image) -> Result<bool> {
    println!(
        "\nbooting Linux {LINUX} under Ballast and without it, {LINUX_BOOTS} times, with the same device tree"
    );
    let (mut under_ballast, mut bare, mut at_el2) = (Vec::new(), Vec::new(), Vec::new());
    for boot in 0..LINUX_BOOTS {
        let (seconds, at_el2_seconds, tree) = linux_under_ballast(image, boot)?;
        under_ballast.push(seconds);
        at_el2.push(at_el2_seconds);
        bare.push(linux_bare(tree, boot)?);
    }
    let mean = |figures: &[f64]| figures.iter().sum::<f64>() / figures.len() as f64;
    let range = |figures: &[f64]| {
        let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
        let most = figures.iter().copied().fold(0.0, f64::max);
        format!("{:.1} ({:.1} to {:.1})", mean(figures) * 1e3, least * 1e3, most * 1e3)
    };
    println!(
        "Linux {LINUX} to /init, million instructions by the kernel's clock: {} without Ballast, {} under Ballast",
        range(&bare),
        range(&under_ballast)
    );
    let ratio = 1.0 + mean(&at_el2) / mean(&bare);
    let verdict = if ratio <= LINUX_LIMIT { "limit:" } else { "MISSED, limit:" };
    println!("at EL2: {} million instructions; ratio {ratio:.5}, {verdict} {LINUX_LIMIT}", range(&at_el2));
    Ok(ratio <= LINUX_LIMIT)
}

/// Returns `rng-seed` for Linux. Without a seed, Linux reads an identification register that hypervisors trap some
/// 50,000 times, to find out whether the CPU has random numbers.
fn seed(boot: u8) -> String {
    let bytes: Vec<String> = (0..32u8).map(|at| format!("{:02x}", at.wrapping_mul(37) ^ boot)).collect();
    format!("rng-seed = [{}];", bytes.join(" "))
}

/// Returns seconds to `/init` and seconds at EL2, at one nanosecond per instruction, and the guest's tree.
fn linux_under_ballast(image: &Image, number: u8) -> Result<(f64, f64, PathBuf)> {
    let images = format!(
        "kernel: kernel {{ data = /incbin/(\"{}\"); }}; ramdisk: ramdisk {{ data = /incbin/(\"{}\"); }};",
        store::get(LINUX)?.file.display(),
        ramdisk::get()?.display()
    );
    // The self-test of jitter entropy would take a random time: until the counter has varied enough.
    let more = format!(
        "ramdisk = <&ramdisk>; bootargs = \"console=ttyAMA0 quiet nokaslr initcall_blacklist=jent_mod_init \
         hostname=bench\"; device-tree {{ chosen {{ {} }}; }};",
        seed(number)
    );
    let mut boot = Boot::new(Machine::with_controllers(1, &[GIB]), image.bin.clone());
    boot.ramdisk = Some(configuration("bench-linux", &images, &more, 1, LINUX_RAM)?);
    boot.counts_instructions = true;
    let mut session = Session::start(&boot)?;
    bring_guest_to_front(&mut session)?;
    let seconds = seconds_to_init(&mut session)?;
    let at_el2 = seconds_at_el2(&mut session)?;
    session.send("\x1d1\r")?;
    let tree = guest_tree(&mut session)?;
    Ok((seconds, at_el2, tree))
}

/// Returns the seconds that the guest's CPU has spent at EL2.
fn seconds_at_el2(session: &mut Session) -> Result<f64> {
    session.send("\x1dmstats bench --json\r")?;
    let said =
        session.expect(r"\{[^\n]*\}\r?\n", PATIENCE).map_err(|error| with_transcript(&error, session))?;
    let report =
        said.find('{').and_then(|start| serde_json::from_str::<serde_json::Value>(said[start..].trim()).ok());
    let number = |name: &str| report.as_ref().and_then(|report| report[name].as_u64());
    match (number("el2_ns"), number("exit_count")) {
        (Some(time), Some(exits)) => Ok((time + exits * QUICK_EXIT) as f64 / 1e9),
        _ => Err(Error::Data { path: "stats bench".into(), reason: said }),
    }
}

/// Returns seconds to `/init` without Ballast, with the guest's device tree.
fn linux_bare(tree: PathBuf, number: u8) -> Result<f64> {
    let mut boot = Boot::new(Machine::with_controllers(1, &[LINUX_RAM]), store::get(LINUX)?.file);
    boot.board = "virt,gic-version=3".into();
    boot.ramdisk = Some(ramdisk::get()?);
    boot.tree = Some(tree);
    // Linux wipes the seed in its tree.
    boot.tree_overlay = format!("/ {{ chosen {{ {} }}; }};\n", seed(number));
    boot.counts_instructions = true;
    seconds_to_init(&mut Session::start(&boot)?)
}

/// Returns the kernel's time at the start of `/init`, from its log. Kernels boot with `quiet`, so that the speed of
/// polling a serial line does not count.
fn seconds_to_init(session: &mut Session) -> Result<f64> {
    let at_shell = session.expect(":~# ", PATIENCE);
    at_shell.map_err(|error| with_transcript(&error, session))?;
    session.send("dmesg | grep 'Run /ini[t]'\r")?;
    let said = session.expect(r"\] Run /init as init process", PATIENCE);
    let said = said.map_err(|error| with_transcript(&error, session))?;
    let stamp = said.rsplit('[').next().and_then(|line| line.split(']').next()).unwrap_or_default();
    stamp
        .trim()
        .parse()
        .map_err(|_| Error::Data { path: "Linux".into(), reason: format!("no time in `{stamp}`") })
}

/// Reads the device tree of the guest in front into a file.
fn guest_tree(session: &mut Session) -> Result<PathBuf> {
    session.expect(":~# ", PATIENCE)?;
    // Quotes distinguish the echo from the answer.
    session
        .send("echo \"<\"tree; hexdump -v -e '64/1 \"%02x\" \"\\n\"' /sys/firmware/fdt; echo \">\"tree\r")?;
    session.expect("<tree", PATIENCE)?;
    let said = session.expect(">tree", PATIENCE)?;
    // Skips lines of Ballast's log.
    let is_data = |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits: Vec<u8> = said.lines().map(str::trim).filter(is_data).flat_map(str::bytes).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    let path = place::target().join("bench-linux-guest.dtb");
    fs::write(&path, bytes).at(&path)?;
    Ok(path)
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
