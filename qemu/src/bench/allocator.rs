//! The cost of the physical memory allocator in comparison with the crate buddy_system_allocator, on the PC, by
//! valgrind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::error::{AtPath, Error, Result};
use crate::place;

/// Start of the benchmark's line about missed limits.
const VERDICT: &str = "limits missed: ";

/// Measures and prints the tables. Returns `true` if all limits are met.
pub(super) fn run() -> Result<bool> {
    println!("\nallocator, on this PC; a limit is the least factor by which it takes fewer instructions\n");
    let cargo = place::root().join("tools/cargo");
    let mut child = Command::new(&cargo)
        .args(["bench", "--quiet", "--package", "stage2", "--bench", "instructions"])
        .current_dir(place::root())
        .stdout(Stdio::piped())
        .spawn()
        .at(&cargo)?;
    let mut verdict = None;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.at(&cargo)?;
            println!("{line}");
            if let Some(missed) = line.strip_prefix(VERDICT) {
                verdict = Some(missed == "none");
            }
        }
    }
    child.wait().at(&cargo)?;
    verdict.ok_or_else(|| Error::Data { path: cargo, reason: "the benchmark did not finish".into() })
}
