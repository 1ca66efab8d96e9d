//! Builds the bare-metal guests and converts each ELF file to images for loaders.
//!
//! `cargo run --manifest-path tests/guests/Cargo.toml -p pack [-- ARGUMENTS OF CARGO BUILD]` writes, for every guest, to
//! the folder `guests` of the target directory:
//! - `NAME.elf`: with symbols, for a debugger;
//! - `NAME.img`: with the arm64 Image header;
//! - `NAME.bin`: without it, entered at its first byte;
//!
//! and the programs for Linux unchanged, `NAME`.

mod elf;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "aarch64-unknown-none-softfloat";
const GUESTS: &[&str] = &[
    "bench",
    "probe",
    "irqload",
    "rogue",
    "hostile",
    "stress",
    "owner",
    "poolflood",
    "tenant",
    "pattern",
    "firmware",
    "loader",
    "wakeup",
    "flood",
    "gicloader",
    "residue",
    "saboteur",
];
/// Programs for Linux.
const PROGRAMS: [&str; 1] = ["mbind"];
/// The header has its own page (bare/link.ld).
const HEADER_SIZE: usize = 4096;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("pack: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the manifest has no parent folder")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    // Build in the folder of the bare workspace, where cargo finds its configuration.
    let target = std::path::absolute(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    build(workspace, &target)?;
    let output = target.join("guests");
    std::fs::create_dir_all(&output).map_err(|error| format!("{}: {error}", output.display()))?;
    for name in GUESTS {
        let path = target.join(TARGET).join("release").join(name);
        let file = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let image = elf::image(&file).map_err(|error| format!("{}: {error}", path.display()))?;
        let raw =
            image.get(HEADER_SIZE..).ok_or_else(|| format!("{}: no more than a header", path.display()))?;
        for (extension, bytes) in [("elf", &file[..]), ("img", &image[..]), ("bin", raw)] {
            let path = output.join(name).with_extension(extension);
            std::fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        println!("{} {} bytes", output.join(name).with_extension("bin").display(), raw.len());
    }
    for name in PROGRAMS {
        let path = target.join(TARGET).join("release").join(name);
        std::fs::copy(&path, output.join(name)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn build(workspace: &Path, target: &Path) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "-p",
            "bare",
            "-p",
            "linux",
            "--bins",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(target)
        .args(std::env::args_os().skip(1))
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo build: {status}")) }
}
