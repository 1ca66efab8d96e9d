//! Guests: what one is made of, its vCPUs, its life.
//!
//! A guest is described once, at boot (`Guest::new`), and then goes through *phases*:
//!
//! ```text
//! Stopped → Starting → Running → Stopping → Stopped
//!                         ↑↓
//!                      Resetting
//! ```
//!
//! The operator may stop a guest that is starting or resetting, too.
//!
//! Each vCPU owns a CPU. `running` has a bit for each vCPU that is in the guest. Whoever ends a phase sets the next
//! one and kicks the guest's CPUs; each leaves the guest and clears its bit. The *home* CPU, that of vCPU 0, does the
//! work between phases (allocate, load, free) in its idle loop, once `running` is zero, so that a guest's starting and
//! stopping takes time from nobody else. A vCPU that starts sets its bit first and looks at the phase then; who
//! changes the phase looks at the bits afterwards: one of the two sees the other (`SeqCst`).
//!
//! Lock order: those of migration (`stage2::migrate`), of which a guest's space is one, then the locks of
//! `stage2::phys::alloc`. `uart`, then the console's multiplexer; `uart`, then the vGIC's. The vGIC's, `placements` and
//! `reason` are leaves; the phase changes to Stopping under `reason`. None is held when a CPU leaves the guest.

pub(crate) mod claims;
#[allow(unsafe_code)]
pub(crate) mod cpu;
pub(crate) mod interrupts;
pub(crate) mod life;
pub(crate) mod load;
pub(crate) mod migration;
pub(crate) mod refused;
pub(crate) mod seed;
pub(crate) mod setup;
#[allow(unsafe_code)]
pub(crate) mod space;
pub(crate) mod uart;

pub(crate) use life::serve;
pub(crate) use life::{leave, reset_current, stop_current, turn_off};

use crate::arch::cpu::Request;
use crate::device::psci::{Platform, Power};
use crate::device::shared_uart::SharedUart;
use crate::device::vgic::{MAX_VCPUS, Vgic};
use crate::serial;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use cpu::PerCpu;
use space::Space;
use spin::{Mutex, Once};
use stage2::addr::{Ipa, MAX_ORDER, PAGEBLOCK_ORDER};
use stage2::claim::ClaimId;
use stage2::migrate::{Mobility, Region};
use stage2::owner::GuestId;
use stage2::phys::alloc::MemoryKind;
use stage2::phys::placement::Placement;
use stage2::table::Level;

pub(crate) use load::Plan;
pub(crate) use setup::tell;
pub(crate) use setup::{read, set_up};
pub(crate) use stage2::owner::MAX_GUESTS;

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Has nothing, runs nowhere.
    Stopped = 0,
    /// Its home CPU gets it memory and loads it.
    Starting = 1,
    /// Its vCPUs run.
    Running = 2,
    /// Its vCPUs leave; then its memory is freed.
    Stopping = 3,
    /// Its vCPUs leave; then it is loaded afresh.
    Resetting = 4,
}

impl Phase {
    const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Starting,
            2 => Self::Running,
            3 => Self::Stopping,
            4 => Self::Resetting,
            _ => Self::Stopped,
        }
    }
}

/// Why a guest does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// It has not been started.
    NotStarted,
    /// It called SYSTEM_OFF.
    PowerOff,
    /// The operator stopped it.
    Operator,
    /// Each of its vCPUs turned itself off.
    AllOff,
    /// It could not be started, for this reason.
    StartFailed(String),
    /// It has no exception vector where one would be fetched.
    NoVector {
        /// The virtual address.
        vector: u64,
    },
    /// Hardware reported an SError while it ran.
    SystemError,
    /// A unit of its memory was left in motion: a bug of Ballast's.
    UnitStuck {
        /// Where the guest sees it.
        ipa: u64,
    },
}

impl StopReason {
    /// Whether something went wrong.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::StartFailed(_) | Self::NoVector { .. } | Self::SystemError | Self::UnitStuck { .. }
        )
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => f.write_str("not started"),
            Self::PowerOff => f.write_str("powered off"),
            Self::Operator => f.write_str("stopped by the operator"),
            Self::AllOff => f.write_str("all vCPUs turned themselves off"),
            Self::StartFailed(why) => write!(f, "could not start: {why}"),
            Self::NoVector { vector } => {
                write!(f, "took an exception, but its vector at {vector:#x} cannot be fetched")
            }
            Self::UnitStuck { ipa } => {
                write!(f, "its memory at {ipa:#x} was left in motion: a bug of Ballast's")
            }
            Self::SystemError => f.write_str("hardware reported an SError while it ran"),
        }
    }
}

/// A virtual CPU: a guest's, and the physical one that it owns.
pub(crate) struct Vcpu {
    guest: Once<&'static Guest>,
    index: usize,
    cpu: usize,
}

impl Vcpu {
    /// The guest that it belongs to.
    #[inline(always)]
    pub(crate) fn guest(&self) -> &'static Guest {
        match self.guest.get() {
            Some(guest) => guest,
            // Set by `define` before any CPU learns of the vCPU.
            None => unreachable!(),
        }
    }

    /// Its number in the guest, from 0.
    #[inline(always)]
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The CPU that it owns.
    pub(crate) fn cpu(&self) -> &'static PerCpu {
        cpu::get(self.cpu).unwrap_or_else(|| cpu::current())
    }
}

/// A guest.
pub(crate) struct Guest {
    id: GuestId,
    plan: Plan,
    vcpus: heapless::Vec<Vcpu, MAX_VCPUS>,
    vgic: Vgic,
    power: Power<MAX_VCPUS>,
    uart: SharedUart,
    pub(crate) space: Space,
    /// By piece of its RAM: where it shall lie.
    pub(crate) placements: Mutex<Vec<Placement>>,
    /// The vCPUs whose caches are known to be on, a bit each (`migration`).
    caches_on: AtomicU32,
    phase: AtomicU8,
    running: AtomicU32,
    reason: Mutex<StopReason>,
    /// The last claim that it waited for since it began to start.
    start_claim: Mutex<Option<ClaimId>>,
    /// What the vCPUs' CNTVOFF_EL2 holds; set when the guest starts.
    pub(crate) counter_offset: AtomicU64,
    start_count: AtomicU32,
}

static GUESTS: [Once<&'static Guest>; MAX_GUESTS] = [const { Once::new() }; MAX_GUESTS];

/// All guests of the configuration.
pub(crate) fn all() -> impl Iterator<Item = &'static Guest> {
    GUESTS.iter().filter_map(|guest| guest.get().copied())
}

/// The guest with number `index`.
pub(crate) fn get(index: usize) -> Option<&'static Guest> {
    GUESTS.get(index)?.get().copied()
}

/// The guest called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Guest> {
    all().find(|guest| guest.name() == name)
}

/// Makes a guest of `plan` whose vCPUs own the CPUs `cpus`, none of which belongs to another guest, and tells
/// the CPUs.
///
/// # Errors
/// There are [`MAX_GUESTS`] already, or there is no memory for its tables.
pub(crate) fn define(
    index: usize,
    id: GuestId,
    plan: Plan,
    cpus: &[usize],
) -> Result<&'static Guest, String> {
    let slot = GUESTS.get(index).ok_or("there are too many guests")?;
    let space = Space::new(id)?;
    let placements = plan.pieces().iter().map(|piece| piece.placement).collect();
    let vcpus = cpus.iter().take(MAX_VCPUS).enumerate();
    let guest: &'static Guest = Box::leak(Box::new(Guest {
        id,
        plan,
        vcpus: vcpus.map(|(index, &cpu)| Vcpu { guest: Once::new(), index, cpu }).collect(),
        vgic: Vgic::new(cpus.len(), crate::arch::timer::links()),
        power: Power::new(),
        uart: SharedUart::new(),
        space,
        placements: Mutex::new(placements),
        caches_on: AtomicU32::new(0),
        phase: AtomicU8::new(Phase::Stopped as u8),
        running: AtomicU32::new(0),
        reason: Mutex::new(StopReason::NotStarted),
        start_claim: Mutex::new(None),
        counter_offset: AtomicU64::new(0),
        start_count: AtomicU32::new(0),
    }));
    for vcpu in &guest.vcpus {
        vcpu.guest.call_once(|| guest);
        vcpu.cpu().assign(vcpu);
    }
    serial::add_guest(index, guest.name());
    Ok(*slot.call_once(|| guest))
}

/// Says, for who looks for a fault, what a vCPU does or asks for in vain.
#[cold]
#[inline(never)]
pub(crate) fn note(vcpu: &Vcpu, [(what, value), (more, other)]: [(&str, u64); 2]) {
    let (name, index) = (vcpu.guest().name(), vcpu.index());
    crate::observe::log::debug!("{}: vCPU {}: {} {:#x}, {} {:#x}", name, index, what, value, more, other);
}

impl Guest {
    /// Its name in the configuration.
    pub(crate) fn name(&self) -> &'static str {
        self.plan.name()
    }

    /// Its number.
    pub(crate) fn id(&self) -> GuestId {
        self.id
    }

    /// What it is made from.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its vCPUs.
    pub(crate) fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// How many vCPUs it has.
    #[inline(always)]
    pub(crate) fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// Which vCPUs are in the guest, a bit each.
    pub(crate) fn running(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    /// Where it is in its life.
    pub(crate) fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::SeqCst))
    }

    /// Why it does not run, if it does not.
    pub(crate) fn reason(&self) -> StopReason {
        self.reason.lock().clone()
    }

    /// How often it has been started, resets included.
    pub(crate) fn start_count(&self) -> u32 {
        self.start_count.load(Ordering::Relaxed)
    }

    /// Its interrupt controller.
    #[inline(always)]
    pub(crate) fn vgic(&self) -> &Vgic {
        &self.vgic
    }

    /// Which of its vCPUs are on.
    pub(crate) fn power(&self) -> &Power<MAX_VCPUS> {
        &self.power
    }

    /// Its memory: pages of stage 2 tables, and bytes of RAM mapped, 0 while it has none.
    pub(crate) fn memory(&self) -> (usize, u64) {
        (self.space.table_count(), self.space.size())
    }

    /// Whether its vCPUs have to leave.
    #[inline(always)]
    pub(crate) fn is_leaving(&self) -> bool {
        self.phase.load(Ordering::SeqCst) != Phase::Running as u8
    }

    /// The region of its RAM that holds `ipa`, or the next one above, as migration sees it.
    fn region(&self, ipa: Ipa) -> Option<Region> {
        let pieces = self.plan.pieces().iter().enumerate();
        let (index, piece) =
            pieces.into_iter().find(|(_, piece)| ipa.get() < piece.ipa.get() + piece.size)?;
        Some(Region {
            ipa: piece.ipa,
            size: piece.size,
            mobility: match piece.kind {
                _ if piece.is_in_place => Mobility::PinnedInPlace,
                _ if self.plan.migration().is_opted_out => Mobility::OptedOut,
                MemoryKind::Unmovable => Mobility::PinnedInPlace,
                MemoryKind::Movable => Mobility::Movable,
            },
            placement: self.placement(index).unwrap_or(piece.placement),
            largest: match piece.order {
                MAX_ORDER => Level::L1,
                PAGEBLOCK_ORDER => Level::L2,
                _ => Level::L3,
            },
        })
    }

    /// Where piece `index` of its RAM shall lie.
    pub(crate) fn placement(&self, index: usize) -> Option<Placement> {
        self.placements.lock().get(index).copied()
    }

    /// Makes the CPU of vCPU `index` look whether the vCPU has been turned on.
    pub(crate) fn wake(&self, index: usize) {
        if let Some(vcpu) = self.vcpus.get(index) {
            vcpu.cpu().request(Request::Look);
        }
    }
}

impl Platform for &'static Guest {
    fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    fn mpidr(&self, vcpu: usize) -> u64 {
        vcpu as u64
    }

    fn is_ram(&self, ipa: Ipa) -> bool {
        self.plan.is_ram(ipa)
    }
}
