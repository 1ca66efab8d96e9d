//! A bank of 32 interrupts: one word of each bit register of the distributor or a redistributor.

/// No vCPU.
pub(super) const NOBODY: u8 = u8::MAX;

/// The state of 32 interrupts, a bit each, except what list registers hold.
pub(super) struct Bank {
    /// GICD_ISENABLER / ICENABLER.
    pub(super) enabled: u32,
    /// Pending because of an edge, an SGI, or a write to ISPENDR.
    pub(super) pending: u32,
    /// The input line of a level-sensitive interrupt.
    pub(super) level: u32,
    /// Active.
    pub(super) active: u32,
    /// GICD_IGROUPR: set for group 1.
    pub(super) group: u32,
    /// GICD_ICFGR: set for edge-triggered.
    pub(super) edge: u32,
    /// Linked to a physical interrupt, which has the state of the line.
    pub(super) hardware: u32,
    /// Hardware interrupts that are pending because software wrote ISPENDR, regardless of the line. While such an interrupt is
    /// in a list register, the physical one is active, as if it had arrived, for the guest to deactivate.
    pub(super) latched: u32,
    /// Hardware interrupts that are outside the list registers while the physical one is active: EL2 has acknowledged it, or
    /// has taken it out of a list register, and nobody has deactivated it.
    pub(super) taken: u32,
    /// Pending in a list register when it was filled; for reads.
    pub(super) listed_pending: u32,
    /// Those that were pending because of `pending`, not because their line was high.
    pub(super) listed_latch: u32,
    /// Active in a list register when it was filled; for reads.
    pub(super) listed_active: u32,
    /// In a list register that a write to ICPENDR has not reached yet.
    pub(super) cancel_pending: u32,
    /// In a list register that a write to ICACTIVER has not reached yet.
    pub(super) cancel_active: u32,
    /// GICD_IPRIORITYR.
    pub(super) priority: [u8; 32],
    /// The vCPU whose list registers hold the interrupt, that may put it there without the lock (`local`), or that has it
    /// active; else [`NOBODY`]. For shared interrupts only.
    pub(super) holder: [u8; 32],
}

impl Bank {
    pub(super) const fn new() -> Self {
        Self {
            enabled: 0,
            pending: 0,
            level: 0,
            active: 0,
            group: 0,
            edge: 0,
            hardware: 0,
            latched: 0,
            taken: 0,
            listed_pending: 0,
            listed_latch: 0,
            listed_active: 0,
            cancel_pending: 0,
            cancel_active: 0,
            priority: [0; 32],
            holder: [NOBODY; 32],
        }
    }

    /// Resets everything except lines and links, which the platform determines.
    pub(super) fn reset(&mut self, edge: u32) {
        let (level, hardware) = (self.level, self.hardware);
        *self = Self { level, hardware, edge, ..Self::new() };
    }

    /// Returns the pending interrupts.
    pub(super) const fn pending_now(&self) -> u32 {
        self.pending | (self.level & !self.edge)
    }

    /// Returns the interrupts that are pending, enabled and in an enabled group. `groups` is bits 1:0 of GICD_CTLR.
    pub(super) const fn deliverable(&self, groups: u32) -> u32 {
        self.pending_now() & self.forwarded(groups)
    }

    /// Returns the interrupts that are enabled and in an enabled group.
    pub(super) const fn forwarded(&self, groups: u32) -> u32 {
        let group0 = if groups & 1 != 0 { !self.group } else { 0 };
        let group1 = if groups & 2 != 0 { self.group } else { 0 };
        self.enabled & (group0 | group1)
    }

    /// Returns the configuration bits of 16 interrupts from `first` (0 or 16), as in GICD_ICFGR.
    pub(super) fn configuration(&self, first: u32) -> u32 {
        (0..16).filter(|i| self.edge >> (first + i) & 1 != 0).fold(0, |word, i| word | 2 << (2 * i))
    }

    /// Sets the configuration bits of those of 16 interrupts from `first` that are in `writable`.
    pub(super) fn set_configuration(&mut self, first: u32, word: u32, writable: u32) {
        for i in 0..16 {
            let bit = 1 << (first + i);
            if writable & bit != 0 {
                if word >> (2 * i + 1) & 1 != 0 {
                    self.edge |= bit;
                } else {
                    self.edge &= !bit;
                }
            }
        }
    }

    /// Returns four priorities from interrupt `first`, as in GICD_IPRIORITYR.
    pub(super) fn priorities(&self, first: usize) -> u32 {
        self.priority[first..first + 4].iter().rev().fold(0, |word, &p| word << 8 | u32::from(p))
    }
}
