//! Runs all tests, on the PC and in QEMU, and sums up their results in one line.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::error::{AtPath, Result};
use crate::image::{Image, build_payloads};
use crate::{process, ramdisk, store, toolchain};

/// Number of parallel system tests. An emulated machine keeps a core or two busy.
const SYSTEM_TESTS_AT_ONCE: &str = "2";

/// Numbers of tests that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Number of tests that passed.
    pub passed_count: u64,
    /// Number of tests that failed, including runs that ended without a result.
    pub failed_count: u64,
}

/// Builds everything, fetches the tests' kernels, and runs all tests, or those whose name contains `filter`.
///
/// # Errors
/// Something cannot be built or fetched. A failed test is not an error.
pub fn run(filter: Option<&str>) -> Result<Sum> {
    let started = Instant::now();
    let image = Image::build()?;
    println!("{}", image.describe());
    let payloads = build_payloads()?;
    let kernels = store::kernels()?;
    let mut items: Vec<&str> = kernels.iter().map(String::as_str).collect();
    items.extend(["busybox", "fio"]);
    store::get_all(&items)?;
    ramdisk::get()?;

    let mut sum = Sum::default();
    let runs: [&[&str]; 2] = [&["--workspace", "--exclude", "system-tests"], &["--package", "system-tests"]];
    for packages in runs {
        let mut cargo = toolchain::cargo();
        cargo.args(["test", "--no-fail-fast"]).args(packages).arg("--").args(filter);
        if packages.contains(&"--package") {
            cargo.args(["--test-threads", SYSTEM_TESTS_AT_ONCE]).env("BALLAST_IMAGE", &image.bin);
            cargo.env("BALLAST_PAYLOADS", &payloads);
        }
        sum.add(run_one(&mut cargo)?);
    }
    println!("\ntook {} s", started.elapsed().as_secs());
    Ok(sum)
}

fn run_one(cargo: &mut Command) -> Result<Sum> {
    println!("\n{}", process::describe(cargo));
    let mut child =
        cargo.stdout(Stdio::piped()).spawn().map_err(|source| process::start_error(cargo, source))?;
    let mut sum = Sum::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line.at("cargo test")?).into_owned();
            println!("{line}");
            sum.add(Sum::of_line(&line));
        }
    }
    let status = child.wait().at("cargo test")?;
    if !status.success() && sum.failed_count == 0 {
        println!("cargo test: {status}, but no test failed; counted as one failure");
        sum.failed_count = 1;
    }
    Ok(sum)
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.passed_count += other.passed_count;
        self.failed_count += other.failed_count;
    }

    /// Parses a line of `cargo test`: `test result: ok. 3 passed; 0 failed; …`.
    fn of_line(line: &str) -> Self {
        let Some(counts) = line.trim().strip_prefix("test result: ") else { return Self::default() };
        let count = |word: &str| {
            let before = counts.split(word).next().filter(|before| before.len() < counts.len())?;
            before.split_whitespace().next_back()?.parse().ok()
        };
        Self { passed_count: count(" passed").unwrap_or(0), failed_count: count(" failed").unwrap_or(0) }
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed_count, self.failed_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_cargos_lines() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(Sum::of_line(line), Sum { passed_count: 12, failed_count: 3 });
        assert_eq!(Sum::of_line("test a_result ... ok"), Sum::default());
        assert_eq!(Sum::of_line("test result: strange"), Sum::default());
    }

    #[test]
    fn a_run_that_dies_counts_as_a_failure() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: ok. 2 passed; 0 failed;'; exit 101"]);
        assert_eq!(run_one(&mut command).unwrap(), Sum { passed_count: 2, failed_count: 1 });
    }
}
