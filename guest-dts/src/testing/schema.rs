//! Checks of trees and bindings by dt-schema.

use std::format;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::string::String;
use std::sync::OnceLock;
use std::vec::Vec;

/// Returns the folder of the bindings.
fn bindings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bindings")
}

/// Returns the messages of `dt-validate` about the blobs in `files`, checked against the bindings of dt-schema and
/// Ballast's own; empty if there are none. A `compatible` without a binding is an error too.
///
/// # Panics
/// `dt-validate` is neither installed nor installable.
pub fn validate(files: &[&Path]) -> String {
    let mut command = Command::new(tool("dt-validate"));
    command.arg("-m").arg("-s").arg(bindings()).args(files);
    output_of(command)
}

/// Returns the messages of `dt-doc-validate` about the bindings themselves.
///
/// # Panics
/// As [`validate`].
pub fn validate_bindings() -> String {
    let mut command = Command::new(tool("dt-doc-validate"));
    command.arg("-u").arg(bindings()).args(files_below(&bindings()));
    output_of(command)
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

/// Returns the output of `command`, except warnings that a schema of Ballast replaces one of dt-schema.
fn output_of(mut command: Command) -> String {
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

/// Returns the program `name` of dt-schema: on the path, or else in target/dtschema, installed on first use.
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

/// Installs dt-schema into target/dtschema unless it is there, and returns the folder of its programs.
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
