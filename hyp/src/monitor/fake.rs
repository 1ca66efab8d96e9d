//! A machine and a console for tests.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use guest_dts::config::MovableMemory;
use guest_dts::guest_tree::{Choice, Reason as Cause};
use guest_dts::tree::AlignedBlob;
use stage2::addr::{FRAME_SIZE, Ipa};
use stage2::controller::ControllerId;
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::check::Translation;
use stage2::phys::alloc::{Memory, MemoryKind, Request};
use stage2::phys::dmb::{Core, CoreOption, Wishes, default_floor, designate};
use stage2::phys::frame::{Footprint, Mapping};
use stage2::phys::map::{BootMap, ReservationKind};
use stage2::phys::placement::Placement;

use super::fake_devices::FakeDevices;
use super::fake_migration::FakeMigration;
use super::fake_pools::FakePools;
use super::machine::{
    Backing, Controller, Cost, Cpu, Guest, GuestState, Machine, Making, Reason, Region, Version, reason,
};
use super::mux::{Console, Status, View};
use super::session::MonitorIo;
use crate::mitigation;
use crate::observe::counters::{Counters, Exit};
use crate::observe::log::{Level, Ring, Stamp};
use crate::observe::trace;
use crate::observe::trace::Event;

/// Two controllers, four CPUs, three guests: one runs, one is off, one has failed.
pub(super) struct Fake {
    pub(super) states: RefCell<Vec<(GuestState, Reason)>>,
    pub(super) front: Cell<Option<Console>>,
    pub(super) view: Cell<View>,
    pub(super) has_screen: Cell<bool>,
    pub(super) limit: Cell<usize>,
    /// alpha's two vCPUs.
    pub(super) counters: [Counters; 2],
    pub(super) traces: [trace::Ring; 2],
    log: Box<Ring>,
    /// alpha's and beta's trees.
    made: &'static [(AlignedBlob, Choice)],
    /// Pools, if a test needs them.
    pub(super) pools: Option<FakePools>,
    /// Assigned devices, unless a test does without.
    pub(super) devices: Option<FakeDevices>,
    /// Migration, if a test needs it.
    pub(super) migration: Option<FakeMigration>,
    is_tracing: Cell<bool>,
}

/// Returns the trees, compiled once because that runs a program.
fn trees() -> &'static [(AlignedBlob, Choice)] {
    static TREES: OnceLock<[(AlignedBlob, Choice); 2]> = OnceLock::new();
    TREES.get_or_init(|| {
        let movable = tree("console=ttyAMA0 movablecore=256M");
        [
            (movable, Choice { mode: MovableMemory::Movablecore, reason: Cause::Default }),
            (tree(""), Choice { mode: MovableMemory::None, reason: Cause::NoBlocks }),
        ]
    })
}

/// Compiles a tree with the nodes that the monitor reads.
fn tree(bootargs: &str) -> AlignedBlob {
    let source = format!("/dts-v1/; / {{ model = \"a tree\"; chosen {{ bootargs = \"{bootargs}\"; }}; }};");
    guest_dts::testing::compile(&source)
}

/// Creates two controllers of 1 GiB. Ballast has 2 MiB, alpha a DMB of 256 MiB and as much elsewhere.
fn memory() -> Box<Memory<'static>> {
    let mut map = BootMap::new();
    for (number, base) in [(0, 0x4000_0000), (1, 0x8000_0000)] {
        map.add_ram(ControllerId::try_new(number).unwrap(), base, 1 << 30).unwrap();
    }
    map.reserve(0x4020_0000, 2 << 20, ReservationKind::Image, "image").unwrap();
    let option = Core::parse(CoreOption::Movable, ["256M@0x90000000"]).unwrap();
    let floor = default_floor(&map);
    let wishes = Wishes { movablecore: option.as_ref(), kernelcore: None, nodes: &[], floor };
    designate(&mut map, &wishes).unwrap();
    let words: Vec<AtomicU32> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
    let memory = Box::new(Memory::new());
    memory.boot(&map, words.leak(), floor).unwrap();
    let guest = GuestId::try_new(0).unwrap();
    for (kind, owner, order, count) in [
        (MemoryKind::Unmovable, Owner::Hypervisor, 0, 10),
        (MemoryKind::Unmovable, Owner::Tables(guest), 0, 5),
        (MemoryKind::Movable, Owner::Guest(guest), 9, 256),
    ] {
        for at in 0..count {
            let ipa = Ipa::new_truncate(0x4000_0000 + at * (FRAME_SIZE << order));
            let mapping = (kind == MemoryKind::Movable).then_some(Mapping { guest, ipa });
            let placement = Placement::only(ControllerId::try_new((at >= 128).into()).unwrap());
            let _ = memory.allocate(&Request { order, kind, owner, placement, mapping }).unwrap();
        }
    }
    memory
}

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

impl Fake {
    pub(super) fn new() -> Self {
        let log = Box::new(Ring::new());
        let lines = [
            (Level::Info, "board: 2 controllers, 4 CPUs"),
            (Level::Debug, "guest::map: alpha: 512 MiB in 256 blocks"),
            (Level::Warn, "guest: gamma: no frame on mc1, 12 MiB are missing"),
        ];
        for (at, (level, text)) in lines.into_iter().enumerate() {
            log.push(Stamp { time_ns: 1_500_000 * (at as u64 + 1), cpu: at as u16 }, level, text.as_bytes());
        }
        let counters = [Counters::new(), Counters::new()];
        for (vcpu, counters) in counters.iter().enumerate() {
            for exit in Exit::ALL {
                for _ in 0..(exit as usize + vcpu) * 10 / (1 + 3 * vcpu) {
                    counters.count_exit(exit);
                }
            }
            counters.count_injected();
            counters.add_el2(610_000_000);
        }
        let traces = [trace::Ring::new(), trace::Ring::new()];
        let kinds = [
            trace::Kind::Exit(Exit::Uart),
            trace::Kind::Inject,
            trace::Kind::Migrate,
            trace::Kind::Claim(trace::Step::Granted),
            trace::Kind::Life,
        ];
        for (at, kind) in kinds.into_iter().enumerate() {
            let vcpu = at as u8 % 2;
            traces[at % 2].record_event(&Event {
                ticks: 60_000_000_000 + at as u64 * 1_500,
                kind,
                guest: at as u8 / 2,
                vcpu,
                detail: 0x900_0018,
                place: 0xffff_8000_8001_2344,
            });
        }
        traces[1].record_event(&Event {
            ticks: 60_000_020_000,
            kind: trace::Kind::DeviceFault(trace::Access::Write),
            guest: 0,
            vcpu: 0,
            detail: 0x4800_1000,
            place: 0x10,
        });
        let abort = "data abort by vCPU 1 at 0xffff800080012344: read of IPA 0x9010000, where nothing is";
        Self {
            states: RefCell::new(vec![
                (GuestState::Running, Reason::new()),
                (GuestState::Off, reason(format_args!("SYSTEM_OFF"))),
                (GuestState::Failed, reason(format_args!("{abort}"))),
            ]),
            front: Cell::new(Some(Console::MONITOR)),
            view: Cell::new(View::Front),
            has_screen: Cell::new(false),
            limit: Cell::new(16_384),
            counters,
            traces,
            log,
            pools: None,
            devices: Some(FakeDevices::default()),
            migration: None,
            made: trees(),
            is_tracing: Cell::new(false),
        }
    }

    fn set(&self, guest: usize, wanted: &[GuestState], state: GuestState) -> Result<(), Reason> {
        let mut states = self.states.borrow_mut();
        let current = &mut states[guest];
        if !wanted.contains(&current.0) {
            return Err(reason(format_args!("{} is {}", NAMES[guest], current.0.name())));
        }
        *current = (state, Reason::new());
        Ok(())
    }
}

impl Machine for Fake {
    fn version(&self) -> Version<'_> {
        Version {
            version: "0.1.0",
            commit: "0123abc",
            compiler: "rustc 1.95.0",
            host: "linux,dummy-virt",
            psci: (1, 1),
            image_bytes: 200 << 10,
            own_bytes: 700 << 10,
            frame_table_bytes: 8 << 20,
        }
    }

    fn guest_count(&self) -> usize {
        NAMES.len()
    }

    fn guest(&self, guest: usize) -> Option<Guest<'_>> {
        let (state, reason) = self.states.borrow().get(guest)?.clone();
        let is_running = state == GuestState::Running;
        Some(Guest {
            name: NAMES[guest],
            state,
            reason,
            vcpu_count: 2,
            vcpu_on_count: if is_running { 2 } else { 0 },
            cpus: heapless::Vec::from_slice(&[[0, 1], [2, 3], [2, 3]][guest]).unwrap(),
            memory_bytes: 512 << 20,
            resident_bytes: if is_running { 512 << 20 } else { 0 },
            start_count: 1,
            uptime_ns: if is_running { 61_000_000_000 } else { 0 },
        })
    }

    fn making(&self, guest: usize) -> Option<Making<'_>> {
        let (_, movable) = self.made.get(guest)?;
        Some(Making {
            tree: self.made[guest].0.as_slice(),
            movable: *movable,
            dmb_bytes: if guest == 0 { 256 << 20 } else { 0 },
            table_bytes: 5 << 12,
            kernel_bytes: 38 << 20,
            ramdisk_bytes: if guest == 0 { 1 << 20 } else { 0 },
            is_held: guest == 1,
            limit_bytes_per_s: (guest == 0).then_some(2_000_000_000),
        })
    }

    fn region(&self, guest: usize, region: usize) -> Option<Region<'_>> {
        let (name, ipa, mib) = *[("memory", 0x4000_0000, 256), ("dmb-1", 0x5000_0000, 256)].get(region)?;
        let backing = [Backing::Movable, Backing::Held, Backing::Pinned][guest];
        Some(Region { name, ipa, bytes: mib << 20, backing })
    }

    /// Maps alpha's RAM as in [`memory`], except for a pageblock in small units on the other controller.
    fn unit(&self, guest: usize, ipa: u64) -> Option<(u64, u64)> {
        if let Some(migration) = &self.migration {
            return migration.unit(guest, ipa);
        }
        let offset = ipa.checked_sub(0x4000_0000).filter(|_| guest == 0)?;
        Some(match ipa {
            0x4020_0000..0x4040_0000 => (0x9ff0_0000 + offset % (1 << 20), 1 << 12),
            0x4000_0000..0x5000_0000 => (0x4800_0000 + offset, 2 << 20),
            _ => (0x9000_0000 + offset - (256 << 20), 2 << 20),
        })
    }

    fn start(&self, guest: usize) -> Result<(), Reason> {
        self.set(guest, &[GuestState::Off, GuestState::Failed], GuestState::Starting)
    }

    fn stop(&self, guest: usize) -> Result<(), Reason> {
        self.set(guest, &[GuestState::Running, GuestState::Starting], GuestState::Off)
    }

    fn reset(&self, guest: usize) -> Result<(), Reason> {
        self.set(guest, &[GuestState::Running, GuestState::Failed], GuestState::Starting)
    }

    fn cpu_count(&self) -> usize {
        4
    }

    fn cpu(&self, cpu: usize) -> Option<Cpu<'_>> {
        (cpu < 4).then(|| Cpu {
            mpidr: cpu as u64,
            model: "Cortex-A72",
            is_online: cpu != 3,
            vcpu: (cpu < 2).then_some(("alpha", cpu)),
            is_vcpu_on: cpu < 2,
            mitigation: (cpu != 3).then(|| {
                // A Cortex-A72 r1p0, which says that it has CSV2, and one of before.
                let pfr0 = [1 << 56, 0][cpu % 2];
                let registers = mitigation::Registers { midr: 0x411f_d080, pfr0, ..Default::default() };
                mitigation::Choice::new(&registers, mitigation::Answers::NONE, mitigation::Policy::Auto)
            }),
        })
    }

    fn controller_count(&self) -> usize {
        2
    }

    fn controller(&self, controller: usize) -> Option<Controller<'_>> {
        let base = *[0x4000_0000, 0x8000_0000].get(controller)?;
        let name = ["mc0", "mc1"][controller];
        let Some(migration) = &self.migration else {
            return Some(Controller {
                name,
                ranges: heapless::Vec::from_slice(&[(base, 1 << 30)]).unwrap(),
                total_bytes: 1 << 30,
                guest_bytes: 512 << 20,
                own_bytes: 3 << 20,
                reserved_bytes: 0,
                free_bytes: 509 << 20,
                dmb_bytes: 256 << 20,
                used_bytes: 515 << 20,
                is_closed: controller == 1,
            });
        };
        let (memory, id) = (migration.memory, ControllerId::try_new(controller as u8)?);
        let totals = memory.controller_totals(id);
        let bytes = |frames: u64| frames * FRAME_SIZE;
        Some(Controller {
            name,
            ranges: heapless::Vec::from_slice(&[(base, bytes(totals.present()))]).unwrap(),
            total_bytes: bytes(totals.present()),
            guest_bytes: bytes(memory.resident(Owner::Guest(GuestId::default()), id)),
            own_bytes: bytes(memory.resident(Owner::Hypervisor, id)),
            reserved_bytes: bytes(totals.normal.reserved()),
            free_bytes: bytes(totals.free()),
            dmb_bytes: 0,
            used_bytes: bytes(totals.present() - totals.free() - totals.retired()),
            is_closed: memory.is_closed(id),
        })
    }

    fn console(&self, console: Console) -> Option<Status<'_>> {
        let name = match console.guest_index() {
            None => "monitor",
            Some(guest) => NAMES.get(guest)?,
        };
        Some(Status {
            name,
            is_front: self.front.get() == Some(console),
            kept: 1234,
            limit: self.limit.get(),
            lost_count: 56,
            input_lost_count: 0,
        })
    }

    fn show_console(&self, console: Console) {
        self.front.set(Some(console));
    }

    fn set_view(&self, view: View) {
        self.view.set(view);
    }

    fn set_screen(&self, is_shown: bool) {
        self.has_screen.set(is_shown);
    }

    fn limit_console(&self, _: Console, bytes: usize) {
        self.limit.set(bytes);
    }

    fn costs(&self) -> Result<heapless::Vec<Cost, 4>, Reason> {
        Ok([Cost { what: "trace event", picoseconds: 31_250 }].into_iter().collect())
    }

    fn is_tracing(&self) -> bool {
        self.is_tracing.get()
    }

    fn pause_tracing(&self, is_paused: bool) {
        self.is_tracing.set(!is_paused);
    }

    fn set_tracing(&self, is_on: bool) -> Result<(), Reason> {
        self.is_tracing.set(is_on);
        Ok(())
    }

    fn log(&self) -> &Ring {
        &self.log
    }

    fn memory(&self) -> Option<&Memory<'static>> {
        static MEMORY: OnceLock<Box<Memory<'static>>> = OnceLock::new();
        if let Some(pools) = &self.pools {
            return Some(pools.memory);
        }
        if let Some(migration) = &self.migration {
            return Some(migration.memory);
        }
        Some(MEMORY.get_or_init(memory))
    }

    fn migration(&self) -> Option<&dyn super::migration::Migration> {
        Some(self.migration.as_ref()?)
    }

    fn devices(&self) -> Option<&dyn super::devices::Devices> {
        Some(self.devices.as_ref()?)
    }

    fn claiming(&self) -> Option<&dyn super::claiming::Claiming> {
        Some(self.pools.as_ref()?)
    }

    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation {
        let Some(memory) = self.memory() else { return Translation::Unknown };
        let mapping = Some(Mapping { guest, ipa });
        let mut blocks = memory.ram().flat_map(|(range, _)| memory.occupants(range));
        let found = blocks.find(|block| block.mapping == mapping);
        found.map_or(Translation::Nowhere, |block| Translation::To(block.frame.pa()))
    }

    fn counters(&self, guest: usize, vcpu: usize) -> Option<&Counters> {
        self.counters.get(vcpu).filter(|_| guest == 0)
    }

    fn trace(&self, cpu: usize) -> Option<&trace::Ring> {
        self.traces.get(cpu)
    }
}

/// A console with all input typed in advance.
#[derive(Default)]
pub(super) struct Script {
    pub(super) input: VecDeque<u8>,
    pub(super) output: Vec<u8>,
    now_ns: u64,
}

impl Script {
    pub(super) fn typing(text: &[u8]) -> Self {
        Self { input: text.iter().copied().collect(), now_ns: 61_500_000_000, ..Self::default() }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.output.clone()).unwrap().replace("\r\n", "\n")
    }
}

impl MonitorIo for Script {
    fn read(&mut self, deadline_ns: Option<u64>) -> Option<u8> {
        match (self.input.front(), deadline_ns) {
            // NUL makes the operator wait.
            (Some(0), Some(deadline_ns)) => {
                self.input.pop_front();
                self.now_ns = self.now_ns.max(deadline_ns);
                None
            }
            // At the end of the input, Enter ends commands that wait.
            (None, _) => Some(b'\r'),
            (Some(_), _) => self.input.pop_front(),
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.input.front().copied()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.output.extend(bytes);
    }

    fn sleep(&mut self, until_ns: u64) {
        self.now_ns = self.now_ns.max(until_ns);
    }

    fn pause(&mut self) {}

    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }
}
