//! `ballast-qemu`: builds Ballast, fetches guests, and runs or tests them in QEMU.

use std::path::PathBuf;
use std::process::ExitCode;

use ballast_qemu::boot::Boot;
use ballast_qemu::error::Error;
use ballast_qemu::image::Image;
use ballast_qemu::machine::Machine;
use ballast_qemu::{
    Result, bench, configuration, debian, devices, errata, interactive, place, ramdisk, store, suite,
};
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
    /// Run a set of guests under Ballast at this terminal (leave QEMU with Ctrl-A X)
    Run(Run),
    /// Run a guest's kernel without Ballast at this terminal (leave QEMU with Ctrl-A X)
    Bare(Bare),
    /// Build Ballast: ballast.elf and ballast.bin in the target folder
    Image,
    /// Search an image for instruction sequences of Cortex-A53's errata 835769, 843419 and 819472
    Errata {
        /// ELF file to search; by default, Ballast's, which is built first
        file: Option<PathBuf>,
    },
    /// Run all tests
    Test {
        /// Run only tests whose name contains this
        filter: Option<String>,
    },
    /// Measure the overhead of Ballast in instructions, in comparison with Xen
    Bench {
        /// Measure only this part: `allocator`, `claims`, `devices`, `linux`, `migration`, `mitigations`, `traps` or
        /// `watching` (log and trace)
        #[arg(value_parser = ["allocator", "claims", "devices", "linux", "migration", "mitigations", "traps", "watching"])]
        part: Option<String>,
    },
    /// Fetch all kernels and build the ramdisks, for later work without a network
    Fetch {
        /// Build the disk of the set `debian`, too
        #[arg(long)]
        debian: bool,
    },
    /// List the machines
    Machines,
    /// Write the device tree of a machine, for `ballast check --host`
    Tree {
        /// Machine, from qemu/machines
        #[arg(long, default_value = "two")]
        machine: String,
        /// File to write the blob to
        #[arg(value_name = "FILE.dtb")]
        file: PathBuf,
    },
}

#[derive(Args)]
struct Run {
    /// Machine, from qemu/machines; default: the one that is called like the set of guests, or else `two`
    #[arg(long)]
    machine: Option<String>,
    /// Set of guests, from guest-dts, or a file that ends in .dts
    #[arg(long, default_value = "alpha-beta")]
    guests: String,
    /// Kernel of the guests; default: 6.12, or 6.1 if Debian no longer has it
    #[arg(long)]
    kernel: Option<String>,
    /// QEMU's name of a CPU model to use instead of the machine's
    #[arg(long)]
    cpu: Option<String>,
    /// `keep` what guests write to disks, in target/disks, or `discard` it at the end
    #[arg(long, default_value = "discard", value_parser = ["keep", "discard"])]
    disks: String,
    /// Ballast's own command line
    #[arg(long, default_value = "")]
    append: String,
    /// Connect the serial line to a Unix socket at this path, for `ballast console PATH` and other commands (leave
    /// QEMU with Ctrl-C)
    #[arg(long)]
    serial: Option<PathBuf>,
    /// Use this image instead of building one
    #[arg(long)]
    image: Option<PathBuf>,
}

#[derive(Args)]
struct Bare {
    /// Machine, from qemu/machines
    #[arg(long, default_value = "two")]
    machine: String,
    /// Kernel
    #[arg(long, default_value = USUAL_KERNEL)]
    kernel: String,
    /// Load the drivers of the machine's devices, set up the network, and include fio
    #[arg(long)]
    devices: bool,
    /// Additional arguments for the kernel
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
            // The tables mark missed limits; a benchmark reports and does not fail.
            match part.as_deref() {
                Some("allocator") => bench::run_allocator(),
                Some("claims") => bench::run_claims(),
                Some("devices") => bench::run_devices(),
                Some("linux") => bench::run_linux(),
                Some("migration") => bench::run_migration(),
                Some("mitigations") => bench::run_mitigations(),
                Some("traps") => bench::run_traps(),
                Some("watching") => bench::run_watching(),
                _ => bench::run(),
            }?;
        }
        Command::Fetch { debian } => {
            fetch()?;
            if debian {
                println!("Debian's root file system: {}", debian::get()?.display());
            }
        }
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
    // Reports missing files before anything is built.
    let machine = match &options.machine {
        Some(name) => Machine::load(name)?,
        None => Machine::for_guests(&options.guests)?,
    };
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
    debian::prepare(&machine)?;
    let mut boot = Boot::new(machine, image);
    boot.cpu.clone_from(&options.cpu);
    boot.append.clone_from(&options.append);
    boot.ramdisk = Some(guests.clone());
    configuration::check(&guests, &boot.host_tree()?, &options.append)?;
    boot.socket.clone_from(&options.serial);
    boot.disks = (options.disks == "keep").then(|| devices::kept_folder(&boot.machine.name));
    println!(
        "Ballast's monitor: help lists the commands, Ctrl-] 1 shows the first guest, Ctrl-] ? lists the keys"
    );
    start(&boot, &format!("guests `{}` with Linux {kernel}", options.guests))
}

fn bare(options: &Bare) -> Result<()> {
    let machine = Machine::load(&options.machine)?;
    debian::prepare(&machine)?;
    let mut boot = Boot::new(machine, store::get(&options.kernel)?.file);
    boot.ramdisk = Some(if options.devices { ramdisk::with_fio(&options.kernel)? } else { ramdisk::get()? });
    boot.append = format!("console=ttyAMA0 hostname=bare {}", options.append);
    start(&boot, &format!("Linux {} without Ballast", options.kernel))
}

fn start(boot: &Boot, what: &str) -> Result<()> {
    let machine = &boot.machine;
    println!("machine `{}`: {} CPUs, {}; {what}", machine.name, machine.cpus, machine.description);
    if !machine.disks.is_empty() {
        match &boot.disks {
            Some(folder) => println!("disks: kept in {}", folder.display()),
            None => println!("disks: all that guests write is discarded at the end; DISKS=keep keeps it"),
        }
    }
    for forward in &machine.forwards {
        println!("network: http://localhost:{} reaches {}:{}", forward.port, forward.to, forward.to_port);
    }
    match &boot.socket {
        None => println!("leave QEMU with Ctrl-A X; Ctrl-A H lists its keys"),
        Some(path) => {
            let path = path.display();
            println!(
                "attach with: tools/cargo run -p ballast-tools -- console {path}; leave QEMU with Ctrl-C"
            );
        }
    }
    interactive::run(boot)
}

/// Fetches the requested kernel or, by default, the usual one, or the older one if Debian no longer has that.
fn kernel(asked: Option<&str>) -> Result<String> {
    let usual = asked.unwrap_or(USUAL_KERNEL);
    match store::get(usual) {
        Err(error @ Error::NoPackage { .. }) if asked.is_none() => {
            println!("{error}; using Linux {OLDER_KERNEL} instead");
            store::get(OLDER_KERNEL)?;
            Ok(OLDER_KERNEL.into())
        }
        found => found.map(|_| usual.into()),
    }
}

fn fetch() -> Result<()> {
    let kernels = store::kernels()?;
    let mut names: Vec<&str> = kernels.iter().map(String::as_str).collect();
    names.extend(["busybox", "fio", "xen"]);
    for (name, item) in names.iter().zip(store::get_all(&names)?) {
        println!("{name}: {} {}", item.record.package, item.record.version);
    }
    println!("ramdisk: {}", ramdisk::get()?.display());
    for kernel in &kernels {
        println!("ramdisk with devices and fio: {}", ramdisk::with_fio(kernel)?.display());
    }
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
