//! What the tests boot, built once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ballast_qemu::image::{Image, build_payloads};
use ballast_qemu::{place, process, toolchain};

/// Ballast's image. `make test` has built it, and names it in `BALLAST_IMAGE`; alone, a test builds it.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| match std::env::var_os("BALLAST_IMAGE") {
        Some(path) => path.into(),
        None => Image::build().unwrap_or_else(|error| panic!("{error}")).bin,
    })
}

/// The same with symbols.
pub fn elf() -> PathBuf {
    image().with_extension("elf")
}

/// The tool on the PC.
pub fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let mut cargo = toolchain::cargo();
        cargo.args(["build", "--quiet", "--package", "ballast-tools", "--bin", "ballast"]);
        process::quietly(&mut cargo).unwrap_or_else(|error| panic!("{error}"));
        place::target().join("debug/ballast")
    })
}

/// The bare-metal guest `name` of tests/guests, with the arm64 Image header.
pub fn payload(name: &str) -> PathBuf {
    payloads().join(format!("{name}.img"))
}

/// The same without the header: raw code, entered at its first byte.
pub fn raw_payload(name: &str) -> PathBuf {
    payloads().join(format!("{name}.bin"))
}

/// `make test` has built them, and names their folder in `BALLAST_PAYLOADS`; alone, a test builds them.
fn payloads() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| match std::env::var_os("BALLAST_PAYLOADS") {
        Some(path) => path.into(),
        None => build_payloads().unwrap_or_else(|error| panic!("{error}")),
    })
}
