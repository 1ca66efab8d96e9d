//! `ballast check` and `ballast image`: configuration blobs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use guest_dts::config::{Configuration, ControllerRoom, Host, Severity};
use guest_dts::tree::{AlignedBlob, Tree};
use hyp::physical::{Tell, tell_finding};

use crate::host;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What was found, in the words that Ballast's console has for it.
    pub lines: Vec<String>,
    /// How many of them are errors.
    pub error_count: usize,
    /// The guests that would start, or could be started.
    pub guests: Vec<String>,
}

/// What `ballast check` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckOptions {
    /// The configuration blob
    #[arg(value_name = "FILE.dtb")]
    pub blob: PathBuf,
    /// Check that the guests fit a host, too: its device tree (QEMU writes it with -machine …,dumpdtb=FILE; on Linux
    /// it is /sys/firmware/fdt)
    #[arg(long, value_name = "HOST.dtb")]
    pub host: Option<PathBuf>,
    /// Ballast's command line on that host, where it is not the one in its tree
    #[arg(long, value_name = "TEXT", requires = "host")]
    pub append: Option<String>,
    /// Without the host's tree: how many CPUs it has
    #[arg(long, value_name = "COUNT", requires = "controller", conflicts_with = "host")]
    pub cpus: Option<u32>,
    /// Without the host's tree: what is free behind each of its controllers in order, like 1G
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "cpus")]
    pub controller: Vec<u64>,
}

/// What a configuration is to fit.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// No host in particular.
    Any,
    /// A host of which only its size is known.
    Sized(&'a Host),
    /// A host, by its device tree, and Ballast's command line there if it is not the tree's.
    Described(&'a [u8], Option<&'a str>),
}

/// Checks the blob in a file, and says what is wrong. Returns whether nothing is.
///
/// # Errors
/// A file cannot be read.
pub fn check(options: &CheckOptions) -> Result<bool> {
    if let Some(path) = &options.host {
        let tree = read_file(path)?;
        return check_file(&options.blob, Place::Described(&tree, options.append.as_deref()));
    }
    let Some(cpu_count) = options.cpus else { return check_file(&options.blob, Place::Any) };
    let mut host = Host { cpu_count, ..Host::default() };
    for (id, &free) in options.controller.iter().enumerate() {
        // More controllers than Ballast knows have no guests.
        let _ = host.controllers.push(ControllerRoom { id: id as u8, free, unmovable: free });
    }
    check_file(&options.blob, Place::Sized(&host))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn check_file(path: &Path, place: Place<'_>) -> Result<bool> {
    let findings = check_blob(&read_file(path)?, place);
    for line in &findings.lines {
        println!("{line}");
    }
    match findings.error_count {
        0 => println!("{}: good, guests: {}", path.display(), findings.guests.join(", ")),
        1 => println!("{}: 1 error", path.display()),
        count => println!("{}: {count} errors", path.display()),
    }
    Ok(findings.error_count == 0)
}

/// A size: a number, with K, M, G or T for powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err("expected a size like 512M".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a size like 512M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

/// Checks a blob, by the code that Ballast itself checks it by, and whether its guests fit `place`.
pub fn check_blob(blob: &[u8], place: Place<'_>) -> Findings {
    let mut lines = Vec::new();
    let mut error_count = 0;
    let mut tell = |severity: Severity, text: fmt::Arguments<'_>| {
        let word = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        error_count += usize::from(severity == Severity::Error);
        lines.push(format!("{word}: {text}"));
    };
    let guests = match guests(blob, place, &mut tell) {
        Ok(guests) => guests,
        Err(error) => {
            tell(Severity::Error, format_args!("{error}"));
            Vec::new()
        }
    };
    Findings { lines, error_count, guests }
}

/// The names of the guests of `blob` that can be started in `place`.
fn guests(blob: &[u8], place: Place<'_>, tell: &mut Tell<'_>) -> Result<Vec<String>> {
    let blob = AlignedBlob::new(blob);
    let tree = Tree::new(blob.as_slice()).map_err(|error| anyhow!("{error}"))?;
    let host_blob = AlignedBlob::new(match place {
        Place::Described(tree, _) => tree,
        Place::Any | Place::Sized(_) => &[],
    });
    let mut configuration = Configuration::read(&tree, &mut tell_finding(tell))
        .map_err(|finding| anyhow!("configuration: {finding}"))?;
    match place {
        Place::Any => {}
        Place::Sized(host) => {
            configuration.fit_blocks(host, &mut tell_finding(tell));
            configuration.fit(host, &mut tell_finding(tell));
        }
        Place::Described(_, command_line) => {
            let host =
                Tree::new(host_blob.as_slice()).map_err(|error| anyhow!("the host's tree: {error}"))?;
            host::fit(&host, command_line, &mut configuration, tell)?;
        }
    }
    Ok(configuration.guests.iter().map(|guest| guest.name.to_owned()).collect())
}

/// What `ballast image` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct ImageOptions {
    /// The configuration's source
    #[arg(value_name = "FILE.dts")]
    pub source: PathBuf,
    /// Where the blob goes
    #[arg(short, long, value_name = "FILE.dtb")]
    pub out: PathBuf,
    /// Look for included files here, too
    #[arg(short, long, value_name = "DIRECTORY")]
    pub include: Vec<PathBuf>,
}

/// Compiles a configuration by plain `dtc`, and checks it. Returns whether it is good.
///
/// # Errors
/// There is no `dtc`, or it refuses the source.
pub fn image(options: &ImageOptions) -> Result<bool> {
    let mut dtc = Command::new("dtc");
    dtc.args(["-q", "-I", "dts", "-O", "dtb", "-o"]).arg(&options.out);
    for folder in &options.include {
        dtc.arg("-i").arg(folder);
    }
    let status = dtc
        .arg(&options.source)
        .status()
        .context("cannot start dtc (Debian: apt install device-tree-compiler)")?;
    if !status.success() {
        bail!("dtc refuses {}", options.source.display());
    }
    check_file(&options.out, Place::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_understood() {
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in ["", "G", "1X", "99999999999T", "1.5G"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_blob_is_told() {
        let findings = check_blob(b"no device tree", Place::Any);
        assert_eq!(findings.error_count, 1);
        assert!(findings.lines[0].starts_with("error: "), "{:?}", findings.lines);
    }

    /// Compiles `source` by dtc, where there is one.
    fn compile(source: &str) -> Option<Vec<u8>> {
        let path = std::env::temp_dir().join(format!("ballast-check-{}.dts", std::process::id()));
        fs::write(&path, source).unwrap();
        let output = Command::new("dtc").args(["-q", "-I", "dts", "-O", "dtb"]).arg(&path).output().ok()?;
        fs::remove_file(&path).unwrap();
        assert!(output.status.success());
        Some(output.stdout)
    }

    #[test]
    fn a_guest_without_a_kernel_is_an_error() {
        let source = "/dts-v1/; / { compatible = \"ballast,configuration\"; guests { alpha { }; }; };";
        let Some(blob) = compile(source) else { return };
        let findings = check_blob(&blob, Place::Any);
        assert!(findings.error_count >= 1, "{findings:?}");
        assert!(findings.lines.iter().any(|line| line.contains("/guests/alpha")), "{findings:?}");
    }
}
