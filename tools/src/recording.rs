//! Recordings of a line, with times, as asciicasts (version 2), which terminal players show.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A recording under way.
pub(crate) struct Recorder<W: Write> {
    out: W,
    start: Instant,
    /// The first bytes of a character whose rest is missing.
    rest: Vec<u8>,
}

impl Recorder<BufWriter<File>> {
    /// Starts a recording in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Self::new(BufWriter::new(file))
    }
}

impl<W: Write> Recorder<W> {
    /// Starts a recording.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub(crate) fn new(mut out: W) -> Result<Self> {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let head =
            json!({"version": 2, "width": 80, "height": 24, "timestamp": timestamp, "title": "Ballast"});
        writeln!(out, "{head}")?;
        Ok(Self { out, start: Instant::now(), rest: Vec::new() })
    }

    /// Records output. Invalid UTF-8 becomes the replacement character.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub(crate) fn output(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest.extend(bytes);
        let whole = whole_characters(&self.rest);
        let text = String::from_utf8_lossy(&self.rest[..whole]).into_owned();
        self.rest.drain(..whole);
        if text.is_empty() { Ok(()) } else { self.write("o", &text) }
    }

    /// Records input.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub(crate) fn input(&mut self, bytes: &[u8]) -> Result<()> {
        self.write("i", &String::from_utf8_lossy(bytes))
    }

    fn write(&mut self, direction: &str, text: &str) -> Result<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        writeln!(self.out, "{}", json!([seconds, direction, text]))?;
        // A recording survives if the tool is killed.
        Ok(self.out.flush()?)
    }
}

/// Returns the length of `bytes` without a character that may be incomplete at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=3.min(bytes.len()) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            _ => 1,
        };
        return if length > back { at } else { bytes.len() };
    }
    bytes.len()
}

/// Output at one time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// Seconds since the start of the recording.
    pub(crate) seconds: f64,
    /// The output.
    pub(crate) text: String,
}

/// The output in a recording. Malformed lines are counted and skipped, so that a truncated recording can be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recording {
    /// The output, in order.
    pub(crate) events: Vec<Event>,
    /// Number of malformed lines.
    pub(crate) bad_line_count: u64,
}

impl Recording {
    /// Reads the recording at `path`.
    ///
    /// # Errors
    /// The file cannot be read or does not begin like a recording.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(context)?;
        Self::read(BufReader::new(file)).with_context(context)
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// `from` cannot be read or does not begin like a recording.
    pub(crate) fn read(mut from: impl BufRead) -> Result<Self> {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line)?;
        let head: Value = serde_json::from_slice(&line).context("not a recording")?;
        anyhow::ensure!(head.get("version") == Some(&json!(2)), "not an asciicast of version 2");
        let mut recording = Self::default();
        loop {
            line.clear();
            if from.read_until(b'\n', &mut line)? == 0 {
                return Ok(recording);
            }
            match serde_json::from_slice::<(f64, String, String)>(&line) {
                Ok((seconds, direction, text)) if direction == "o" => {
                    recording.events.push(Event { seconds, text });
                }
                Ok(_) => {}
                Err(_) => recording.bad_line_count += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_can_be_read() {
        let mut file = Vec::new();
        let mut recorder = Recorder::new(&mut file).unwrap();
        recorder.output("gr".as_bytes()).unwrap();
        recorder.output(&"ü".as_bytes()[..1]).unwrap();
        recorder.output(&"ü".as_bytes()[1..]).unwrap();
        recorder.output(b"\x1b]7700;Zm9v\x1b\\\xff!").unwrap();
        recorder.input(b"guests\r").unwrap();
        let recording = Recording::read(&file[..]).unwrap();
        let text: String = recording.events.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(text, "grü\x1b]7700;Zm9v\x1b\\\u{fffd}!");
        assert_eq!(recording.bad_line_count, 0);
    }

    #[test]
    fn damaged_recordings_are_read() {
        let file =
            "{\"version\": 2}\n[1.5, \"o\", \"x\"]\ngarbage\n\n[2.0, \"o\"\n[3, \"o\", \"y\"]\n[4, \"o";
        let recording = Recording::read(file.as_bytes()).unwrap();
        assert_eq!(recording.events.len(), 2);
        assert_eq!(recording.bad_line_count, 4);
        assert!(Recording::read(&b"garbage"[..]).is_err());
        assert!(Recording::read(&b""[..]).is_err());
    }
}
