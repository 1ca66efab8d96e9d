//! What the allocator of physical memory costs beside the crate buddy_system_allocator: on the PC, counted by valgrind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::error::{AtPath, Error, Result};
use crate::place;

/// The line in which the benchmark says how many limits it misses begins so.
const VERDICT: &str = "limits missed: ";

/// Measures, prints the tables, and returns whether all limits are kept.
pub(super) fn run() -> Result<bool> {
    println!("\nthe allocator, on this PC; limits: how many times fewer instructions it must take\n");
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
    verdict.ok_or_else(|| Error::Data { path: cargo, reason: "the benchmark came to no end".into() })
}
