//! Configurations for QEMU: sets of guests from `guest-dts/`, compiled by plain `dtc` with kernel and ramdisk inside.
//!
//! A set includes its images by these names, whichever kernel is chosen:
//!
//! ```dts
//! kernel  = /incbin/("kernel");
//! ramdisk = /incbin/("ramdisk");
//! ```
//!
//! A guest with devices has the ramdisk `devices.cpio`, or `fio.cpio`, which fit the chosen kernel. A set may also
//! name a specific kernel, `/incbin/("6.1/kernel")` and `/incbin/("6.1/devices.cpio")`, or a bare-metal guest of the
//! tests, `/incbin/("guests/NAME.bin")`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use ballast_tools::configuration::{ABOUT_UNKNOWN_NAMES, Target, UnknownNames, check_blob};

use crate::error::{AtPath, Error, Result};
use crate::{place, process, ramdisk, store};

/// Compiles the set of guests `name` with the kernel `kernel`, unless the compiled file is up to date.
///
/// # Errors
/// There is no such set or kernel, something cannot be fetched, or `dtc` refuses the set.
pub fn build(name: &str, kernel: &str) -> Result<PathBuf> {
    let source = source(name)?;
    let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // Sets outside of guest-dts may have equal file names, so a hash of the path distinguishes them.
    let mark = match source.parent() == Some(&place::guest_sets()) {
        true => String::new(),
        false => {
            let mut hasher = DefaultHasher::new();
            fs::canonicalize(&source).at(&source)?.hash(&mut hasher);
            format!("-{:016x}", hasher.finish())
        }
    };
    let out = place::target().join(format!("{stem}{mark}-{kernel}.dtb"));
    compile(&source, kernel, &out)?;
    Ok(out)
}

/// Returns the source of the set `name`: the file of that name in guest-dts/, or any other by its path, which ends in
/// `.dts`.
///
/// # Errors
/// There is no such file.
pub fn source(name: &str) -> Result<PathBuf> {
    let folder = place::guest_sets();
    let source = match name.ends_with(".dts") {
        true => PathBuf::from(name),
        false if name.contains('/') => PathBuf::new(),
        false => folder.join(format!("{name}.dts")),
    };
    if !source.is_file() {
        let known = place::names(&folder, "dts");
        return Err(Error::Unknown { kind: "set of guests or file .dts", name: name.into(), known });
    }
    Ok(source)
}

/// Compiles the set in the file `source` with the kernel `kernel` to `out`.
///
/// # Errors
/// As [`build`].
pub fn compile(source: &Path, kernel: &str, out: &Path) -> Result<()> {
    let text = fs::read_to_string(source).at(source)?;
    let known = store::kernels()?;
    let is_named = |name: &&String| text.contains(&format!("\"{name}/kernel\""));
    let mut needed: Vec<&str> = known.iter().filter(is_named).map(String::as_str).collect();
    needed.push(kernel);
    store::get_all(&needed)?;
    build_ramdisks(&text, kernel, &known)?;

    let dependencies = out.with_extension("d");
    if is_current(out, &dependencies) {
        return Ok(());
    }
    // Writes to temporary names first, so that other processes see a complete file or none.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let unfinished = |path: &Path| path.with_added_extension(format!("{}-{number}", std::process::id()));
    let (new_dependencies, new_out) = (unfinished(&dependencies), unfinished(out));
    let mut dtc = Command::new("dtc");
    dtc.args(["-q", "-I", "dts", "-O", "dtb", "-d"]).arg(&new_dependencies).arg("-o").arg(&new_out);
    for folder in [place::guests().join(kernel), place::guests(), place::guest_sets(), place::payloads()] {
        dtc.arg("-i").arg(folder);
    }
    let compiled = process::quietly(dtc.arg(source));
    if compiled.is_err() {
        // Errors do not matter here: the error to report is the compiler's.
        let _ = (fs::remove_file(&new_dependencies), fs::remove_file(&new_out));
    }
    compiled?;
    fs::rename(&new_out, out).at(out)?;
    fs::rename(&new_dependencies, &dependencies).at(&dependencies)
}

/// Builds the ramdisks that a set with the source `text` includes.
fn build_ramdisks(text: &str, kernel: &str, known: &[String]) -> Result<()> {
    ramdisk::get()?;
    let kernels = known.iter().map(|name| (name.as_str(), format!("{name}/")));
    for (kernel, prefix) in kernels.chain([(kernel, String::new())]) {
        let includes = |name: &str| text.contains(&format!("\"{prefix}{name}\""));
        if includes(ramdisk::WITH_DEVICES) {
            ramdisk::with_devices(kernel)?;
        }
        if includes(ramdisk::WITH_FIO) {
            ramdisk::with_fio(kernel)?;
        }
    }
    Ok(())
}

/// Checks the configuration in the file `blob` with Ballast's own code, for the host of the device tree `host` and a
/// command line for Ballast. Prints errors and warnings.
///
/// # Errors
/// The blob cannot be read, or has errors.
pub fn check(blob: &Path, host: &[u8], command_line: &str) -> Result<()> {
    let content = fs::read(blob).at(blob)?;
    let target = Target::Described(host, Some(command_line));
    let findings = check_blob(&content, target, UnknownNames::Refused);
    for line in findings.lines.iter().filter(|line| !line.starts_with("note: ")) {
        println!("{line}");
    }
    if findings.has_unknown_names {
        println!("{ABOUT_UNKNOWN_NAMES}");
    }
    match findings.error_count {
        0 => Ok(()),
        count => Err(Error::Configuration { path: blob.into(), count }),
    }
}

/// Tests whether `out` is newer than all files in its dependency file.
fn is_current(out: &Path, dependencies: &Path) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let (Some(made), Ok(list)) = (changed(out), fs::read_to_string(dependencies)) else { return false };
    let Some((_, list)) = list.split_once(": ") else { return false };
    list.split_whitespace().all(|path| changed(Path::new(path)).is_some_and(|at| at <= made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_older_than_its_parts_is_not_current() {
        let folder = tempfile::tempdir().unwrap();
        let [out, part, list] = ["out", "part", "list"].map(|name| folder.path().join(name));
        fs::write(&list, format!("{}: {}\n", out.display(), part.display())).unwrap();
        fs::write(&out, "").unwrap();
        assert!(!is_current(&out, &list), "a part is missing");
        fs::write(&part, "").unwrap();
        let earlier = SystemTime::now() - std::time::Duration::from_secs(10);
        fs::File::open(&part).unwrap().set_modified(earlier).unwrap();
        assert!(is_current(&out, &list));
        fs::File::open(&out).unwrap().set_modified(earlier - std::time::Duration::from_secs(10)).unwrap();
        assert!(!is_current(&out, &list));
    }

    #[test]
    fn a_configuration_is_checked_for_the_host_before_it_is_booted() {
        let folder = tempfile::tempdir().unwrap();
        let (source, blob) = (folder.path().join("set.dts"), folder.path().join("set.dtb"));
        let host = fs::read(place::guest_sets().join("corpus/host/host-qemu_virt.dtb")).unwrap();
        let check = |guest: &str| {
            let text = format!(
                "/dts-v1/; / {{ compatible = \"ballast,configuration\"; images {{ kernel: kernel {{ data = [d5 d5 d5 d5]; }}; }}; \
                 guests {{ alpha {{ vcpus = <1>; kernel = <&kernel>; {guest} }}; }}; }};"
            );
            fs::write(&source, text).unwrap();
            let mut dtc = Command::new("dtc");
            process::quietly(dtc.args(["-q", "-I", "dts", "-O", "dtb", "-o"]).arg(&blob).arg(&source))
                .unwrap();
            check(&blob, &host, "")
        };
        check("memory { size = <0x4000000>; };").unwrap();
        // An invalid set, and one that does not fit this host.
        for (wrong, count) in [
            ("no-migraton; memory { size = <0x4000000>; };", 1),
            ("memory { size = <0x100 0x0>; };", 1),
            ("vcpu = <2>; memory { size = <0x4000001>; };", 2),
        ] {
            let error = check(wrong).unwrap_err();
            assert!(
                matches!(error, Error::Configuration { count: found, .. } if found == count),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn an_unknown_set_is_refused_by_name() {
        for name in ["no-such-set", "no-such-file.dts", "../guest-dts/alpha-beta"] {
            let said = build(name, "6.12").unwrap_err().to_string();
            let expected = format!("no set of guests or file .dts is called `{name}`");
            assert!(said.starts_with(&expected), "{said}");
        }
    }
}
