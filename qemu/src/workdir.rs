//! The private folder of one running machine, with its controllers' files and other temporary files.
//!
//! The folder is removed when its owner drops it. An owner that is killed cannot do that, so each folder contains a
//! file that its owner keeps locked. Creating a folder first removes all folders whose file is not locked.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{AtPath, Result};
use crate::place;

const PREFIX: &str = "ballast-";
const LOCK: &str = "lock";
/// Size from which the PC's memory may be too small, whatever the free space in its file system.
const MUCH: u64 = 4 << 30;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A private folder that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Creates a folder with space for `room` bytes: in memory if they fit there (for large ones, if twice as much
    /// fits), or else in the target folder.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn new(room: u64) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let wanted = if room > MUCH { room.saturating_mul(2) } else { room };
        if free_bytes(memory).is_some_and(|free| free > wanted)
            && let Ok(folder) = Self::under(memory)
        {
            return Ok(folder);
        }
        let disk = place::target().join("run");
        fs::create_dir_all(&disk).at(&disk)?;
        Self::under(&disk)
    }

    /// Creates a folder in `parent` and removes abandoned ones there.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn under(parent: &Path) -> Result<Self> {
        sweep(parent);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made.at(&path)?,
            }
            // Another process may sweep the folder until the lock is held.
            let Ok(lock) = File::create(path.join(LOCK)) else { continue };
            if lock.try_lock().is_ok() && path.join(LOCK).exists() {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Errors do not matter: the next owner sweeps the folder.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes folders in `parent` whose file is not locked.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Returns the free space in the file system of `path`, if that can be told.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(path).ok()?;
    space.f_bavail.checked_mul(space.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_and_abandoned_folders_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        let held = WorkDir::under(parent).unwrap();
        let abandoned = parent.join("ballast-1-0");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join(LOCK), "").unwrap();
        fs::write(abandoned.join("controller"), "RAM").unwrap();
        let stranger = parent.join("other");
        fs::create_dir(&stranger).unwrap();

        let second = WorkDir::under(parent).unwrap();
        assert!(held.path().exists() && second.path().exists() && stranger.exists());
        assert!(!abandoned.exists());

        let path = held.path().to_path_buf();
        drop((held, second));
        assert!(!path.exists());
    }

    #[test]
    fn a_large_folder_is_on_disk() {
        let folder = WorkDir::new(u64::MAX).unwrap();
        assert!(folder.path().starts_with(place::target()));
    }
}
