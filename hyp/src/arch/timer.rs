//! The generic timer: INTIDs of the guests' and EL2's timers, EL2's deadlines, and time.

use super::cpu;
pub(crate) use super::cpu::Purpose;
use super::gic::redistributor::Priority;
use crate::board::{Gic, Timer};
use crate::device::vgic::HardwareLink;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, CNTVOFF_EL2, Readable, Writeable};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use stage2::scale::scaled;

/// INTIDs of the virtual and the physical timer in a guest's device tree.
const GUEST_VIRTUAL: u32 = 27;
const GUEST_PHYSICAL: u32 = 30;

static VIRTUAL: AtomicU32 = AtomicU32::new(u32::MAX);
static PHYSICAL: AtomicU32 = AtomicU32::new(u32::MAX);
static OWN: AtomicU32 = AtomicU32::new(u32::MAX);
static MAINTENANCE: AtomicU32 = AtomicU32::new(u32::MAX);

/// Takes INTIDs and frequency from the host's tree. Returns false if neither the tree nor CNTFRQ_EL0 gives a frequency.
#[must_use]
pub(crate) fn init(timer: &Timer, gic: &Gic) -> bool {
    let Some(frequency) = timer.frequency(CNTFRQ_EL0.get()) else { return false };
    FREQUENCY.store(frequency, Ordering::Relaxed);
    FACTOR.store(((1_000_000_000 << 32) + frequency / 2) / frequency, Ordering::Relaxed);
    VIRTUAL.store(timer.virtual_timer.intid, Ordering::Relaxed);
    PHYSICAL.store(timer.physical.intid, Ordering::Relaxed);
    OWN.store(timer.hypervisor.intid, Ordering::Relaxed);
    MAINTENANCE.store(gic.maintenance.intid, Ordering::Relaxed);
    true
}

/// Enables EL2's own private interrupts on this CPU.
pub(crate) fn init_cpu() {
    CNTHP_CTL_EL2.set(0);
    if let Some(redistributor) = cpu::current().redistributor() {
        redistributor.enable_own(OWN.load(Ordering::Relaxed), Priority::Host);
        redistributor.enable_own(MAINTENANCE.load(Ordering::Relaxed), Priority::Service);
    }
}

/// Returns the links of a guest's timer interrupts to the host's.
pub(crate) fn links() -> [HardwareLink; 2] {
    [
        HardwareLink { virtual_intid: GUEST_VIRTUAL, physical_intid: VIRTUAL.load(Ordering::Relaxed) },
        HardwareLink { virtual_intid: GUEST_PHYSICAL, physical_intid: PHYSICAL.load(Ordering::Relaxed) },
    ]
}

/// Returns true if `intid` is a timer that guests use directly.
pub(crate) fn is_guest_timer(intid: u32) -> bool {
    intid == VIRTUAL.load(Ordering::Relaxed) || intid == PHYSICAL.load(Ordering::Relaxed)
}

pub(crate) fn is_maintenance(intid: u32) -> bool {
    intid == MAINTENANCE.load(Ordering::Relaxed)
}

pub(crate) fn is_own_timer(intid: u32) -> bool {
    intid == OWN.load(Ordering::Relaxed)
}

/// Returns the physical count.
pub(crate) fn now() -> u64 {
    super::sysreg::instruction!("isb");
    CNTPCT_EL0.get()
}

/// A physical count that is never reached.
pub(crate) const NEVER: u64 = u64::MAX;

/// Returns the physical count at which the virtual count of the vCPU on this CPU reaches `virtual_count`; [`NEVER`] if it
/// does not.
pub(crate) fn physical(virtual_count: u64) -> u64 {
    // CNTVOFF_EL2 is a past count, so the virtual count has not wrapped (Arm ARM, CNTVOFF_EL2).
    virtual_count.saturating_add(CNTVOFF_EL2.get())
}

/// Returns the physical count without ordering the read after earlier instructions. For statistics.
#[inline(always)]
pub(crate) fn now_early() -> u64 {
    CNTPCT_EL0.get()
}

/// Frequency of the count in Hz; 1 before [`init`].
static FREQUENCY: AtomicU64 = AtomicU64::new(1);

/// Returns the frequency of the count in Hz.
pub(crate) fn frequency() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}

/// Returns the physical count in nanoseconds.
pub(crate) fn nanoseconds() -> u64 {
    to_nanoseconds(now())
}

/// Nanoseconds of a tick, times 2^32; 0 before [`init`].
static FACTOR: AtomicU64 = AtomicU64::new(0);

/// Converts ticks to nanoseconds by a multiplication, with an error below 10^-9 at any frequency.
#[inline]
pub(crate) fn to_nanoseconds(ticks: u64) -> u64 {
    ((u128::from(ticks) * u128::from(FACTOR.load(Ordering::Relaxed))) >> 32) as u64
}

/// Returns the physical count at time `ns` of [`nanoseconds`].
pub(crate) fn count_at(ns: u64) -> u64 {
    scaled(ns, frequency(), 1_000_000_000)
}

/// Converts microseconds to ticks.
pub(crate) fn ticks(microseconds: u64) -> u64 {
    scaled(microseconds, frequency(), 1_000_000)
}

/// Sets the count at which EL2's own timer interrupts this CPU for `purpose`; 0: never.
pub(crate) fn arm(purpose: Purpose, deadline: u64) {
    let cpu = cpu::current();
    cpu.deadlines[purpose as usize].set(deadline);
    program(cpu);
}

/// Returns true if a deadline is set for `purpose`.
pub(crate) fn is_armed(purpose: Purpose) -> bool {
    cpu::current().deadlines[purpose as usize].get() != 0
}

/// Handles EL2's own timer interrupt: clears deadlines that have passed and programs the next. The users of the timer look
/// at the clock themselves.
pub(crate) fn expired() {
    let (cpu, now) = (cpu::current(), now());
    cpu.deadlines.iter().filter(|deadline| deadline.get() <= now).for_each(|deadline| deadline.set(0));
    program(cpu);
}

fn program(cpu: &cpu::Core) {
    match cpu.deadlines.iter().map(core::cell::Cell::get).filter(|deadline| *deadline != 0).min() {
        Some(deadline) => {
            super::sysreg::write!(timer "cnthp_cval_el2", deadline);
            CNTHP_CTL_EL2.set(1);
        }
        None => CNTHP_CTL_EL2.set(0),
    }
}

/// Returns the guests' timers as a mask of private INTIDs.
pub(crate) fn guest_mask() -> u32 {
    1 << (VIRTUAL.load(Ordering::Relaxed) & 31) | 1 << (PHYSICAL.load(Ordering::Relaxed) & 31)
}
