//! Where things lie on the PC.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Where things are built: `CARGO_TARGET_DIR`, else `target/`.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where downloads are kept: `target/guests/`, wherever things are built.
pub fn guests() -> PathBuf {
    root().join("target/guests")
}

/// Where the bare-metal guests of the tests are built.
pub fn payloads() -> PathBuf {
    target().join("payloads")
}

/// Where the machines are described.
pub fn machines() -> PathBuf {
    root().join("qemu/machines")
}

/// Where the sets of guests are described.
pub fn guest_sets() -> PathBuf {
    root().join("guest-dts")
}

/// The names of the files `*.extension` in `folder`, sorted, without the extension.
pub(crate) fn names(folder: &Path, extension: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}
