//! Exclusive use of a serial line. A line has one reader and one writer, and QEMU's socket serves one client at a
//! time. A second client would connect, wait behind the first and receive nothing.
//!
//! Commands of this tool lock a file beside the socket, so that a second one is refused at once. Other programs
//! (socat, nc) show up in the kernel's tables of sockets: a connection that was not accepted yet is listed there
//! without an inode.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Time limit for the other end to accept a connection, which includes closing an earlier one.
const GRACE: Duration = Duration::from_secs(2);
/// Time limit for connecting over TCP.
const TCP_PATIENCE: Duration = Duration::from_secs(5);
/// Interval between two checks.
const TICK: Duration = Duration::from_millis(20);
/// Most bytes of a holder's note that are read.
const LONGEST_NOTE: u64 = 256;

/// A lock file, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of the line at `socket`. Returns `None` if no file can be created beside the socket.
    ///
    /// # Errors
    /// Another program holds the lock; the error names it.
    pub(crate) fn of_socket(socket: &Path) -> Result<Option<Self>> {
        // All names of the socket lead to the same file.
        let socket = fs::canonicalize(socket).unwrap_or_else(|_| socket.into());
        Self::take(&socket.with_added_extension("lock"))
    }

    /// Takes the lock of the line at a TCP port. Returns `None` if the file cannot be created.
    ///
    /// # Errors
    /// Another program holds the lock; the error names it.
    pub(crate) fn of_port(place: &str) -> Result<Option<Self>> {
        let is_plain = |character: char| character.is_ascii_alphanumeric() || character == '.';
        let name = format!("ballast-tcp-{}.lock", place.replace(|character| !is_plain(character), "-"));
        Self::take(&std::env::temp_dir().join(name))
    }

    fn take(path: &Path) -> Result<Option<Self>> {
        loop {
            let mut options = OpenOptions::new();
            // Follows no symbolic link, since others may write to the folder.
            options.read(true).write(true).create(true).mode(0o644).custom_flags(NO_FOLLOW);
            let Ok(mut file) = options.open(path) else { return Ok(None) };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!("the line is in use by {}", read_holder(&mut file)),
                Err(TryLockError::Error(_)) => return Ok(None),
            }
            // The last holder may have removed the file before it was locked here.
            if !is_at(&file, path) {
                continue;
            }
            let _ = file.set_len(0);
            let _ = write!(file, "{} (process {})", name(), std::process::id());
            return Ok(Some(Self { path: path.into(), _file: file }));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is still locked, so nobody holds another one of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// `O_NOFOLLOW` (open(2)).
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Returns the name of this program for the note in the lock file, like `ballast exporter`.
fn name() -> String {
    let mut words = std::env::args().take(2);
    let program = words.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    words.next().map_or(program.clone(), |command| format!("{program} {command}"))
}

/// Reads the holder's note, without control characters.
fn read_holder(file: &mut File) -> String {
    let mut note = String::new();
    let _ = file.take(LONGEST_NOTE).read_to_string(&mut note);
    let note: String = note.chars().filter(|character| !character.is_control()).collect();
    if note.is_empty() { "another program".into() } else { note }
}

/// Connects to the Unix socket at `path` and waits until the other end accepts the connection.
///
/// # Errors
/// Nobody listens there, or the other end serves another client.
pub(crate) fn connect_to_socket(path: &Path) -> Result<UnixStream> {
    // An abandoned connection stays in the other end's short queue, so none is added behind one that waits.
    wait_until_accepted(|| is_waiting_at_socket(path))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    let mut connected = net::connect(&socket, &address);
    wait_until_accepted(|| {
        if connected == Err(Errno::AGAIN) {
            // The queue is full.
            connected = net::connect(&socket, &address);
        }
        connected == Err(Errno::AGAIN)
    })?;
    connected?;
    wait_until_accepted(|| is_waiting_at_socket(path))?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Connects to a TCP port and, if it is on this machine, waits until the other end accepts the connection.
///
/// # Errors
/// Nobody listens there, or the other end serves another client.
pub(crate) fn connect_to_port(place: &str) -> Result<TcpStream> {
    let mut last = None;
    for address in place.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TCP_PATIENCE) {
            Ok(stream) => {
                let (ours, theirs) = (stream.local_addr()?, stream.peer_addr()?);
                wait_until_accepted(|| is_waiting_at_port(ours, theirs))?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    last.map_or_else(|| bail!("{place} does not resolve to an address"), |error| Err(error.into()))
}

/// Waits until `is_waiting` returns `false`: the other end has accepted the connection.
///
/// # Errors
/// The other end did not accept in time, since it serves another client.
fn wait_until_accepted(mut is_waiting: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + GRACE;
    while is_waiting() {
        if Instant::now() >= deadline {
            bail!("the line is in use by another program: QEMU serves one client at a time");
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Tests whether a connection to the Unix socket at `path` waits to be accepted. Returns `false` if the table is
/// missing.
fn is_waiting_at_socket(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let is_it = |name: &str| {
        Path::new(name) == path
            || fs::canonicalize(name).is_ok_and(|name| fs::canonicalize(path).is_ok_and(|path| path == name))
    };
    waiting_sockets(&table).any(is_it)
}

/// Iterates over the names of sockets with connections that wait to be accepted: state 2, connecting, in
/// /proc/net/unix (Linux, net/unix/af_unix.c, `unix_seq_show`).
fn waiting_sockets(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(1).filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_ascii_whitespace();
        let state = fields.nth(5)?;
        let name = fields.nth(1)?;
        // The name may contain spaces, so it extends to the end of the line.
        let start = name.as_ptr() as usize - line.as_ptr() as usize;
        if state == "02" { line.get(start..) } else { None }
    })
}

/// Tests whether the connection from `ours` to `theirs`, on this machine, waits to be accepted. Returns `false` if
/// the table is missing.
fn is_waiting_at_port(ours: SocketAddr, theirs: SocketAddr) -> bool {
    let path = if theirs.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    is_waiting_in(&fs::read_to_string(path).unwrap_or_default(), ours, theirs)
}

/// Looks up the other end of a connection in /proc/net/tcp (Linux, net/ipv4/tcp_ipv4.c, `get_tcp4_sock`). It has no
/// inode until it is accepted.
fn is_waiting_in(table: &str, ours: SocketAddr, theirs: SocketAddr) -> bool {
    let (local, remote) = (table_address(theirs), table_address(ours));
    table.lines().skip(1).any(|line| {
        // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.get(1) == Some(&local.as_str())
            && fields.get(2) == Some(&remote.as_str())
            && fields.get(9) == Some(&"0")
    })
}

/// Formats an address as in these tables: words in native byte order, in hexadecimal.
fn table_address(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let words: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn one_program_has_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let socket = folder.join("serial");
        let listener = UnixListener::bind(&socket).unwrap();
        let first = Lock::of_socket(&socket).unwrap().unwrap();
        let said = Lock::of_socket(&folder.join("./serial")).unwrap_err().to_string();
        assert!(said.starts_with("the line is in use by "), "{said}");
        assert!(said.ends_with(&format!("(process {})", std::process::id())), "{said}");
        drop(first);
        assert!(Lock::of_socket(&socket).unwrap().is_some());
        assert!(!folder.join("serial.lock").exists(), "a dropped lock leaves no file");
        // The file of a dead program is not a lock, and its contents do not reach the terminal.
        fs::write(folder.join("serial.lock"), "\x1b[2J nobody").unwrap();
        let second = Lock::of_socket(&socket).unwrap().unwrap();
        assert!(Lock::of_socket(&socket).is_err());
        drop((second, listener));
        // A symbolic link is not followed.
        std::os::unix::fs::symlink(folder.join("elsewhere"), folder.join("serial.lock")).unwrap();
        assert!(Lock::of_socket(&socket).unwrap().is_none());
        assert!(!folder.join("elsewhere").exists());
    }

    #[test]
    fn a_connection_that_nobody_accepts_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let path = folder.join("serial");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        assert!(is_waiting_at_socket(&path) && is_waiting_at_socket(&folder.join("./serial")));
        let (accepted, _) = listener.accept().unwrap();
        assert!(!is_waiting_at_socket(&path));
        // Refused and abandoned connections do not block later ones.
        let is_refused = || {
            let said = connect_to_socket(&path).unwrap_err().to_string();
            assert!(said.contains("in use by another program"), "{said}");
        };
        is_refused();
        is_refused();
        drop((client, accepted));
        let server = thread::spawn(move || {
            // Like QEMU, accepts dead connections first.
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 1 {
                    return;
                }
            }
        });
        connect_to_socket(&path).unwrap().write_all(b"x").unwrap();
        server.join().unwrap();
        assert!(!is_waiting_at_socket(&folder.join("other")));

        for place in ["127.0.0.1:0", "[::1]:0"] {
            // The machine may lack IPv6.
            let Ok(listener) = TcpListener::bind(place) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, theirs) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert!(is_waiting_at_port(ours, theirs), "{place}");
            let _accepted = listener.accept().unwrap();
            assert!(!is_waiting_at_port(ours, theirs), "{place}");
        }
    }

    #[test]
    fn malformed_tables_are_ignored() {
        for table in ["", "x", "a\nb", "Num\n0: 1 2 3 4 02", "Num\n0: 1 2 3 4 02 0"] {
            assert_eq!(waiting_sockets(table).count(), 0, "{table:?}");
        }
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
                     00: 00000002 00000000 00010000 0001 01 11 /tmp/serial\n\
                     00: 00000003 00000000 00000000 0001 03 12 /tmp/serial\n\
                     00: 00000002 00000000 00000000 0001 02 0 /tmp/a b\n";
        assert_eq!(waiting_sockets(table).collect::<Vec<_>>(), ["/tmp/a b"]);
    }
}
