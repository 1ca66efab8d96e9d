//! What can go wrong on the PC, each with what it went wrong with.

use std::path::PathBuf;
use std::process::ExitStatus;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the machines, the downloads or QEMU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written, made or removed.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program could not be started or waited for.
    #[error("{program}: {source} (`make setup` installs what is missing)")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("{program}: {status}{}", quoted(.said))]
    Program {
        /// The program with its arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed, where that was caught.
        said: String,
    },
    /// A data file of this repository is wrong.
    #[error("{path}: {reason}")]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something was asked for by a name that nothing has.
    #[error("there is no {kind} called `{name}`; there is {}", .known.join(", "))]
    Unknown {
        /// What kind of thing was asked for.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// A package is in none of the suites that should have it.
    #[error("no package of {} matches `{pattern}`", .suites.join(", "))]
    NoPackage {
        /// The pattern looked for.
        pattern: String,
        /// Where it was looked for.
        suites: Vec<String>,
    },
    /// A downloaded package is not what the signed index says.
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
        /// Why not.
        reason: String,
    },
    /// A machine cannot be expressed.
    #[error("machine `{machine}`: {reason}")]
    Machine {
        /// The machine.
        machine: String,
        /// Why not.
        reason: String,
    },
    /// A configuration has errors, which were printed.
    #[error("{}: {count} {}: not started", .path.display(), if *.count == 1 { "error" } else { "errors" })]
    Configuration {
        /// The blob.
        path: PathBuf,
        /// Errors in it.
        count: usize,
    },
    /// A running system did not say what was waited for.
    #[error("waited {seconds} s for `{pattern}`, {end}")]
    Silence {
        /// What was waited for.
        pattern: String,
        /// For how long.
        seconds: u64,
        /// How the wait ended.
        end: &'static str,
    },
    /// A regular expression is malformed.
    #[error(transparent)]
    Pattern(#[from] regex::Error),
    /// QEMU was ended by a signal that this program received.
    #[error("ended by signal {0}")]
    Signal(i32),
}

/// Names the file in an I/O error.
pub(crate) trait AtPath<T> {
    /// Adds `path`.
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
