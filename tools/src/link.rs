//! The connection to the serial line: a socket of QEMU or a serial device.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use std::{fmt, thread};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::termios::{
    OptionalActions, SpecialCodeIndex, ioctl_tiocexcl, ioctl_tiocnxcl, tcgetattr, tcsetattr,
};

use crate::lock::{self, Lock};

/// Default rate of a serial device.
const DEFAULT_BAUD: u32 = 115_200;

/// The address of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A Unix socket: QEMU's `-serial unix:PATH,server=on,wait=off`.
    Unix(PathBuf),
    /// A TCP socket: QEMU's `-serial tcp:HOST:PORT,server=on,wait=off`.
    Tcp(String),
    /// A serial device and its rate in baud.
    Device(PathBuf, u32),
    /// A file with a capture of a line. Nothing can be sent.
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
                    Err(_) => Err(format!("{baud:?} is not a rate in baud")),
                },
            };
        }
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        if text.split_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            return Ok(Self::Tcp(text.into()));
        }
        Err("expected unix:PATH, tcp:HOST:PORT, /dev/DEVICE[,BAUD] or file:PATH".into())
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
pub(crate) struct Link {
    writer: Box<dyn Write + Send>,
    received: Receiver<io::Result<Vec<u8>>>,
    /// Closes the line for the reading thread too. It precedes the lock, so that it is dropped first.
    _end: Option<End>,
    _lock: Option<Lock>,
}

/// A closure that closes a line when this is dropped.
struct End(Box<dyn Fn() + Send>);

impl End {
    fn new(close: impl Fn() + Send + 'static) -> Option<Self> {
        Some(Self(Box::new(close)))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The result of waiting for bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// These bytes arrived.
    Bytes(Vec<u8>),
    /// Nothing arrived in time.
    Nothing,
    /// The other end closed the line.
    End,
}

impl Link {
    /// Opens the line at `address` for exclusive use.
    ///
    /// # Errors
    /// Nobody listens there, there is no such device, or another program uses the line.
    pub(crate) fn open(address: &Address) -> Result<Self> {
        Self::try_open(address).with_context(|| format!("cannot open {address}"))
    }

    fn try_open(address: &Address) -> Result<Self> {
        match address {
            Address::Unix(path) => {
                let lock = Lock::of_socket(path)?;
                let stream = lock::connect_to_socket(path)?;
                let handle = stream.try_clone()?;
                let end = End::new(move || drop(handle.shutdown(Shutdown::Both)));
                Ok(Self { _end: end, _lock: lock, ..Self::of(stream.try_clone()?, stream) })
            }
            Address::File(path) => Ok(Self::of(File::open(path)?, io::sink())),
            Address::Tcp(place) => {
                let lock = Lock::of_port(place)?;
                let stream = lock::connect_to_port(place)?;
                stream.set_nodelay(true)?;
                let handle = stream.try_clone()?;
                let end = End::new(move || drop(handle.shutdown(Shutdown::Both)));
                Ok(Self { _end: end, _lock: lock, ..Self::of(stream.try_clone()?, stream) })
            }
            Address::Device(path, baud) => {
                let file = open_device(path, *baud)?;
                let (handle, is_closed) = (file.try_clone()?, Arc::new(AtomicBool::new(false)));
                let reader = Device { file: file.try_clone()?, is_closed: Arc::clone(&is_closed) };
                let end = End::new(move || {
                    is_closed.store(true, Ordering::Relaxed);
                    // Errors do not matter: a device that is gone is not locked.
                    let _ = (flock(&handle, FlockOperation::Unlock), ioctl_tiocnxcl(&handle));
                });
                Ok(Self { _end: end, ..Self::of(reader, file) })
            }
        }
    }

    /// Creates a line from a reader and a writer.
    pub(crate) fn of(mut reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Self {
        let (sender, received) = channel();
        thread::spawn(move || forward(&mut reader, &sender));
        Self { writer: Box::new(writer), received, _end: None, _lock: None }
    }

    /// Waits for bytes for at most `patience`.
    ///
    /// # Errors
    /// The line fails.
    pub(crate) fn receive(&mut self, patience: Duration) -> Result<Received> {
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
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).and_then(|()| self.writer.flush()).context("the line fails")
    }
}

/// Forwards bytes until the line ends or the receiver is gone.
fn forward(reader: &mut impl Read, sender: &Sender<io::Result<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    loop {
        let sent = match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => sender.send(Ok(buffer[..count].to_vec())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Reports the reason before the channel is disconnected.
                let _ = sender.send(Err(error));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A serial device whose pending read returns soon after it is closed.
struct Device {
    file: File,
    is_closed: Arc<AtomicBool>,
}

impl Read for Device {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // A read of 0 bytes is a timeout, unless the device is gone.
            match self.file.read(buffer)? {
                0 if !self.is_closed.load(Ordering::Relaxed) && tcgetattr(&self.file).is_ok() => {}
                count => return Ok(count),
            }
        }
    }
}

/// Opens a serial device for exclusive use, by an advisory lock, which picocom and minicom respect, and by the
/// terminal's own (`TIOCEXCL`, tty_ioctl(4)), which stops everybody but root.
fn open_device(path: &std::path::Path, baud: u32) -> Result<File> {
    const IN_USE: &str = "the line is in use by another program";
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => bail!(IN_USE),
        opened => opened?,
    };
    let Ok(mut settings) = tcgetattr(&file) else { bail!("not a terminal device") };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => bail!(IN_USE),
        locked => locked?,
    }
    ioctl_tiocexcl(&file)?;
    settings.make_raw();
    // A read returns the available bytes, or none after 0.2 s (termios(3), VTIME).
    settings.special_codes[SpecialCodeIndex::VMIN] = 0;
    settings.special_codes[SpecialCodeIndex::VTIME] = 2;
    settings.set_speed(baud)?;
    tcsetattr(&file, OptionalActions::Now, &settings)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

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
    fn a_second_client_is_told_that_the_line_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // A server like QEMU, which accepts no other client while it has one.
        let server = thread::spawn(move || listener.accept().map(|(stream, _)| (listener, stream)).unwrap());
        let address = Address::Unix(path.clone());
        let first = Link::open(&address).unwrap();
        let (listener, stream) = server.join().unwrap();
        let start = std::time::Instant::now();
        let said = format!("{:#}", Link::open(&address).err().unwrap());
        assert!(said.starts_with(&format!("cannot open {address}: the line is in use by ")), "{said}");
        assert!(start.elapsed() < Duration::from_secs(1), "the refusal is immediate");
        // The client of another program holds no lock.
        drop((first, stream));
        let foreign = UnixStream::connect(&path).unwrap();
        let stream = listener.accept().unwrap();
        let said = format!("{:#}", Link::open(&address).err().unwrap());
        assert!(said.contains("the line is in use by another program"), "{said}");
        drop((foreign, stream, listener));
    }

    #[test]
    fn a_terminal_device_has_one_user() {
        // The other end of a pseudoterminal acts like a serial device.
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY);
        let master = master.unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let address = Address::Device(name.into(), 115_200);
        let first = Link::open(&address).unwrap();
        let said = format!("{:#}", Link::open(&address).err().unwrap());
        assert!(said.ends_with("the line is in use by another program"), "{said}");
        // A closed line can be opened again at once, and the first reader takes none of its bytes.
        drop(first);
        let mut second = Link::open(&address).unwrap();
        thread::sleep(Duration::from_millis(500));
        File::from(master.try_clone().unwrap()).write_all(b"hello").unwrap();
        assert_eq!(second.receive(Duration::from_secs(10)).unwrap(), Received::Bytes(b"hello".to_vec()));
        drop(master);
        assert!(!matches!(second.receive(Duration::from_secs(10)), Ok(Received::Nothing)));
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
