//! `ballast check` and `ballast image`: checks of configuration blobs.

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

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The messages that Ballast would print on its console.
    pub lines: Vec<String>,
    /// Number of errors among them.
    pub error_count: usize,
    /// The guests that can start.
    pub guests: Vec<String>,
    /// True if there are errors about unknown names.
    pub has_unknown_names: bool,
}

/// Magic number of flattened device trees.
const FDT_MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];
/// Explanation of errors about unknown names.
pub const ABOUT_UNKNOWN_NAMES: &str = "Unknown names are errors, since a mistyped name may be one that protects a guest. \
     If a later version of Ballast knows them, add `lenient;` to the configuration's root or use `ballast check --lenient`.";

/// Options of `ballast check`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckOptions {
    /// Configuration blob (`ballast image FILE.dts -o FILE.dtb` compiles one)
    #[arg(value_name = "FILE.dtb")]
    blob: PathBuf,
    /// Warn about unknown properties and nodes instead of refusing them, like `lenient` in the configuration's root
    #[arg(long)]
    lenient: bool,
    /// Also check that the configuration fits a host, by its device tree (QEMU: -machine …,dumpdtb=FILE; Linux:
    /// /sys/firmware/fdt)
    #[arg(long, value_name = "HOST.dtb")]
    host: Option<PathBuf>,
    /// Ballast's command line on that host, instead of the one in its tree
    #[arg(long, value_name = "TEXT", requires = "host")]
    append: Option<String>,
    /// Without the host's tree: number of CPUs
    #[arg(long, value_name = "COUNT", requires = "controller", conflicts_with = "host")]
    cpus: Option<u32>,
    /// Without the host's tree: free memory of each controller, in order, like 1G
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "cpus")]
    controller: Vec<u64>,
}

/// The host that a configuration must fit.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Any host.
    Any,
    /// A host with these CPUs and controllers.
    Sized(&'a Host),
    /// The host of this device tree, and a command line for Ballast that replaces the tree's.
    Described(&'a [u8], Option<&'a str>),
}

/// Checks the blob in a file and prints the findings. Returns `true` if there are no errors.
///
/// # Errors
/// A file cannot be read, or is the source of a blob.
pub fn check(options: &CheckOptions) -> Result<bool> {
    let blob = read_file(&options.blob)?;
    refuse_source(&options.blob, &blob)?;
    let unknown_names = if options.lenient { UnknownNames::Allowed } else { UnknownNames::Refused };
    let check = |target| print(&options.blob, &check_blob(&blob, target, unknown_names));
    if let Some(path) = &options.host {
        let tree = read_file(path)?;
        return Ok(check(Target::Described(&tree, options.append.as_deref())));
    }
    let Some(cpu_count) = options.cpus else { return Ok(check(Target::Any)) };
    let mut host = Host { cpu_count, ..Host::default() };
    for (id, &free) in options.controller.iter().enumerate() {
        // Ballast places no guests on controllers beyond its limit.
        let _ = host.controllers.push(ControllerRoom { id: id as u8, free, unmovable: free });
    }
    Ok(check(Target::Sized(&host)))
}

/// Refuses the source of a configuration, with the commands to compile it.
fn refuse_source(path: &Path, content: &[u8]) -> Result<()> {
    let is_source = content.trim_ascii_start().starts_with(b"/dts-v1/")
        || path.extension().is_some_and(|extension| extension == "dts");
    if !is_source || content.starts_with(&FDT_MAGIC) {
        return Ok(());
    }
    let (source, blob) = (path.display(), path.with_extension("dtb"));
    let blob = blob.display();
    bail!(
        "{source} is the source of a configuration. To compile and check it, with an -i for each directory of included \
         files (kernels, ramdisks):\n    \
         ballast image {source} -o {blob} -i DIRECTORY\n\
         or with dtc:\n    \
         dtc -I dts -O dtb -i DIRECTORY {source} -o {blob} && ballast check {blob}"
    )
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Prints the findings about the blob at `path`. Returns `true` if there are no errors.
fn print(path: &Path, findings: &Findings) -> bool {
    for line in &findings.lines {
        println!("{line}");
    }
    match findings.error_count {
        0 => println!("{}: no errors, guests: {}", path.display(), findings.guests.join(", ")),
        1 => println!("{}: 1 error", path.display()),
        count => println!("{}: {count} errors", path.display()),
    }
    if findings.has_unknown_names {
        println!("{ABOUT_UNKNOWN_NAMES}");
    }
    findings.error_count == 0
}

/// Parses a size: a number, with K, M, G or T for powers of 1024.
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

/// Checks a blob against `target`, with the code that Ballast runs at boot.
pub fn check_blob(blob: &[u8], target: Target<'_>, unknown_names: UnknownNames) -> Findings {
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
    let guests = match guests(blob, target, unknown_names, &mut has_unknown_names, &mut tell) {
        Ok(guests) => guests,
        Err(error) => {
            tell(Severity::Error, format_args!("{error}"));
            Vec::new()
        }
    };
    Findings { lines, error_count, guests, has_unknown_names }
}

/// Returns the names of the guests of `blob` that can start on `target`.
fn guests(
    blob: &[u8],
    target: Target<'_>,
    unknown_names: UnknownNames,
    has_unknown_names: &mut bool,
    tell: &mut Tell<'_>,
) -> Result<Vec<String>> {
    let blob = AlignedBlob::new(blob);
    let tree = Tree::new(blob.as_slice()).map_err(|error| anyhow!("{error}"))?;
    let host_blob = AlignedBlob::new(match target {
        Target::Described(tree, _) => tree,
        Target::Any | Target::Sized(_) => &[],
    });
    let mut sink = |severity, finding: Finding<'_>| {
        let is_unknown = matches!(finding.rule(), Rule::Unknown { .. });
        *has_unknown_names |= is_unknown && severity == Severity::Error;
        tell_finding(tell)(severity, finding);
    };
    let mut configuration = Configuration::read_with(&tree, unknown_names, &mut sink)
        .map_err(|finding| anyhow!("configuration: {finding}"))?;
    match target {
        Target::Any => {}
        Target::Sized(host) => {
            configuration.fit_blocks(host, &mut tell_finding(tell));
            configuration.fit(host, &mut tell_finding(tell));
        }
        Target::Described(_, command_line) => {
            let host = Tree::new(host_blob.as_slice())
                .map_err(|error| anyhow!("the host's device tree: {error}"))?;
            host::fit(&host, command_line, &mut configuration, tell)?;
        }
    }
    Ok(configuration.guests.iter().map(|guest| guest.name.to_owned()).collect())
}

/// Options of `ballast image`.
#[derive(Clone, Debug, clap::Args)]
pub struct ImageOptions {
    /// Source of the configuration
    #[arg(value_name = "FILE.dts")]
    source: PathBuf,
    /// File to write the blob to
    #[arg(short, long, value_name = "FILE.dtb")]
    out: PathBuf,
    /// Search this directory for included files; may be repeated
    #[arg(short, long, value_name = "DIRECTORY")]
    include: Vec<PathBuf>,
}

/// Compiles a configuration with `dtc` and checks it. Returns `true` if there are no errors.
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
        .context("cannot run dtc (Debian: apt install device-tree-compiler)")?;
    if !status.success() {
        bail!("dtc refuses {}", options.source.display());
    }
    let findings = check_blob(&read_file(&options.out)?, Target::Any, UnknownNames::Refused);
    Ok(print(&options.out, &findings))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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
        let refused = check_blob(&blob, Target::Any, UnknownNames::Refused);
        assert!(
            refused.has_unknown_names && refused.error_count == 1 && refused.guests.is_empty(),
            "{refused:?}"
        );
        assert!(
            refused.lines[0].ends_with("no-migraton: unknown name; did you mean \"no-migration\"?"),
            "{refused:?}"
        );
        let allowed = check_blob(&blob, Target::Any, UnknownNames::Allowed);
        assert!(!allowed.has_unknown_names && allowed.error_count == 0, "{allowed:?}");
        assert_eq!((allowed.guests, allowed.lines.len()), (vec!["alpha".to_owned()], 1));
    }

    #[test]
    fn other_files_are_refused() {
        let findings = check_blob(b"no device tree", Target::Any, UnknownNames::Refused);
        assert_eq!(findings.error_count, 1);
        assert!(findings.lines[0].starts_with("error: "), "{:?}", findings.lines);
    }

    /// Compiles `source` with dtc, if it is installed.
    fn compile(source: &str) -> Option<Vec<u8>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(source.as_bytes()).unwrap();
        let output =
            Command::new("dtc").args(["-q", "-I", "dts", "-O", "dtb"]).arg(file.path()).output().ok()?;
        assert!(output.status.success());
        Some(output.stdout)
    }

    #[test]
    fn a_pool_whose_window_overlaps_its_owners_ram_is_an_error() {
        // A pool of 512 MiB on controller 0 (1 GiB at 0x40000000) overlaps with RAM of 768 MiB from 0x40000000 at any place.
        let source = "/dts-v1/; / { compatible = \"ballast,configuration\"; images { kernel: kernel { data = [d5 d5 d5 d5]; }; }; \
                      pools { video { compatible = \"shared-dmb-pool\"; reusable; size = <0x20000000>; controllers = <0>; \
                      owner = <&alpha>; pinned-in-place; }; }; \
                      guests { alpha: alpha { vcpus = <1>; kernel = <&kernel>; memory { size = <0x30000000>; }; }; }; };";
        let Some(blob) = compile(source) else { return };
        let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-dts/corpus/host/host-qemu_virt.dtb");
        let host = fs::read(host).unwrap();
        let check = |blob: &[u8]| check_blob(blob, Target::Described(&host, None), UnknownNames::Refused);
        let findings = check(&blob);
        assert_eq!(findings.error_count, 1, "{findings:?}");
        let error = findings.lines.iter().find(|line| line.starts_with("error: ")).unwrap();
        assert!(
            error.starts_with("error: pool video: no owner, because for guest alpha its window from "),
            "{error}"
        );
        assert!(error.ends_with("overlaps with the guest's RAM: 768 MiB at 0x40000000"), "{error}");
        let elsewhere = compile(&source.replace("controllers = <0>", "controllers = <1>")).unwrap();
        assert_eq!(check(&elsewhere).error_count, 0, "{:?}", check(&elsewhere));
    }

    #[test]
    fn a_guest_without_a_kernel_is_an_error() {
        let source = "/dts-v1/; / { compatible = \"ballast,configuration\"; guests { alpha { }; }; };";
        let Some(blob) = compile(source) else { return };
        let findings = check_blob(&blob, Target::Any, UnknownNames::Refused);
        assert!(findings.error_count >= 1, "{findings:?}");
        assert!(findings.lines.iter().any(|line| line.contains("/guests/alpha")), "{findings:?}");
    }
}
