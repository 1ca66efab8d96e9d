//! PSCI 1.1 for guests (Arm DEN 0022).
//!
//! A call takes three steps. [`decode`] finds the call; its arguments stay [`Untrusted`]. [`answer`] checks them against the
//! guest ([`Platform`]) and the power states of its vCPUs ([`Power`]), and returns an [`Action`]: a status for the guest, or
//! work for EL2. The guest's vCPUs share [`Power`] without a lock:
//!
//! ```text
//! Off ──claim (CPU_ON, one caller wins)──▶ Claimed ──publish──▶ Pending ──take_start──▶ On ──turn_off──▶ Off
//! ```
//!
//! Only the caller that wins the claim writes the vCPU's entry point and context, and publishes them; the vCPU's own CPU takes
//! them. The guest sees both Claimed and Pending as ON_PENDING.
//!
//! CPU_SUSPEND waits for an interrupt, for power-down states too: PSCI allows a shallower state than the requested one.
//! PSCI_FEATURES reports calls that would need more (SYSTEM_SUSPEND, STAT_*, MEM_PROTECT…) as NOT_SUPPORTED.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use stage2::addr::Ipa;

use super::function_id::{self, FunctionId, SMCCC_VERSION};

/// Result of PSCI_VERSION: 1.1.
pub(crate) const VERSION: u32 = 0x1_0001;
/// Identifier of PSCI_VERSION.
pub(crate) const PSCI_VERSION: u32 = 0x8400_0000;

/// SUCCESS, the first of the return error codes.
pub(crate) const SUCCESS: i32 = 0;
/// The call is not implemented.
pub(crate) const NOT_SUPPORTED: i32 = function_id::NOT_SUPPORTED;
/// Invalid argument.
pub(crate) const INVALID_PARAMETERS: i32 = -2;
/// CPU_ON of a vCPU that is on.
pub(crate) const ALREADY_ON: i32 = -4;
/// CPU_ON of a vCPU that is being turned on.
pub(crate) const ON_PENDING: i32 = -5;
/// The entry point is not in the guest's RAM.
pub(crate) const INVALID_ADDRESS: i32 = -9;

/// AFFINITY_INFO: on, off, being turned on.
const AFFINITY_ON: i32 = 0;
const AFFINITY_OFF: i32 = 1;
const AFFINITY_ON_PENDING: i32 = 2;
/// MIGRATE_INFO_TYPE: no trusted OS that would have to migrate.
const MIGRATION_NOT_REQUIRED: i32 = 2;
/// The affinity fields of an MPIDR: Aff3 in bits 39 to 32, Aff2 to Aff0 in 23 to 0.
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;
/// The bits of CPU_SUSPEND's power_state that the original format defines.
const POWER_STATE_MASK: u32 = 0x0301_ffff;
/// power_state.StateType: power-down.
const POWER_DOWN: u32 = 1 << 16;

/// An unchecked value from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Untrusted(u64);

impl Untrusted {
    /// Returns the vCPU with this MPIDR, if the guest has one.
    fn vcpu(self, platform: &impl Platform) -> Option<usize> {
        if self.0 & !AFFINITY_MASK != 0 {
            return None;
        }
        (0..platform.vcpu_count()).find(|&vcpu| platform.mpidr(vcpu) & AFFINITY_MASK == self.0)
    }

    /// Returns the value as an entry point if it is the address of a word in the guest's RAM.
    fn entry(self, platform: &impl Platform) -> Option<Ipa> {
        let entry = Ipa::try_new(self.0)?;
        (entry.is_aligned(4) && platform.is_ram(entry)).then_some(entry)
    }
}

/// A PSCI call. The arguments of 32-bit calls are truncated to 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// PSCI_VERSION.
    Version,
    /// PSCI_FEATURES.
    Features(FunctionId),
    /// CPU_ON.
    CpuOn {
        /// MPIDR of the vCPU to turn on.
        target: Untrusted,
        /// Entry point.
        entry: Untrusted,
        /// Value of X0 at the entry point.
        context: u64,
    },
    /// CPU_OFF of the caller.
    CpuOff,
    /// CPU_SUSPEND of the caller.
    CpuSuspend {
        /// The power state, in the original format.
        state: u32,
        /// Entry point after power-down.
        entry: Untrusted,
    },
    /// AFFINITY_INFO.
    AffinityInfo {
        /// MPIDR; fields below `level` are ignored.
        target: Untrusted,
        /// Lowest affinity level that is compared.
        level: Untrusted,
    },
    /// MIGRATE_INFO_TYPE.
    MigrateInfoType,
    /// SYSTEM_OFF.
    SystemOff,
    /// SYSTEM_RESET.
    SystemReset,
    /// SYSTEM_RESET2.
    SystemReset2 {
        /// Kind of reset; 0 is SYSTEM_WARM_RESET.
        kind: u32,
    },
}

/// Decodes the call `id`. [`FunctionId::argument`] has truncated `arguments`. Returns `None` if Ballast's PSCI lacks the call.
pub(crate) fn decode(id: FunctionId, arguments: [u64; 3]) -> Option<Call> {
    let [first, second, third] = arguments;
    Some(match (id.function(), id.is_wide()) {
        _ if !is_psci(id) => return None,
        (0x00, false) => Call::Version,
        (0x01, _) => Call::CpuSuspend { state: first as u32, entry: Untrusted(second) },
        (0x02, false) => Call::CpuOff,
        (0x03, _) => Call::CpuOn { target: Untrusted(first), entry: Untrusted(second), context: third },
        (0x04, _) => Call::AffinityInfo { target: Untrusted(first), level: Untrusted(second) },
        (0x06, false) => Call::MigrateInfoType,
        (0x08, false) => Call::SystemOff,
        (0x09, false) => Call::SystemReset,
        (0x0a, false) => Call::Features(FunctionId::new(first as u32)),
        (0x12, _) => Call::SystemReset2 { kind: first as u32 },
        _ => return None,
    })
}

/// Returns true if `id` is in PSCI's range: 0x8400_0000 to 0x8400_001f, or their 64-bit forms.
fn is_psci(id: FunctionId) -> bool {
    id.get() & !(1 << 30) & !0x1f == PSCI_VERSION
}

/// The properties of a guest on which PSCI depends. They do not change while the guest runs.
pub(crate) trait Platform {
    /// Returns the number of the guest's vCPUs.
    fn vcpu_count(&self) -> usize;
    /// Returns the MPIDR_EL1 of a vCPU as the guest reads it.
    fn mpidr(&self, vcpu: usize) -> u64;
    /// Returns true if `ipa` is in the guest's RAM.
    fn is_ram(&self, ipa: Ipa) -> bool;
}

/// The work that a call leaves to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Return this status in X0 ([`function_id::status`]).
    Return(i32),
    /// Wake the CPU of `vcpu`, which then calls [`Power::take_start`]; return SUCCESS.
    TurnOn {
        /// Index of the vCPU.
        vcpu: usize,
    },
    /// Do not return to the caller, which is off (in [`Power`] too).
    TurnOff {
        /// True if no vCPU is on or being turned on, so that none can wake another.
        is_last: bool,
    },
    /// Wait for an interrupt as WFI does, then return SUCCESS.
    Suspend,
    /// Stop the guest and free its resources.
    PowerOff,
    /// Reset the guest.
    Reset,
}

/// Checks `call` by vCPU `caller` and updates `power`. Returns the work that is left to EL2.
pub(crate) fn answer<const N: usize>(
    call: Call,
    caller: usize,
    power: &Power<N>,
    platform: &impl Platform,
) -> Action {
    match call {
        Call::Version => Action::Return(VERSION as i32),
        Call::Features(id) => Action::Return(features(id)),
        Call::CpuOn { target, entry, context } => turn_on(target, entry, context, power, platform),
        Call::CpuOff => Action::TurnOff { is_last: power.turn_off(caller) },
        Call::CpuSuspend { state, entry } => suspend(state, entry, platform),
        Call::AffinityInfo { target, level } => Action::Return(affinity_info(target, level, power, platform)),
        Call::MigrateInfoType => Action::Return(MIGRATION_NOT_REQUIRED),
        Call::SystemOff => Action::PowerOff,
        Call::SystemReset | Call::SystemReset2 { kind: 0 } => Action::Reset,
        Call::SystemReset2 { .. } => Action::Return(INVALID_PARAMETERS),
    }
}

/// Answers PSCI_FEATURES: 0 for available calls, including SMCCC_VERSION. The flags of CPU_SUSPEND are 0 too (original
/// format, platform-coordinated).
fn features(id: FunctionId) -> i32 {
    if id == SMCCC_VERSION || decode(id, [0; 3]).is_some() { SUCCESS } else { NOT_SUPPORTED }
}

fn turn_on<const N: usize>(
    target: Untrusted,
    entry: Untrusted,
    context: u64,
    power: &Power<N>,
    platform: &impl Platform,
) -> Action {
    let Some(vcpu) = target.vcpu(platform) else { return Action::Return(INVALID_PARAMETERS) };
    let Some(entry) = entry.entry(platform) else { return Action::Return(INVALID_ADDRESS) };
    match power.turn_on(vcpu, Start { entry, context }) {
        Ok(()) => Action::TurnOn { vcpu },
        Err(status) => Action::Return(status),
    }
}

fn suspend(state: u32, entry: Untrusted, platform: &impl Platform) -> Action {
    if state & !POWER_STATE_MASK != 0 {
        return Action::Return(INVALID_PARAMETERS);
    }
    if state & POWER_DOWN != 0 && entry.entry(platform).is_none() {
        return Action::Return(INVALID_ADDRESS);
    }
    Action::Suspend
}

fn affinity_info<const N: usize>(
    target: Untrusted,
    level: Untrusted,
    power: &Power<N>,
    platform: &impl Platform,
) -> i32 {
    let ignored = match level.0 {
        0 => 0,
        1 => 0xff,
        2 => 0xffff,
        3 => 0xff_ffff,
        _ => return INVALID_PARAMETERS,
    };
    let mask = AFFINITY_MASK & !ignored;
    if target.0 & !AFFINITY_MASK != 0 {
        return INVALID_PARAMETERS;
    }
    let mut found = None;
    for vcpu in 0..platform.vcpu_count() {
        if (platform.mpidr(vcpu) ^ target.0) & mask != 0 {
            continue;
        }
        let state = match power.state(vcpu) {
            State::On => return AFFINITY_ON,
            State::Pending | State::Claimed => AFFINITY_ON_PENDING,
            State::Off => AFFINITY_OFF,
        };
        // A vCPU that is being turned on takes precedence over those that are off.
        found = found.max(Some(state));
    }
    found.unwrap_or(INVALID_PARAMETERS)
}

/// Power state of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Off.
    Off = 0,
    /// A caller of CPU_ON has won the vCPU and writes its start.
    Claimed = 1,
    /// The start is published; the vCPU's CPU has not taken it yet.
    Pending = 2,
    /// On.
    On = 3,
}

/// The start of a vCPU, with a checked entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The first instruction, a word of the guest's RAM.
    pub(crate) entry: Ipa,
    /// X0.
    pub(crate) context: u64,
}

#[derive(Debug)]
struct Slot {
    state: AtomicU8,
    entry: AtomicU64,
    context: AtomicU64,
}

/// The power states of a guest's vCPUs, shared by its CPUs.
#[derive(Debug)]
pub(crate) struct Power<const N: usize> {
    slots: [Slot; N],
}

impl<const N: usize> Default for Power<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Power<N> {
    /// Creates the states with all vCPUs off.
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const {
                Slot {
                    state: AtomicU8::new(State::Off as u8),
                    entry: AtomicU64::new(0),
                    context: AtomicU64::new(0),
                }
            }; N],
        }
    }

    /// Returns the state of a vCPU. A vCPU that does not exist is off.
    pub(crate) fn state(&self, vcpu: usize) -> State {
        match self.slots.get(vcpu).map(|slot| slot.state.load(Ordering::Acquire)) {
            Some(1) => State::Claimed,
            Some(2) => State::Pending,
            Some(3) => State::On,
            _ => State::Off,
        }
    }

    /// Publishes the start of `vcpu`, for CPU_ON and for the first vCPU of a guest. The caller then wakes the vCPU's CPU.
    ///
    /// # Errors
    /// [`ALREADY_ON`], [`ON_PENDING`], and [`INVALID_PARAMETERS`] for a vCPU that does not exist.
    pub(crate) fn turn_on(&self, vcpu: usize, start: Start) -> Result<(), i32> {
        let slot = self.slots.get(vcpu).ok_or(INVALID_PARAMETERS)?;
        let (off, claimed) = (State::Off as u8, State::Claimed as u8);
        match slot.state.compare_exchange(off, claimed, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(state) if state == State::On as u8 => return Err(ALREADY_ON),
            Err(_) => return Err(ON_PENDING),
        }
        slot.entry.store(start.entry.get(), Ordering::Relaxed);
        slot.context.store(start.context, Ordering::Relaxed);
        slot.state.store(State::Pending as u8, Ordering::Release);
        Ok(())
    }

    /// Takes the pending start of `vcpu`, if any, and turns the vCPU on. Called on the vCPU's own CPU.
    pub(crate) fn take_start(&self, vcpu: usize) -> Option<Start> {
        let slot = self.slots.get(vcpu)?;
        if slot.state.load(Ordering::Acquire) != State::Pending as u8 {
            return None;
        }
        let start = Start {
            entry: Ipa::new_truncate(slot.entry.load(Ordering::Relaxed)),
            context: slot.context.load(Ordering::Relaxed),
        };
        slot.state.store(State::On as u8, Ordering::Release);
        Some(start)
    }

    /// Turns `vcpu` off, on its own CPU. Returns true if no vCPU is on or being turned on.
    pub(crate) fn turn_off(&self, vcpu: usize) -> bool {
        if let Some(slot) = self.slots.get(vcpu) {
            // Sequentially consistent: if two vCPUs turn off at once, at least one of them sees the other one off.
            slot.state.store(State::Off as u8, Ordering::SeqCst);
        }
        self.slots.iter().all(|slot| slot.state.load(Ordering::SeqCst) == State::Off as u8)
    }

    /// Turns all vCPUs off. Only called while none of them runs.
    pub(crate) fn reset(&self) {
        for slot in &self.slots {
            slot.state.store(State::Off as u8, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
