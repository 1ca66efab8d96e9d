//! dt-schema: trees checked against the bindings.

use std::format;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::string::String;
use std::sync::OnceLock;
use std::vec::Vec;

/// Where the bindings lie.
fn bindings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bindings")
}

/// What `dt-validate` says of the blobs in `files`, by the bindings that come with dt-schema and Ballast's own;
/// nothing where all is well. A `compatible` without a binding is an error as well.
///
/// # Panics
/// Where `dt-validate` can neither be found nor installed.
pub fn validate(files: &[&Path]) -> String {
    let mut command = Command::new(tool("dt-validate"));
    command.arg("-m").arg("-s").arg(bindings()).args(files);
    said_by(command)
}

/// What `dt-doc-validate` says of the bindings themselves.
///
/// # Panics
/// As [`validate`].
pub fn validate_bindings() -> String {
    let mut command = Command::new(tool("dt-doc-validate"));
    command.arg("-u").arg(bindings()).args(files_below(&bindings()));
    said_by(command)
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in folder.read_dir().expect("the folder is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Everything that `command` prints, but what it says of a schema of ours that stands for one of its own.
fn said_by(mut command: Command) -> String {
    let output = command.output().expect("the program starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines = said.lines().filter(|line| !line.contains("ignoring duplicate '$id'"));
    let mut text: String = lines.map(|line| format!("{line}\n")).collect();
    if !output.status.success() && text.is_empty() {
        text = format!("{command:?} ended with {}\n", output.status);
    }
    text
}

/// The program `name` of dt-schema: the one on the path, or the one in target/dtschema, put there if need be.
fn tool(name: &str) -> PathBuf {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let mut version = Command::new("dt-validate");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        match version.status() {
            Ok(status) if status.success() => None,
            _ => Some(install()),
        }
    });
    match folder {
        Some(folder) => folder.join(name),
        None => PathBuf::from(name),
    }
}

/// Installs dt-schema into target/dtschema, where it is not there yet, and gives the folder of its programs.
fn install() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let home = workspace.join("target/dtschema");
    let folder = home.join("bin");
    if folder.join("dt-validate").exists() {
        return folder;
    }
    let run = |command: &mut Command| {
        let output = command.output();
        let output =
            output.unwrap_or_else(|error| panic!("{command:?}: {error} (packages python3 and python3-venv)"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} (packages python3 and python3-venv): {said}");
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&home));
    let requirements = bindings().join("requirements.txt");
    run(Command::new(folder.join("pip")).args(["install", "--quiet", "--requirement"]).arg(requirements));
    folder
}
