//! The cost of devices: interrupts and configuration space in a bare-metal guest, transfers in Linux, and migration
//! during transfers.

mod migration;
mod transfers;

use std::fs;
use std::path::{Path, PathBuf};

use super::claims::ask;
use super::{Below, LINUX, PATIENCE, bring_guest_to_front, figure, with_transcript};
use crate::boot::Boot;
use crate::devices::{Content, Disk, Network, Place, Smmu};
use crate::error::{AtPath, Error, Result};
use crate::image::Image;
use crate::machine::Machine;
use crate::session::Session;
use crate::size::{GIB, MIB};
use crate::{configuration, place, ramdisk, store};

/// Most instructions of an interrupt in addition to those without Ballast.
const INTERRUPT_LIMIT: f64 = 150.0;
/// Most instructions of a read of the configuration space.
const CONFIG_READ_LIMIT: f64 = 150.0;
/// Counting instructions, with idle time as on the PC: otherwise the clock of an idle machine jumps to the next timer, and
/// timers fire during each transfer.
const COUNTING: [&str; 2] = ["-icount", "shift=0,sleep=on"];
/// DMA window of the guests with Linux.
const WINDOW: u64 = 64 * MIB;
/// Their other RAM, which begins at [`RAM_BASE`].
const RAM: u64 = 384 * MIB;
/// Address of the guests' RAM outside the window: the next power of two.
const RAM_BASE: u64 = 2 * GIB;

/// Measures and prints the tables. Returns `true` if all limits are met.
pub(super) fn run(image: &Image, guest: &Path) -> Result<bool> {
    let mut is_kept = operations(image, guest)?;
    is_kept &= transfers::run(image)?;
    is_kept &= migration::run(image)?;
    Ok(is_kept)
}

/// Measures the bare-metal guest's operations on devices.
fn operations(image: &Image, guest: &Path) -> Result<bool> {
    let bare = operations_of(Below::None, image, guest)?;
    let ballast = operations_of(Below::Ballast, image, guest)?;
    println!("\ndevices in a bare-metal guest, instructions per operation, cortex-a72, mitigations=off\n");
    println!("operation                    bare  Ballast  limit");
    let mut is_kept = true;
    for (name, title, limit) in [
        ("line", "interrupt, until handled", INTERRUPT_LIMIT + figure(&bare, "line").unwrap_or(0.0)),
        ("pci_config_read", "read of configuration", CONFIG_READ_LIMIT),
    ] {
        let of = |said: &str| {
            let reason = format!("no figure `{name}` in {said}");
            figure(said, name).ok_or_else(|| Error::Data { path: guest.into(), reason })
        };
        let (bare, ballast) = (of(&bare)?, of(&ballast)?);
        let is_good = ballast <= limit;
        is_kept &= is_good;
        println!(
            "{title:25}  {bare:6.0}  {ballast:7.0}  {limit:5.0}{}",
            if is_good { "" } else { "  MISSED" }
        );
    }
    Ok(is_kept)
}

fn operations_of(below: Below, image: &Image, guest: &Path) -> Result<String> {
    let mut machine = Machine::with_controllers(1, &[GIB]);
    machine.disks.push(disk(MIB));
    let mut boot = match below {
        Below::Ballast => Boot::new(machine, image.bin.clone()),
        _ => Boot::new(machine, guest),
    };
    if below == Below::Ballast {
        // A device without an SMMU uses addresses as they are, so the window has the same addresses for the guest.
        let source = format!(
            "images {{ kernel: kernel {{ data = /incbin/(\"{}\"); }}; }};\n\
             guests {{ bench {{ #address-cells = <2>; #size-cells = <2>; vcpus = <1>; kernel = <&kernel>; \
             bootargs = \"devices=1\"; pci-functions = <0x08>; \
             devices = \"/pl061@9030000\"; assign-without-smmu; \
             memory-0 {{ dma-window; pinned-in-place; reg = <0 0x60000000 0 0x2000000>; }}; \
             memory-1 {{ size = <0 0x4000000>; }}; }}; }};\n",
            guest.display(),
        );
        boot.ramdisk = Some(configure("bench-devices", &source)?);
        boot.append = "mitigations=off".into();
    } else {
        boot.board = "virt,gic-version=3".into();
        boot.append = "devices=1".into();
    }
    boot.counts_instructions = true;
    let mut session = Session::start(&boot)?;
    if below == Below::Ballast {
        bring_guest_to_front(&mut session)?;
    }
    session.expect("bench done", PATIENCE).map_err(|error| with_transcript(&error, &session))
}

/// Compiles a configuration with `source` in its root.
fn configure(name: &str, source: &str) -> Result<PathBuf> {
    let source = format!(
        "/dts-v1/;\n/ {{ compatible = \"ballast,configuration\"; #address-cells = <2>; #size-cells = <2>;\n{source}}};\n"
    );
    let path = place::target().join(format!("{name}.dts"));
    fs::write(&path, source).at(&path)?;
    let blob = path.with_extension("dtb");
    configuration::compile(&path, LINUX, &blob)?;
    Ok(blob)
}

/// Returns a blank disk in slot 1.
fn disk(size: u64) -> Disk {
    Disk { name: "bench".into(), place: Place::Slot(1), content: Content::Blank(size) }
}

/// Returns a machine with one CPU, a disk, and two interfaces on one network.
fn machine(controllers: &[u64]) -> Machine {
    let network = |number: u8| Network {
        hub: 0,
        mac: format!("52:54:00:00:00:0{number}"),
        place: Place::Slot(1 + number),
    };
    let mut machine = Machine::with_controllers(1, controllers);
    machine.disks.push(disk(256 * MIB));
    machine.networks.extend([1, 2].map(network));
    machine
}

/// Starts Linux without Ballast on QEMU's own tree with `overlay`, and waits for its shell.
fn start_bare(overlay: &str) -> Result<Session> {
    let mut boot = Boot::new(machine(&[WINDOW + RAM]), store::get(LINUX)?.file);
    // Without an MSI controller, as under Ballast.
    boot.board = "virt,gic-version=3,its=off".into();
    boot.ramdisk = Some(ramdisk::with_fio(LINUX)?);
    boot.append = arguments();
    boot.tree_overlay = overlay.into();
    boot.options.extend(COUNTING.map(Into::into));
    let mut session = Session::start(&boot)?;
    session.expect(":~# ", PATIENCE).map_err(|error| with_transcript(&error, &session))?;
    Ok(session)
}

/// Starts Linux under Ballast with all devices of the [`machine`], and waits for its shell. The console is in front.
fn start_ballast(image: &Image) -> Result<Session> {
    let source = format!(
        "images {{ kernel: kernel {{ data = /incbin/(\"{}\"); }}; ramdisk: ramdisk {{ data = /incbin/(\"{}\"); }}; }};\n\
         guests {{ bench {{ vcpus = <1>; kernel = <&kernel>; ramdisk = <&ramdisk>; bootargs = \"{}\"; \
         pci-functions = <0x08 0x10 0x18>; memory-0 {{ dma-window; size = <0 {WINDOW:#x}>; controllers = <0>; }}; \
         memory-1 {{ size = <0 {RAM:#x}>; controllers = <0>; preferred; unit-size = <0x200000>; }}; }}; }};\n",
        store::get(LINUX)?.file.display(),
        ramdisk::with_fio(LINUX)?.display(),
        arguments(),
    );
    let mut machine = machine(&[GIB, 512 * MIB]);
    machine.smmu = Some(Smmu::Usual);
    let mut boot = Boot::new(machine, image.bin.clone());
    boot.ramdisk = Some(configure("bench-transfers", &source)?);
    boot.append = "mitigations=off".into();
    boot.options.extend(COUNTING.map(Into::into));
    let mut session = Session::start(&boot)?;
    bring_guest_to_front(&mut session)?;
    session.expect(":~# ", PATIENCE).map_err(|error| with_transcript(&error, &session))?;
    Ok(session)
}

/// Returns the arguments of the kernel. The self-test of jitter entropy would take a random time.
fn arguments() -> String {
    "console=ttyAMA0 quiet nokaslr cma=0 initcall_blacklist=jent_mod_init hostname=bench".into()
}

/// Runs `command` on the shell in front and waits until it is over.
fn shell(session: &mut Session, command: &str) -> Result<()> {
    session.send(format!("{command}\r"))?;
    session.expect(":~# ", PATIENCE).map_err(|error| with_transcript(&error, session))?;
    Ok(())
}

/// Asks Ballast with the guest's console in front, and returns to that.
fn ask_ballast(session: &mut Session, command: &str) -> Result<serde_json::Value> {
    session.send("\x1dm")?;
    let report = ask(session, command)?;
    session.send("\x1d1")?;
    Ok(report)
}
