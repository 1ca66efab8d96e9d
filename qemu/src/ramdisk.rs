//! The guests' ramdisks: Debian's static busybox with two small files, and what some guests need in addition.
//!
//! A ramdisk is a sequence of archives, which Linux unpacks one after another (Documentation/driver-api/early-userspace/
//! buffer-format.rst). A larger ramdisk is a smaller one with another archive at its end.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{AtPath, Error, Result};
use crate::{modules, place, process, store};

const INIT: &str = include_str!("../ramdisk/init");
const INITTAB: &str = include_str!("../ramdisk/inittab");
const DEVICES: &str = include_str!("../ramdisk/devices");
const ROOT: &str = include_str!("../ramdisk/root");

/// Name of the ramdisk for guests with devices, which each kernel has.
pub(crate) const WITH_DEVICES: &str = "devices.cpio";
/// Name of the ramdisk with devices and fio, which each kernel has.
pub(crate) const WITH_FIO: &str = "fio.cpio";

/// Returns the guests' ramdisk. Builds it if it is missing or one of its parts has changed.
///
/// # Errors
/// busybox cannot be fetched or `cpio` fails.
pub fn get() -> Result<PathBuf> {
    let busybox = store::get("busybox")?;
    let made_of = format!("{}\n{INIT}\n{INITTAB}", busybox.record.sha256);
    build(&place::guests().join("ramdisk"), &made_of, |folder, archive| {
        let names = "bin\nbin/busybox\nbin/sh\netc\netc/inittab\ninit\n";
        put(folder, "bin/busybox", &busybox.file)?;
        symlink("busybox", folder.join("bin/sh")).at(folder)?;
        write(folder, "init", INIT)?;
        write(folder, "etc/inittab", INITTAB)?;
        pack(folder, names, archive)
    })
}

/// Returns the ramdisk for guests with devices on the kernel `kernel`: it loads the drivers and starts the system on the
/// disk that `root=` on the kernel's command line names. Without one, it gives each interface an address
/// (qemu/ramdisk/devices), and serves a page with the guest's name on port 80.
///
/// # Errors
/// A part cannot be fetched or `cpio` fails.
pub fn with_devices(kernel: &str) -> Result<PathBuf> {
    let base = get()?;
    let kernel = store::get(kernel)?;
    let order = kernel.parts.join(modules::ORDER);
    let order = fs::read_to_string(&order).at(&order)?;
    let made_of =
        format!("{}\n{order}\n{DEVICES}\n{ROOT}\n{}", kernel.record.package_sha256, stamp_of(&base)?);
    build(&kernel.file.with_file_name(WITH_DEVICES), &made_of, |folder, archive| {
        let mut names = String::from("etc\netc/devices\netc/root\nlib\nlib/modules\nlib/modules/order\n");
        write(folder, "etc/devices", DEVICES)?;
        write(folder, "etc/root", ROOT)?;
        write(folder, "lib/modules/order", &order)?;
        for module in order.lines() {
            let name = format!("lib/modules/{module}.ko");
            put(folder, &name, &kernel.parts.join(format!("{module}.ko")))?;
            names.push_str(&format!("{name}\n"));
        }
        append(&base, folder, &names, archive)
    })
}

/// Returns the ramdisk with devices and fio on the kernel `kernel`.
///
/// # Errors
/// A part cannot be fetched or `cpio` fails.
pub fn with_fio(kernel: &str) -> Result<PathBuf> {
    let base = with_devices(kernel)?;
    let fio = store::get("fio")?;
    let made_of = format!("{}\n{}", fio.record.sha256, stamp_of(&base)?);
    build(&base.with_file_name(WITH_FIO), &made_of, |folder, archive| {
        let mut names = String::from("usr\nusr/bin\nusr/bin/fio\nlib\n");
        put(folder, "usr/bin/fio", &fio.file)?;
        for entry in fs::read_dir(&fio.parts).at(&fio.parts)? {
            let name = format!("lib/{}", entry.at(&fio.parts)?.file_name().to_string_lossy());
            put(folder, &name, &fio.parts.join(&name[4..]))?;
            names.push_str(&format!("{name}\n"));
        }
        append(&base, folder, &names, archive)
    })
}

/// Builds the ramdisk `archive` with `make`, unless it is there and made of `made_of`. `make` gets a new folder and the
/// file to write.
fn build(archive: &Path, made_of: &str, make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    let stamp = archive.with_added_extension("stamp");
    // Parallel tests request it at the same time.
    let lock_path = archive.with_added_extension("lock");
    let lock = File::create(&lock_path).at(&lock_path)?;
    lock.lock().at(&lock_path)?;
    if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == made_of) {
        return Ok(archive.into());
    }
    let folder = archive.with_added_extension(std::process::id().to_string());
    fs::create_dir_all(&folder).at(&folder)?;
    let fresh = archive.with_added_extension("new");
    let made = make(&folder, &fresh);
    fs::remove_dir_all(&folder).at(&folder)?;
    made?;
    fs::rename(&fresh, archive).at(archive)?;
    fs::write(&stamp, made_of).at(&stamp)?;
    Ok(archive.into())
}

/// Returns the description of the parts of a built ramdisk.
fn stamp_of(archive: &Path) -> Result<String> {
    let stamp = archive.with_added_extension("stamp");
    fs::read_to_string(&stamp).at(stamp)
}

/// Copies `file` to `name` below `folder`, as a program.
fn put(folder: &Path, name: &str, file: &Path) -> Result<()> {
    let content = fs::read(file).at(file)?;
    write(folder, name, content)
}

/// Writes the executable file `name` below `folder`.
fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
    let path = folder.join(name);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent).at(parent)?;
    fs::write(&path, content).at(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at(&path)
}

/// Packs a ramdisk with nothing but `program` as its `/init` into the file `archive`.
///
/// # Errors
/// `cpio` fails, or a file cannot be written.
pub(crate) fn of_program(program: &Path, archive: &Path) -> Result<()> {
    let folder = archive.with_extension("folder");
    put(&folder, "init", program)?;
    let packed = pack(&folder, "init\n", archive);
    fs::remove_dir_all(&folder).at(&folder)?;
    packed
}

/// Writes the ramdisk `base`, followed by the files of `folder` with these names, one per line, to `archive`.
fn append(base: &Path, folder: &Path, names: &str, archive: &Path) -> Result<()> {
    let more = folder.join("archive");
    pack(folder, names, &more)?;
    fs::copy(base, archive).at(base)?;
    let more = fs::read(&more).at(&more)?;
    let mut file = File::options().append(true).open(archive).at(archive)?;
    file.write_all(&more).at(archive)
}

/// Packs the files of `folder` with these names, one per line.
fn pack(folder: &Path, names: &str, archive: &Path) -> Result<()> {
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc", "-R", "0:0", "--reproducible", "-F"]).arg(archive);
    cpio.current_dir(folder).stdin(Stdio::piped());
    let mut child = cpio.spawn().map_err(|source| process::start_error(&cpio, source))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(names.as_bytes()).at("cpio")?;
    }
    let status = child.wait().at("cpio")?;
    if !status.success() {
        return Err(Error::Program { program: process::describe(&cpio), status, said: String::new() });
    }
    Ok(())
}
