//! A machine that a program talks to, over its serial line.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use regex::bytes::Regex;

use crate::boot::{Boot, Serial, controller_file};
use crate::error::{AtPath, Error, Result};
use crate::process;
use crate::workdir::WorkDir;

/// How the record of a fatal error of Ballast's begins on the serial line.
const FATAL: &[u8] = b"Ballast cannot go on";
/// How long the rest of the record may take.
const RECORD_TIME: Duration = Duration::from_secs(2);

/// A running machine. Dropping it ends QEMU and removes the controllers' files.
#[derive(Debug)]
pub struct Session {
    qemu: Child,
    input: Option<ChildStdin>,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    position: usize,
    folder: WorkDir,
    command: String,
}

/// What the machine has said so far.
#[derive(Debug, Default)]
struct Output {
    state: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    serial: Vec<u8>,
    complaints: Vec<u8>,
    is_serial_closed: bool,
}

impl Said {
    /// Takes in what the serial line carried; nothing means that it is closed.
    fn serial(&mut self, bytes: &[u8]) {
        self.serial.extend(bytes);
        self.is_serial_closed = bytes.is_empty();
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Starts `boot`.
    ///
    /// # Errors
    /// The machine cannot be expressed or QEMU cannot be started.
    pub fn start(boot: &Boot) -> Result<Self> {
        let folder = WorkDir::new(boot.room())?;
        let mut command = boot.command(&folder, Serial::Pipe)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let description = process::describe(&command);
        let mut qemu = command.spawn().map_err(|source| process::start_error(&command, source))?;
        let output = Arc::new(Output::default());
        let readers = [
            qemu.stderr
                .take()
                .map(|pipe| read_into(&output, pipe, |said, bytes| said.complaints.extend(bytes))),
            qemu.stdout.take().map(|pipe| read_into(&output, pipe, Said::serial)),
        ];
        Ok(Self {
            input: qemu.stdin.take(),
            qemu,
            output,
            readers: readers.into_iter().flatten().collect(),
            position: 0,
            folder,
            command: description,
        })
    }

    /// Waits until what the machine says, after what was last waited for, matches `pattern`, and returns what
    /// was said up to the end of the match.
    ///
    /// # Errors
    /// [`Error::Silence`]: QEMU ended, or `patience` ran out.
    pub fn expect(&mut self, pattern: &str, patience: Duration) -> Result<String> {
        let regex = Regex::new(pattern)?;
        let mut until = Instant::now() + patience;
        let mut said = self.output.lock();
        loop {
            if let Some(found) = regex.find(&said.serial[self.position..]) {
                let end = self.position + found.end();
                let text = String::from_utf8_lossy(&said.serial[self.position..end]).into_owned();
                self.position = end;
                return Ok(text);
            }
            let left = until.saturating_duration_since(Instant::now());
            let silence =
                |end| Err(Error::Silence { pattern: pattern.into(), seconds: patience.as_secs(), end });
            if said.is_serial_closed {
                return silence("and QEMU ended");
            }
            // Nothing comes after a fatal error but the rest of its record.
            if said.serial[self.position..].windows(FATAL.len()).any(|window| window == FATAL) {
                until = until.min(Instant::now() + RECORD_TIME);
            }
            if left.is_zero() {
                return silence("in vain");
            }
            said = self.output.changed.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until QEMU ends of itself, and returns whether it ended well.
    ///
    /// # Errors
    /// [`Error::Silence`]: `patience` ran out.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.qemu.try_wait().at("qemu")? {
                for reader in self.readers.drain(..) {
                    let _ = reader.join();
                }
                return Ok(status.success());
            }
            if Instant::now() > until {
                let pattern = "the end of QEMU".into();
                return Err(Error::Silence { pattern, seconds: patience.as_secs(), end: "in vain" });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types `bytes`.
    ///
    /// # Errors
    /// QEMU has ended.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let Some(input) = &mut self.input else {
            return Err(Error::Silence { pattern: "input".into(), seconds: 0, end: "and QEMU ended" });
        };
        input.write_all(bytes.as_ref()).and_then(|()| input.flush()).at("the serial line")
    }

    /// Everything said so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().serial).into_owned()
    }

    /// All bytes said so far.
    pub fn transcript_bytes(&self) -> Vec<u8> {
        self.output.lock().serial.clone()
    }

    /// Continues to wait only for what is said from now on.
    pub fn skip_to_now(&mut self) {
        self.position = self.output.lock().serial.len();
    }

    /// What QEMU itself complained of.
    pub fn complaints(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().complaints).into_owned()
    }

    /// The command line that started QEMU.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// The number of QEMU's process.
    pub fn process_id(&self) -> u32 {
        self.qemu.id()
    }

    /// The file that holds what lies behind controller `index`, byte for byte.
    pub fn controller_file(&self, index: usize) -> std::path::PathBuf {
        controller_file(&self.folder, index)
    }

    /// Ends QEMU at once.
    pub fn kill(&mut self) {
        // It may have ended before.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        self.input = None;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads `pipe` to its end in a thread of its own; `take` gets each piece, and nothing at the end.
fn read_into(
    output: &Arc<Output>,
    mut pipe: impl Read + Send + 'static,
    take: fn(&mut Said, &[u8]),
) -> JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let count = match pipe.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap_or(0),
            };
            take(&mut output.lock(), &buffer[..count]);
            output.changed.notify_all();
            if count == 0 {
                break;
            }
        }
    })
}
