//! Kernel modules of Debian's kernels: the drivers of virtio devices and the modules that these need.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use object::{Object, ObjectSection};

use crate::error::{AtPath, Error, Result};
use crate::{apt, process};

/// The drivers that a guest needs for its devices. A driver that is not in the package is built into the kernel.
const DRIVERS: [&str; 4] = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"];
/// Name of the file that lists the modules in the order in which to load them.
pub(crate) const ORDER: &str = "order";

/// Returns the package with the modules of the kernel in `package`. Recent kernels have a package for each.
pub(crate) fn package_of(package: &str) -> String {
    package.replace("linux-binary-", "linux-modules-")
}

/// Extracts the drivers and all modules that they need from `package` into the new folder `to`, decompressed, with the
/// list [`ORDER`].
///
/// # Errors
/// The package has none of the drivers, a module is malformed, or a file cannot be written.
pub(crate) fn extract(package: &Path, to: &Path) -> Result<()> {
    let all = to.with_extension("all");
    apt::unpack_tree(package, "*/kernel/*", &all)?;
    let mut paths = BTreeMap::new();
    find(&all, &mut paths)?;
    fs::create_dir_all(to).at(to)?;
    let mut order = Vec::new();
    for driver in DRIVERS {
        add(driver, &paths, to, &mut order)?;
    }
    if order.is_empty() {
        let reason = format!("has none of the modules {}", DRIVERS.join(", "));
        return Err(Error::Image { path: package.into(), reason });
    }
    let list = to.join(ORDER);
    fs::write(&list, order.join("\n") + "\n").at(&list)?;
    fs::remove_dir_all(&all).at(&all)
}

/// Adds the modules below `folder` to `paths`, by name.
fn find(folder: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).at(folder)? {
        let entry = entry.at(folder)?;
        if entry.file_type().at(entry.path())?.is_dir() {
            find(&entry.path(), paths)?;
        } else if let Some((name, "ko" | "ko.xz")) = entry.file_name().to_string_lossy().split_once('.') {
            paths.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// Copies module `name` to the folder `to`, after the modules that it needs, and appends them to `order`.
fn add(name: &str, paths: &BTreeMap<String, PathBuf>, to: &Path, order: &mut Vec<String>) -> Result<()> {
    let file = to.join(format!("{name}.ko"));
    // A module that exists has been visited, even if the modules that it needs are still on their way.
    let Some(path) = paths.get(name).filter(|_| !file.exists()) else { return Ok(()) };
    copy_plain(path, &file)?;
    let content = fs::read(&file).at(&file)?;
    let needed = dependencies(&content).map_err(|reason| Error::Image { path: path.clone(), reason })?;
    for needed in needed {
        add(&needed, paths, to, order)?;
    }
    order.push(name.to_owned());
    Ok(())
}

/// Copies a module that may be compressed.
fn copy_plain(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_some_and(|extension| extension == "ko") {
        return fs::copy(from, to).map(drop).at(from);
    }
    let mut unpack = Command::new("xz");
    unpack.arg("-dc").arg(from).stdout(File::create(to).at(to)?).stderr(Stdio::inherit());
    let status = unpack.status().map_err(|source| process::start_error(&unpack, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program { program: process::describe(&unpack), status, said: String::new() })
}

/// Returns the names of the modules that a module needs: `depends=` in its section `.modinfo` (Linux,
/// scripts/mod/modpost.c).
fn dependencies(module: &[u8]) -> std::result::Result<Vec<String>, String> {
    let file = object::File::parse(module).map_err(|error| error.to_string())?;
    let section = file.section_by_name(".modinfo").ok_or("no section .modinfo: not a kernel module")?;
    let data = section.data().map_err(|error| error.to_string())?;
    Ok(depends(data))
}

fn depends(modinfo: &[u8]) -> Vec<String> {
    let lines = modinfo.split(|&byte| byte == 0);
    let lists = lines.filter_map(|line| line.strip_prefix(b"depends="));
    let list = lists.map(String::from_utf8_lossy).next().unwrap_or_default();
    list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        assert_eq!(
            depends(b"license=GPL\0depends=virtio,virtio-ring\0name=virtio_pci\0"),
            ["virtio", "virtio_ring"]
        );
        assert!(depends(b"depends=\0").is_empty());
        assert!(dependencies(b"not a module").is_err());
    }

    #[test]
    fn modules_of_both_kinds_of_packages() {
        assert_eq!(
            package_of("linux-binary-7.3.4+deb13-cloud-arm64"),
            "linux-modules-7.3.4+deb13-cloud-arm64"
        );
        assert_eq!(package_of("linux-image-6.1.0-57-cloud-arm64"), "linux-image-6.1.0-57-cloud-arm64");
    }
}
