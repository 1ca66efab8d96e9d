//! Builds the disk of the set `debian`: a Debian root file system with systemd, from packages.
//!
//! The build has stages: it downloads the packages, sets them up in a root file system (mmdebstrap, with programs for
//! arm64 in QEMU's emulator of programs), and writes that to a disk image with the files of `qemu/debian/overlay`.
//! Each stage writes a marker when it is complete, so an interrupted build resumes at the stage that was interrupted;
//! downloads resume within their stage. A marker holds all that the stage depends on. A change of that repeats the stage.
//!
//! Everything is in `target/guests/debian/`. No stage needs root, and none changes the PC.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, Mirror};
use crate::devices::{Content, Disk};
use crate::error::{AtPath, Error, Result};
use crate::machine::Machine;
use crate::size::{Bytes, GIB};
use crate::{place, progress, workdir};

/// Path of the image in the folder of downloads, as machines name it.
const IMAGE: &str = "debian/root.ext4";

const SUITES: [&str; 3] = ["trixie", "trixie-updates", "trixie-security"];

/// Packages beyond Debian's least system.
const PACKAGES: [&str; 9] =
    ["busybox-static", "fio", "iproute2", "iputils-ping", "kmod", "login", "passwd", "systemd-sysv", "udev"];

/// apt's patterns for Debian's least system, as mmdebstrap's variant `minbase` has it.
const LEAST_SYSTEM: [&str; 3] = ["apt", "?essential", "?priority(required)"];

/// Size of the image. Guests fill the free part of it.
const SIZE: &str = "1G";

/// Space that a build needs in `target`, and space that it needs for temporary files.
const ROOM: [u64; 2] = [2 * GIB, GIB];

/// Returns the image. Builds it if it is missing or something that it is made of has changed.
///
/// # Errors
/// There is not enough free space, or a stage fails.
pub fn get() -> Result<PathBuf> {
    let folder = place::guests().join("debian");
    fs::create_dir_all(&folder).at(&folder)?;
    let lock_path = folder.join("lock");
    let lock = File::create(&lock_path).at(&lock_path)?;
    lock.lock().at(&lock_path)?;

    let build = Build { source: place::root().join("qemu/debian"), folder };
    let list = format!("{SUITES:?} {PACKAGES:?} {LEAST_SYSTEM:?}\n");
    let root = list.clone() + &build.text("emulate")?;
    let image = root.clone() + SIZE + &build.text("image")? + &contents(&build.source.join("overlay"))?;
    if !build.is_complete("image", &image) {
        println!("building a Debian root file system, once, in {}", build.folder.display());
        build.check_room()?;
        build.stage("packages", &list, Build::fetch)?;
        build.stage("root", &root, Build::set_up)?;
        build.stage("image", &image, Build::write_image)?;
    }
    Ok(place::guests().join(IMAGE))
}

/// Builds the image if `machine` has a disk with it.
///
/// # Errors
/// As [`get`].
pub fn prepare(machine: &Machine) -> Result<()> {
    let is_ours = |disk: &Disk| disk.content == Content::Image(IMAGE.into());
    if machine.disks.iter().any(is_ours) { get().map(drop) } else { Ok(()) }
}

/// A build.
struct Build {
    /// Folder of the scripts and the overlay.
    source: PathBuf,
    /// Folder of all that is built.
    folder: PathBuf,
}

impl Build {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn text(&self, name: &str) -> Result<String> {
        let path = self.source.join(name);
        fs::read_to_string(&path).at(path)
    }

    fn is_complete(&self, stage: &str, made_of: &str) -> bool {
        fs::read_to_string(self.path(stage).with_extension("done")).is_ok_and(|found| found == made_of)
    }

    /// Runs a stage, unless its marker says that it is complete.
    fn stage(&self, name: &str, made_of: &str, run: fn(&Self) -> Result<()>) -> Result<()> {
        if self.is_complete(name, made_of) {
            return Ok(());
        }
        let marker = self.path(name).with_extension("done");
        if marker.exists() {
            fs::remove_file(&marker).at(&marker)?;
        }
        run(self)?;
        fs::write(&marker, made_of).at(marker)
    }

    fn check_room(&self) -> Result<()> {
        for (folder, needed) in [self.folder.clone(), std::env::temp_dir()].into_iter().zip(ROOM) {
            if let Some(free) = workdir::free_bytes(&folder).filter(|&free| free < needed) {
                let (free, needed) = (Bytes(free >> 20 << 20), Bytes(needed));
                let reason =
                    format!("{free} are free; the build needs {needed}. Free some, then run it again");
                return Err(Error::Data { path: folder, reason });
            }
        }
        Ok(())
    }

    /// Downloads the packages. apt checks them by the signed indexes.
    fn fetch(&self) -> Result<()> {
        let host = Mirror::of_host();
        match self.fetch_from(&host) {
            Err(error) if host != Mirror::debian() => {
                println!("{error}\ntrying Debian's own mirror");
                self.fetch_from(&Mirror::debian())
            }
            done => done,
        }
    }

    fn fetch_from(&self, mirror: &Mirror) -> Result<()> {
        let suites = SUITES.map(str::to_owned);
        let apt = Apt::update(self.path("apt"), mirror, &suites)?;
        let sources = self.path("debian.sources");
        fs::write(&sources, mirror.sources(&suites)).at(sources)?;
        let packages: Vec<&str> = LEAST_SYSTEM.iter().chain(&PACKAGES).copied().collect();
        let mut download = apt.download_with_dependencies(&packages, &self.path("packages"))?;
        let mut all = 0;
        progress::watch(&mut download, "packages", &self.path("packages.log"), |line| {
            all = new_packages(line).unwrap_or(all);
            let done = line.strip_prefix("Get:")?.split_whitespace().next()?.parse().ok()?;
            Some((done, all))
        })
    }

    /// Sets the packages up in a root file system, in a user namespace of its own.
    fn set_up(&self) -> Result<()> {
        let (packages, fresh) = (self.path("packages"), self.path("root.new"));
        let all = place::names(&packages, "deb").len();
        let quoted = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"));
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--mode=unshare", "--variant=minbase", "--architectures=arm64", "--format=tar"]);
        mmdebstrap.args(["--verbose", "--skip=check/qemu,download/empty,essential/unlink"]);
        mmdebstrap.arg(format!("--include={}", PACKAGES.join(",")));
        for hook in [
            // Its text, since the namespace's root may not read the folders of the user.
            self.text("emulate")?,
            r#"mkdir -p "$1/var/cache/apt/archives""#.to_owned(),
            format!("sync-in {} /var/cache/apt/archives", quoted(&packages)),
        ] {
            mmdebstrap.arg(format!("--setup-hook={hook}"));
        }
        mmdebstrap.arg(SUITES[0]).arg(&fresh).arg(self.path("debian.sources"));
        let mut done = 0;
        progress::watch(&mut mmdebstrap, "root file system", &self.path("root.log"), |line| {
            done += usize::from(line.starts_with("Setting up "));
            Some((done, all))
        })?;
        fs::rename(&fresh, self.path("root.tar")).at(fresh)
    }

    /// Writes the image, with the overlay's files.
    fn write_image(&self) -> Result<()> {
        let fresh = self.path("image.new");
        let mut fakeroot = Command::new("fakeroot");
        fakeroot.arg("sh").arg(self.source.join("image")).arg(self.path("root.tar"));
        fakeroot.arg(self.source.join("overlay")).arg(self.path("tree")).arg(&fresh).arg(SIZE);
        // Debian keeps mkfs.ext4 where only root's path has it.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        fakeroot.env("PATH", path).env("LC_ALL", "C");
        let mut done = 0;
        progress::watch(&mut fakeroot, "disk image", &self.path("image.log"), |line| {
            done += usize::from(line.starts_with("image: "));
            Some((done.saturating_sub(1), IMAGE_STEPS))
        })?;
        let image = place::guests().join(IMAGE);
        fs::rename(&fresh, &image).at(image)
    }
}

/// Number of lines with which `qemu/debian/image` tells its steps.
const IMAGE_STEPS: usize = 3;

/// Parses apt's count of packages: `0 upgraded, 214 newly installed, 0 to remove and 0 not upgraded.`
fn new_packages(line: &str) -> Option<usize> {
    line.split_once(" newly installed")?.0.rsplit_once(' ')?.1.parse().ok()
}

/// Returns names and texts of all files in a folder of small files.
fn contents(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).at(folder)?.collect::<std::io::Result<Vec<_>>>().at(folder)?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    let mut text = String::new();
    for path in paths {
        text += &match path.is_dir() {
            true => contents(&path)?,
            false => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                format!("{name}\n{}", fs::read_to_string(&path).at(&path)?)
            }
        };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(folder: &Path) -> Build {
        Build { source: place::root().join("qemu/debian"), folder: folder.into() }
    }

    #[test]
    fn a_stage_runs_until_it_is_complete_and_again_after_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let build = build(folder.path());
        let refuse = |build: &Build| Err(Error::Data { path: build.folder.clone(), reason: "no".into() });
        assert!(build.stage("root", "a", refuse).is_err());
        assert!(!build.is_complete("root", "a"), "it failed");
        build.stage("root", "a", |_| Ok(())).unwrap();
        build.stage("root", "a", refuse).unwrap();
        assert!(build.stage("root", "b", refuse).is_err());
        assert!(!build.is_complete("root", "a"), "its files may be those of b");
    }

    #[test]
    fn apts_count_of_packages_is_read() {
        let line = "0 upgraded, 214 newly installed, 0 to remove and 0 not upgraded.";
        assert_eq!(new_packages(line), Some(214));
        assert_eq!(new_packages("The following NEW packages will be installed:"), None);
    }

    #[test]
    fn the_image_script_tells_its_steps() {
        let text = build(Path::new("")).text("image").unwrap();
        assert_eq!(text.matches("\necho \"image: ").count(), IMAGE_STEPS);
    }

    #[test]
    fn an_overlays_files_are_read_in_order() {
        let text = contents(&place::root().join("qemu/debian/overlay")).unwrap();
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name}"));
        assert!(at("10-alpha.network") < at("10-beta.network"));
    }
}
