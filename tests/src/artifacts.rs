//! What the tests boot, built once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ballast_qemu::image::{Image, build_payloads, flatten_file};
use ballast_qemu::place;

/// Ballast's image. `make test` has built it, and names it in `BALLAST_IMAGE`; alone, a test builds it.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| match std::env::var_os("BALLAST_IMAGE") {
        Some(path) => path.into(),
        None => Image::build().unwrap_or_else(|error| panic!("{error}")).bin,
    })
}

/// The bare-metal guest `name` of tests/guests, as a file to be loaded.
pub fn payload(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| build_payloads().unwrap_or_else(|error| panic!("{error}")));
    let flat = place::target().join("payloads").join(format!("{name}.bin"));
    flatten_file(&folder.join(name), &flat).unwrap_or_else(|error| panic!("{error}"));
    flat
}
