//! Guests: their vCPUs, memory and devices, and their life.
//!
//! A guest is defined once, at boot ([`define`]), and then goes through *phases*:
//!
//! ```text
//! Stopped → Starting → Running → Stopping → Stopped
//!                         ↑↓
//!                      Resetting
//! ```
//!
//! The operator may also stop a guest that is starting or resetting.
//!
//! # Changes of phase
//! Each vCPU has a CPU of its own. `running` has a bit for each vCPU that executes the guest.
//! 1. A CPU sets the next phase and kicks the guest's CPUs.
//! 2. Each of these CPUs leaves the guest and clears its bit in `running`.
//! 3. When `running` is zero, the *home* CPU (that of vCPU 0) allocates, loads or frees the guest's memory, in its idle
//!    loop. Starting or stopping a guest therefore takes no time from other guests.
//!
//! A vCPU that starts sets its bit first, and then reads the phase. A CPU that changes the phase reads the bits after the
//! change. All these accesses are `SeqCst`, so at least one of the two CPUs sees the other.
//!
//! # Locks
//! - The locks of migration (`stage2::migrate`), which include a guest's space → those of `stage2::phys::alloc`.
//! - `uart` → the console's multiplexer; `uart` → the vGIC's.
//! - The vGIC's, `placements` and `reason` are leaves. The phase changes to Stopping under `reason`.
//!
//! No lock is held when a CPU leaves the guest.

pub(crate) mod claims;
#[allow(unsafe_code)]
pub(crate) mod cpu;
pub(crate) mod devices;
pub(crate) mod interrupts;
pub(crate) mod life;
pub(crate) mod load;
pub(crate) mod migration;
pub(crate) mod refused;
pub(crate) mod seed;
pub(crate) mod setup;
#[allow(unsafe_code)]
pub(crate) mod space;
#[allow(unsafe_code)]
mod tables;
pub(crate) mod time;
pub(crate) mod uart;
mod units;

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
use devices::Devices;
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
pub(crate) use units::waited_for;

/// Phase of a guest's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// The guest has no memory and does not run.
    Stopped = 0,
    /// The home CPU allocates memory and loads the images.
    Starting = 1,
    /// The vCPUs run.
    Running = 2,
    /// The vCPUs leave; then the memory is freed.
    Stopping = 3,
    /// The vCPUs leave; then the images are loaded again.
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

/// Reason why a guest does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The guest has not been started.
    NotStarted,
    /// The guest called SYSTEM_OFF.
    PowerOff,
    /// The operator stopped the guest.
    Operator,
    /// Every vCPU turned itself off.
    AllOff,
    /// The guest could not be started, for this reason.
    StartFailed(String),
    /// The guest's vector for an exception cannot be fetched.
    NoVector {
        /// Virtual address of the vector.
        vector: u64,
    },
    /// Hardware reported an SError while the guest ran.
    SystemError,
    /// A unit of the guest's memory was left in motion, a bug of Ballast.
    UnitStuck {
        /// IPA of the unit.
        ipa: u64,
    },
}

impl StopReason {
    /// Returns true if the guest stopped because of an error.
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
                write!(f, "bug in Ballast: its memory at {ipa:#x} was left in motion")
            }
            Self::SystemError => f.write_str("hardware reported an SError while it ran"),
        }
    }
}

/// A virtual CPU of a guest, and the physical CPU that it owns.
pub(crate) struct Vcpu {
    guest: Once<&'static Guest>,
    index: usize,
    cpu: usize,
}

impl Vcpu {
    /// Returns the guest that the vCPU belongs to.
    #[inline(always)]
    pub(crate) fn guest(&self) -> &'static Guest {
        match self.guest.get() {
            Some(guest) => guest,
            // `define` sets it before any CPU learns of the vCPU.
            None => unreachable!(),
        }
    }

    /// Returns the vCPU's number in the guest, from 0.
    #[inline(always)]
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Returns the CPU that the vCPU owns.
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
    devices: Devices,
    pub(crate) space: Space,
    /// Placement of each piece of RAM.
    pub(crate) placements: Mutex<Vec<Placement>>,
    /// vCPUs whose caches are known to be on, a bit each (`migration`).
    caches_on: AtomicU32,
    phase: AtomicU8,
    running: AtomicU32,
    reason: Mutex<StopReason>,
    /// The last claim that the guest waited for since it began to start.
    start_claim: Mutex<Option<ClaimId>>,
    /// CNTVOFF_EL2 of the vCPUs; set when the guest starts.
    pub(crate) counter_offset: AtomicU64,
    start_count: AtomicU32,
}

static GUESTS: [Once<&'static Guest>; MAX_GUESTS] = [const { Once::new() }; MAX_GUESTS];

/// Returns all guests of the configuration.
pub(crate) fn all() -> impl Iterator<Item = &'static Guest> {
    GUESTS.iter().filter_map(|guest| guest.get().copied())
}

/// Returns the guest with number `index`.
pub(crate) fn get(index: usize) -> Option<&'static Guest> {
    GUESTS.get(index)?.get().copied()
}

/// Returns the guest with this name.
pub(crate) fn find(name: &str) -> Option<&'static Guest> {
    all().find(|guest| guest.name() == name)
}

/// Defines a guest by `plan`, and assigns the CPUs `cpus` to its vCPUs. No other guest owns these CPUs.
///
/// # Errors
/// There are [`MAX_GUESTS`] already, or there is no memory for the guest's tables.
pub(crate) fn define(
    index: usize,
    id: GuestId,
    plan: Plan,
    devices: Devices,
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
        devices,
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
    guest.set_lines(guest.devices.lines());
    serial::add_guest(index, guest.name());
    Ok(*slot.call_once(|| guest))
}

/// Logs an unsupported request of a vCPU, or a change of its state, at debug level.
#[cold]
#[inline(never)]
pub(crate) fn note(vcpu: &Vcpu, [(what, value), (more, other)]: [(&str, u64); 2]) {
    let (name, index) = (vcpu.guest().name(), vcpu.index());
    crate::observe::log::debug!("{}: vCPU {}: {} {:#x}, {} {:#x}", name, index, what, value, more, other);
}

impl Guest {
    /// Returns the guest's name in the configuration.
    pub(crate) fn name(&self) -> &'static str {
        self.plan.name()
    }

    /// Returns the guest's number.
    pub(crate) fn id(&self) -> GuestId {
        self.id
    }

    /// Returns the guest's plan.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the vCPUs.
    pub(crate) fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Returns the number of vCPUs.
    #[inline(always)]
    pub(crate) fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// Returns the vCPUs that are in the guest, a bit each.
    pub(crate) fn running(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    /// Returns the guest's phase.
    pub(crate) fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::SeqCst))
    }

    /// Returns the reason why the guest does not run, if it does not.
    pub(crate) fn reason(&self) -> StopReason {
        self.reason.lock().clone()
    }

    /// Returns the number of starts, resets included.
    pub(crate) fn start_count(&self) -> u32 {
        self.start_count.load(Ordering::Relaxed)
    }

    /// Returns the guest's interrupt controller.
    #[inline(always)]
    pub(crate) fn vgic(&self) -> &Vgic {
        &self.vgic
    }

    /// Returns the guest's devices.
    #[inline(always)]
    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Returns the power states of the vCPUs.
    pub(crate) fn power(&self) -> &Power<MAX_VCPUS> {
        &self.power
    }

    /// Returns the number of stage 2 tables, and the bytes of mapped RAM, 0 while there is none.
    pub(crate) fn memory(&self) -> (usize, u64) {
        (self.space.table_count(), self.space.size())
    }

    /// Returns true if the vCPUs have to leave.
    #[inline(always)]
    pub(crate) fn is_leaving(&self) -> bool {
        self.phase.load(Ordering::SeqCst) != Phase::Running as u8
    }

    /// Returns the region of RAM that holds `ipa`, or the next one above, for migration.
    fn region(&self, ipa: Ipa) -> Option<Region> {
        let pieces = self.plan.pieces().iter().enumerate();
        let (index, piece) =
            pieces.into_iter().find(|(_, piece)| ipa.get() < piece.ipa.get() + piece.size)?;
        Some(Region {
            ipa: piece.ipa,
            size: piece.size,
            mobility: match piece.kind {
                _ if piece.is_dma_window => Mobility::DmaWindow,
                _ if piece.backing.is_some() => Mobility::PinnedInPlace,
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

    /// Returns the placement of piece `index` of RAM.
    pub(crate) fn placement(&self, index: usize) -> Option<Placement> {
        self.placements.lock().get(index).copied()
    }

    /// Makes the CPU of vCPU `index` check whether the vCPU has been turned on.
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
