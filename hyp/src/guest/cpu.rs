//! The guests' part of a CPU's data: the vCPU that owns the CPU, and the data of the interrupts' fast path.
//!
//! Each vCPU owns a CPU, so a CPU either runs that vCPU or idles at EL2.

use super::Vcpu;
use crate::arch::cpu::{self as arch, Core, MAX_CPUS};
use crate::device::vgic::Local;
use crate::doorbell::Poller;
use aarch64_cpu::registers::{Readable, TPIDR_EL2};
use core::cell::Cell;
use core::mem::offset_of;
use core::ops::Deref;
use spin::Once;

/// One CPU. Only the CPU itself touches the cells.
#[repr(C)]
pub(crate) struct PerCpu {
    core: Core,
    /// The vCPU that runs here now.
    vcpu: Cell<Option<&'static Vcpu>>,
    /// The element of [`Core::sgi_targets`] that is this CPU's.
    pub(crate) self_target: Cell<u64>,
    /// The vCPU's own bit in a target list.
    pub(crate) self_bit: Cell<u64>,
    /// The fast path of interrupts.
    pub(crate) local: Local,
    /// The vCPU that owns this CPU.
    assigned: Once<&'static Vcpu>,
    /// Polling state of migration's doorbell.
    pub(crate) poller: Poller,
}

const _: () = assert!(offset_of!(PerCpu, core) == 0);

// SAFETY: the cells are touched by the CPU itself only.
unsafe impl Sync for PerCpu {}

/// The CPUs' data, the last part of the image that stays. With fewer CPUs the rest is given back, together with the
/// memory that only boot needs, which follows.
#[unsafe(link_section = ".bss.zcpus")]
static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

impl Deref for PerCpu {
    type Target = Core;

    #[inline(always)]
    fn deref(&self) -> &Core {
        &self.core
    }
}

impl PerCpu {
    const fn new() -> Self {
        Self {
            core: Core::new(),
            vcpu: Cell::new(None),
            self_target: Cell::new(0),
            self_bit: Cell::new(0),
            local: Local::new(),
            assigned: Once::new(),
            poller: Poller::new(),
        }
    }

    /// Returns the vCPU that runs here.
    #[inline(always)]
    pub(crate) fn vcpu(&self) -> Option<&'static Vcpu> {
        self.vcpu.get()
    }

    /// Returns the vCPU that owns this CPU, running or not.
    pub(crate) fn assigned(&self) -> Option<&'static Vcpu> {
        self.assigned.get().copied()
    }

    /// Makes `vcpu` the CPU's owner, for good. Does nothing if there is an owner already.
    pub(crate) fn assign(&self, vcpu: &'static Vcpu) {
        self.assigned.call_once(|| vcpu);
    }

    /// Sets the vCPU that runs here.
    pub(crate) fn set_vcpu(&self, vcpu: Option<&'static Vcpu>) {
        self.vcpu.set(vcpu);
        self.set_vcpu_numbers(vcpu.map(|vcpu| (vcpu.guest().id().index(), vcpu.index())));
    }
}

/// Returns CPU `index`, one of [`arch::count`].
pub(crate) fn get(index: usize) -> Option<&'static PerCpu> {
    CPUS[..arch::count()].get(index)
}

/// Returns all CPUs.
pub(crate) fn all() -> impl Iterator<Item = &'static PerCpu> + Clone {
    CPUS[..arch::count()].iter()
}

/// Returns the address at which the data of the first `count` CPUs ends.
pub(crate) fn end_of(count: usize) -> usize {
    CPUS[..count.min(MAX_CPUS)].as_ptr_range().end.addr()
}

/// Makes this CPU number `index`.
pub(crate) fn install(index: usize) {
    let cpu: *const PerCpu = &raw const CPUS[index];
    // SAFETY: the first field of a static; each CPU starts with an index of its own.
    unsafe { arch::install(cpu.cast()) };
}

/// Returns the CPU that this runs on.
#[inline(always)]
pub(crate) fn current() -> &'static PerCpu {
    // SAFETY: TPIDR_EL2 holds the address of an element of CPUS, set by `install` before anything else.
    unsafe { &*(TPIDR_EL2.get() as usize as *const PerCpu) }
}
