//! Where the serial line is: a socket of QEMU's, or a serial device.

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
    /// Closes the line, which the thread that reads it has open as well; before the lock is given up.
    _end: Option<End>,
    _lock: Option<Lock>,
}

/// Work that closes a line, done when this is dropped.
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
    /// Opens the line at `address`, for this program alone.
    ///
    /// # Errors
    /// Nobody listens there, there is no such device, or another program has the line.
    pub fn open(address: &Address) -> Result<Self> {
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
                    // A device that is gone is nobody's.
                    let _ = (flock(&handle, FlockOperation::Unlock), ioctl_tiocnxcl(&handle));
                });
                Ok(Self { _end: end, ..Self::of(reader, file) })
            }
        }
    }

    /// A line that `reader` reads and `writer` writes.
    pub fn of(mut reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Self {
        let (sender, received) = channel();
        thread::spawn(move || pass_on(&mut reader, &sender));
        Self { writer: Box::new(writer), received, _end: None, _lock: None }
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

/// A serial device whose reads end soon after it is closed.
struct Device {
    file: File,
    is_closed: Arc<AtomicBool>,
}

impl Read for Device {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Nothing came for a while, unless the device is gone.
            match self.file.read(buffer)? {
                0 if !self.is_closed.load(Ordering::Relaxed) && tcgetattr(&self.file).is_ok() => {}
                count => return Ok(count),
            }
        }
    }
}

/// Opens a serial device for this program alone: by an advisory lock, which picocom and minicom heed, and by the terminal's
/// own (`TIOCEXCL`, tty_ioctl(4)), which binds everybody but root.
fn open_device(path: &std::path::Path, baud: u32) -> Result<File> {
    const IN_USE: &str = "the line is in use by another program";
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => bail!(IN_USE),
        opened => opened?,
    };
    let Ok(mut settings) = tcgetattr(&file) else { bail!("it is not a terminal device") };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => bail!(IN_USE),
        locked => locked?,
    }
    ioctl_tiocexcl(&file)?;
    settings.make_raw();
    // A read returns with what there is, or with nothing after two tenths of a second (termios(3), VTIME).
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
        let folder = std::env::temp_dir().join(format!("ballast-link-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("serial");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // A server like QEMU: it accepts no other client while it has one.
        let server = thread::spawn(move || listener.accept().map(|(stream, _)| (listener, stream)).unwrap());
        let address = Address::Unix(path.clone());
        let first = Link::open(&address).unwrap();
        let (listener, stream) = server.join().unwrap();
        let start = std::time::Instant::now();
        let said = format!("{:#}", Link::open(&address).err().unwrap());
        assert!(said.starts_with(&format!("cannot open {address}: the line is in use by ")), "{said}");
        assert!(start.elapsed() < Duration::from_secs(1), "it is said at once");
        // And one behind a program that knows no locks.
        drop((first, stream));
        let foreign = UnixStream::connect(&path).unwrap();
        let stream = listener.accept().unwrap();
        let said = format!("{:#}", Link::open(&address).err().unwrap());
        assert!(said.contains("the line is in use by another program"), "{said}");
        drop((foreign, stream, listener));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_terminal_device_has_one_user() {
        // The other end of a pseudoterminal is a device like a serial one.
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY);
        let master = master.unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let address = Address::Device(name.into(), 115_200);
        let first = Link::open(&address).unwrap();
        let said = format!("{:#}", Link::open(&address).err().unwrap());
        assert!(said.ends_with("the line is in use by another program"), "{said}");
        // What is closed can be opened again at once, and its bytes are nobody else's.
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
