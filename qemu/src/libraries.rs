//! A program of Debian with all shared libraries that it needs, for a ramdisk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{FileHeader, SectionHeader};

use crate::error::{AtPath, Error, Result};

/// Copies the libraries that `program` needs, directly or not, from below `from` to the new folder `to`, under the
/// names by which programs ask for them.
///
/// # Errors
/// A library is missing or malformed, or a file cannot be written.
pub(crate) fn collect(program: &Path, from: &Path, to: &Path) -> Result<()> {
    let mut found = BTreeMap::new();
    find(from, &mut found)?;
    fs::create_dir_all(to).at(to)?;
    let mut queue = vec![program.to_path_buf()];
    while let Some(file) = queue.pop() {
        let content = fs::read(&file).at(&file)?;
        let names = needed(&content).map_err(|reason| Error::Image { path: file.clone(), reason })?;
        for name in names {
            let copy = to.join(&name);
            if copy.exists() {
                continue;
            }
            let missing = || Error::Image { path: file.clone(), reason: format!("no package has {name}") };
            let library = found.get(&name).ok_or_else(missing)?;
            // Follows the link from the asked name to the file.
            fs::copy(library, &copy).at(library)?;
            queue.push(copy);
        }
    }
    Ok(())
}

fn find(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).at(folder)? {
        let entry = entry.at(folder)?;
        if entry.file_type().at(entry.path())?.is_dir() {
            find(&entry.path(), found)?;
        } else {
            found.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
        }
    }
    Ok(())
}

/// Returns the names of the libraries that an ELF file needs (System V ABI, "Dynamic Section", `DT_NEEDED`).
fn needed(data: &[u8]) -> std::result::Result<Vec<String>, String> {
    let wrong = |error: object::Error| error.to_string();
    let header = FileHeader64::<Endianness>::parse(data).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let sections = header.sections(endian, data).map_err(wrong)?;
    let mut names = Vec::new();
    for section in sections.iter() {
        let Some((entries, index)) = section.dynamic(endian, data).map_err(wrong)? else { continue };
        let strings = sections.strings(endian, data, index).map_err(wrong)?;
        for entry in entries.iter().filter(|entry| entry.d_tag.get(endian) == DT_NEEDED) {
            let at = u32::try_from(entry.d_val.get(endian)).map_err(|error| error.to_string())?;
            let name = strings.get(at).map_err(|()| format!("no string at {at:#x}"))?;
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(names)
}
