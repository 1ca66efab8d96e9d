//! The machine as the monitor sees it: queries that return data, and actions. The operator's room implements it with the
//! real machine, tests with a fake.

use core::fmt::{self, Write};

use guest_dts::guest_tree::Choice;
use stage2::addr::Ipa;
use stage2::controller::ControllerId;
use stage2::owner::GuestId;
use stage2::phys::alloc::Memory;
use stage2::phys::alloc::check::Translation;

use super::claiming::Claiming;
use super::devices::Devices;
use super::migration::Migration;
use super::mux::{Console, Status, View};
use crate::mitigation;
use crate::observe::counters::Counters;
use crate::observe::{log, trace};

/// Text of an answer, cut to the size that fits.
pub type Reason = heapless::String<240>;
/// Most CPUs listed for a guest.
pub const GUEST_CPUS: usize = 16;
/// Most ranges listed for a controller.
pub const CONTROLLER_RANGES: usize = 4;

/// Formats text, cut to the size that fits.
pub fn reason(text: fmt::Arguments<'_>) -> Reason {
    let mut reason = Reason::new();
    set_reason(&mut reason, text);
    reason
}

/// Formats text into `reason`, cut to the size that fits.
pub fn set_reason(reason: &mut Reason, text: fmt::Arguments<'_>) {
    struct Cut<'a>(&'a mut Reason);
    impl Write for Cut<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for character in text.chars() {
                let _ = self.0.push(character);
            }
            Ok(())
        }
    }
    reason.clear();
    let _ = Cut(reason).write_fmt(text);
}

/// The running version, and the memory that Ballast uses.
#[derive(Clone, Debug)]
pub struct Version<'a> {
    /// Ballast's version.
    pub version: &'a str,
    /// The commit of the build, or "unknown".
    pub commit: &'a str,
    /// The compiler of the build.
    pub compiler: &'a str,
    /// The host's name in its device tree.
    pub host: &'a str,
    /// The version of the host's PSCI: major and minor number.
    pub psci: (u16, u16),
    /// The size of the image in memory, zeroed data included.
    pub image_bytes: u64,
    /// The size of Ballast's other memory, the frame table left out.
    pub own_bytes: u64,
    /// The size of the frame table.
    pub frame_table_bytes: u64,
}

/// The state of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Not started yet, or stopped.
    Off,
    /// Being started: RAM is filled, vCPUs are woken.
    Starting,
    /// Running.
    Running,
    /// Being stopped.
    Stopping,
    /// Stopped by an error, given as the reason.
    Failed,
    /// Refused because of an error in its configuration, given as the reason.
    Refused,
}

impl GuestState {
    /// Returns the state's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// Its name in the configuration.
    pub name: &'a str,
    /// Its state.
    pub state: GuestState,
    /// The reason why it is off or failed; empty otherwise.
    pub reason: Reason,
    /// The number of its vCPUs.
    pub vcpu_count: usize,
    /// The number of vCPUs that are on.
    pub vcpu_on_count: usize,
    /// The CPUs that run its vCPUs, by vCPU.
    pub cpus: heapless::Vec<u64, GUEST_CPUS>,
    /// The size of its RAM in the configuration.
    pub memory_bytes: u64,
    /// The RAM that it has at present; 0 while it is off.
    pub resident_bytes: u64,
    /// The number of starts since boot, resets included.
    pub start_count: u64,
    /// The time since its last start.
    pub uptime_ns: u64,
}

/// The parts that a guest is made from.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// Its device tree.
    pub tree: &'a [u8],
    /// The way in which it is told about its movable memory.
    pub movable: Choice,
    /// The size of its designated movable blocks.
    pub dmb_bytes: u64,
    /// The present size of its stage 2 tables.
    pub table_bytes: u64,
    /// The size of its kernel.
    pub kernel_bytes: u64,
    /// The size of its ramdisk; 0: none.
    pub ramdisk_bytes: u64,
    /// True if it is never migrated.
    pub is_held: bool,
    /// Its own limit of migration, if it has one.
    pub limit_bytes_per_s: Option<u64>,
}

/// The mobility of the memory behind a region of a guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Migration may move it.
    Movable,
    /// The guest is never migrated.
    Held,
    /// Guest addresses and physical addresses are equal.
    Pinned,
    /// The guest's devices access it, so it never moves.
    DmaWindow,
}

impl Backing {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Movable => "movable",
            Self::Held => "held",
            Self::Pinned => "pinned",
            Self::DmaWindow => "dma-window",
        }
    }
}

/// A region of a guest's RAM.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Its name in the configuration.
    pub name: &'a str,
    /// Its guest address.
    pub ipa: u64,
    /// Its size.
    pub bytes: u64,
    /// The mobility of the memory behind it.
    pub backing: Backing,
}

/// A physical CPU.
#[derive(Clone, Debug)]
pub struct Cpu<'a> {
    /// The affinity fields of its MPIDR_EL1.
    pub mpidr: u64,
    /// The name of its part in MIDR_EL1; empty if unknown.
    pub model: &'a str,
    /// True if it came up.
    pub is_online: bool,
    /// The vCPU that it runs: the guest's name and the vCPU's number.
    pub vcpu: Option<(&'a str, usize)>,
    /// True if that vCPU is on.
    pub is_vcpu_on: bool,
    /// Its mitigations against speculative execution, if it came up.
    pub mitigation: Option<mitigation::Choice>,
}

/// A memory controller.
#[derive(Clone, Debug)]
pub struct Controller<'a> {
    /// Its name: from the host's device tree, or `mc0`, `mc1`, …
    pub name: &'a str,
    /// The physical ranges behind it: first address and size.
    pub ranges: heapless::Vec<(u64, u64), CONTROLLER_RANGES>,
    /// The size of its memory.
    pub total_bytes: u64,
    /// The part that guests have.
    pub guest_bytes: u64,
    /// The part that Ballast has, guests' tables included.
    pub own_bytes: u64,
    /// The reserved part: firmware, and reservations in the host's device tree.
    pub reserved_bytes: u64,
    /// The free part.
    pub free_bytes: u64,
    /// The part in DMBs.
    pub dmb_bytes: u64,
    /// The part in use or reserved: neither free nor retired.
    pub used_bytes: u64,
    /// True while it is closed to allocations.
    pub is_closed: bool,
}

/// The state of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// Takes allocations.
    Open,
    /// Takes no allocations; some of its memory is still in use.
    Closed,
    /// Takes no allocations, and nothing behind it is in use: its memory can be taken away.
    Evacuated,
}

impl ControllerState {
    /// Returns the state's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "in use",
            Self::Closed => "closed",
            Self::Evacuated => "evacuated",
        }
    }
}

impl Controller<'_> {
    /// Returns its state.
    pub const fn state(&self) -> ControllerState {
        match (self.is_closed, self.used_bytes) {
            (false, _) => ControllerState::Open,
            (true, 0) => ControllerState::Evacuated,
            (true, _) => ControllerState::Closed,
        }
    }
}

/// The cost of an action.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The action.
    pub what: &'static str,
    /// Its time in picoseconds.
    pub picoseconds: u64,
}

impl Cost {
    /// Measures `work`, which runs `rounds` times in each of several batches. The first batch warms up caches and an
    /// emulator's translation; the fastest of the others counts, as the one least disturbed. `now` is a clock, whose ticks
    /// `picoseconds` converts.
    pub fn measure(
        what: &'static str,
        rounds: u64,
        now: impl Fn() -> u64,
        picoseconds: impl Fn(u64) -> u64,
        work: &mut dyn FnMut(u64),
    ) -> Self {
        const BATCHES: usize = 3;
        (0..rounds).for_each(&mut *work);
        let batches = (0..BATCHES).map(|_| {
            let start = now();
            (0..rounds).for_each(&mut *work);
            now() - start
        });
        let fastest = batches.min().unwrap_or(0);
        Self { what, picoseconds: picoseconds(fastest) / rounds.max(1) }
    }
}

/// The machine. Guests, CPUs and controllers are numbered from 0.
pub trait Machine {
    /// Returns the version.
    fn version(&self) -> Version<'_>;

    /// Returns the number of configured guests. Refused ones are counted too and come last.
    fn guest_count(&self) -> usize;
    /// Returns a guest.
    fn guest(&self, guest: usize) -> Option<Guest<'_>>;
    /// Begins to start a guest that is off.
    ///
    /// # Errors
    /// The reason why it cannot be started.
    fn start(&self, guest: usize) -> Result<(), Reason>;
    /// Stops a guest at once and frees its memory.
    ///
    /// # Errors
    /// The reason why it cannot be stopped.
    fn stop(&self, guest: usize) -> Result<(), Reason>;
    /// Resets a guest.
    ///
    /// # Errors
    /// The reason why it cannot be reset.
    fn reset(&self, guest: usize) -> Result<(), Reason>;

    /// Returns the parts that a guest is made from; `None` if it was refused.
    fn making(&self, guest: usize) -> Option<Making<'_>>;
    /// Returns a region of a guest's RAM, by ascending address.
    fn region(&self, guest: usize, region: usize) -> Option<Region<'_>>;
    /// Returns the unit that a guest's `ipa` is mapped to: its physical address and its size.
    fn unit(&self, guest: usize, ipa: u64) -> Option<(u64, u64)>;

    /// Returns the number of CPUs.
    fn cpu_count(&self) -> usize;
    /// Returns a CPU.
    fn cpu(&self, cpu: usize) -> Option<Cpu<'_>>;

    /// Returns the number of controllers.
    fn controller_count(&self) -> usize;
    /// Returns a controller.
    fn controller(&self, controller: usize) -> Option<Controller<'_>>;

    /// Returns a console's status; `None` if there is no such guest.
    fn console(&self, console: Console) -> Option<Status<'_>>;
    /// Brings a console to the front.
    fn show_console(&self, console: Console);
    /// Shows the front console or all consoles.
    fn set_view(&self, view: View);
    /// Holds back other consoles' lines while the monitor draws a screen.
    fn set_screen(&self, is_shown: bool);
    /// Limits the output that is kept of a console.
    fn limit_console(&self, console: Console, bytes: usize);

    /// Returns the log.
    fn log(&self) -> &log::Ring;

    /// Returns the machine's memory, once it is set up.
    fn memory(&self) -> Option<&Memory<'static>> {
        None
    }

    /// Returns migration, once it is set up.
    fn migration(&self) -> Option<&dyn Migration> {
        None
    }

    /// Returns pools and claims, if the machine has them.
    fn claiming(&self) -> Option<&dyn Claiming> {
        None
    }

    /// Returns assigned devices and the SMMUs, if the machine has them.
    fn devices(&self) -> Option<&dyn Devices> {
        None
    }

    /// Translates a guest's `ipa` by its stage 2.
    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation {
        let _ = (guest, ipa);
        Translation::Unknown
    }

    /// Returns a vCPU's counters, if it has some.
    fn counters(&self, guest: usize, vcpu: usize) -> Option<&Counters> {
        let _ = (guest, vcpu);
        None
    }

    /// Converts ticks of the counter to nanoseconds.
    fn nanoseconds(&self, ticks: u64) -> u64 {
        ticks
    }

    /// Measures the cost of log lines and trace events.
    ///
    /// # Errors
    /// The reason why it cannot be measured.
    fn costs(&self) -> Result<heapless::Vec<Cost, 4>, Reason> {
        Err(reason(format_args!("there is nothing to measure here")))
    }

    /// Returns a CPU's trace, if it has one.
    fn trace(&self, cpu: usize) -> Option<&trace::Ring> {
        let _ = cpu;
        None
    }

    /// Turns tracing on or off, on all CPUs.
    ///
    /// # Errors
    /// The reason why it cannot be turned on.
    fn set_tracing(&self, is_on: bool) -> Result<(), Reason>;

    /// Tests if tracing is on.
    fn is_tracing(&self) -> bool;

    /// Pauses or resumes tracing: busy guests would overwrite the rings while they are read.
    fn pause_tracing(&self, is_paused: bool);
}

impl dyn Machine + '_ {
    /// Iterates over the guests, with their indices.
    pub fn guests(&self) -> impl Iterator<Item = (usize, Guest<'_>)> + Clone {
        (0..self.guest_count()).filter_map(|at| Some((at, self.guest(at)?)))
    }

    /// Iterates over the controllers.
    pub fn controllers(&self) -> impl Iterator<Item = (ControllerId, Controller<'_>)> + Clone {
        (0..self.controller_count())
            .filter_map(|at| Some((ControllerId::try_new(u8::try_from(at).ok()?)?, self.controller(at)?)))
    }

    /// Returns the guest's name.
    pub fn guest_name(&self, guest: GuestId) -> &str {
        self.guest(guest.index()).map_or("?", |guest| guest.name)
    }

    /// Returns the controller's name.
    pub fn controller_name(&self, controller: ControllerId) -> &str {
        self.controller(controller.index()).map_or("?", |controller| controller.name)
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[test]
    fn slow_batches_do_not_count() {
        let (clock, count) = (Cell::new(0), Cell::new(0));
        let mut work = |_| {
            count.set(count.get() + 1);
            clock.set(
                clock.get()
                    + match count.get() {
                        // An emulator translates; another program has the CPU.
                        1 => 100_000,
                        20 => 1_000_000,
                        _ => 7,
                    },
            );
        };
        let cost = Cost::measure("x", 16, || clock.get(), |ticks| ticks * 1000, &mut work);
        assert_eq!((cost.picoseconds, count.get()), (7000, 64));
    }
}
