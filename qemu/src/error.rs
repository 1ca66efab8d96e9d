//! Errors on the PC.

use std::path::PathBuf;
use std::process::ExitStatus;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the machines, the downloads or QEMU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written, created or removed.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A program could not be started or waited for.
    #[error("{program}: {source} (`make setup` installs missing programs)")]
    Start {
        /// The program.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("{program}: {status}{}", quoted(.said))]
    Program {
        /// The program with its arguments.
        program: String,
        /// The exit status.
        status: ExitStatus,
        /// The error output, if it was captured.
        said: String,
    },
    /// Data is invalid.
    #[error("{path}: {reason}")]
    Data {
        /// The file, or another name of the data.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// There is nothing of this name.
    #[error("no {kind} is called `{name}`; available: {}", .known.join(", "))]
    Unknown {
        /// Noun for the kind of thing.
        kind: &'static str,
        /// The unknown name.
        name: String,
        /// The known names.
        known: Vec<String>,
    },
    /// No suite has the package.
    #[error("no package of {} matches `{pattern}`", .suites.join(", "))]
    NoPackage {
        /// The pattern of the package's name.
        pattern: String,
        /// The suites.
        suites: Vec<String>,
    },
    /// The hash of a downloaded package differs from the one in the signed index.
    #[error("{package}: sha256 is {found}, the signed index says {expected}")]
    Hash {
        /// The package.
        package: String,
        /// The hash of the file.
        found: String,
        /// The hash in the index.
        expected: String,
    },
    /// An image cannot be used.
    #[error("{path}: {reason}")]
    Image {
        /// The image.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// A configuration has errors, which were printed.
    #[error("{}: {count} {}: not started", .path.display(), if *.count == 1 { "error" } else { "errors" })]
    Configuration {
        /// The blob.
        path: PathBuf,
        /// Number of errors.
        count: usize,
    },
    /// The expected output of a running system did not arrive.
    #[error("waited {seconds} s for `{pattern}`, {end}")]
    Silence {
        /// Pattern of the expected output.
        pattern: String,
        /// Length of the wait.
        seconds: u64,
        /// End of the wait.
        end: &'static str,
    },
    /// A regular expression is malformed.
    #[error(transparent)]
    Pattern(#[from] regex::Error),
    /// This program received a signal and stopped QEMU.
    #[error("ended by signal {0}")]
    Signal(i32),
}

/// Conversion of I/O errors into errors with a path.
pub(crate) trait AtPath<T> {
    /// Adds `path` to the error.
    fn at(self, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { path: path.into(), source })
    }
}

fn quoted(said: &str) -> String {
    if said.trim().is_empty() { String::new() } else { format!("\n{}", said.trim_end()) }
}
