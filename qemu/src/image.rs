//! Ballast's image: builds it and converts it from ELF to the flat image that boot loaders load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::error::{AtPath, Error, Result};
use crate::toolchain::{TARGET, build_for_target};
use crate::{errata, formats, place, process, size, toolchain};

/// Target for the size of the image, in bytes.
pub const TARGET_SIZE: usize = 448 << 10;

/// The files of a build of Ballast.
#[derive(Clone, Debug)]
pub struct Image {
    /// ELF file with symbols, for a debugger and the log's decoder.
    pub elf: PathBuf,
    /// Flat image to load. It begins with the arm64 Image header.
    pub bin: PathBuf,
    /// Size of `bin` in bytes.
    pub size: usize,
}

impl Image {
    /// Builds Ballast if anything changed, and writes `ballast.elf` and `ballast.bin` to the target folder.
    ///
    /// # Errors
    /// The image does not build, cannot be booted, or contains a sequence of [`errata`]. An image larger than
    /// [`TARGET_SIZE`] is not an error.
    pub fn build() -> Result<Self> {
        let mut command = build_for_target(&place::root().join("Cargo.toml"));
        command.args(["--package", "hyp", "--bin", "ballast"]);
        let flag = format!("-Ctarget-feature=+{}", errata::FIX_835769);
        command.args(["--config", &format!("target.{TARGET}.rustflags=[{flag:?}]")]);
        command.env("BALLAST_COMMIT", output_of("git", &["describe", "--always", "--dirty", "--abbrev=12"]));
        command.env("BALLAST_COMPILER", output_of("rustc", &["--version"]));
        // rustc warns in each crate that it does not know this feature, and passes it on to LLVM. `write` checks the
        // result.
        let expected = format!(
            "unknown and unstable feature specified for `-Ctarget-feature`: `{}`",
            errata::FIX_835769
        );
        toolchain::run_without_warning(&mut command, &expected)?;
        let built = place::target().join(TARGET).join("release/ballast");
        Self::write(&built, &place::target())
    }

    /// Writes the images of the ELF file `built` to `folder`.
    fn write(built: &Path, folder: &Path) -> Result<Self> {
        let elf = folder.join("ballast.elf");
        let bin = folder.join("ballast.bin");
        let image = |reason| Error::Image { path: built.into(), reason };
        let mut data = fs::read(built).at(built)?;
        let found = errata::scan(&data).map_err(image)?;
        if !found.is_clean() {
            return Err(image(format!("not safe to run on Cortex-A53: {found}")));
        }
        formats::number(&mut data).map_err(image)?;
        let flat = flatten(&data).map_err(image)?;
        if flat.get(56..60) != Some(b"ARM\x64") {
            return Err(image("it does not begin with the arm64 Image header".into()));
        }
        replace(&elf, &data)?;
        replace(&bin, &flat)?;
        Ok(Self { elf, bin, size: flat.len() })
    }

    /// Returns a line with path, size and target size.
    pub fn describe(&self) -> String {
        let (kib, target) = (self.size.div_ceil(1024), TARGET_SIZE >> 10);
        format!("{}: {kib} KiB (target: {target} KiB)", self.bin.display())
    }

    /// Tests whether the image has at most [`TARGET_SIZE`] bytes.
    pub(crate) fn fits(&self) -> bool {
        self.size <= TARGET_SIZE
    }
}

/// Returns the output of `program` about itself or this repository, for display, or "unknown".
fn output_of(program: &str, arguments: &[&str]) -> String {
    let program =
        if program == "rustc" { std::env::var("RUSTC").unwrap_or(program.into()) } else { program.into() };
    let said = process::output(Command::new(program).args(arguments).current_dir(place::root()));
    said.map_or("unknown".into(), |said| said.trim().to_owned())
}

/// Builds the bare-metal guests of `tests/guests` if anything changed. Returns the folder with `NAME.img` (with the
/// arm64 Image header), `NAME.bin` (without it) and `NAME.elf` of each.
///
/// # Errors
/// A guest does not build.
pub fn build_payloads() -> Result<PathBuf> {
    let target = place::payloads();
    let mut command = toolchain::cargo();
    command.args(["run", "--quiet", "--package", "pack", "--manifest-path"]);
    command.arg(place::root().join("tests/guests/Cargo.toml"));
    command.arg("--").env("CARGO_TARGET_DIR", &target);
    toolchain::with_libraries(&mut command);
    process::quietly(&mut command)?;
    Ok(target.join("guests"))
}

/// Returns the memory contents of an ELF file's loadable segments, from the lowest physical address, without the
/// zeroed end.
fn flatten(data: &[u8]) -> std::result::Result<Vec<u8>, String> {
    const LARGEST: u64 = 64 * size::MIB;
    let header = FileHeader64::<Endianness>::parse(data).map_err(|error| error.to_string())?;
    let endian = header.endian().map_err(|error| error.to_string())?;
    let segments = header.program_headers(endian, data).map_err(|error| error.to_string())?;
    let mut parts = Vec::new();
    for segment in segments {
        if segment.p_type(endian) != PT_LOAD || segment.p_filesz(endian) == 0 {
            continue;
        }
        let bytes = segment.data(endian, data).map_err(|()| "a segment extends past the end of the file")?;
        parts.push((segment.p_paddr(endian), bytes));
    }
    let base = parts.iter().map(|(address, _)| *address).min().ok_or("it has no loadable segment")?;
    let mut flat = Vec::new();
    for (address, bytes) in parts {
        let end = (address - base).checked_add(bytes.len() as u64).filter(|&end| end <= LARGEST);
        let end =
            end.ok_or_else(|| format!("the segment at {address:#x} is too far from {base:#x}"))? as usize;
        if flat.len() < end {
            flat.resize(end, 0);
        }
        flat[end - bytes.len()..end].copy_from_slice(bytes);
    }
    Ok(flat)
}

/// Writes `data` to a file atomically, unless the file has these contents, so that dependent files stay current.
fn replace(path: &Path, data: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == data) {
        return Ok(());
    }
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&fresh, data).at(&fresh)?;
    fs::rename(&fresh, path).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes an ELF file of segments: type, physical address and contents.
    fn elf(segments: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2_u16.to_le_bytes());
        file.extend(183_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        for word in [0_u64, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, segments.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = 64 + 56 * segments.len() as u64;
        for (kind, address, data) in segments {
            file.extend(kind.to_le_bytes());
            file.extend(5_u32.to_le_bytes());
            let length = data.len() as u64;
            for word in [offset, *address, *address, length, length, 1] {
                file.extend(word.to_le_bytes());
            }
            offset += length;
        }
        segments.iter().for_each(|(_, _, data)| file.extend(*data));
        file
    }

    #[test]
    fn segments_are_laid_out_by_physical_address() {
        let file = elf(&[(1, 0x1010, b"data"), (4, 0, b"note"), (1, 0x1000, b"text")]);
        assert_eq!(flatten(&file).unwrap(), b"text\0\0\0\0\0\0\0\0\0\0\0\0data");
    }

    #[test]
    fn other_files_are_refused() {
        assert!(flatten(b"no ELF file").is_err());
        assert_eq!(flatten(&elf(&[])).unwrap_err(), "it has no loadable segment");
        let far = elf(&[(1, 0, b"a"), (1, 1 << 40, b"b")]);
        assert_eq!(flatten(&far).unwrap_err(), "the segment at 0x10000000000 is too far from 0x0");
        let mut cut = elf(&[(1, 0, b"abc")]);
        cut.pop();
        assert_eq!(flatten(&cut).unwrap_err(), "a segment extends past the end of the file");
    }

    #[test]
    fn the_image_is_checked_and_described() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let built = folder.join("built");
        let mut image = vec![0; 64];
        fs::write(&built, elf(&[(1, 0, &image)])).unwrap();
        let error = Image::write(&built, folder).unwrap_err().to_string();
        assert!(error.ends_with("it does not begin with the arm64 Image header"), "{error}");

        let pair = [errata::tests::ACCESSES[0], errata::tests::ACCUMULATES[0]];
        fs::write(&built, errata::tests::elf(&pair, &[])).unwrap();
        let error = Image::write(&built, folder).unwrap_err().to_string();
        let reason = "not safe to run on Cortex-A53: 2 instructions: 835769: 1 (first at 0x1004), 843419: 0, 819472: 0";
        assert!(error.ends_with(reason), "{error}");

        image[56..60].copy_from_slice(b"ARM\x64");
        fs::write(&built, elf(&[(1, 0, &image)])).unwrap();
        let written = Image::write(&built, folder).unwrap();
        assert_eq!(fs::read(&written.bin).unwrap(), image);

        assert!(written.fits() && written.describe().ends_with("ballast.bin: 1 KiB (target: 448 KiB)"));

        image.resize(TARGET_SIZE + 1, 1);
        fs::write(&built, elf(&[(1, 0, &image)])).unwrap();
        let large = Image::write(&built, folder).unwrap();
        assert!(!large.fits() && large.describe().ends_with("ballast.bin: 449 KiB (target: 448 KiB)"));
    }
}
