//! For tests: sources compiled by `dtc`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::string::String;

use crate::tree::AlignedBlob;

/// Compiles `source` with `dtc`; files that it includes are looked for in `directories`.
///
/// # Panics
/// Where `dtc` is missing or refuses the source.
pub fn compile_in(source: &str, directories: &[&Path]) -> AlignedBlob {
    let mut command = Command::new("dtc");
    command.args(["-q", "-q", "-I", "dts", "-O", "dtb"]);
    for directory in directories {
        command.arg("-i").arg(directory);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("dtc (package device-tree-compiler) is needed");
    let mut stdin = child.stdin.take().expect("a pipe");
    let text = String::from(source);
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("dtc ends");
    let _ = writer.join();
    assert!(output.status.success(), "dtc: {}\n{source}", String::from_utf8_lossy(&output.stderr));
    AlignedBlob::new(&output.stdout)
}

/// Compiles `source` with `dtc`.
///
/// # Panics
/// As [`compile_in`].
pub fn compile(source: &str) -> AlignedBlob {
    compile_in(source, &[])
}
