//! Log frames, decoded by defmt's decoder with the image's ELF file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use defmt_decoder::{DecodeError, Frame, Location, StreamDecoder, Table};

/// Section of the log's format strings.
const SECTION: &str = ".defmt";
/// Highest number of a format string: numbers have 16 bits.
const LAST_NUMBER: usize = 0xffff;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Time in the frame, as text; empty if it has none.
    pub(crate) time: String,
    /// Name of the level.
    pub(crate) level: &'static str,
    /// The message.
    pub(crate) text: String,
    /// The module that wrote the line, if the ELF file has debug information.
    pub(crate) module: Option<String>,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>12} {:5} ", self.time, self.level)?;
        if let Some(module) = &self.module {
            write!(f, "{module}: ")?;
        }
        f.write_str(&self.text)
    }
}

/// A decoder of frames.
pub struct Decoder {
    table: Table,
    locations: BTreeMap<u64, Location>,
}

impl Decoder {
    /// Creates a decoder from the ELF file of the running image.
    ///
    /// # Errors
    /// The file cannot be read, is not an ELF file, or has no format strings.
    pub fn load(path: &Path) -> Result<Self> {
        let elf = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::new(&elf).with_context(|| format!("{} has no log format strings", path.display()))
    }

    fn new(elf: &[u8]) -> Result<Self> {
        let Some(table) = Table::parse(elf)? else { bail!("it has no section {SECTION}") };
        if table.indices().any(|number| number > LAST_NUMBER) {
            bail!(
                "its format strings are not numbered yet; use target/ballast.elf, which `make image` writes"
            );
        }
        // Without debug information, lines have no modules.
        let locations = table.get_locations(elf).unwrap_or_default();
        Ok(Self { table, locations })
    }

    /// Decodes `frame`.
    ///
    /// # Errors
    /// The frame is damaged, or was written by another image.
    pub fn decode(&self, frame: &[u8]) -> Result<Line> {
        let (decoded, _) = self.table.decode(frame).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(self.line(&decoded))
    }

    fn line(&self, decoded: &Frame<'_>) -> Line {
        Line {
            time: decoded.display_timestamp().map(|time| time.to_string()).unwrap_or_default(),
            level: decoded.level().map_or("", |level| level.as_str()),
            text: decoded.display_message().to_string(),
            module: self.locations.get(&decoded.index()).and_then(module),
        }
    }

    /// Creates a decoder for a serial line that carries only frames (`log=frames,second`).
    pub fn stream(&self) -> Stream<'_> {
        Stream { decoder: self, stream: self.table.new_stream_decoder(), bad_frame_count: 0 }
    }
}

/// Returns the module of a line like `log=text`: without the crate and the function.
fn module(location: &Location) -> Option<String> {
    let path = location.module.strip_prefix("hyp::").unwrap_or(&location.module);
    let parts: Vec<&str> = path
        .split("::")
        .take_while(|part| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        .collect();
    match parts.as_slice() {
        [] => None,
        [one] => Some((*one).into()),
        [modules @ .., _] => Some(modules.join("::")),
    }
}

/// A decoder for a serial line that carries only frames, in defmt's encoding (rzCOBS).
pub struct Stream<'a> {
    decoder: &'a Decoder,
    stream: Box<dyn StreamDecoder + Send + Sync + 'a>,
    /// Number of damaged frames.
    pub bad_frame_count: u64,
}

impl Stream<'_> {
    /// Takes `bytes` and returns the lines that they complete.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Line> {
        self.stream.received(bytes);
        let mut lines = Vec::new();
        loop {
            match self.stream.decode() {
                Ok(frame) => lines.push(self.decoder.line(&frame)),
                Err(DecodeError::Malformed) => self.bad_frame_count += 1,
                Err(DecodeError::UnexpectedEof) => return lines,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use object::write::{Object, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

    use super::*;

    /// Makes an ELF file with log symbols in a section `.defmt` at address `base`.
    fn elf(base: u64) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Aarch64, Endianness::Little);
        let section = object.add_section(Vec::new(), b".defmt".to_vec(), SectionKind::ReadOnlyData);
        object.append_section_data(section, &[0; 64], 1);
        let format = |tag: &str, data: &str| {
            format!(
                "{{\"package\":\"hyp\",\"tag\":\"{tag}\",\"data\":\"{data}\",\"disambiguator\":\"1\",\
                 \"crate_name\":\"hyp\"}}"
            )
        };
        for (value, name) in [
            (base + 3, format("defmt_info", "guest {=str} at {=u64:#x}")),
            (base + 4, format("defmt_warn", "plain")),
            (base + 5, format("defmt_timestamp", "{=u64:us}")),
            (base + 6, "_defmt_encoding_ = raw".into()),
            (base + 7, "_defmt_version_ = 4".into()),
        ] {
            object.add_symbol(Symbol {
                name: name.into_bytes(),
                value,
                size: 1,
                kind: SymbolKind::Data,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            });
        }
        object.write().unwrap()
    }

    #[test]
    fn frames_become_lines() {
        let decoder = Decoder::new(&elf(0)).unwrap();
        let mut frame = vec![3, 0];
        frame.extend(1_234_567u64.to_le_bytes());
        frame.extend(5u32.to_le_bytes());
        frame.extend(b"alpha");
        frame.extend(0x4008_0000u64.to_le_bytes());
        let line = decoder.decode(&frame).unwrap();
        assert_eq!(line.to_string(), "    1.234567 info  guest alpha at 0x40080000");
        let mut frame = vec![4, 0];
        frame.extend(0u64.to_le_bytes());
        assert_eq!(decoder.decode(&frame).unwrap().level, "warn");
    }

    #[test]
    fn damaged_frames_are_refused() {
        let decoder = Decoder::new(&elf(0)).unwrap();
        for frame in [&[][..], &[3], &[3, 0], &[9, 9, 0, 0, 0, 0, 0, 0, 0, 0], &[3, 0, 1, 2, 3]] {
            assert!(decoder.decode(frame).is_err());
        }
    }

    #[test]
    fn other_files_are_refused() {
        for file in [&b""[..], b"hello", &[0x7f; 200], &elf(0)[..100], &elf(0)[..700]] {
            assert!(Decoder::new(file).is_err());
        }
        let said = Decoder::new(&elf(0x8000_0000_0000)).err().unwrap().to_string();
        assert!(said.contains("make image"), "{said}");
    }
}
