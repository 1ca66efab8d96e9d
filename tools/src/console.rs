//! `ballast console`: attaches this terminal to Ballast's serial line.
//!
//! All keys go to Ballast, including its prefix key. Log frames are decoded and shown between lines. Options record
//! the session and write each console's lines to a file of its own.

use std::collections::BTreeMap;
use std::fs::{File, create_dir_all};
use std::io::{BufWriter, IsTerminal, Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::frames::Decoder;
use crate::link::{Address, Link, Received};
use crate::monitor::Lines;
use crate::recording::Recorder;
use crate::splitter::{Chunk, Splitter};

/// Ballast's prefix key. After it, [`QUIT`] ends this program; all other keys go to Ballast.
const PREFIX: u8 = 0x1d;
const QUIT: u8 = b'q';
/// Interval between two checks for keys.
const TICK: Duration = Duration::from_millis(10);

/// Options of `ballast console`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The line: unix:PATH, tcp:HOST:PORT or /dev/DEVICE[,BAUD]
    #[arg(value_name = "LINE")]
    address: Address,
    /// ELF file of the running image, to decode log frames (log=frames)
    #[arg(long, value_name = "FILE")]
    elf: Option<PathBuf>,
    /// Record the session as an asciicast
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Write each console's lines to a file of its own in this directory, and the log to the file `log`
    #[arg(long, value_name = "DIRECTORY")]
    split: Option<PathBuf>,
    /// Do not show the log on the terminal; --split still writes it
    #[arg(long)]
    no_log: bool,
}

/// Attaches this terminal to the line until Ctrl-] q, or the line ends.
///
/// # Errors
/// The line cannot be opened or fails, or a file cannot be written.
pub fn run(options: &Options) -> Result<()> {
    let mut link = Link::open(&options.address)?;
    let mut view = View::new(options)?;
    if stdin().is_terminal() {
        eprintln!("{} (Ctrl-] q quits, Ctrl-] ? lists Ballast's keys)", options.address);
    }
    let _terminal = RawTerminal::enter();
    let keys = read_keys();
    let mut quit = Quit::default();
    loop {
        match link.receive(TICK)? {
            Received::Bytes(bytes) => view.take(&bytes, &mut stdout().lock())?,
            Received::Nothing => {}
            Received::End => return view.finish(),
        }
        // After the end of input, output is still shown.
        while let Ok(typed) = keys.try_recv() {
            let (sent, is_over) = quit.take(&typed);
            if !sent.is_empty() {
                view.record_input(&sent)?;
                link.send(&sent)?;
            }
            if is_over {
                return view.finish();
            }
        }
    }
}

/// Starts a thread that reads keys.
fn read_keys() -> Receiver<Vec<u8>> {
    let (sender, keys) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stdin().read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    keys
}

/// A filter for the keys that end this program.
#[derive(Default)]
struct Quit {
    is_prefixed: bool,
}

impl Quit {
    /// Returns the part of `typed` to send, and whether the program ends.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut sent = Vec::new();
        for &key in typed {
            if self.is_prefixed && key == QUIT {
                return (sent, true);
            }
            if self.is_prefixed {
                sent.push(PREFIX);
                sent.push(key);
                self.is_prefixed = false;
            } else if key == PREFIX {
                self.is_prefixed = true;
            } else {
                sent.push(key);
            }
        }
        (sent, false)
    }
}

/// The receiver of all output.
struct View {
    splitter: Splitter,
    decoder: Option<Decoder>,
    recorder: Option<Recorder<BufWriter<File>>>,
    files: Option<Files>,
    shows_log: bool,
    /// True if the cursor is at the start of a line.
    is_at_start: bool,
    /// Log lines that wait for the start of a line.
    waiting: Vec<String>,
    bad_line_count: u64,
}

impl View {
    fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            splitter: Splitter::default(),
            decoder: options.elf.as_deref().map(Decoder::load).transpose()?,
            recorder: options.record.as_deref().map(Recorder::create).transpose()?,
            files: options.split.as_deref().map(Files::new).transpose()?,
            shows_log: !options.no_log,
            is_at_start: true,
            waiting: Vec::new(),
            bad_line_count: 0,
        })
    }

    fn record_input(&mut self, bytes: &[u8]) -> Result<()> {
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.input(bytes))
    }

    fn take(&mut self, bytes: &[u8], out: &mut impl Write) -> Result<()> {
        if let Some(recorder) = &mut self.recorder {
            recorder.output(bytes)?;
        }
        for chunk in self.splitter.take(bytes) {
            match chunk {
                Chunk::Text(text) => self.show(&text, out)?,
                Chunk::Frame(frame) => self.take_frame(&frame)?,
            }
            self.show_log(out)?;
        }
        out.flush()?;
        Ok(())
    }

    /// Shows text, with waiting log lines after the ends of its lines.
    fn show(&mut self, text: &[u8], out: &mut impl Write) -> Result<()> {
        for part in text.split_inclusive(|&byte| byte == b'\n') {
            out.write_all(part)?;
            self.is_at_start = part.ends_with(b"\n");
            self.show_log(out)?;
        }
        self.files.as_mut().map_or(Ok(()), |files| files.take(text))
    }

    fn show_log(&mut self, out: &mut impl Write) -> Result<()> {
        if self.is_at_start {
            for line in self.waiting.drain(..) {
                write!(out, "{line}\r\n")?;
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: &[u8]) -> Result<()> {
        let line = match self.decoder.as_ref().map(|decoder| decoder.decode(frame)) {
            None => return Ok(()),
            Some(Ok(line)) => line.to_string(),
            Some(Err(error)) => {
                self.bad_line_count += 1;
                format!("({error})")
            }
        };
        if let Some(files) = &mut self.files {
            files.log(&line)?;
        }
        if self.shows_log {
            self.waiting.push(format!("log| {line}"));
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let damaged = self.splitter.bad_frame_count + self.bad_line_count;
        if damaged != 0 {
            eprintln!("\r\n{damaged} log frames were damaged on the line");
        }
        self.files.map_or(Ok(()), Files::finish)
    }
}

/// The files of all consoles.
struct Files {
    folder: PathBuf,
    files: BTreeMap<String, BufWriter<File>>,
    lines: Lines,
    consoles: Consoles,
}

impl Files {
    fn new(folder: &Path) -> Result<Self> {
        create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            folder: folder.into(),
            files: BTreeMap::new(),
            lines: Lines::default(),
            consoles: Consoles::default(),
        })
    }

    fn take(&mut self, text: &[u8]) -> Result<()> {
        self.lines.put(text);
        while let Some(line) = self.lines.next() {
            if let Some((console, line)) = self.consoles.take(&line) {
                self.write(&console, &line)?;
            }
        }
        Ok(())
    }

    fn log(&mut self, line: &str) -> Result<()> {
        self.write("log", line)
    }

    fn write(&mut self, console: &str, line: &str) -> Result<()> {
        let file = match self.files.get_mut(console) {
            Some(file) => file,
            None => {
                let path = self.folder.join(console);
                let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
                self.files.entry(console.into()).or_insert(BufWriter::new(file))
            }
        };
        writeln!(file, "{line}")?;
        Ok(file.flush()?)
    }

    fn finish(self) -> Result<()> {
        for (_, mut file) in self.files {
            file.flush()?;
        }
        Ok(())
    }
}

/// A parser that assigns lines to consoles, by the lines that Ballast prints when it switches.
#[derive(Debug)]
pub(crate) struct Consoles {
    front: String,
}

impl Default for Consoles {
    /// Starts with the monitor, which Ballast shows first.
    fn default() -> Self {
        Self { front: "monitor".into() }
    }
}

impl Consoles {
    /// Returns the name of the console and its line, or `None` for a line that switches consoles.
    pub(crate) fn take(&mut self, line: &str) -> Option<(String, String)> {
        if let Some(name) = switches_to(line) {
            self.front = name.into();
            return None;
        }
        if let Some((name, rest)) = line.split_once("| ")
            && is_name(name)
        {
            return Some((name.into(), rest.into()));
        }
        Some((self.front.clone(), line.into()))
    }
}

/// Returns the console that the line `--- NAME (Ctrl-] KEY)… ---` brings to the front.
fn switches_to(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("--- ")?.split_once(" (Ctrl-] ")?;
    (rest.ends_with(" ---") && is_name(name)).then_some(name)
}

/// Tests whether `name` is a valid console name. Such names have no separators and are safe as file names.
fn is_name(name: &str) -> bool {
    let is_character = |character: char| character.is_ascii_alphanumeric() || ",._+-".contains(character);
    !name.is_empty() && name.len() <= 31 && !name.starts_with('.') && name.chars().all(is_character)
}

/// The terminal in raw mode, until this is dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Self {
        let Ok(settings) = tcgetattr(stdin()) else { return Self(None) };
        let mut raw = settings.clone();
        raw.make_raw();
        match tcsetattr(stdin(), OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(settings)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // Errors do not matter: the terminal is gone.
            let _ = tcsetattr(stdin(), OptionalActions::Drain, settings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_the_program_or_pass() {
        let mut quit = Quit::default();
        assert_eq!(quit.take(b"ls\r\x1dm\x03"), (b"ls\r\x1dm\x03".to_vec(), false));
        assert_eq!(quit.take(b"\x1d\x1d"), (b"\x1d\x1d".to_vec(), false));
        assert_eq!(quit.take(b"x\x1d"), (b"x".to_vec(), false));
        assert_eq!(quit.take(b"qy"), (Vec::new(), true));
    }

    #[test]
    fn lines_belong_to_consoles() {
        let mut consoles = Consoles::default();
        let mut take = |line: &str| consoles.take(line).map(|(console, line)| format!("{console}: {line}"));
        assert_eq!(take("ballast> guests").unwrap(), "monitor: ballast> guests");
        assert_eq!(take("--- alpha (Ctrl-] 1): 15 bytes kept ---"), None);
        assert_eq!(take("Booting Linux").unwrap(), "alpha: Booting Linux");
        assert_eq!(take("beta| hello").unwrap(), "beta: hello");
        assert_eq!(take("a | b").unwrap(), "alpha: a | b");
        assert_eq!(take("--- not a switch ---").unwrap(), "alpha: --- not a switch ---");
        assert_eq!(take("--- ../evil (Ctrl-] 1) ---").unwrap(), "alpha: --- ../evil (Ctrl-] 1) ---");
    }

    #[test]
    fn output_is_shown_recorded_and_split() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let options = Options {
            address: "unix:/nowhere".parse().unwrap(),
            elf: None,
            record: Some(folder.join("recording")),
            split: Some(folder.into()),
            no_log: false,
        };
        let mut view = View::new(&options).unwrap();
        let mut shown = Vec::new();
        let line = b"--- alpha (Ctrl-] 1) ---\r\n\x1b]7700;Zm9v\x1b\\Booting\r\nbeta| up\r\n";
        view.take(&line[..30], &mut shown).unwrap();
        view.take(&line[30..], &mut shown).unwrap();
        view.finish().unwrap();
        assert_eq!(shown, b"--- alpha (Ctrl-] 1) ---\r\nBooting\r\nbeta| up\r\n");
        assert_eq!(std::fs::read_to_string(folder.join("alpha")).unwrap(), "Booting\n");
        assert_eq!(std::fs::read_to_string(folder.join("beta")).unwrap(), "up\n");
        assert_eq!(std::fs::read_to_string(folder.join("recording")).unwrap().lines().count(), 3);
    }
}
