//! A physical CPU: what EL2 keeps for it, and how CPUs call each other.
//!
//! [`Core`] is the part that needs no guests. It comes first in `guest::cpu::PerCpu`, which TPIDR_EL2 points at, so
//! [`current`] takes one instruction for either. Only a CPU itself touches the cells of its `Core`; others leave bits in
//! `requests` and send a kick.
//!
//! Two entries of the room that handles exceptions serve the rooms below it: [`idle`] and [`serve_interrupts`].

use super::gic::cpu_interface;
use super::gic::redistributor::Redistributor;
use super::hardening::Hardening;
pub(crate) use crate::board::MAX_CPUS;
use crate::device::vgic::MAX_VCPUS;
use crate::observe::counters::Counters;
use crate::observe::trace;
pub(crate) use crate::requests::Request;
use crate::requests::Requests;
use aarch64_cpu::registers::{MIDR_EL1, Readable, TPIDR_EL2, Writeable};
use core::cell::Cell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use spin::Once;

/// The part of a CPU's data that needs no guests.
#[repr(C)]
pub(crate) struct Core {
    /// By vCPU of the guest that runs here: the value of ICC_SGI1R_EL1 that reaches it; 0: there is none. The first
    /// field, so that the path of SGIs indexes TPIDR_EL2 itself.
    pub(crate) sgi_targets: [Cell<u64>; MAX_VCPUS],
    index: Cell<usize>,
    mpidr: Cell<u64>,
    midr: AtomicU64,
    stack_top: Cell<u64>,
    redistributor: Once<Redistributor>,
    /// Numbers of the guest and the vCPU that run here, for the trace.
    vcpu: Cell<Option<(usize, usize)>>,
    /// Counters of the vCPU that owns the CPU.
    pub(crate) counters: Counters,
    /// The last events, once they have been asked for.
    trace: AtomicPtr<trace::Ring>,
    /// The line of the log that is being written, as a frame.
    #[cfg(feature = "defmt")]
    frame: crate::observe::log::frames::Buffer,
    /// Mitigations of speculative execution.
    pub(crate) hardening: Hardening,
    /// By purpose: the count at which EL2's own timer fires; 0: never.
    pub(crate) deadlines: [Cell<u64>; PURPOSES],
    requests: Requests,
    online: AtomicU32,
}

// SAFETY: the cells are touched by the CPU itself only, but for `describe`'s, which is called before it starts.
unsafe impl Sync for Core {}

/// Uses of EL2's own timer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The monitor's slices.
    Monitor = 0,
    /// Migration's slices.
    Migration = 1,
    /// Polls of SMMUs whose event interrupt is off.
    Smmu = 2,
}

/// Number of uses of EL2's own timer.
const PURPOSES: usize = 3;

/// The CPUs that have been described, by index.
static CORES: [Once<&Core>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// Entries of the room that handles exceptions, for the rooms below it.
struct Entries {
    idle: fn() -> !,
    serve_interrupts: fn(),
}

static ENTRIES: Once<Entries> = Once::new();

impl Core {
    /// Offset at which the vectors count hypercalls.
    pub(crate) const HYPERCALLS: usize = offset_of!(Self, counters) + Counters::HYPERCALLS;

    /// Offset at which the vectors find the mitigations.
    pub(crate) const HARDENING: usize = offset_of!(Self, hardening);

    pub(crate) const fn new() -> Self {
        Self {
            sgi_targets: [const { Cell::new(0) }; MAX_VCPUS],
            index: Cell::new(0),
            mpidr: Cell::new(0),
            midr: AtomicU64::new(0),
            stack_top: Cell::new(0),
            redistributor: Once::new(),
            vcpu: Cell::new(None),
            counters: Counters::new(),
            trace: AtomicPtr::new(core::ptr::null_mut()),
            #[cfg(feature = "defmt")]
            frame: crate::observe::log::frames::Buffer::new(),
            hardening: Hardening::new(),
            deadlines: [const { Cell::new(0) }; PURPOSES],
            requests: Requests::new(),
            online: AtomicU32::new(0),
        }
    }

    /// Returns the CPU's number, from 0 in the order of the host's device tree, the boot CPU first.
    pub(crate) fn index(&self) -> usize {
        self.index.get()
    }

    /// Returns MPIDR_EL1 without its flags.
    pub(crate) fn mpidr(&self) -> u64 {
        self.mpidr.get()
    }

    /// Returns the numbers of the guest and the vCPU that run here.
    pub(crate) fn vcpu_numbers(&self) -> Option<(usize, usize)> {
        self.vcpu.get()
    }

    /// Notes the numbers of the guest and the vCPU that run here.
    pub(crate) fn set_vcpu_numbers(&self, numbers: Option<(usize, usize)>) {
        self.vcpu.set(numbers);
    }

    /// Returns the value of ICC_SGI1R_EL1, without the INTID, that reaches this CPU.
    pub(crate) fn sgi_target(&self) -> u64 {
        cpu_interface::sgi_target(self.mpidr())
    }

    /// Returns the top of the CPU's stack.
    pub(crate) fn stack_top(&self) -> u64 {
        self.stack_top.get()
    }

    /// Replaces the stack.
    pub(crate) fn set_stack_top(&self, stack_top: u64) {
        self.stack_top.set(stack_top);
    }

    /// Returns the CPU's redistributor, once it is known.
    pub(crate) fn redistributor(&self) -> Option<&Redistributor> {
        self.redistributor.get()
    }

    pub(crate) fn set_redistributor(&self, redistributor: Redistributor) {
        self.redistributor.call_once(|| redistributor);
    }

    /// Returns the CPU's last events, once they have been asked for.
    pub(crate) fn trace(&self) -> Option<&'static trace::Ring> {
        // SAFETY: null, or what `set_trace` stored, which lives forever; its contents came before it.
        unsafe { self.trace.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn set_trace(&self, ring: &'static trace::Ring) {
        self.trace.store(core::ptr::from_ref(ring).cast_mut(), Ordering::Release);
    }

    /// Returns true if the CPU has come up.
    pub(crate) fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire) != 0
    }

    /// Returns MIDR_EL1; 0 until the CPU has come up.
    pub(crate) fn midr(&self) -> u64 {
        self.midr.load(Ordering::Relaxed)
    }

    pub(crate) fn set_online(&self) {
        self.midr.store(MIDR_EL1.get(), Ordering::Relaxed);
        self.online.store(1, Ordering::Release);
    }

    /// Adds a request to this CPU and kicks it.
    pub(crate) fn request(&self, request: Request) {
        self.requests.add(request);
        self.kick();
    }

    /// Adds a request to this CPU and kicks it, unless the request was already pending ([`Requests::add`]).
    pub(crate) fn request_once(&self, request: Request) {
        if self.requests.add(request) {
            self.kick();
        }
    }

    /// Brings this CPU into EL2.
    pub(crate) fn kick(&self) {
        cpu_interface::send_sgi(cpu_interface::sgi_target(self.mpidr()), cpu_interface::KICK_SGI);
    }

    /// Takes one kind of request. Returns true if it was pending.
    pub(crate) fn take(&self, request: Request) -> bool {
        self.requests.take(request)
    }

    /// Describes CPU `index` before it starts.
    pub(crate) fn describe(&'static self, index: usize, mpidr: u64, stack_top: u64) {
        self.index.set(index);
        self.mpidr.set(mpidr);
        self.stack_top.set(stack_top);
        CORES[index].call_once(|| self);
    }
}

/// Returns CPU `index`, one of [`count`].
pub(crate) fn get(index: usize) -> Option<&'static Core> {
    CORES[..count()].get(index)?.get().copied()
}

/// Returns the number of CPUs.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Acquire).min(MAX_CPUS)
}

pub(crate) fn set_count(count: usize) {
    COUNT.store(count.min(MAX_CPUS), Ordering::Release);
}

/// Returns all CPUs.
pub(crate) fn all() -> impl Iterator<Item = &'static Core> + Clone {
    (0..count()).filter_map(get)
}

/// Names the entries of the room that handles exceptions, before any CPU needs them.
pub(crate) fn set_entries(idle: fn() -> !, serve_interrupts: fn()) {
    ENTRIES.call_once(|| Entries { idle, serve_interrupts });
}

/// Leaves whatever this CPU does and idles. The caller holds nothing that would have to be dropped, such as a lock.
pub(crate) fn idle() -> ! {
    match ENTRIES.get() {
        Some(entries) => (entries.idle)(),
        // Boot sets them first.
        None => unreachable!(),
    }
}

/// Handles the interrupts that are pending for this CPU, while it works at EL2 for long without a guest.
pub(crate) fn serve_interrupts() {
    if let Some(entries) = ENTRIES.get() {
        (entries.serve_interrupts)();
    }
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

/// Makes `core` the data of the CPU that this runs on.
///
/// # Safety
///
/// `core` is the first field of a `guest::cpu::PerCpu` that lives forever and is no other CPU's.
pub(crate) unsafe fn install(core: *const Core) {
    TPIDR_EL2.set(core.expose_provenance() as u64);
}

/// Returns the CPU that this runs on.
#[inline(always)]
pub(crate) fn current() -> &'static Core {
    // SAFETY: TPIDR_EL2 holds what `install` set before anything else.
    unsafe { &*(TPIDR_EL2.get() as usize as *const Core) }
}
