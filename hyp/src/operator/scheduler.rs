//! The monitor's place on a CPU: a coroutine that runs between the guest's instructions, in slices.

use crate::arch::coroutine::{Coroutine, Stack};
use crate::arch::cpu::{Core, Request};
use crate::arch::{cpu, timer};
use crate::serial;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// How long it runs before it lets the guest on its CPU go on, in microseconds.
const SLICE_US: u64 = 100;
/// How long the guest runs in between, in microseconds.
const PAUSE_US: u64 = 400;
/// How often the multiplexer is polled while it wants to be, in microseconds.
const POLL_US: u64 = 50_000;

static COROUTINE: Coroutine = Coroutine::new();
/// The CPU that it runs on.
static HOME: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Something happened that it waits for.
static AWAKE: AtomicBool = AtomicBool::new(false);
/// When it wants to run again at the latest; 0: not by itself.
static DEADLINE: AtomicU64 = AtomicU64::new(0);
/// When the present slice ends.
static SLICE_END: AtomicU64 = AtomicU64::new(0);

/// Gives the monitor a stack and a CPU: this one. It runs at the first `resume`.
pub(crate) fn init(stack: Stack, function: extern "C" fn() -> !) {
    COROUTINE.start(stack, function);
    HOME.store(cpu::current().index(), Ordering::Release);
    AWAKE.store(true, Ordering::Release);
}

/// Makes the monitor look at what it waits for. On its own CPU too, it runs at the next interrupt: the kick.
pub(crate) fn wake() {
    AWAKE.store(true, Ordering::Release);
    let home = HOME.load(Ordering::Acquire);
    // From within there is no need: it looks again before it waits.
    if let Some(home) = cpu::get(home)
        && (home.index() != cpu::current().index() || !COROUTINE.is_running())
    {
        home.request_once(Request::Monitor);
    }
}

/// Lets the monitor run if it is this CPU's and has something to do.
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

/// From within: waits until woken, or until `deadline` where that is not 0.
pub(crate) fn wait(deadline: u64) {
    DEADLINE.store(deadline, Ordering::Relaxed);
    COROUTINE.suspend();
}

/// From within: lets the guest go on for a while, where the slice is over.
pub(crate) fn breathe() {
    let now = timer::now();
    if now >= SLICE_END.load(Ordering::Relaxed) {
        wait(now + timer::ticks(PAUSE_US));
    }
}
