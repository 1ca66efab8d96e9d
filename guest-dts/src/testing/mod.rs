//! Support for tests: sources compiled by `dtc`, trees checked by dt-schema, a fuzzer.

pub mod fuzz;
pub mod schema;

use std::format;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::string::String;

use crate::tree::AlignedBlob;

/// Compiles `source` with `dtc`, which searches `directories` for included files.
///
/// # Panics
/// `dtc` is missing or refuses the source.
pub(crate) fn compile_in(source: &str, directories: &[&Path]) -> AlignedBlob {
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
    assert!(output.status.success(), "dtc: {}", String::from_utf8_lossy(&output.stderr));
    AlignedBlob::new(&output.stdout)
}

/// Compiles `source` with `dtc`.
///
/// # Panics
/// As [`compile_in`].
pub fn compile(source: &str) -> AlignedBlob {
    compile_in(source, &[])
}

/// Compiles a configuration `source` in which `/incbin/("kernel")` is an arm64 kernel of 1 KiB and
/// `/incbin/("ramdisk")` or `/incbin/("devices.cpio")` a few bytes.
///
/// # Panics
/// As [`compile_in`].
pub fn compile_with_images(source: &str) -> AlignedBlob {
    // text_offset 0, image_size 4 KiB, flags: little-endian, 4 KiB pages, anywhere in RAM; "ARM\x64".
    let header = "[0000000000000000 0000000000000000 0010000000000000 0a00000000000000
        0000000000000000 0000000000000000 0000000000000000 41524d64 00000000]";
    let kernel = format!("{header}, [{}]", "00".repeat(0x400));
    let ramdisk = "\"ramdisk\"";
    compile(
        &source
            .replace("/incbin/(\"kernel\")", &kernel)
            .replace("/incbin/(\"ramdisk\")", ramdisk)
            .replace("/incbin/(\"devices.cpio\")", ramdisk),
    )
}
