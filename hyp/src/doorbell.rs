//! The doorbell that tells CPUs about pending migration work.
//!
//! A CPU that has work for others rings the doorbell. A CPU that runs a guest either *polls* the doorbell, at each tick of
//! its timer, or has to be kicked, which costs its guest an exit. So a CPU is kicked at most once between two of its ticks,
//! however often the doorbell rings.
//!
//! No ring is lost, because each side writes before it reads (all sequentially consistent): the ringing CPU counts the ring
//! and then asks who polls; a CPU that stops polling says so and then looks at the doorbell once more. A ring in between is
//! seen by the poller, or finds the poller stopped and kicks it.

use stage2::sync::{Counter, Flag, Ordering};

/// Rings so far, and those that are served. All zero bytes at first: nothing is pending.
pub(crate) struct Doorbell {
    rung: Counter,
    /// The value of `rung` before the last step that found nothing to do.
    served: Counter,
}

/// One CPU's polling state. Not polling at first.
pub(crate) struct Poller(Flag);

/// A point in the sequence of rings.
#[derive(Clone, Copy)]
pub(crate) struct Mark(u32);

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

impl Doorbell {
    /// Makes a doorbell that has not rung.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self { rung: Counter::new(0), served: Counter::new(0) }
    }

    /// Makes a doorbell that has not rung.
    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self { rung: Counter::new(0), served: Counter::new(0) }
    }

    /// Announces work. The caller then kicks the CPUs that do not poll.
    pub(crate) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns whether there may be work.
    pub(crate) fn is_pending(&self) -> bool {
        self.rung.load(Ordering::SeqCst) != self.served.load(Ordering::SeqCst)
    }

    /// Marks the rings so far, before a step that may find nothing to do.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.rung.load(Ordering::SeqCst))
    }

    /// Notes that a step that began at `mark` found nothing to do.
    pub(crate) fn acknowledge(&self, mark: Mark) {
        self.served.store(mark.0, Ordering::SeqCst);
    }
}

impl Default for Poller {
    fn default() -> Self {
        Self::new()
    }
}

impl Poller {
    /// Makes a poller that does not poll.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self(Flag::new(false))
    }

    /// Makes a poller that does not poll.
    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self(Flag::new(false))
    }

    /// Returns whether the CPU will look at the doorbell without a kick.
    pub(crate) fn is_polling(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Stops polling: from now on the CPU has to be kicked.
    pub(crate) fn stop(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Looks at the doorbell. Returns whether there may be work; the CPU then counts as polling and must poll again soon.
    /// Otherwise it has stopped.
    pub(crate) fn poll(&self, doorbell: &Doorbell) -> bool {
        if !doorbell.is_pending() {
            self.stop();
            if !doorbell.is_pending() {
                return false;
            }
        }
        self.0.store(true, Ordering::SeqCst);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_cpu_polls_as_long_as_work_is_pending() {
        let (doorbell, poller) = (Doorbell::new(), Poller::new());
        assert!(!poller.poll(&doorbell) && !poller.is_polling());
        doorbell.ring();
        assert!(doorbell.is_pending() && poller.poll(&doorbell) && poller.is_polling());
        let mark = doorbell.mark();
        doorbell.ring();
        doorbell.acknowledge(mark);
        assert!(poller.poll(&doorbell), "a ring during the step is still pending");
        doorbell.acknowledge(doorbell.mark());
        assert!(poller.is_polling(), "until it polls");
        assert!(!poller.poll(&doorbell) && !poller.is_polling());
    }

    #[test]
    fn no_ring_is_lost() {
        const ROUNDS: u32 = if cfg!(miri) { 30 } else { 10_000 };
        let (doorbell, poller) = (Doorbell::new(), Poller::new());
        // Rings that were seen, the pending kick, and kicks so far.
        let (seen, kick, kick_count) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    doorbell.ring();
                    if !poller.is_polling() {
                        kick.store(1, Ordering::SeqCst);
                        kick_count.fetch_add(1, Ordering::Relaxed);
                    }
                    // The next ring comes after this one was seen: a lost ring would keep this loop waiting.
                    let mut spins = 0_u64;
                    while seen.load(Ordering::SeqCst) < round {
                        spins += 1;
                        assert!(spins < 2_000_000_000, "round {round}");
                        std::hint::spin_loop();
                        if spins.is_multiple_of(64) {
                            std::thread::yield_now();
                        }
                    }
                }
            });
            scope.spawn(|| {
                let mut is_ticking = false;
                while seen.load(Ordering::SeqCst) < ROUNDS {
                    // It looks at a tick, or when it is kicked.
                    if !is_ticking && kick.swap(0, Ordering::SeqCst) == 0 {
                        std::thread::yield_now();
                        continue;
                    }
                    is_ticking = poller.poll(&doorbell);
                    if is_ticking {
                        let mark = doorbell.mark();
                        doorbell.acknowledge(mark);
                        seen.store(mark.0, Ordering::SeqCst);
                    }
                }
            });
        });
        assert!(kick_count.load(Ordering::Relaxed) <= ROUNDS);
    }
}
