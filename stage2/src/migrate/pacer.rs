//! Pacing: spreads costs over time.

use core::sync::atomic::{AtomicU64, Ordering};

/// A leaky bucket in its virtual scheduling form: a charge, in ticks, postpones the next go-ahead. One atomic word that
/// any CPU may use.
#[derive(Debug, Default)]
pub struct Pacer {
    /// The tick at which everything charged so far is paid for.
    paid: AtomicU64,
}

impl Pacer {
    /// Makes a pacer without charges.
    pub const fn new() -> Self {
        Self { paid: AtomicU64::new(0) }
    }

    /// Returns the ticks until the next go-ahead; 0 if it may go ahead. Up to `burst` ticks may be unpaid.
    pub fn wait(&self, now: u64, burst: u64) -> u64 {
        self.paid.load(Ordering::Relaxed).saturating_sub(now.saturating_add(burst))
    }

    /// Charges `ticks`. Unused time before `now` is not credited.
    pub fn charge(&self, now: u64, ticks: u64) {
        let charged = |paid: u64| Some(paid.max(now).saturating_add(ticks));
        // The closure always returns a value.
        let _ = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charged);
    }

    /// Removes all charges.
    pub fn reset(&self) {
        self.paid.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_tenth_is_kept() {
        let pacer = Pacer::new();
        let (mut now, mut spent) = (1_000_000, 0);
        for _ in 0..1000 {
            now += pacer.wait(now, 0);
            // A slice of 100 ticks at a share of 10 %.
            pacer.charge(now, 100 * 100 / 10);
            spent += 100;
            now += 100;
        }
        assert!(spent * 10 <= now - 1_000_000 + 1000, "{spent} of {}", now - 1_000_000);
        assert!(spent * 11 >= now - 1_000_000, "{spent} of {}", now - 1_000_000);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let pacer = Pacer::new();
        pacer.charge(0, 100);
        pacer.charge(1_000_000, 100);
        assert_eq!(pacer.wait(1_000_000, 0), 100);
        assert_eq!(pacer.wait(1_000_000, 30), 70);
        assert_eq!(pacer.wait(2_000_000, 0), 0);
        pacer.reset();
        assert_eq!(pacer.wait(0, 0), 0);
    }
}
