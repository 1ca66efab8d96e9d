//! A running machine with its serial line under a program's control.

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

/// Start of the record of Ballast's fatal errors on the serial line.
const FATAL: &[u8] = b"Ballast cannot go on";
/// Time limit for the rest of the record.
const RECORD_TIME: Duration = Duration::from_secs(2);

/// A running machine. Dropping it stops QEMU and removes the controllers' files.
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

/// The machine's output so far, shared with the threads that read it.
#[derive(Debug, Default)]
struct Output {
    state: Mutex<Transcript>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Transcript {
    serial: Vec<u8>,
    complaints: Vec<u8>,
    is_serial_closed: bool,
}

impl Transcript {
    /// Appends output of the serial line. An empty slice means that the line is closed.
    fn serial(&mut self, bytes: &[u8]) {
        self.serial.extend(bytes);
        self.is_serial_closed = bytes.is_empty();
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Transcript> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Starts `boot`.
    ///
    /// # Errors
    /// A file cannot be read or created, or QEMU cannot be started.
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
            qemu.stdout.take().map(|pipe| read_into(&output, pipe, Transcript::serial)),
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

    /// Waits until the output after the last match matches `pattern`, and returns the output up to the end of the
    /// match.
    ///
    /// # Errors
    /// [`Error::Silence`]: QEMU exited, or the output did not match within `patience`.
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
                return silence("but QEMU exited");
            }
            // After a fatal error, only the rest of its record follows.
            if said.serial[self.position..].windows(FATAL.len()).any(|window| window == FATAL) {
                until = until.min(Instant::now() + RECORD_TIME);
            }
            if left.is_zero() {
                return silence("which did not come");
            }
            said = self.output.changed.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until QEMU exits. Returns `true` if it succeeded.
    ///
    /// # Errors
    /// [`Error::Silence`]: QEMU did not exit within `patience`.
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
                return Err(Error::Silence {
                    pattern,
                    seconds: patience.as_secs(),
                    end: "which did not come",
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends `bytes` to the serial line.
    ///
    /// # Errors
    /// QEMU has exited.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let Some(input) = &mut self.input else {
            return Err(Error::Silence { pattern: "input".into(), seconds: 0, end: "but QEMU exited" });
        };
        input.write_all(bytes.as_ref()).and_then(|()| input.flush()).at("the serial line")
    }

    /// Returns all output of the serial line as text.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().serial).into_owned()
    }

    /// Returns all output of the serial line.
    pub fn transcript_bytes(&self) -> Vec<u8> {
        self.output.lock().serial.clone()
    }

    /// Makes the next wait ignore all output so far.
    pub fn skip_to_now(&mut self) {
        self.position = self.output.lock().serial.len();
    }

    /// Returns QEMU's error output.
    pub fn complaints(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().complaints).into_owned()
    }

    /// Returns the command line that started QEMU.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Returns the file with the RAM of controller `index`.
    pub fn controller_file(&self, index: usize) -> std::path::PathBuf {
        controller_file(&self.folder, index)
    }

    /// Kills QEMU.
    pub fn kill(&mut self) {
        // Errors do not matter: QEMU may have exited.
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

/// Starts a thread that reads `pipe` to its end. `take` gets each chunk, and an empty slice at the end.
fn read_into(
    output: &Arc<Output>,
    mut pipe: impl Read + Send + 'static,
    take: fn(&mut Transcript, &[u8]),
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
