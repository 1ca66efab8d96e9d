//! The monitor's machine: its commands' queries and actions on the real one.

use crate::arch::timer;
use crate::device::psci;
use crate::guest::{Guest, Phase, cpu, refused};
use crate::hyp_mem::pages;
use crate::monitor::machine::{
    self, Backing, Controller, Cost, Cpu, GuestState, Machine, Making, Reason, Region, Version, reason,
};
use crate::monitor::mux::{Console, Status, View};
use crate::monitor::units::Size;
use crate::monitor::{MonitorIo, run as run_shell};
use crate::observe::counters::Counters;
use crate::observe::log;
use crate::observe::trace::{Ring, is_recording, set_recording};
use crate::operator::scheduler;
use crate::{arch, serial};
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;
use guest_dts::guest_tree::Choice;
use stage2::addr::{FRAME_SIZE, Ipa};
use stage2::controller::ControllerId;
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::check::Translation;

/// Entry of the monitor's coroutine.
pub(crate) extern "C" fn run() -> ! {
    run_shell(&mut Io { log: log::ring().reader() }, &Host)
}

/// Most lines of the log that are sent by the second UART before the monitor looks at its input again.
const LOG_BURST: usize = 16;
/// Nanoseconds that the monitor waits if the second UART's FIFO is full: the time of two bytes.
const FULL_NS: u64 = 200_000;

/// The monitor's console, and the reader of the log that feeds it.
struct Io {
    log: log::Reader,
}

impl Io {
    /// Offers new lines of the log to the console. Lines without room wait for the next call.
    fn show_log(&mut self) {
        if serial::has_second() {
            return self.send_log();
        }
        while log::output() != log::Output::Off {
            let mut ahead = self.log.clone();
            let Some(entry) = ahead.next(log::ring()) else { return };
            if serial::with_console(|mux| mux.log(&entry)) != Some(true) {
                return;
            }
            self.log = ahead;
        }
    }

    /// Sends new lines of the log by the second UART.
    fn send_log(&mut self) {
        for _ in 0..LOG_BURST {
            if log::output() == log::Output::Off {
                return;
            }
            let Some(entry) = self.log.next(log::ring()) else { return };
            match entry.frame() {
                #[cfg(feature = "defmt")]
                Some(frame) => log::frames::encode(frame, send),
                _ => {
                    let _ = write!(Second, "{entry}\r\n");
                }
            }
        }
    }

    fn wait(&mut self, deadline_ns: Option<u64>) {
        self.show_log();
        scheduler::wait(deadline_ns.map_or(0, |deadline| timer::count_at(deadline).max(1)));
        self.show_log();
    }
}

/// Sends by the second UART, and lets the guest run while its FIFO is full.
fn send(bytes: &[u8]) {
    for &byte in bytes {
        while !serial::try_write_second(byte) {
            scheduler::wait(timer::count_at(timer::nanoseconds() + FULL_NS));
        }
    }
}

/// The second UART.
struct Second;

impl Write for Second {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        send(text.as_bytes());
        Ok(())
    }
}

impl MonitorIo for Io {
    fn read(&mut self, deadline_ns: Option<u64>) -> Option<u8> {
        loop {
            let byte = serial::with_console(|mux| mux.receive(Console::MONITOR)).flatten();
            if byte.is_some() || deadline_ns.is_some_and(|deadline| self.now_ns() >= deadline) {
                return byte;
            }
            self.wait(deadline_ns);
        }
    }

    fn peek(&mut self) -> Option<u8> {
        serial::with_console(|mux| mux.peek(Console::MONITOR)).flatten()
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while serial::with_console(|mux| mux.transmit(Console::MONITOR, byte)) == Some(false) {
                self.wait(None);
            }
        }
        scheduler::breathe();
    }

    fn sleep(&mut self, until_ns: u64) {
        self.wait(Some(until_ns));
    }

    fn pause(&mut self) {
        self.show_log();
        scheduler::breathe();
    }

    fn now_ns(&mut self) -> u64 {
        timer::nanoseconds()
    }
}

/// The machine that Ballast runs on.
struct Host;

fn find(guest: usize) -> Result<&'static Guest, Reason> {
    crate::guest::all().nth(guest).ok_or_else(|| match refused_guest(guest) {
        Some(refused) => reason(format_args!("it was refused: {}", refused.reason)),
        None => reason(format_args!("there is no such guest")),
    })
}

/// Returns guest `guest` if it was refused. Refused guests come after the others.
fn refused_guest(guest: usize) -> Option<machine::Guest<'static>> {
    let index = guest.checked_sub(crate::guest::all().count())?;
    refused::with(index, |refused| machine::Guest {
        name: refused.name,
        state: GuestState::Refused,
        reason: reason(format_args!("{}", refused.why)),
        vcpu_count: 0,
        vcpu_on_count: 0,
        cpus: heapless::Vec::new(),
        memory_bytes: 0,
        resident_bytes: 0,
        start_count: 0,
        uptime_ns: 0,
    })
}

fn refuse(phase: Phase) -> Reason {
    reason(format_args!(
        "it is {}",
        match phase {
            Phase::Stopped => "off",
            Phase::Starting => "being started",
            Phase::Running => "running",
            Phase::Stopping => "being stopped",
            Phase::Resetting => "being reset",
        }
    ))
}

/// Implementer and part number of MIDR_EL1, and the core's name (from its technical reference manual).
const MODELS: [(u64, &str); 12] = [
    (0x41_d03, "Cortex-A53"),
    (0x41_d04, "Cortex-A35"),
    (0x41_d05, "Cortex-A55"),
    (0x41_d07, "Cortex-A57"),
    (0x41_d08, "Cortex-A72"),
    (0x41_d09, "Cortex-A73"),
    (0x41_d0b, "Cortex-A76"),
    (0x41_d0c, "Neoverse-N1"),
    (0x41_d40, "Neoverse-V1"),
    (0x41_d49, "Neoverse-N2"),
    (0x42_100, "Brahma-B53"),
    (0x00_051, "QEMU max"),
];

/// Describes what a starting guest waits for.
fn why_starting(guest: &crate::guest::Guest) -> Reason {
    let (ram, resident) = (guest.plan().ram_size(), guest.memory().1);
    match crate::guest::waited_for(guest) {
        Some(claim) => claim,
        None if resident < ram => {
            reason(format_args!("allocating memory: {} of {}", Size(resident), Size(ram)))
        }
        None => reason(format_args!("loading images")),
    }
}

impl Machine for Host {
    fn version(&self) -> Version<'_> {
        let taken = crate::hyp_mem::usage::usage();
        Version {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("BALLAST_COMMIT").unwrap_or("unknown"),
            compiler: option_env!("BALLAST_COMPILER").unwrap_or("unknown"),
            host: crate::host::name(),
            psci: arch::psci_version(),
            image_bytes: taken.image,
            own_bytes: taken.own,
            frame_table_bytes: taken.frame_table,
        }
    }

    fn guest_count(&self) -> usize {
        crate::guest::all().count() + refused::count()
    }

    fn making(&self, guest: usize) -> Option<Making<'_>> {
        let guest = crate::guest::all().nth(guest)?;
        let (plan, made) = (guest.plan(), guest.plan().guest());
        Some(Making {
            tree: plan.tree(),
            movable: Choice::of(made),
            dmb_bytes: made.dmb_size(),
            table_bytes: guest.memory().0 as u64 * FRAME_SIZE,
            kernel_bytes: made.kernel.len() as u64,
            ramdisk_bytes: made.ramdisk.map_or(0, |ramdisk| ramdisk.len() as u64),
            is_held: made.migration.is_opted_out,
            limit_bytes_per_s: made.migration.limit_bytes_per_s,
        })
    }

    fn region(&self, guest: usize, region: usize) -> Option<Region<'_>> {
        let plan = crate::guest::all().nth(guest)?.plan();
        let ram = plan.layout().ranges.get(region)?;
        let made = plan.guest().ram(ram.source)?;
        Some(Region {
            name: made.node.map_or("memory", |node| node.name()),
            ipa: ram.range.base().get(),
            bytes: ram.range.size(),
            backing: match (made.is_pinned_in_place, plan.guest().migration.is_opted_out) {
                _ if made.is_dma_window => Backing::DmaWindow,
                (true, _) => Backing::Pinned,
                (false, true) => Backing::Held,
                (false, false) => Backing::Movable,
            },
        })
    }

    fn unit(&self, guest: usize, ipa: u64) -> Option<(u64, u64)> {
        let guest = crate::guest::all().nth(guest)?;
        let (pa, size) = guest.space.unit(Ipa::try_new(ipa)?)?;
        Some((pa.get(), size))
    }

    fn guest(&self, guest: usize) -> Option<machine::Guest<'_>> {
        let Some(guest) = crate::guest::all().nth(guest) else { return refused_guest(guest) };
        let stop_reason = guest.reason();
        let (state, why) = match guest.phase() {
            Phase::Running => (GuestState::Running, Reason::new()),
            Phase::Starting => (GuestState::Starting, why_starting(guest)),
            Phase::Resetting => (GuestState::Starting, reason(format_args!("loading images"))),
            Phase::Stopping => (GuestState::Stopping, reason(format_args!("{stop_reason}"))),
            Phase::Stopped if stop_reason.is_failure() => {
                (GuestState::Failed, reason(format_args!("{stop_reason}")))
            }
            Phase::Stopped => (GuestState::Off, reason(format_args!("{stop_reason}"))),
        };
        let on = (0..guest.vcpu_count()).filter(|&vcpu| guest.power().state(vcpu) != psci::State::Off);
        let uptime = timer::now().saturating_sub(guest.counter_offset.load(Ordering::Relaxed));
        Some(machine::Guest {
            name: guest.name(),
            state,
            reason: why,
            vcpu_count: guest.vcpu_count(),
            vcpu_on_count: if guest.phase() == Phase::Running { on.count() } else { 0 },
            cpus: guest.vcpus().iter().map(|vcpu| vcpu.cpu().index() as u64).collect(),
            memory_bytes: guest.plan().ram_size(),
            resident_bytes: guest.memory().1,
            start_count: u64::from(guest.start_count()),
            uptime_ns: if guest.phase() == Phase::Running { timer::to_nanoseconds(uptime) } else { 0 },
        })
    }

    fn start(&self, guest: usize) -> Result<(), Reason> {
        find(guest)?.start().map_err(refuse)
    }

    fn stop(&self, guest: usize) -> Result<(), Reason> {
        find(guest)?.stop(crate::guest::StopReason::Operator).map_err(refuse)
    }

    fn reset(&self, guest: usize) -> Result<(), Reason> {
        find(guest)?.reset().map_err(refuse)
    }

    fn cpu_count(&self) -> usize {
        arch::cpu::count()
    }

    fn cpu(&self, index: usize) -> Option<Cpu<'_>> {
        let cpu = cpu::get(index)?;
        let part = cpu.midr() >> 24 << 12 & 0xff000 | cpu.midr() >> 4 & 0xfff;
        let vcpu = cpu.assigned();
        Some(Cpu {
            mpidr: cpu.mpidr(),
            model: MODELS.iter().find(|(id, _)| *id == part).map_or("", |(_, name)| name),
            is_online: cpu.is_online(),
            vcpu: vcpu.map(|vcpu| (vcpu.guest().name(), vcpu.index())),
            is_vcpu_on: vcpu.is_some_and(|vcpu| vcpu.guest().running() >> vcpu.index() & 1 != 0),
            mitigation: cpu.hardening.choice().copied(),
        })
    }

    fn controller_count(&self) -> usize {
        crate::host::board().map_or(0, |board| board.ram.controllers.len())
    }

    fn controller(&self, index: usize) -> Option<Controller<'_>> {
        let board = crate::host::board()?;
        let place = u8::try_from(index).ok()?;
        board.ram.controllers.get(index)?;
        let id = ControllerId::try_new(place)?;
        let totals = pages::MEMORY.controller_totals(id);
        let bytes = |frames: u64| frames * FRAME_SIZE;
        let resident = |owner| pages::MEMORY.resident(owner, id);
        let of_guests: u64 = crate::guest::all().map(|guest| resident(Owner::Guest(guest.id()))).sum();
        let of_tables: u64 = crate::guest::all().map(|guest| resident(Owner::Tables(guest.id()))).sum();
        let ranges = board.ram.ranges.iter().filter(|ram| ram.controller == place);
        let managed = totals.normal.managed + totals.movable.managed;
        Some(Controller {
            name: crate::host::controller_name(index),
            ranges: ranges
                .map(|ram| (ram.range.base().get(), ram.range.size()))
                .take(machine::CONTROLLER_RANGES)
                .collect(),
            total_bytes: board.ram.controller_size(place),
            guest_bytes: bytes(of_guests),
            own_bytes: bytes(resident(Owner::Hypervisor) + of_tables),
            reserved_bytes: board.ram.controller_size(place).saturating_sub(bytes(managed)),
            free_bytes: bytes(totals.free()),
            dmb_bytes: bytes(totals.movable.present),
            used_bytes: bytes(totals.present().saturating_sub(totals.free() + totals.retired())),
            is_closed: pages::MEMORY.is_closed(id),
        })
    }

    fn memory(&self) -> Option<&stage2::phys::alloc::Memory<'static>> {
        Some(&pages::MEMORY)
    }

    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation {
        crate::guest::get(guest.index()).map_or(Translation::Nowhere, |guest| guest.space.translate(ipa))
    }

    fn counters(&self, guest: usize, vcpu: usize) -> Option<&Counters> {
        Some(&crate::guest::all().nth(guest)?.vcpus().get(vcpu)?.cpu().counters)
    }

    fn nanoseconds(&self, ticks: u64) -> u64 {
        timer::to_nanoseconds(ticks)
    }

    fn costs(&self) -> Result<heapless::Vec<Cost, 4>, Reason> {
        super::trace::prepare().map_err(|error| reason(format_args!("no memory for the rings: {error}")))?;
        Ok(crate::operator::cost::measure())
    }

    fn trace(&self, cpu: usize) -> Option<&Ring> {
        cpu::get(cpu)?.trace()
    }

    fn is_tracing(&self) -> bool {
        is_recording()
    }

    fn pause_tracing(&self, is_paused: bool) {
        set_recording(!is_paused);
    }

    fn set_tracing(&self, is_on: bool) -> Result<(), Reason> {
        super::trace::set_recording(is_on)
            .map_err(|error| reason(format_args!("no memory for the rings: {error}")))
    }

    fn migration(&self) -> Option<&dyn crate::monitor::migration::Migration> {
        Some(&crate::operator::migration::Operator)
    }

    fn devices(&self) -> Option<&dyn crate::monitor::devices::Devices> {
        Some(&crate::guest::devices::REPORT)
    }

    fn claiming(&self) -> Option<&dyn crate::monitor::claiming::Claiming> {
        Some(&crate::operator::claims::Operator)
    }

    fn console(&self, console: Console) -> Option<Status<'_>> {
        serial::with_console(|mux| mux.status(console)).flatten()
    }

    fn show_console(&self, console: Console) {
        serial::with_console(|mux| mux.set_front(console));
        if let Some(index) = console.guest_index() {
            crate::guest::uart::receive_input(index);
        }
    }

    fn set_view(&self, view: View) {
        serial::with_console(|mux| mux.set_view(view));
    }

    fn set_screen(&self, is_shown: bool) {
        serial::with_console(|mux| mux.set_screen(is_shown));
    }

    fn limit_console(&self, console: Console, bytes: usize) {
        serial::with_console(|mux| mux.set_limit(console, bytes));
    }

    fn log(&self) -> &log::Ring {
        log::ring()
    }
}
