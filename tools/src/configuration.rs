//! `ballast check` and `ballast image`: configuration blobs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result, anyhow, bail};
pub use guest_dts::config::UnknownNames;
use guest_dts::config::{Configuration, ControllerRoom, Host, Severity};
use guest_dts::finding::{Finding, Rule};
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
    /// Unknown names are among the errors.
    pub has_unknown_names: bool,
}

/// What every flattened device tree begins with.
const FDT_MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];
/// What to do about unknown names that are meant.
pub const ABOUT_UNKNOWN_NAMES: &str = "Unknown names are errors, since a mistyped one may be one that protects a guest. \
     If they are meant, for a later Ballast: `lenient;` in the configuration's root, or `ballast check --lenient`.";

/// What `ballast check` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckOptions {
    /// The configuration blob; `ballast image FILE.dts -o FILE.dtb` compiles one
    #[arg(value_name = "FILE.dtb")]
    pub blob: PathBuf,
    /// Warn of properties and nodes that Ballast does not know, as with `lenient` in the configuration's root
    #[arg(long)]
    pub lenient: bool,
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

/// Checks the blob in a file, and prints what is wrong. Returns `true` if nothing is.
///
/// # Errors
/// A file cannot be read, or is the source of a blob.
pub fn check(options: &CheckOptions) -> Result<bool> {
    let blob = read_file(&options.blob)?;
    refuse_source(&options.blob, &blob)?;
    let unknown_names = if options.lenient { UnknownNames::Allowed } else { UnknownNames::Refused };
    let check = |place| print(&options.blob, &check_blob(&blob, place, unknown_names));
    if let Some(path) = &options.host {
        let tree = read_file(path)?;
        return Ok(check(Place::Described(&tree, options.append.as_deref())));
    }
    let Some(cpu_count) = options.cpus else { return Ok(check(Place::Any)) };
    let mut host = Host { cpu_count, ..Host::default() };
    for (id, &free) in options.controller.iter().enumerate() {
        // More controllers than Ballast knows have no guests.
        let _ = host.controllers.push(ControllerRoom { id: id as u8, free, unmovable: free });
    }
    Ok(check(Place::Sized(&host)))
}

/// Refuses the source of a configuration, and says how to compile it.
fn refuse_source(path: &Path, content: &[u8]) -> Result<()> {
    let is_source = content.trim_ascii_start().starts_with(b"/dts-v1/")
        || path.extension().is_some_and(|extension| extension == "dts");
    if !is_source || content.starts_with(&FDT_MAGIC) {
        return Ok(());
    }
    let (source, blob) = (path.display(), path.with_extension("dtb"));
    let blob = blob.display();
    bail!(
        "{source} is the source of a configuration. To compile and check it:\n    \
         ballast image {source} -o {blob} -i DIRECTORY\n\
         with an -i for each directory of the files that it includes (kernels, ramdisks); or by plain dtc:\n    \
         dtc -I dts -O dtb -i DIRECTORY {source} -o {blob} && ballast check {blob}"
    )
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Prints what was found in the blob at `path`. Returns `true` if no error was.
fn print(path: &Path, findings: &Findings) -> bool {
    for line in &findings.lines {
        println!("{line}");
    }
    match findings.error_count {
        0 => println!("{}: good, guests: {}", path.display(), findings.guests.join(", ")),
        1 => println!("{}: 1 error", path.display()),
        count => println!("{}: {count} errors", path.display()),
    }
    if findings.has_unknown_names {
        println!("{ABOUT_UNKNOWN_NAMES}");
    }
    findings.error_count == 0
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
pub fn check_blob(blob: &[u8], place: Place<'_>, unknown_names: UnknownNames) -> Findings {
    let mut lines = Vec::new();
    let mut error_count = 0;
    let mut has_unknown_names = false;
    let mut tell = |severity: Severity, text: fmt::Arguments<'_>| {
        let word = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        error_count += usize::from(severity == Severity::Error);
        lines.push(format!("{word}: {text}"));
    };
    let guests = match guests(blob, place, unknown_names, &mut has_unknown_names, &mut tell) {
        Ok(guests) => guests,
        Err(error) => {
            tell(Severity::Error, format_args!("{error}"));
            Vec::new()
        }
    };
    Findings { lines, error_count, guests, has_unknown_names }
}

/// The names of the guests of `blob` that can be started in `place`.
fn guests(
    blob: &[u8],
    place: Place<'_>,
    unknown_names: UnknownNames,
    has_unknown_names: &mut bool,
    tell: &mut Tell<'_>,
) -> Result<Vec<String>> {
    let blob = AlignedBlob::new(blob);
    let tree = Tree::new(blob.as_slice()).map_err(|error| anyhow!("{error}"))?;
    let host_blob = AlignedBlob::new(match place {
        Place::Described(tree, _) => tree,
        Place::Any | Place::Sized(_) => &[],
    });
    let mut sink = |severity, finding: Finding<'_>| {
        let is_unknown = matches!(finding.rule(), Rule::Unknown { .. });
        *has_unknown_names |= is_unknown && severity == Severity::Error;
        tell_finding(tell)(severity, finding);
    };
    let mut configuration = Configuration::read_with(&tree, unknown_names, &mut sink)
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
    let findings = check_blob(&read_file(&options.out)?, Place::Any, UnknownNames::Refused);
    Ok(print(&options.out, &findings))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

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
    fn a_source_is_refused_with_the_commands_that_compile_it() {
        for (path, content) in
            [("sets/mine.dts", "// Mine.\n/dts-v1/;"), ("mine", "\n/dts-v1/;\n/ { };"), ("mine.dts", "")]
        {
            let said = refuse_source(Path::new(path), content.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(&format!("\n    ballast image {path} -o ")), "{said}");
            assert!(said.contains(&format!("\n    dtc -I dts -O dtb -i DIRECTORY {path} -o ")), "{said}");
        }
        assert!(refuse_source(Path::new("mine.dtb"), b"\xd0\x0d\xfe\xed").is_ok());
        assert!(refuse_source(Path::new("named-amiss.dts"), b"\xd0\x0d\xfe\xed").is_ok());
        assert!(refuse_source(Path::new("mine.dtb"), b"no device tree").is_ok(), "check_blob says more");
    }

    #[test]
    fn unknown_names_are_errors_unless_allowed() {
        let source = "/dts-v1/; / { compatible = \"ballast,configuration\"; images { kernel: kernel { data = [d5 d5 d5 d5]; }; }; \
                      guests { alpha { vcpus = <1>; kernel = <&kernel>; no-migraton; memory { size = <0x10000000>; }; }; }; };";
        let Some(blob) = compile(source) else { return };
        let refused = check_blob(&blob, Place::Any, UnknownNames::Refused);
        assert!(
            refused.has_unknown_names && refused.error_count == 1 && refused.guests.is_empty(),
            "{refused:?}"
        );
        assert!(
            refused.lines[0].ends_with("no-migraton: unknown name; did you mean \"no-migration\"?"),
            "{refused:?}"
        );
        let allowed = check_blob(&blob, Place::Any, UnknownNames::Allowed);
        assert!(!allowed.has_unknown_names && allowed.error_count == 0, "{allowed:?}");
        assert_eq!((allowed.guests, allowed.lines.len()), (vec!["alpha".to_owned()], 1));
    }

    #[test]
    fn what_is_no_blob_is_told() {
        let findings = check_blob(b"no device tree", Place::Any, UnknownNames::Refused);
        assert_eq!(findings.error_count, 1);
        assert!(findings.lines[0].starts_with("error: "), "{:?}", findings.lines);
    }

    /// Compiles `source` by dtc, where there is one.
    fn compile(source: &str) -> Option<Vec<u8>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ballast-check-{}-{number}.dts", std::process::id()));
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
        let findings = check_blob(&blob, Place::Any, UnknownNames::Refused);
        assert!(findings.error_count >= 1, "{findings:?}");
        assert!(findings.lines.iter().any(|line| line.contains("/guests/alpha")), "{findings:?}");
    }
}
