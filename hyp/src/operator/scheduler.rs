//! The monitor's CPU time: a coroutine that takes slices of a guest's CPU.

use crate::arch::coroutine::{Coroutine, Stack};
use crate::arch::cpu::{Core, Request};
use crate::arch::{cpu, timer};
use crate::serial;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Microseconds that the monitor runs before the guest on its CPU runs again.
const SLICE_US: u64 = 100;
/// Microseconds that the guest runs between two slices.
const PAUSE_US: u64 = 400;
/// Microseconds between two polls of the multiplexer, while it wants to be polled.
const POLL_US: u64 = 50_000;

static COROUTINE: Coroutine = Coroutine::new();
/// Index of the CPU that the monitor runs on.
static HOME: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Set when something happened that the monitor waits for.
static AWAKE: AtomicBool = AtomicBool::new(false);
/// Count at which the monitor runs again at the latest; 0: none.
static DEADLINE: AtomicU64 = AtomicU64::new(0);
/// Count at which the current slice ends.
static SLICE_END: AtomicU64 = AtomicU64::new(0);

/// Starts the monitor on this CPU, with a stack. It runs from the first `resume` on.
pub(crate) fn init(stack: Stack, function: extern "C" fn() -> !) {
    COROUTINE.start(stack, function);
    HOME.store(cpu::current().index(), Ordering::Release);
    AWAKE.store(true, Ordering::Release);
}

/// Wakes the monitor. Even on its own CPU it runs at the next interrupt, the kick.
pub(crate) fn wake() {
    AWAKE.store(true, Ordering::Release);
    let home = HOME.load(Ordering::Acquire);
    // From within no kick is needed: the monitor checks again before it waits.
    if let Some(home) = cpu::get(home)
        && (home.index() != cpu::current().index() || !COROUTINE.is_running())
    {
        home.request_once(Request::Monitor);
    }
}

/// Runs the monitor if this is its CPU and it has something to do.
pub(crate) fn resume(cpu: &Core) {
    if cpu.index() != HOME.load(Ordering::Relaxed) || COROUTINE.is_running() {
        return;
    }
    cpu.take(Request::Monitor);
    let now = timer::now();
    let deadline = DEADLINE.load(Ordering::Relaxed);
    if AWAKE.swap(false, Ordering::AcqRel) || deadline != 0 && now >= deadline {
        DEADLINE.store(0, Ordering::Relaxed);
        SLICE_END.store(now + timer::ticks(SLICE_US), Ordering::Relaxed);
        COROUTINE.resume();
    }
    let (poll, writable) = serial::with_console(|mux| {
        if mux.wants_poll() {
            mux.poll();
        }
        (mux.wants_poll(), mux.take_writable())
    })
    .unwrap_or_default();
    writable.guests().for_each(crate::guest::uart::drain_output);
    if writable.has_monitor() {
        AWAKE.store(true, Ordering::Release);
    }
    let mut next = DEADLINE.load(Ordering::Relaxed);
    if writable.has_monitor() {
        next = timer::now();
    }
    if poll {
        let poll = timer::now() + timer::ticks(POLL_US);
        next = if next == 0 { poll } else { next.min(poll) };
    }
    if next != 0 {
        timer::arm(timer::Purpose::Monitor, next);
    }
}

/// Waits until woken or until `deadline`, unless that is 0. Called from within the monitor.
pub(crate) fn wait(deadline: u64) {
    DEADLINE.store(deadline, Ordering::Relaxed);
    COROUTINE.suspend();
}

/// Lets the guest run for a while if the slice is over. Called from within the monitor.
pub(crate) fn breathe() {
    let now = timer::now();
    if now >= SLICE_END.load(Ordering::Relaxed) {
        wait(now + timer::ticks(PAUSE_US));
    }
}
