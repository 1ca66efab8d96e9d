//! The guest's interrupt controller: a GICv3 with one security state (GICD_CTLR.DS), affinity routing, no LPIs
//! (IHI 0069H).
//!
//! A *bank* is the state of 32 interrupts (`bank`). Each vCPU has a private bank 0 (SGIs 0 to 15, PPIs 16 to 31); the other
//! banks are shared (SPIs). A pending interrupt reaches a vCPU through a *list register*. While it is there, the list register
//! holds its state, and the bank's pending and active bits are clear. *Synchronising* reads the list registers back into the
//! banks; *refilling* puts the most urgent interrupts there again. Both happen only on the vCPU's own CPU; other CPUs mark the
//! vCPU *dirty* and kick it. GICD_CTLR.RWP reads 1 while any vCPU is dirty, so a guest can wait until its write takes effect.
//!
//! Most interrupts take the fast path (`local`): one register write injects a private interrupt that arrives physically (a
//! timer, an SGI of another vCPU), as long as no interrupt waits outside the list registers.
//!
//! A *hardware* interrupt is linked to a physical one, which is deactivated together with it: a timer's PPI, or a *line*, the
//! SPI of a device that belongs to the guest (`lines`).
//!
//! FairLock: one for each guest, around everything except `local`. It is a leaf, taken with interrupts masked, never while
//! another vGIC's lock is held.

mod bank;
pub(crate) mod common_registers;
mod distributor;
mod fill;
mod lines;
pub(crate) mod list_register;
mod local;
mod online;
mod redistributor;
mod synchronise;
pub(crate) use lines::Line;
pub(crate) use redistributor::REDISTRIBUTOR_SIZE;
#[cfg(test)]
mod tests;

use bank::{Bank, NOBODY};
use fill::Before;
use lines::Lines;
use list_register::ListRegisters;
use local::Entry;
pub(crate) use local::Local;
use spin::Once;
use stage2::sync::{Counter, FairLock, Ordering};

/// Maximum number of vCPUs of a guest: those of one SGI target list (ICC_SGI1R_EL1.TargetList).
pub(crate) const MAX_VCPUS: usize = 16;
/// Maximum number of lines of a guest: those of one bank.
pub(crate) const LINE_LIMIT: usize = 32;
/// Number of shared banks.
const SHARED_BANKS: usize = 3;
/// One past the largest INTID.
pub(crate) const INTID_LIMIT: u32 = 32 * (1 + SHARED_BANKS as u32);
/// Number of the guest's SGIs that are sent as physical SGIs with the same INTID. The others go through [`Vgic::send_sgi`]:
/// software can rely on eight non-secure SGIs only, and Ballast needs one (chapter "Physical Interrupt
/// Handling and Prioritization").
pub(crate) const DIRECT_SGIS: u32 = 7;

/// A hardware interrupt: a PPI of the guest that is linked to a physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HardwareLink {
    /// The guest's INTID, 16 to 31.
    pub(crate) virtual_intid: u32,
    /// The INTID in the host's device tree, 16 to 31.
    pub(crate) physical_intid: u32,
}

/// vCPUs whose CPUs must refill their list registers, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Kick(pub(crate) u32);

/// A guest's interrupt controller.
pub(crate) struct Vgic {
    state: FairLock<State>,
    /// vCPUs that must still refill, a bit each. Written under the lock. A CPU that was kicked reads it without the lock, after
    /// `arch::gic::cpu_interface::synchronize` has ordered the read after the kick.
    dirty: Counter,
    vcpu_count: usize,
    links: [HardwareLink; 2],
    /// The physical interrupts of the guest's devices, set before the guest runs.
    lines: Once<Lines>,
}

struct State {
    /// GICD_CTLR's group enables, bits 1:0.
    groups: u32,
    private: [Bank; MAX_VCPUS],
    shared: [Bank; SHARED_BANKS],
    /// GICD_IROUTER, by SPI.
    route: [u64; 32 * SHARED_BANKS],
    /// vCPUs that run, a bit each.
    online: u32,
    /// GICR_WAKER.ProcessorSleep, a bit for each vCPU.
    asleep: u32,
    /// By line: the vCPU to whose CPU the physical interrupt is routed and enabled; [`NOBODY`] while it is disabled.
    line_at: [u8; LINE_LIMIT],
    /// Lines may be enabled.
    has_open_lines: bool,
}

/// SGIs, which are always edge-triggered.
const SGI_MASK: u32 = 0xffff;
/// GICD_IROUTER.Interrupt_Routing_Mode: any vCPU.
const ROUTE_ANY: u64 = 1 << 31;

impl State {
    fn bank(&mut self, vcpu: usize, word: usize) -> &mut Bank {
        if word == 0 { &mut self.private[vcpu] } else { &mut self.shared[word - 1] }
    }

    /// Returns the vCPU to which shared interrupt `intid` is routed.
    fn target(&self, intid: u32) -> Option<usize> {
        let route = self.route[intid as usize - 32];
        if route & ROUTE_ANY != 0 {
            return (self.online != 0).then(|| self.online.trailing_zeros() as usize);
        }
        // Affinity 0 is the number of the vCPU; with at most MAX_VCPUS, the higher levels are 0.
        let index = route as usize & 0xff;
        (route & !0xff == 0 && index < MAX_VCPUS && self.online >> index & 1 != 0).then_some(index)
    }

    /// Returns the vCPUs that must refill after a change to the interrupts `mask` of bank `word` by or for `vcpu`.
    fn affected(&self, vcpu: usize, word: usize, mask: u32) -> u32 {
        if word == 0 {
            return 1 << vcpu;
        }
        let mut kick = 0;
        for bit in bits(mask) {
            let holder = self.shared[word - 1].holder[bit as usize];
            if holder != NOBODY {
                kick |= 1 << holder;
            }
            if let Some(target) = self.target(32 * word as u32 + bit) {
                kick |= 1 << target;
            }
        }
        kick
    }
}

/// Returns the numbers of the bits that are set in `mask`.
fn bits(mut mask: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (bit < 32).then_some(bit)
    })
}

impl Vgic {
    /// Creates the interrupt controller of a guest with `vcpu_count` vCPUs (at most [`MAX_VCPUS`]) and the timers `links`.
    pub(crate) fn new(vcpu_count: usize, links: [HardwareLink; 2]) -> Self {
        let vgic = Self {
            state: FairLock::new(State {
                groups: 0,
                private: [const { Bank::new() }; MAX_VCPUS],
                shared: [const { Bank::new() }; SHARED_BANKS],
                route: [0; 32 * SHARED_BANKS],
                online: 0,
                asleep: u32::MAX,
                line_at: [NOBODY; LINE_LIMIT],
                has_open_lines: false,
            }),
            dirty: Counter::new(0),
            vcpu_count: vcpu_count.min(MAX_VCPUS),
            links,
            lines: Once::new(),
        };
        vgic.reset();
        vgic
    }

    /// Resets everything, as at power-on. No vCPU runs, and the lines are quiet ([`Self::quiet_lines`]).
    pub(crate) fn reset(&self) {
        let mut state = self.state.lock();
        let hardware = self.links.iter().fold(0, |mask, link| mask | 1 << link.virtual_intid);
        for bank in &mut state.private {
            bank.reset(SGI_MASK);
            bank.hardware = hardware;
            bank.level = 0;
        }
        for bank in &mut state.shared {
            bank.reset(bank.edge & bank.hardware);
            bank.level = 0;
        }
        state.route = [0; 32 * SHARED_BANKS];
        state.groups = 0;
        state.online = 0;
        state.asleep = u32::MAX;
        self.dirty.store(0, Ordering::Release);
    }

    /// Returns true if `vcpu` must synchronise and refill.
    pub(crate) fn is_dirty(&self, vcpu: usize) -> bool {
        self.dirty.load(Ordering::Acquire) >> vcpu & 1 != 0
    }

    /// Returns the vCPUs that must still refill, a bit each.
    pub(crate) fn dirty(&self) -> u32 {
        self.dirty.load(Ordering::Acquire)
    }

    /// Marks the vCPUs of `mask` that run as dirty. Returns those to kick.
    fn mark(&self, state: &State, mask: u32) -> Kick {
        let mask = mask & state.online;
        self.dirty.fetch_or(mask, Ordering::AcqRel);
        Kick(mask)
    }

    /// Makes SGI `intid` of group 1 or 0 pending for vCPU `target` if the target has it in that group (ICC_SGI0R_EL1,
    /// ICC_SGI1R_EL1).
    pub(crate) fn send_sgi(&self, target: usize, intid: u32, is_group1: bool) -> Kick {
        if target >= self.vcpu_count || intid >= 16 {
            return Kick(0);
        }
        let mut state = self.state.lock();
        let bank = &mut state.private[target];
        if (bank.group >> intid & 1 != 0) != is_group1 {
            return Kick(0);
        }
        bank.pending |= 1 << intid;
        self.mark(&state, 1 << target)
    }

    /// Sets the input line of shared interrupt `intid`.
    pub(crate) fn set_level(&self, intid: u32, is_high: bool) -> Kick {
        if !(32..INTID_LIMIT).contains(&intid) {
            return Kick(0);
        }
        let (word, bit) = (intid as usize / 32, 1 << (intid % 32));
        let mut state = self.state.lock();
        let bank = &mut state.shared[word - 1];
        if (bank.level & bit != 0) == is_high || bank.hardware & bit != 0 {
            return Kick(0);
        }
        bank.level ^= bit;
        if is_high && bank.edge & bit != 0 {
            bank.pending |= bit;
        }
        let kick = state.affected(0, word, bit);
        self.mark(&state, kick)
    }

    /// Converts a mask of physical private interrupts to the guest's.
    pub(crate) fn to_guest(&self, mask: u32) -> u32 {
        let sgis = mask & ((1 << DIRECT_SGIS) - 1);
        self.links
            .iter()
            .fold(sgis, |all, link| all | (mask >> (link.physical_intid & 31) & 1) << link.virtual_intid)
    }

    /// Handles a physical interrupt that `local` could not inject.
    pub(crate) fn arrive(
        &self,
        vcpu: usize,
        physical_intid: u32,
        local: &Local,
        lrs: &impl ListRegisters,
    ) -> Kick {
        {
            let mut state = self.state.lock();
            if let Some(link) = self.links.iter().find(|link| link.physical_intid == physical_intid) {
                let bank = &mut state.private[vcpu];
                bank.pending |= 1 << link.virtual_intid;
                bank.taken |= 1 << link.virtual_intid;
            } else if physical_intid < DIRECT_SGIS {
                // Sent with ICC_SGI1R_EL1: only to group 1.
                let bank = &mut state.private[vcpu];
                bank.pending |= bank.group & 1 << physical_intid;
            }
        }
        self.refill(vcpu, local, lrs)
    }

    /// Synchronises and refills the list registers of `vcpu`, on its own CPU. Returns the vCPUs to kick because shared
    /// interrupts go to them now.
    pub(crate) fn refill(&self, vcpu: usize, local: &Local, lrs: &impl ListRegisters) -> Kick {
        let mut state = self.state.lock();
        // Cleared before the banks are read: a later change marks the vCPU again.
        self.dirty.fetch_and(!(1 << vcpu), Ordering::AcqRel);
        let before = core::array::from_fn(|slot| local.held[slot].get());
        let (leaving, given) = self.synchronise(&mut state, vcpu, local, lrs);
        let moved = self.update_lines(&mut state, lrs) & !(1 << vcpu);
        self.fill(&mut state, vcpu, local, lrs, Before { held: before, given });
        self.mark(&state, leaving | moved)
    }

    /// Handles a trapped write to ICC_DIR_EL1 by `vcpu`. Returns the other vCPUs to kick.
    pub(crate) fn deactivate(
        &self,
        vcpu: usize,
        intid: u32,
        local: &Local,
        lrs: &impl ListRegisters,
    ) -> Kick {
        if intid >= INTID_LIMIT {
            return Kick(0);
        }
        let mut state = self.state.lock();
        let before = core::array::from_fn(|slot| local.held[slot].get());
        let (leaving, given) = self.synchronise(&mut state, vcpu, local, lrs);
        let bank = state.bank(vcpu, intid as usize / 32);
        let mine = intid < 32 || bank.holder[intid as usize % 32] == vcpu as u8;
        if mine && bank.active >> (intid % 32) & 1 != 0 {
            self.end(&mut state, vcpu, intid, lrs);
        }
        let moved = self.update_lines(&mut state, lrs) & !(1 << vcpu);
        self.fill(&mut state, vcpu, local, lrs, Before { held: before, given });
        self.mark(&state, leaving | moved)
    }

    /// Returns the physical INTID of virtual `intid`, if it has one.
    fn physical(&self, intid: u32) -> Option<u32> {
        if intid < DIRECT_SGIS {
            return Some(intid);
        }
        if intid >= 32 {
            return self.line_physical(intid);
        }
        self.links.iter().find(|link| link.virtual_intid == intid).map(|link| link.physical_intid)
    }

    /// Returns the place of virtual `intid` in the tables of the fast path, if it has one.
    fn entry(&self, intid: u32) -> Option<Entry> {
        match intid {
            0..32 => self.physical(intid).map(|physical| Entry::Private(physical as usize)),
            _ => self.line_entry(intid).map(Entry::Line),
        }
    }
}
