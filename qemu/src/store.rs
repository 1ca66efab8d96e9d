//! Files from Debian, kept in `target/guests/`: kernels, busybox, Xen, fio.
//!
//! Each item is a folder with the file itself (`kernel` or `file`) and `package.toml`, which records its origin. A kernel
//! also has `modules/`, and a program with shared libraries has `libraries/`.
//! Folders are created atomically, so an existing one is complete and needs no network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::{self, Apt, Mirror};
use crate::error::{AtPath, Error, Result};
use crate::{kernel, libraries, modules, place};

/// The contents of `qemu/packages.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    package: Vec<Source>,
}

/// The source of an item.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    name: String,
    suites: Vec<String>,
    pattern: String,
    fallback: Option<String>,
    file: String,
    #[serde(default)]
    kernel: bool,
    /// True if the file is a program that needs shared libraries.
    #[serde(default)]
    libraries: bool,
}

/// The origin of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the package.
    pub package: String,
    /// Version of the package.
    pub version: String,
    /// sha256 of the package, as signed by Debian.
    pub(crate) package_sha256: String,
    /// sha256 of the extracted file; of a kernel, decompressed.
    pub(crate) sha256: String,
}

/// A fetched item.
#[derive(Clone, Debug)]
pub struct Item {
    /// The file.
    pub file: PathBuf,
    /// The folder of a kernel's modules or of a program's libraries.
    pub(crate) parts: PathBuf,
    /// The file's origin.
    pub record: Record,
}

const RECORD: &str = "package.toml";

/// Returns the names of all kernels, oldest first.
///
/// # Errors
/// `qemu/packages.toml` is invalid.
pub fn kernels() -> Result<Vec<String>> {
    Ok(sources()?.into_iter().filter(|source| source.kernel).map(|source| source.name).collect())
}

/// Returns the item `name`, and fetches it if it is missing.
///
/// # Errors
/// There is no such item, or it cannot be fetched.
pub fn get(name: &str) -> Result<Item> {
    let mut items = get_all(&[name])?;
    Ok(items.remove(0))
}

/// Returns the items `names`, and fetches missing ones, after a single update of the indexes.
///
/// # Errors
/// One of them does not exist or cannot be fetched.
pub fn get_all(names: &[&str]) -> Result<Vec<Item>> {
    let sources = sources()?;
    let find = |name: &&str| {
        let known = || sources.iter().map(|source| source.name.clone()).collect();
        let unknown = || Error::Unknown { kind: "package", name: (*name).into(), known: known() };
        sources.iter().find(|source| source.name == *name).ok_or_else(unknown)
    };
    let wanted = names.iter().map(find).collect::<Result<Vec<&Source>>>()?;
    let root = place::guests();
    fs::create_dir_all(&root).at(&root)?;
    // Of two parallel builds, the second waits and finds the items that the first fetched.
    let lock_path = root.join("lock");
    let lock = File::create(&lock_path).at(&lock_path)?;
    lock.lock().at(&lock_path)?;
    let missing: Vec<&Source> =
        wanted.iter().copied().filter(|source| load(&root, source).is_none()).collect();
    if !missing.is_empty() {
        fetch(&root, &missing)?;
    }
    let found = |source: &Source| {
        let reason = "missing after it was fetched".to_owned();
        load(&root, source).ok_or_else(|| Error::Data { path: root.join(&source.name), reason })
    };
    wanted.into_iter().map(found).collect()
}

fn sources() -> Result<Vec<Source>> {
    let path = place::root().join("qemu/packages.toml");
    let text = fs::read_to_string(&path).at(&path)?;
    let wanted: std::result::Result<Wanted, _> = toml::from_str(&text);
    wanted.map(|wanted| wanted.package).map_err(|error| Error::Data { path, reason: error.to_string() })
}

fn file_name(source: &Source) -> &'static str {
    if source.kernel { "kernel" } else { "file" }
}

/// Returns the name of the item's folder of further files, or an empty one if there are none.
fn parts_name(source: &Source) -> &'static str {
    match source {
        Source { kernel: true, .. } => "modules",
        Source { libraries: true, .. } => "libraries",
        _ => "",
    }
}

fn load(root: &Path, source: &Source) -> Option<Item> {
    let folder = root.join(&source.name);
    let record = toml::from_str(&fs::read_to_string(folder.join(RECORD)).ok()?).ok()?;
    let (file, parts) = (folder.join(file_name(source)), folder.join(parts_name(source)));
    // A kernel that was fetched without modules is fetched again.
    (file.exists() && parts.exists()).then_some(Item { file, parts, record })
}

/// Fetches items from the host's mirror or, if that fails, from Debian's own.
fn fetch(root: &Path, missing: &[&Source]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|source| source.name.as_str()).collect();
    println!("fetching from Debian: {}", names.join(", "));
    let host = Mirror::of_host();
    match fetch_from(root, missing, &host) {
        Err(error) if host != Mirror::debian() => {
            println!("{error}\ntrying Debian's own mirror");
            fetch_from(root, missing, &Mirror::debian())
        }
        done => done,
    }
}

fn fetch_from(root: &Path, missing: &[&Source], mirror: &Mirror) -> Result<()> {
    let mut suites: Vec<String> = missing.iter().flat_map(|source| source.suites.clone()).collect();
    suites.sort();
    suites.dedup();
    let folder = root.join(format!("apt-{}", std::process::id()));
    let apt = Apt::update(folder.clone(), mirror, &suites)?;
    for source in missing {
        let name = match (apt.newest(&source.pattern), &source.fallback) {
            (Err(Error::NoPackage { .. }), Some(fallback)) => {
                let name = apt.newest(fallback)?;
                println!("Debian no longer has {}; using {name} instead", source.name);
                name
            }
            (found, _) => found?,
        };
        let package = apt.download(&name)?;
        let fresh = folder.join(&source.name);
        fs::create_dir_all(&fresh).at(&fresh)?;
        let file = fresh.join(file_name(source));
        apt::unpack(&package.file, &source.file, &file)?;
        if source.kernel {
            kernel::make_plain(&file)?;
            let name = modules::package_of(&package.name);
            let separate = (name != package.name).then(|| apt.download(&name)).transpose()?;
            let package = separate.as_ref().unwrap_or(&package);
            modules::extract(&package.file, &fresh.join(parts_name(source)))?;
        }
        if source.libraries {
            let names = apt.libraries_of(&package.name)?;
            println!("{}: fetching {} packages of libraries", source.name, names.len());
            let all = folder.join("libraries");
            for package in apt.download_all(&names)? {
                apt::unpack_tree(&package.file, "*", &all)?;
            }
            libraries::collect(&file, &all, &fresh.join(parts_name(source)))?;
        }
        let record = Record {
            package: package.name,
            version: package.version,
            package_sha256: package.sha256,
            sha256: apt::sha256_of(&file)?,
        };
        println!("{}: {} {} (sha256 {})", source.name, record.package, record.version, record.package_sha256);
        let text = toml::to_string(&record);
        let text = text.map_err(|error| Error::Data { path: fresh.clone(), reason: error.to_string() })?;
        fs::write(fresh.join(RECORD), text).at(fresh.join(RECORD))?;
        let place = root.join(&source.name);
        if place.exists() {
            fs::remove_dir_all(&place).at(&place)?;
        }
        fs::rename(&fresh, &place).at(&place)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kernels_of_the_tests_are_known() {
        assert_eq!(kernels().unwrap(), ["6.1", "6.12", "7.3"]);
    }

    #[test]
    fn every_pattern_is_well_formed() {
        for source in sources().unwrap() {
            regex::Regex::new(&source.pattern).unwrap();
            source.fallback.iter().for_each(|pattern| drop(regex::Regex::new(pattern).unwrap()));
            assert!(!source.suites.is_empty(), "{}", source.name);
        }
    }

    #[test]
    fn the_error_about_an_unknown_item_lists_all_items() {
        let said = get("5.10").unwrap_err().to_string();
        assert!(said.contains("`5.10`") && said.contains("7.3"), "{said}");
    }
}
