//! Counters as commands show them: sums by guest, and the baseline that `stats reset` sets. Text shows the difference to the
//! baseline, JSON the counters themselves.

use super::machine::Machine;
use super::mux::GUESTS;
use crate::observe::counters::EXITS;

/// Counters of a guest, the sum of its vCPUs'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Exits, by [`Exit`](crate::observe::counters::Exit).
    pub exits: [u64; EXITS],
    /// Interrupts given to the guest.
    pub injected_count: u64,
    /// Those that came from assigned devices.
    pub device_count: u64,
    /// Time at EL2.
    pub el2_ns: u64,
}

impl Totals {
    /// Adds up the counters of a guest's vCPUs.
    pub fn of(machine: &dyn Machine, guest: usize) -> Self {
        let mut totals = Self { device_count: machine.device_interrupt_count(guest), ..Self::default() };
        let vcpus = machine.guest(guest).map_or(0, |guest| guest.vcpu_count);
        for counters in (0..vcpus).filter_map(|vcpu| machine.counters(guest, vcpu)) {
            let reading = counters.read();
            for (total, exits) in totals.exits.iter_mut().zip(reading.exits) {
                *total = total.wrapping_add(exits);
            }
            totals.injected_count = totals.injected_count.wrapping_add(reading.injected_count);
            totals.el2_ns = totals.el2_ns.wrapping_add(machine.nanoseconds(reading.el2_ticks));
        }
        totals
    }

    /// Returns the difference to `earlier`. A guest that was defined anew may count from zero.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        for (exit, earlier) in self.exits.iter_mut().zip(&earlier.exits) {
            *exit = exit.saturating_sub(*earlier);
        }
        self.injected_count = self.injected_count.saturating_sub(earlier.injected_count);
        self.device_count = self.device_count.saturating_sub(earlier.device_count);
        self.el2_ns = self.el2_ns.saturating_sub(earlier.el2_ns);
        self
    }

    /// Returns the number of exits.
    pub fn exit_count(&self) -> u64 {
        self.exits.iter().fold(0, |sum, exit| sum.wrapping_add(*exit))
    }
}

/// Counters at the last `stats reset`.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    /// Time of that reset; 0: never, and counters are shown since boot.
    pub time_ns: u64,
    /// By guest.
    pub guests: [Totals; GUESTS],
}

impl Baseline {
    /// Makes a baseline of zeroes: counters since boot.
    pub const fn new() -> Self {
        Self {
            time_ns: 0,
            guests: [Totals { exits: [0; EXITS], injected_count: 0, device_count: 0, el2_ns: 0 }; GUESTS],
        }
    }

    /// Makes the present counters the baseline.
    pub fn take(&mut self, machine: &dyn Machine, now_ns: u64) {
        self.time_ns = now_ns;
        for (guest, totals) in self.guests.iter_mut().enumerate() {
            *totals = Totals::of(machine, guest);
        }
    }

    /// Returns what was counted of a guest since the reset.
    pub fn since(&self, machine: &dyn Machine, guest: usize) -> Totals {
        let totals = Totals::of(machine, guest);
        self.guests.get(guest).map_or(totals, |earlier| totals.since(earlier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_never_go_below_zero() {
        let earlier = Totals { exits: [5; EXITS], injected_count: 9, device_count: 9, el2_ns: 9 };
        assert_eq!(Totals::default().since(&earlier), Totals::default());
        assert_eq!(earlier.since(&Totals::default()).exit_count(), 60);
    }
}
