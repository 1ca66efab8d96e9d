//! The start of Linux under Ballast and without it, with the same device tree.

use std::fs;
use std::path::PathBuf;

use super::{LINUX, PATIENCE, QUICK_EXIT, bring_guest_to_front, configuration, with_transcript};
use crate::boot::Boot;
use crate::error::{AtPath, Error, Result};
use crate::image::Image;
use crate::machine::Machine;
use crate::session::Session;
use crate::size::{GIB, MIB};
use crate::{place, ramdisk, store};

/// Limit for Linux under Ballast, as a multiple of the instructions without a hypervisor.
const LINUX_LIMIT: f64 = 1.001;
/// Number of boots of Linux for the mean, each with different random numbers.
const LINUX_BOOTS: u8 = 3;
/// RAM of the guest that boots Linux.
const LINUX_RAM: u64 = 512 * MIB;

/// Boots Linux to its `/init` several times, under Ballast and without it, and prints the instructions.
///
/// The kernel's own clock at `/init` differs by some percent between any two boots, since the position of timer ticks
/// decides which thread waits for which. The limit therefore applies to the instructions at EL2, which are counted
/// exactly.
pub(super) fn run(image: &Image) -> Result<bool> {
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
