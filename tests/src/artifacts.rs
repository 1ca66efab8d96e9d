//! The images that the tests boot, built once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ballast_qemu::image::{Image, build_payloads};
use ballast_qemu::{place, process, toolchain};

/// Returns the path of Ballast's image. `make test` builds it and passes it in `BALLAST_IMAGE`; otherwise the test builds it.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| match std::env::var_os("BALLAST_IMAGE") {
        Some(path) => path.into(),
        None => Image::build().unwrap_or_else(|error| panic!("{error}")).bin,
    })
}

/// Returns the path of the image with symbols.
pub fn elf() -> PathBuf {
    image().with_extension("elf")
}

/// Returns the path of the tool `ballast` for the PC.
pub fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let mut cargo = toolchain::cargo();
        cargo.args(["build", "--quiet", "--package", "ballast-tools", "--bin", "ballast"]);
        process::quietly(&mut cargo).unwrap_or_else(|error| panic!("{error}"));
        place::target().join("debug/ballast")
    })
}

/// Returns the path of the bare-metal guest `name` of tests/guests, with the arm64 Image header.
pub fn payload(name: &str) -> PathBuf {
    payloads().join(format!("{name}.img"))
}

/// Returns the path of the bare-metal guest `name` without the header: raw code, entered at its first byte.
pub fn raw_payload(name: &str) -> PathBuf {
    payloads().join(format!("{name}.bin"))
}

/// Returns the folder of the bare-metal guests. `make test` builds them and passes it in `BALLAST_PAYLOADS`; otherwise the test
/// builds them.
fn payloads() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| match std::env::var_os("BALLAST_PAYLOADS") {
        Some(path) => path.into(),
        None => build_payloads().unwrap_or_else(|error| panic!("{error}")),
    })
}
