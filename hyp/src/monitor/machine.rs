//! What the monitor asks of the machine: queries that return data, and actions. hyp implements it with
//! the real machine, tests with a fake.

use core::fmt::{self, Write};

use guest_dts::guest_tree::Choice;
use stage2::addr::Ipa;
use stage2::controller::ControllerId;
use stage2::owner::GuestId;
use stage2::phys::alloc::Memory;
use stage2::phys::alloc::check::Translation;

use super::claiming::Claiming;
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

/// What is running.
#[derive(Clone, Debug)]
pub struct Version<'a> {
    /// Ballast's version.
    pub version: &'a str,
    /// The commit that it was built from, or "unknown".
    pub commit: &'a str,
    /// The compiler that built it.
    pub compiler: &'a str,
    /// The host, as its device tree names it.
    pub host: &'a str,
    /// The version of the host's PSCI: major and minor number.
    pub psci: (u16, u16),
    /// What the image takes in memory, with its zeroed data.
    pub image_bytes: u64,
    /// What Ballast takes for itself beside the image and the frame table.
    pub own_bytes: u64,
    /// What the frame table takes.
    pub frame_table_bytes: u64,
}

/// How a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Not started, or stopped.
    Off,
    /// Being started: its RAM is filled, its CPUs are on their way.
    Starting,
    /// Running.
    Running,
    /// Being stopped.
    Stopping,
    /// Stopped by an error; the reason says which.
    Failed,
    /// Left out, since its configuration is wrong; the reason says how.
    Refused,
}

impl GuestState {
    /// The state's name.
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
    /// How it is.
    pub state: GuestState,
    /// Why it is off or failed; empty otherwise.
    pub reason: Reason,
    /// How many vCPUs it has.
    pub vcpu_count: usize,
    /// How many of them are on.
    pub vcpu_on_count: usize,
    /// The CPUs of its vCPUs, in the vCPUs' order.
    pub cpus: heapless::Vec<u64, GUEST_CPUS>,
    /// The RAM that it is configured with.
    pub memory_bytes: u64,
    /// The RAM that it has now: none while it is off.
    pub resident_bytes: u64,
    /// How often it was started since boot, resets included.
    pub start_count: u64,
    /// For how long it has been running.
    pub uptime_ns: u64,
}

/// What a guest is made from.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// Its device tree.
    pub tree: &'a [u8],
    /// How it is told of its movable memory.
    pub movable: Choice,
    /// What it has in designated movable blocks.
    pub dmb_bytes: u64,
    /// What its stage-2 tables take now.
    pub table_bytes: u64,
    /// Its kernel's size.
    pub kernel_bytes: u64,
    /// Its ramdisk's size; 0: none.
    pub ramdisk_bytes: u64,
    /// Whether it is never migrated.
    pub is_held: bool,
    /// How fast it is migrated at most, where it has a limit of its own.
    pub limit_bytes_per_s: Option<u64>,
}

/// Whether what backs a guest's RAM may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// It is moved where that is asked for.
    Movable,
    /// The guest is never migrated.
    Held,
    /// Guest-physical and physical addresses are the same.
    Pinned,
}

impl Backing {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Movable => "movable",
            Self::Held => "held",
            Self::Pinned => "pinned",
        }
    }
}

/// A region of a guest's RAM.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Its name in the configuration.
    pub name: &'a str,
    /// Where the guest sees it.
    pub ipa: u64,
    /// Its size.
    pub bytes: u64,
    /// Whether what backs it may change.
    pub backing: Backing,
}

/// A physical CPU.
#[derive(Clone, Debug)]
pub struct Cpu<'a> {
    /// MPIDR_EL1's affinity fields.
    pub mpidr: u64,
    /// What it is: the name of MIDR_EL1's part, or empty.
    pub model: &'a str,
    /// Whether it came up.
    pub is_online: bool,
    /// The vCPU that it belongs to: the guest's name and the vCPU's number.
    pub vcpu: Option<(&'a str, usize)>,
    /// Whether that vCPU is on.
    pub is_vcpu_on: bool,
    /// Its mitigations of speculative execution, once it came up.
    pub mitigation: Option<mitigation::Choice>,
}

/// A memory controller.
#[derive(Clone, Debug)]
pub struct Controller<'a> {
    /// Its name: from the host's device tree, or `mc0`, `mc1`, …
    pub name: &'a str,
    /// The physical ranges behind it: first address and size.
    pub ranges: heapless::Vec<(u64, u64), CONTROLLER_RANGES>,
    /// What lies behind it.
    pub total_bytes: u64,
    /// What guests have of it.
    pub guest_bytes: u64,
    /// What Ballast has of it, tables of guests included.
    pub own_bytes: u64,
    /// What is reserved: firmware's, and what the host's device tree withholds.
    pub reserved_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// How much of it lies in DMBs.
    pub dmb_bytes: u64,
    /// Bytes in use or reserved: neither free nor retired.
    pub used_bytes: u64,
    /// True while it takes no allocations, until it is restored.
    pub is_closed: bool,
}

/// The use that is made of a controller.
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
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "in use",
            Self::Closed => "closed",
            Self::Evacuated => "evacuated",
        }
    }
}

impl Controller<'_> {
    /// Returns the use that is made of it.
    pub const fn state(&self) -> ControllerState {
        match (self.is_closed, self.used_bytes) {
            (false, _) => ControllerState::Open,
            (true, 0) => ControllerState::Evacuated,
            (true, _) => ControllerState::Closed,
        }
    }
}

/// What something costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// What.
    pub what: &'static str,
    /// The time that it takes, in thousandths of a nanosecond.
    pub picoseconds: u64,
}

impl Cost {
    /// Measures `work`, which is done `rounds` times in each of some batches. A first batch is not counted (caches are
    /// cold, an emulator translates), and the fastest of the others is the one that nothing came between. `now` is a
    /// clock, whose ticks `picoseconds` converts.
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

/// The machine as the monitor sees it. All numbers are indices from 0.
pub trait Machine {
    /// What is running.
    fn version(&self) -> Version<'_>;

    /// How many guests are configured, those that were refused included, which come last.
    fn guest_count(&self) -> usize;
    /// A guest.
    fn guest(&self, guest: usize) -> Option<Guest<'_>>;
    /// Starts a guest that is off. Returns when it is on its way.
    ///
    /// # Errors
    /// Why it cannot be started.
    fn start(&self, guest: usize) -> Result<(), Reason>;
    /// Stops a guest at once and frees what it has.
    ///
    /// # Errors
    /// Why it cannot be stopped.
    fn stop(&self, guest: usize) -> Result<(), Reason>;
    /// Starts a guest afresh, whatever it does.
    ///
    /// # Errors
    /// Why it cannot be reset.
    fn reset(&self, guest: usize) -> Result<(), Reason>;

    /// What a guest is made from; `None` where it was refused.
    fn making(&self, guest: usize) -> Option<Making<'_>>;
    /// A region of a guest's RAM, by rising address.
    fn region(&self, guest: usize, region: usize) -> Option<Region<'_>>;
    /// The unit behind `ipa` of a guest: its physical address and its size.
    fn unit(&self, guest: usize, ipa: u64) -> Option<(u64, u64)>;

    /// How many CPUs the host has.
    fn cpu_count(&self) -> usize;
    /// A CPU.
    fn cpu(&self, cpu: usize) -> Option<Cpu<'_>>;

    /// How many controllers the host has.
    fn controller_count(&self) -> usize;
    /// A controller.
    fn controller(&self, controller: usize) -> Option<Controller<'_>>;

    /// A console; `None` where there is no such guest.
    fn console(&self, console: Console) -> Option<Status<'_>>;
    /// Brings a console to front.
    fn show_console(&self, console: Console);
    /// Shows the front console, or all.
    fn set_view(&self, view: View);
    /// Keeps others' lines off the screen that the monitor draws.
    fn set_screen(&self, is_shown: bool);
    /// Limits what is kept of a console.
    fn limit_console(&self, console: Console, bytes: usize);

    /// The log.
    fn log(&self) -> &log::Ring;

    /// The machine's memory, once it is set up.
    fn memory(&self) -> Option<&Memory<'static>> {
        None
    }

    /// Migration, where the machine has it.
    fn migration(&self) -> Option<&dyn Migration> {
        None
    }

    /// Pools and claims, where the machine has them.
    fn claiming(&self) -> Option<&dyn Claiming> {
        None
    }

    /// What a guest's stage 2 has at `ipa`.
    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation {
        let _ = (guest, ipa);
        Translation::Unknown
    }

    /// A vCPU's counters, where it has some.
    fn counters(&self, guest: usize, vcpu: usize) -> Option<&Counters> {
        let _ = (guest, vcpu);
        None
    }

    /// Ticks of the counter in nanoseconds.
    fn nanoseconds(&self, ticks: u64) -> u64 {
        ticks
    }

    /// What lines of the log and events of the trace cost, measured now.
    ///
    /// # Errors
    /// Why it cannot be measured.
    fn costs(&self) -> Result<heapless::Vec<Cost, 4>, Reason> {
        Err(reason(format_args!("there is nothing to measure here")))
    }

    /// A CPU's trace, where it has one.
    fn trace(&self, cpu: usize) -> Option<&trace::Ring> {
        let _ = cpu;
        None
    }

    /// Turns the recording of events on or off, on all CPUs.
    ///
    /// # Errors
    /// Why it cannot be turned on.
    fn set_tracing(&self, is_on: bool) -> Result<(), Reason>;

    /// Whether events are recorded.
    fn is_tracing(&self) -> bool;

    /// Lets no event be recorded for a while, or records them again: while they are read, busy guests would come
    /// round their rings.
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
    fn what_is_slow_at_first_or_interrupted_does_not_count() {
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
