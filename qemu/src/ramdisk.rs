//! The guests' ramdisk: Debian's static busybox and two small files.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{AtPath, Error, Result};
use crate::{place, process, store};

const INIT: &str = include_str!("../ramdisk/init");
const INITTAB: &str = include_str!("../ramdisk/inittab");

/// Returns the guests' ramdisk. Builds it if it is missing or one of its parts has changed.
///
/// # Errors
/// busybox cannot be fetched or `cpio` fails.
pub fn get() -> Result<PathBuf> {
    let busybox = store::get("busybox")?;
    let root = place::guests();
    let archive = root.join("ramdisk");
    let stamp = root.join("ramdisk.stamp");
    // Parallel tests request it at the same time.
    let lock_path = root.join("ramdisk.lock");
    let lock = File::create(&lock_path).at(&lock_path)?;
    lock.lock().at(&lock_path)?;
    let made_of = format!("{}\n{INIT}\n{INITTAB}", busybox.record.sha256);
    if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == made_of) {
        return Ok(archive);
    }
    let folder = root.join(format!("ramdisk-{}", std::process::id()));
    let made = make(&busybox.file, &folder, &archive);
    fs::remove_dir_all(&folder).at(&folder)?;
    made?;
    fs::write(&stamp, made_of).at(&stamp)?;
    Ok(archive)
}

fn make(busybox: &Path, folder: &Path, archive: &Path) -> Result<()> {
    let bin = folder.join("bin");
    let etc = folder.join("etc");
    for path in [&bin, &etc] {
        fs::create_dir_all(path).at(path)?;
    }
    let program = bin.join("busybox");
    fs::copy(busybox, &program).at(&program)?;
    symlink("busybox", bin.join("sh")).at(&bin)?;
    let init = folder.join("init");
    fs::write(&init, INIT).at(&init)?;
    fs::write(etc.join("inittab"), INITTAB).at(&etc)?;
    for path in [&program, &init] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).at(path)?;
    }

    pack(folder, "bin\nbin/busybox\nbin/sh\netc\netc/inittab\ninit\n", archive)
}

/// Packs a ramdisk with nothing but `program` as its `/init` into the file `archive`.
///
/// # Errors
/// `cpio` fails, or a file cannot be written.
pub(crate) fn of_program(program: &Path, archive: &Path) -> Result<()> {
    let folder = archive.with_extension("folder");
    fs::create_dir_all(&folder).at(&folder)?;
    let init = folder.join("init");
    fs::copy(program, &init).at(&init)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).at(&init)?;
    let packed = pack(&folder, "init\n", archive);
    fs::remove_dir_all(&folder).at(&folder)?;
    packed
}

/// Packs the files of `folder` with these names, one per line.
fn pack(folder: &Path, names: &str, archive: &Path) -> Result<()> {
    let fresh = archive.with_extension("new");
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc", "-R", "0:0", "--reproducible", "-F"]).arg(&fresh);
    cpio.current_dir(folder).stdin(Stdio::piped());
    let mut child = cpio.spawn().map_err(|source| process::start_error(&cpio, source))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(names.as_bytes()).at("cpio")?;
    }
    let status = child.wait().at("cpio")?;
    if !status.success() {
        return Err(Error::Program { program: process::describe(&cpio), status, said: String::new() });
    }
    fs::rename(&fresh, archive).at(archive)
}
