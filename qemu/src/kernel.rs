//! Decompresses kernels to the plain arm64 Image that boot loaders expect.
//!
//! Distributions ship kernels plain, compressed with gzip, or as an EFI program that unpacks itself (Linux,
//! drivers/firmware/efi/libstub/zboot-header.S: `MZ`, then `zimg`, offset and size of the payload, and the name of
//! its compression). Ballast runs without EFI firmware, so this module unpacks such kernels.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{AtPath, Error, Result};
use crate::process;

/// The packing of a kernel.
#[derive(Debug, PartialEq, Eq)]
enum Packing {
    /// None: a plain Image.
    Plain,
    /// These bytes of the file, which `program` decompresses.
    Compressed { program: &'static str, start: usize, end: usize },
}

/// Replaces the kernel in `file` with its plain Image, if it is packed.
///
/// # Errors
/// The file is not an arm64 kernel, or the program that decompresses it is missing or refuses it.
pub(crate) fn make_plain(file: &Path) -> Result<()> {
    let refused = |reason: String| Error::Image { path: file.into(), reason };
    let image = fs::read(file).at(file)?;
    let Packing::Compressed { program, start, end } = packing(&image).map_err(refused)? else {
        return Ok(());
    };
    let packed = file.with_extension("packed");
    let plain = file.with_extension("plain");
    fs::write(&packed, &image[start..end]).at(&packed)?;
    let mut unpack = Command::new(program);
    let input = File::open(&packed).at(&packed)?;
    let output = File::create(&plain).at(&plain)?;
    let status = unpack.arg("-dc").stdin(input).stdout(output).stderr(Stdio::inherit()).status();
    let status = status.map_err(|source| process::start_error(&unpack, source))?;
    if !status.success() {
        return Err(Error::Program { program: process::describe(&unpack), status, said: String::new() });
    }
    let unpacked = fs::read(&plain).at(&plain)?;
    if packing(&unpacked) != Ok(Packing::Plain) {
        return Err(refused("its decompressed payload is not an arm64 kernel".into()));
    }
    fs::remove_file(&packed).at(&packed)?;
    fs::rename(&plain, file).at(file)
}

fn packing(image: &[u8]) -> std::result::Result<Packing, String> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    if image.get(56..60) == Some(b"ARM\x64") {
        return Ok(Packing::Plain);
    }
    if image.starts_with(&[0x1f, 0x8b]) {
        return Ok(Packing::Compressed { program: "gzip", start: 0, end: image.len() });
    }
    if image.starts_with(b"MZ") && image.get(4..8) == Some(b"zimg") {
        let name = image.get(24..56).unwrap_or_default();
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let program = match name {
            b"gzip" => "gzip",
            b"zstd" | b"zstd22" => "zstd",
            b"xz" | b"xzkern" => "xz",
            b"lz4" => "lz4",
            b"lzma" => "lzma",
            b"lzo" => "lzop",
            other => {
                return Err(format!("unknown compression `{}`", String::from_utf8_lossy(other)));
            }
        };
        let range = word(8).zip(word(12)).and_then(|(start, size)| Some((start, start.checked_add(size)?)));
        return match range {
            Some((start, end)) if end <= image.len() => Ok(Packing::Compressed { program, start, end }),
            _ => Err("its payload extends past the end of the file".into()),
        };
    }
    Err("not an arm64 kernel: neither an Image header, nor gzip, nor an EFI program that unpacks itself"
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Vec<u8> {
        let mut image = b"MZ".to_vec();
        image.resize(4096, 7);
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn efi_program(name: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut image = b"MZ\0\0zimg".to_vec();
        image.extend(64_u32.to_le_bytes());
        image.extend((payload.len() as u32).to_le_bytes());
        image.resize(24, 0);
        image.extend(name);
        image.resize(64, 0);
        image.extend(payload);
        image
    }

    fn gzipped(data: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data");
        fs::write(&file, data).unwrap();
        Command::new("gzip").arg("-c").arg(&file).output().unwrap().stdout
    }

    fn made_plain(image: &[u8]) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernel");
        fs::write(&file, image).unwrap();
        make_plain(&file).map(|()| fs::read(&file).unwrap())
    }

    #[test]
    fn a_plain_kernel_stays_as_it_is() {
        assert_eq!(made_plain(&plain()).unwrap(), plain());
    }

    #[test]
    fn packed_kernels_are_unpacked() {
        let packed = gzipped(&plain());
        assert_eq!(made_plain(&packed).unwrap(), plain());
        assert_eq!(made_plain(&efi_program(b"gzip", &packed)).unwrap(), plain());
    }

    #[test]
    fn other_files_are_refused() {
        assert!(packing(b"").is_err());
        assert!(packing(&efi_program(b"brotli", b"")).unwrap_err().contains("brotli"));
        let mut cut = efi_program(b"gzip", &[0; 100]);
        cut.truncate(100);
        assert!(packing(&cut).unwrap_err().contains("past the end"));
        let error = made_plain(&gzipped(b"not a kernel")).unwrap_err().to_string();
        assert!(error.ends_with("its decompressed payload is not an arm64 kernel"), "{error}");
    }
}
