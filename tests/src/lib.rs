//! System tests: Ballast booted in QEMU, a fresh boot for every test.
//!
//! A test describes what it boots with a [`Setup`], boots it, and talks to the [`System`]: to Ballast's monitor by
//! [`System::monitor`] and [`System::json`], to guests by [`System::run`] and [`System::expect`], all over the one
//! serial line that an operator has; and it reads the controllers' files. Whatever goes wrong panics with what was
//! waited for, and the whole transcript is printed.
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
mod guest;
mod linux;
mod loaded;
mod random;
mod screen;
mod setup;
mod system;

pub use artifacts::{elf, image, payload, raw_payload, tool};
pub use guest::Guest;
pub use linux::Zone;
pub use loaded::LoadedImage;
pub use random::Random;
pub use screen::text;
pub use setup::Setup;
pub use system::{Console, System};

/// How long anything may take: only to end a hang. `BALLAST_TEST_PATIENCE` (seconds) replaces it.
pub fn patience() -> std::time::Duration {
    let seconds = std::env::var("BALLAST_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    std::time::Duration::from_secs(seconds.unwrap_or(300))
}
