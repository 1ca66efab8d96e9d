//! `ballast-qemu`: builds Ballast, fetches guests, and runs or tests them in QEMU.

use std::path::PathBuf;
use std::process::ExitCode;

use ballast_qemu::boot::Boot;
use ballast_qemu::error::Error;
use ballast_qemu::image::Image;
use ballast_qemu::machine::Machine;
use ballast_qemu::{Result, bench, configuration, errata, interactive, place, ramdisk, store, suite};
use clap::{Args, Parser, Subcommand};

/// Builds Ballast, fetches guests, and runs or tests them in QEMU.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a set of guests under Ballast, at this terminal; Ctrl-A X leaves
    Run(Run),
    /// Start a guest's kernel without Ballast, at this terminal; Ctrl-A X leaves
    Bare(Bare),
    /// Build Ballast: ballast.elf and ballast.bin in the target folder
    Image,
    /// Count the instruction sequences that Cortex-A53 may execute wrongly (errata 835769, 843419, 819472)
    Errata {
        /// An ELF file; without it, Ballast is built first
        file: Option<PathBuf>,
    },
    /// Run all tests
    Test {
        /// Only those whose name contains this
        filter: Option<String>,
    },
    /// Measure what Ballast costs a guest, in instructions, beside Xen
    Bench {
        /// `allocator`, `claims`, `migration`, `mitigations` or `watching` (the log and the trace): only what these cost
        part: Option<String>,
    },
    /// Fetch every kernel and make the ramdisk, for later work without a network
    Fetch,
    /// List the machines
    Machines,
    /// Write the device tree that Ballast finds on a machine, for `ballast check --host`
    Tree {
        /// The machine, from qemu/machines
        #[arg(long, default_value = "two")]
        machine: String,
        /// Where the blob goes
        #[arg(value_name = "FILE.dtb")]
        file: PathBuf,
    },
}

#[derive(Args)]
struct Run {
    /// The machine, from qemu/machines
    #[arg(long, default_value = "two")]
    machine: String,
    /// The set of guests, from guest-dts
    #[arg(long, default_value = "alpha-beta")]
    guests: String,
    /// The guests' kernel; without it 6.12, or 6.1 where that cannot be had
    #[arg(long)]
    kernel: Option<String>,
    /// Another CPU than the machine's, in QEMU's words
    #[arg(long)]
    cpu: Option<String>,
    /// Ballast's own command line
    #[arg(long, default_value = "")]
    append: String,
    /// The console as a Unix socket at this path, for `ballast console PATH` and its like; Ctrl-C leaves then
    #[arg(long)]
    serial: Option<PathBuf>,
    /// An image that is there already, rather than building one
    #[arg(long)]
    image: Option<PathBuf>,
}

#[derive(Args)]
struct Bare {
    /// The machine, from qemu/machines
    #[arg(long, default_value = "two")]
    machine: String,
    /// The kernel
    #[arg(long, default_value = USUAL_KERNEL)]
    kernel: String,
    /// More arguments for the kernel
    #[arg(long, default_value = "")]
    append: String,
}

const USUAL_KERNEL: &str = "6.12";
const OLDER_KERNEL: &str = "6.1";

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(code) => code,
        Err(Error::Signal(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("ballast-qemu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(options) => run(&options)?,
        Command::Bare(options) => bare(&options)?,
        Command::Image => {
            let image = Image::build()?;
            println!("{}", image.describe());
        }
        Command::Errata { file } => {
            let file = match file {
                Some(file) => file,
                None => Image::build()?.elf,
            };
            let data = std::fs::read(&file).map_err(|source| Error::File { path: file.clone(), source })?;
            let found = errata::scan(&data).map_err(|reason| Error::Image { path: file.clone(), reason })?;
            println!("{}: {found}", file.display());
            if !found.is_clean() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Test { filter } => {
            let sum = suite::run(filter.as_deref())?;
            println!("{sum}");
            if sum.failed_count > 0 || sum.passed_count == 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Bench { part } => {
            // Whether the limits are kept is said in the tables: a benchmark reports.
            match part.as_deref() {
                Some("allocator") => bench::run_allocator(),
                Some("claims") => bench::run_claims(),
                Some("migration") => bench::run_migration(),
                Some("mitigations") => bench::run_mitigations(),
                Some("watching") => bench::run_watching(),
                _ => bench::run(),
            }?;
        }
        Command::Fetch => fetch()?,
        Command::Machines => machines()?,
        Command::Tree { machine, file } => {
            let boot = Boot::new(Machine::load(&machine)?, Image::build()?.bin);
            let tree = boot.host_tree()?;
            std::fs::write(&file, tree).map_err(|source| Error::File { path: file, source })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run(options: &Run) -> Result<()> {
    // What is not there is told before anything is built.
    let machine = Machine::load(&options.machine)?;
    configuration::source(&options.guests)?;
    if let Some(kernel) = &options.kernel
        && !store::kernels()?.contains(kernel)
    {
        return Err(Error::Unknown { kind: "kernel", name: kernel.clone(), known: store::kernels()? });
    }
    let image = match &options.image {
        Some(path) => path.clone(),
        None => {
            let image = Image::build()?;
            println!("{}", image.describe());
            image.bin
        }
    };
    let kernel = kernel(options.kernel.as_deref())?;
    let guests = configuration::build(&options.guests, &kernel)?;
    let mut boot = Boot::new(machine, image);
    boot.cpu.clone_from(&options.cpu);
    boot.append.clone_from(&options.append);
    boot.ramdisk = Some(guests.clone());
    configuration::check(&guests, &boot.host_tree()?, &options.append)?;
    boot.socket.clone_from(&options.serial);
    println!(
        "Ballast's console: help lists the commands; Ctrl-] 1 brings the first guest to front, Ctrl-] ? lists the keys"
    );
    start(&boot, &format!("guests `{}` with Linux {kernel}", options.guests))
}

fn bare(options: &Bare) -> Result<()> {
    let mut boot = Boot::new(Machine::load(&options.machine)?, store::get(&options.kernel)?.file);
    boot.ramdisk = Some(ramdisk::get()?);
    boot.append = format!("console=ttyAMA0 hostname=bare {}", options.append);
    start(&boot, &format!("Linux {} without Ballast", options.kernel))
}

fn start(boot: &Boot, what: &str) -> Result<()> {
    let machine = &boot.machine;
    println!("machine `{}`: {} CPUs, {}; {what}", machine.name, machine.cpus, machine.description);
    match &boot.socket {
        None => println!("leave QEMU: Ctrl-A X; all its keys: Ctrl-A H"),
        Some(path) => {
            let path = path.display();
            println!("attach: tools/cargo run -p ballast-tools -- console {path}; leave QEMU: Ctrl-C");
        }
    }
    interactive::run(boot)
}

/// The kernel asked for, or the usual one, or where that is not to be had the older one.
fn kernel(asked: Option<&str>) -> Result<String> {
    let usual = asked.unwrap_or(USUAL_KERNEL);
    match store::get(usual) {
        Err(error @ Error::NoPackage { .. }) if asked.is_none() => {
            println!("{error}: taking Linux {OLDER_KERNEL}");
            store::get(OLDER_KERNEL)?;
            Ok(OLDER_KERNEL.into())
        }
        found => found.map(|_| usual.into()),
    }
}

fn fetch() -> Result<()> {
    let kernels = store::kernels()?;
    let mut names: Vec<&str> = kernels.iter().map(String::as_str).collect();
    names.extend(["busybox", "xen"]);
    for (name, item) in names.iter().zip(store::get_all(&names)?) {
        println!("{name}: {} {}", item.record.package, item.record.version);
    }
    println!("ramdisk: {}", ramdisk::get()?.display());
    Ok(())
}

fn machines() -> Result<()> {
    let mut paths: Vec<_> = std::fs::read_dir(place::machines())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    for path in paths {
        let machine = Machine::read(&path)?;
        println!("{:10} {} CPUs, {}", machine.name, machine.cpus, machine.description);
    }
    Ok(())
}
