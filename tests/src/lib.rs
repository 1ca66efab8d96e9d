//! System tests: each test boots Ballast in QEMU.
//!
//! A test describes a [`Setup`], boots it, and controls the [`System`]: Ballast's monitor with [`System::monitor`] and
//! [`System::json`], guests with [`System::run`] and [`System::expect`], all over the one serial line that an operator has. It
//! can also read the memory behind each controller. Any failure panics with what the test waited for, and prints the
//! transcript.
//!
//! ```no_run
//! use system_tests::Setup;
//!
//! let mut system = Setup::new().machine("four").boot();
//! system.wait_for_shell("alpha");
//! assert_eq!(system.run("alpha", "nproc"), "2");
//! assert!(system.monitor("guests").contains("running"));
//! ```

mod artifacts;
mod devices;
mod guest;
mod io;
mod linux;
mod loaded;
mod random;
mod screen;
mod setup;
mod system;

pub use artifacts::{elf, image, payload, raw_payload, tool};
pub use guest::Guest;
pub use io::Load;
pub use linux::Zone;
pub use loaded::LoadedImage;
pub use random::Random;
pub use screen::text;
pub use setup::Setup;
pub use system::{Console, System};

/// Returns the time after which a test treats silence as a hang: 300 s, or `BALLAST_TEST_PATIENCE` seconds.
pub fn patience() -> std::time::Duration {
    let seconds = std::env::var("BALLAST_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    std::time::Duration::from_secs(seconds.unwrap_or(300))
}

/// Returns a TCP port of the PC's loopback interface that was free a moment ago.
///
/// # Panics
/// There is no free port.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    listener.unwrap_or_else(|error| panic!("no free port: {error}")).port()
}
