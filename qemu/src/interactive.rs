//! Runs a machine at this program's terminal.

use std::io::stdin;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::boot::{Boot, Serial};
use crate::error::{AtPath, Error, Result};
use crate::process;
use crate::workdir::WorkDir;

/// Time limit for QEMU to exit after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// Runs `boot` at the terminal until QEMU exits, by Ctrl-A X or because this program received a signal. Then removes
/// its files and restores the terminal.
///
/// # Errors
/// QEMU cannot be started or fails, or this program received a signal.
pub fn run(boot: &Boot) -> Result<()> {
    let terminal = Terminal::remember();
    let folder = WorkDir::new(boot.room())?;
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).at("signals")?;
    let mut command = boot.command(&folder, Serial::Terminal)?;
    let mut qemu = command.spawn().map_err(|source| process::start_error(&command, source))?;
    let received = end_on_signal(&qemu, signals);
    let status = qemu.wait().at("qemu")?;
    drop((terminal, folder));
    match received.load(Ordering::SeqCst) {
        0 if status.success() => Ok(()),
        0 => Err(Error::Program { program: process::describe(&command), status, said: String::new() }),
        signal => Err(Error::Signal(signal)),
    }
}

/// Stops QEMU when this program receives a signal, and stores the signal's number.
fn end_on_signal(qemu: &Child, mut signals: Signals) -> Arc<AtomicI32> {
    let received = Arc::new(AtomicI32::new(0));
    let seen = Arc::clone(&received);
    let pid = i32::try_from(qemu.id()).ok().and_then(Pid::from_raw);
    thread::spawn(move || {
        let (Some(pid), Some(signal)) = (pid, signals.forever().next()) else { return };
        seen.store(signal, Ordering::SeqCst);
        // Errors do not matter: QEMU may have exited meanwhile.
        let _ = kill_process(pid, Signal::TERM);
        thread::sleep(GRACE);
        let _ = kill_process(pid, Signal::KILL);
    });
    received
}

/// The terminal's settings, restored when this is dropped.
struct Terminal(Option<Termios>);

impl Terminal {
    fn remember() -> Self {
        Self(tcgetattr(stdin()).ok())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // Errors do not matter: the terminal is gone.
            let _ = tcsetattr(stdin(), OptionalActions::Drain, settings);
        }
    }
}
