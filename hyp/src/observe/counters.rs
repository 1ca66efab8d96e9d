//! Counters of guests: exits by reason, interrupts, time at EL2.
//!
//! Each vCPU has [`Counters`] that only its own CPU writes, without locks or atomic read-modify-write. They only grow.
//!
//! A counter costs a load, an addition and a store. Reading the clock would cost more than a fast path as a whole, so time at
//! EL2 leaves out the fast paths (version queries, GICD_TYPER, words of the PCI configuration space, SGIs, timer and device
//! interrupts that are passed on at once: some 20 to 150 instructions each). Their exits are counted.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

/// Reason of an exit to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// HVC or SMC.
    Hypercall = 0,
    /// A trapped system register, except those that send SGIs.
    SystemRegister = 1,
    /// ICC_SGI1R_EL1 and its like.
    Sgi = 2,
    /// The distributor's registers.
    Distributor = 3,
    /// The redistributors' registers.
    Redistributor = 4,
    /// The UART's registers.
    Uart = 5,
    /// The PCI configuration space of the guest's host bridge.
    Pci = 6,
    /// A stage 2 fault on guest RAM: a unit in flight, an access flag.
    Fault = 7,
    /// An access for which the guest got an abort.
    Abort = 8,
    /// A physical interrupt.
    Interrupt = 9,
    /// WFI, which traps while migration can use the time.
    Wait = 10,
    /// Anything else.
    Other = 11,
}

/// Number of reasons.
pub(crate) const EXITS: usize = 12;

impl Exit {
    /// All reasons, by their numbers.
    pub(crate) const ALL: [Self; EXITS] = [
        Self::Hypercall,
        Self::SystemRegister,
        Self::Sgi,
        Self::Distributor,
        Self::Redistributor,
        Self::Uart,
        Self::Pci,
        Self::Fault,
        Self::Abort,
        Self::Interrupt,
        Self::Wait,
        Self::Other,
    ];

    /// Returns the reason's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Hypercall => "hypercall",
            Self::SystemRegister => "sysreg",
            Self::Sgi => "sgi",
            Self::Distributor => "gicd",
            Self::Redistributor => "gicr",
            Self::Uart => "uart",
            Self::Pci => "pci",
            Self::Fault => "fault",
            Self::Abort => "abort",
            Self::Interrupt => "interrupt",
            Self::Wait => "wait",
            Self::Other => "other",
        }
    }
}

/// One vCPU's counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    exits: [AtomicU64; EXITS],
    injected: AtomicU64,
    /// Physical interrupts on the fast path: an exit and an injection each, counted once.
    direct: AtomicU64,
    el2_ticks: AtomicU64,
}

impl Counters {
    /// Offset of the counter of hypercalls.
    pub(crate) const HYPERCALLS: usize =
        offset_of!(Self, exits) + Exit::Hypercall as usize * size_of::<AtomicU64>();

    /// Makes counters of zero.
    pub(crate) const fn new() -> Self {
        Self {
            exits: [const { AtomicU64::new(0) }; EXITS],
            injected: AtomicU64::new(0),
            direct: AtomicU64::new(0),
            el2_ticks: AtomicU64::new(0),
        }
    }

    /// Counts an exit. On the vCPU's own CPU only.
    #[inline(always)]
    pub(crate) fn count_exit(&self, exit: Exit) {
        add(&self.exits[exit as usize], 1);
    }

    /// Counts an interrupt given to the guest. On the vCPU's own CPU only.
    #[inline(always)]
    pub(crate) fn count_injected(&self) {
        add(&self.injected, 1);
    }

    /// Counts a physical interrupt on the fast path. On the vCPU's own CPU only.
    #[inline(always)]
    pub(crate) fn count_direct(&self) {
        add(&self.direct, 1);
    }

    /// Adds time spent at EL2, in ticks of the machine's counter. On the vCPU's own CPU only.
    #[inline(always)]
    pub(crate) fn add_el2(&self, ticks: u64) {
        add(&self.el2_ticks, ticks);
    }

    /// Reads the counters, from any CPU. An interrupt on the fast path is an exit and an injection.
    pub(crate) fn read(&self) -> Reading {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let direct = get(&self.direct);
        let mut exits = self.exits.each_ref().map(get);
        let interrupts = &mut exits[Exit::Interrupt as usize];
        *interrupts = interrupts.wrapping_add(direct);
        Reading {
            exits,
            injected_count: get(&self.injected).wrapping_add(direct),
            el2_ticks: get(&self.el2_ticks),
        }
    }
}

/// A reading of one vCPU's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Exits, by [`Exit`].
    pub(crate) exits: [u64; EXITS],
    /// Interrupts given to the guest.
    pub(crate) injected_count: u64,
    /// Time at EL2, in ticks of the machine's counter.
    pub(crate) el2_ticks: u64,
}

/// Adds to a counter with a single writer, so without atomic read-modify-write.
#[inline(always)]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered() {
        for (at, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(exit as usize, at);
            assert!(!exit.name().is_empty());
        }
    }
}
