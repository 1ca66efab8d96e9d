//! Where the serial line is: a socket of QEMU's, or a serial device.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// Rate of a serial device unless told.
const DEFAULT_BAUD: u32 = 115_200;

/// Where a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket: QEMU's `-serial unix:PATH,server=on,wait=off`.
    Unix(PathBuf),
    /// A TCP socket: QEMU's `-serial tcp:HOST:PORT,server=on,wait=off`.
    Tcp(String),
    /// A serial device, and its rate.
    Device(PathBuf, u32),
    /// A file with what came over a line; nothing can be sent.
    File(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if let Some(path) = text.strip_prefix("file:") {
            return Ok(Self::File(path.into()));
        }
        if let Some(place) = text.strip_prefix("tcp:") {
            return Ok(Self::Tcp(place.into()));
        }
        if text.starts_with("/dev/") {
            return match text.split_once(',') {
                None => Ok(Self::Device(text.into(), DEFAULT_BAUD)),
                Some((path, baud)) => match baud.parse() {
                    Ok(baud) => Ok(Self::Device(path.into(), baud)),
                    Err(_) => Err(format!("{baud:?} is no rate in baud")),
                },
            };
        }
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        if text.split_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            return Ok(Self::Tcp(text.into()));
        }
        Err("expected unix:PATH, tcp:HOST:PORT or /dev/DEVICE[,BAUD]".into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
            Self::Device(path, baud) => write!(f, "{},{baud}", path.display()),
        }
    }
}

/// An open line.
pub struct Link {
    writer: Box<dyn Write + Send>,
    received: Receiver<io::Result<Vec<u8>>>,
}

/// What came in time.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing.
    Nothing,
    /// The line's other end is gone.
    End,
}

impl Link {
    /// Opens the line at `address`.
    ///
    /// # Errors
    /// There is nobody, or no such device.
    pub fn open(address: &Address) -> Result<Self> {
        let context = || format!("cannot open {address}");
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).with_context(context)?;
                Ok(Self::of(stream.try_clone().with_context(context)?, stream))
            }
            Address::File(path) => Ok(Self::of(File::open(path).with_context(context)?, io::sink())),
            Address::Tcp(place) => {
                let stream = TcpStream::connect(place).with_context(context)?;
                stream.set_nodelay(true).with_context(context)?;
                Ok(Self::of(stream.try_clone().with_context(context)?, stream))
            }
            Address::Device(path, baud) => {
                let file = open_device(path, *baud).with_context(context)?;
                Ok(Self::of(file.try_clone().with_context(context)?, file))
            }
        }
    }

    /// A line that `reader` reads and `writer` writes.
    pub fn of(mut reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Self {
        let (sender, received) = channel();
        thread::spawn(move || pass_on(&mut reader, &sender));
        Self { writer: Box::new(writer), received }
    }

    /// What comes within `patience`.
    ///
    /// # Errors
    /// The line fails.
    pub fn receive(&mut self, patience: Duration) -> Result<Received> {
        match self.received.recv_timeout(patience) {
            Ok(Ok(bytes)) => Ok(Received::Bytes(bytes)),
            Ok(Err(error)) => Err(error).context("the line fails"),
            Err(RecvTimeoutError::Timeout) => Ok(Received::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Received::End),
        }
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// The line fails.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).and_then(|()| self.writer.flush()).context("the line fails")
    }
}

/// Passes on what comes until nobody listens or nothing comes any more.
fn pass_on(reader: &mut impl Read, sender: &Sender<io::Result<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    loop {
        let sent = match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => sender.send(Ok(buffer[..count].to_vec())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // The reason is worth more than the disconnection that follows.
                let _ = sender.send(Err(error));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn open_device(path: &std::path::Path, baud: u32) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let Ok(mut settings) = tcgetattr(&file) else { bail!("it is no terminal device") };
    settings.make_raw();
    settings.set_speed(baud)?;
    tcsetattr(&file, OptionalActions::Now, &settings)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood() {
        for (text, address) in [
            ("unix:/tmp/serial", Address::Unix("/tmp/serial".into())),
            ("/tmp/serial", Address::Unix("/tmp/serial".into())),
            ("tcp:localhost:4000", Address::Tcp("localhost:4000".into())),
            ("localhost:4000", Address::Tcp("localhost:4000".into())),
            ("/dev/ttyUSB0", Address::Device("/dev/ttyUSB0".into(), 115_200)),
            ("/dev/ttyUSB0,9600", Address::Device("/dev/ttyUSB0".into(), 9600)),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
        for wrong in ["serial", "localhost:serial", "/dev/ttyS0,fast"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_socket_is_a_line() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut link = Link::of(ours.try_clone().unwrap(), ours);
        link.send(b"guests\r").unwrap();
        let mut got = [0; 7];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"guests\r");
        assert_eq!(link.receive(Duration::from_millis(1)).unwrap(), Received::Nothing);
        theirs.write_all(b"x").unwrap();
        assert_eq!(link.receive(Duration::from_secs(10)).unwrap(), Received::Bytes(b"x".to_vec()));
        drop(theirs);
        assert_eq!(link.receive(Duration::from_secs(10)).unwrap(), Received::End);
    }
}
