//! Paths on the PC.

use std::path::{Path, PathBuf};

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Returns the folder of build output: `CARGO_TARGET_DIR`, or else `target/`.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Returns the folder of downloads: `target/guests/`, whatever `CARGO_TARGET_DIR` is.
pub fn guests() -> PathBuf {
    root().join("target/guests")
}

/// Returns the build folder of the tests' bare-metal guests.
pub fn payloads() -> PathBuf {
    target().join("payloads")
}

/// Returns the folder of the machines.
pub fn machines() -> PathBuf {
    root().join("qemu/machines")
}

/// Returns the folder of the sets of guests.
pub(crate) fn guest_sets() -> PathBuf {
    root().join("guest-dts")
}

/// Returns the sorted names of the files `*.extension` in `folder`, without the extension.
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
