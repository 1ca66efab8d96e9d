//! A physical CPU: what EL2 keeps for it, how CPUs call each other, what a CPU does without a guest.
//!
//! Each vCPU owns a CPU, so a CPU either runs that vCPU or idles at EL2. `current` is reached through TPIDR_EL2.
//! Only a CPU itself touches the cells of its `PerCpu`; others leave bits in `requests` and send a kick.

use super::gic::{Redistributor, cpu_interface};
use super::mitigation::Hardening;
use crate::device::vgic::{Local, MAX_VCPUS};
use crate::guest::{Guest, Vcpu};
use crate::hyp_mem::window::Window;
use crate::observe::counters::Counters;
use crate::observe::trace;
pub use crate::physical::MAX_CPUS;
pub use crate::requests::Request;
use crate::requests::Requests;
use aarch64_cpu::registers::{MIDR_EL1, Readable, TPIDR_EL2, Writeable};
use core::cell::Cell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use spin::Once;
use stage2::migrate::Engaged;

/// One CPU.
pub struct PerCpu {
    index: Cell<usize>,
    mpidr: Cell<u64>,
    midr: AtomicU64,
    stack_top: Cell<u64>,
    redistributor: Once<Redistributor>,
    windows: Once<[Window; crate::hyp_mem::mmu::WINDOWS_PER_CPU]>,
    /// The vCPU that owns this CPU.
    assigned: Once<&'static Vcpu>,
    /// The vCPU that runs here now.
    vcpu: Cell<Option<&'static Vcpu>>,
    /// Its interrupts' fast path.
    pub(crate) local: Local,
    /// By vCPU of the same guest: what to write to ICC_SGI1R_EL1 to reach it; 0 where there is none.
    pub(crate) sgi_targets: [Cell<u64>; MAX_VCPUS],
    /// The one of these that is this CPU's.
    pub(crate) self_target: Cell<u64>,
    /// The vCPU's own bit in a target list.
    pub(crate) self_bit: Cell<u64>,
    /// What is counted of its vCPU.
    pub(crate) counters: Counters,
    /// Its last events, once they have been asked for.
    trace: AtomicPtr<trace::Ring>,
    /// The line of the log that it is writing, as a frame.
    #[cfg(feature = "defmt")]
    pub(crate) frame: crate::observe::log::frames::Buffer,
    /// Its mitigations of speculative execution.
    pub(crate) hardening: Hardening,
    /// By purpose: when EL2's own timer is to fire; 0: never.
    pub(crate) deadlines: [Cell<u64>; super::timer::PURPOSES],
    /// Whether it looks for migration's work by itself.
    pub(crate) engaged: Engaged,
    requests: Requests,
    online: AtomicU32,
}

// SAFETY: the cells are touched by the CPU itself only, but for `init`'s, which run before it starts.
unsafe impl Sync for PerCpu {}

/// The last of what stays of the image: where there are fewer CPUs, the rest is given back with what the start alone
/// needs, which follows.
#[unsafe(link_section = ".bss.zcpus")]
static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];
static COUNT: AtomicUsize = AtomicUsize::new(1);

impl PerCpu {
    /// Where the vectors count hypercalls.
    pub(crate) const HYPERCALLS: usize = offset_of!(Self, counters) + Counters::HYPERCALLS;

    /// Where the vectors find its mitigations.
    pub(crate) const HARDENING: usize = offset_of!(Self, hardening);

    const fn new() -> Self {
        Self {
            index: Cell::new(0),
            mpidr: Cell::new(0),
            midr: AtomicU64::new(0),
            stack_top: Cell::new(0),
            redistributor: Once::new(),
            windows: Once::new(),
            assigned: Once::new(),
            vcpu: Cell::new(None),
            local: Local::new(),
            sgi_targets: [const { Cell::new(0) }; MAX_VCPUS],
            self_target: Cell::new(0),
            self_bit: Cell::new(0),
            counters: Counters::new(),
            trace: AtomicPtr::new(core::ptr::null_mut()),
            #[cfg(feature = "defmt")]
            frame: crate::observe::log::frames::Buffer::new(),
            hardening: Hardening::new(),
            deadlines: [const { Cell::new(0) }; super::timer::PURPOSES],
            engaged: Engaged::new(),
            requests: Requests::new(),
            online: AtomicU32::new(0),
        }
    }

    /// The CPU's number, from 0 in the order of the host's device tree, the boot CPU first.
    pub fn index(&self) -> usize {
        self.index.get()
    }

    /// MPIDR_EL1 without its flags.
    pub fn mpidr(&self) -> u64 {
        self.mpidr.get()
    }

    /// The vCPU that runs here.
    #[inline(always)]
    pub fn vcpu(&self) -> Option<&'static Vcpu> {
        self.vcpu.get()
    }

    /// The guest that runs here.
    pub fn guest(&self) -> Option<&'static Guest> {
        self.vcpu.get().map(|vcpu| vcpu.guest())
    }

    /// The vCPU that owns this CPU, running or not.
    pub fn assigned(&self) -> Option<&'static Vcpu> {
        self.assigned.get().copied()
    }

    /// Gives the CPU to `vcpu`, for good; where it is another's already, nothing changes.
    pub fn assign(&self, vcpu: &'static Vcpu) {
        self.assigned.call_once(|| vcpu);
    }

    /// What to write to ICC_SGI1R_EL1, less the INTID, to reach this CPU.
    pub(crate) fn sgi_target(&self) -> u64 {
        cpu_interface::sgi_target(self.mpidr())
    }

    pub(crate) fn set_vcpu(&self, vcpu: Option<&'static Vcpu>) {
        self.vcpu.set(vcpu);
    }

    pub(crate) fn stack_top(&self) -> u64 {
        self.stack_top.get()
    }

    pub(crate) fn redistributor(&self) -> Option<&Redistributor> {
        self.redistributor.get()
    }

    pub(crate) fn set_redistributor(&self, redistributor: Redistributor) {
        self.redistributor.call_once(|| redistributor);
    }

    pub(crate) fn set_windows(&self, windows: [Window; crate::hyp_mem::mmu::WINDOWS_PER_CPU]) {
        self.windows.call_once(|| windows);
    }

    /// The windows through which this CPU reaches guest memory.
    pub(crate) fn windows(&self) -> Option<&[Window; crate::hyp_mem::mmu::WINDOWS_PER_CPU]> {
        self.windows.get()
    }

    /// Its last events, once they have been asked for.
    pub(crate) fn trace(&self) -> Option<&'static trace::Ring> {
        // SAFETY: null, or what `set_trace` stored, which lives for ever; its contents came before it.
        unsafe { self.trace.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn set_trace(&self, ring: &'static trace::Ring) {
        self.trace.store(core::ptr::from_ref(ring).cast_mut(), Ordering::Release);
    }

    /// Whether the CPU has come up.
    pub fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire) != 0
    }

    /// MIDR_EL1; 0 until the CPU has come up.
    pub fn midr(&self) -> u64 {
        self.midr.load(Ordering::Relaxed)
    }

    pub(crate) fn set_online(&self) {
        self.midr.store(MIDR_EL1.get(), Ordering::Relaxed);
        self.online.store(1, Ordering::Release);
    }

    /// Asks this CPU for something and kicks it.
    pub fn request(&self, request: Request) {
        self.requests.add(request);
        self.kick();
    }

    /// Asks this CPU for something and kicks it, unless that was asked before and not taken yet ([`Requests::add`]).
    pub(crate) fn request_once(&self, request: Request) {
        if self.requests.add(request) {
            self.kick();
        }
    }

    /// Brings this CPU into EL2.
    pub fn kick(&self) {
        cpu_interface::send_sgi(cpu_interface::sgi_target(self.mpidr()), super::gic::KICK_SGI);
    }

    /// Takes one kind of request. Returns whether it was there.
    pub(crate) fn take(&self, request: Request) -> bool {
        self.requests.take(request)
    }

    /// Gives it another stack.
    pub(crate) fn set_stack_top(&self, stack_top: u64) {
        self.stack_top.set(stack_top);
    }

    /// Describes CPU `index` before it starts.
    pub(crate) fn describe(&self, index: usize, mpidr: u64, stack_top: u64) {
        self.index.set(index);
        self.mpidr.set(mpidr);
        self.stack_top.set(stack_top);
    }
}

/// CPU `index`, one of [`count`].
pub fn get(index: usize) -> Option<&'static PerCpu> {
    CPUS[..count()].get(index)
}

/// How many CPUs there are.
pub fn count() -> usize {
    COUNT.load(Ordering::Acquire).min(MAX_CPUS)
}

pub(crate) fn set_count(count: usize) {
    COUNT.store(count.min(MAX_CPUS), Ordering::Release);
}

/// Returns all of them.
pub fn all() -> impl Iterator<Item = &'static PerCpu> + Clone {
    CPUS[..count()].iter()
}

/// Where the data of the first `count` CPUs ends.
pub(crate) fn end_of(count: usize) -> usize {
    CPUS[..count.min(MAX_CPUS)].as_ptr_range().end.addr()
}

/// Makes `index` the number of the CPU that this runs on.
pub(crate) fn install(index: usize) {
    let cpu: &'static PerCpu = &CPUS[index];
    TPIDR_EL2.set(core::ptr::from_ref(cpu).addr() as u64);
}

/// Passes a moment of a wait for another CPU: a hint that emulators which run one CPU at a time act on.
pub(crate) fn relax() {
    super::sysreg::instruction!("yield");
}

/// Returns this CPU's buffer for a line of the log, to `observe::log::frames`, which names the function by symbol.
// SAFETY: nothing else has this name, and the declaration there has the same type.
#[cfg(feature = "defmt")]
#[unsafe(no_mangle)]
fn log_buffer() -> &'static crate::observe::log::frames::Buffer {
    &current().frame
}

/// The CPU that this runs on.
#[inline(always)]
pub fn current() -> &'static PerCpu {
    // SAFETY: TPIDR_EL2 holds the address of an element of CPUS, set by `install` before anything else.
    unsafe { &*(TPIDR_EL2.get() as usize as *const PerCpu) }
}
