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
mod lines;
pub(crate) mod list_register;
mod local;
mod redistributor;
pub(crate) use lines::{LINE_LIMIT, Line};
pub(crate) use redistributor::REDISTRIBUTOR_SIZE;
#[cfg(test)]
mod tests;

use bank::{Bank, NOBODY};
use lines::Lines;
use list_register::{ListRegister, ListRegisters};
pub(crate) use local::Local;
use local::{Entry, MAX_LIST_REGISTERS, NO_INTID};
use spin::Once;
use stage2::sync::{Counter, FairLock, Ordering};

/// Maximum number of vCPUs of a guest: those of one SGI target list (ICC_SGI1R_EL1.TargetList).
pub(crate) const MAX_VCPUS: usize = 16;
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
    /// Interrupts of lines that arrived on a CPU without a vCPU of the guest.
    stray_count: Counter,
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

/// An interrupt that needs a list register.
#[derive(Clone, Copy)]
struct Candidate {
    intid: u32,
    priority: u8,
    pending: bool,
    active: bool,
}

/// The list registers before a refill.
#[derive(Clone, Copy)]
struct Before {
    /// By list register: its INTID.
    held: [u16; MAX_LIST_REGISTERS],
    /// List registers with a pending interrupt, a bit each.
    given: u16,
}

impl Before {
    fn had_given(&self, candidate: &Candidate) -> bool {
        let slot = self.held.iter().position(|&held| u32::from(held) == candidate.intid);
        slot.is_some_and(|slot| self.given >> slot & 1 != 0)
    }
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
            stray_count: Counter::new(0),
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

    /// Brings `vcpu` online on this CPU, with empty list registers. Returns the vCPUs to kick because lines go to this one now.
    pub(crate) fn bring_online(&self, vcpu: usize, local: &Local, lrs: &impl ListRegisters) -> Kick {
        {
            let mut state = self.state.lock();
            state.online |= 1 << vcpu;
            local.forget();
            local.clear_direct();
            local.physical_enabled.set(0);
            for link in &self.links {
                lrs.set_physical_enable(link.physical_intid, false);
            }
        }
        self.refill(vcpu, local, lrs)
    }

    /// Takes `vcpu` offline on this CPU: moves the interrupts in its list registers back to the banks, and disables and
    /// deactivates the physical interrupts that are linked to it. Returns the vCPUs that may have to take over shared interrupts.
    pub(crate) fn take_offline(&self, vcpu: usize, local: &Local, lrs: &impl ListRegisters) -> Kick {
        let mut state = self.state.lock();
        let _ = self.synchronise(&mut state, vcpu, local, lrs);
        for index in 0..lrs.count() {
            lrs.write(index, ListRegister::new());
        }
        local.clear_direct();
        for link in &self.links {
            lrs.set_physical_enable(link.physical_intid, false);
            if state.private[vcpu].taken >> link.virtual_intid & 1 != 0 {
                lrs.deactivate(link.physical_intid);
            }
        }
        local.physical_enabled.set(0);
        let bank = &mut state.private[vcpu];
        bank.taken = 0;
        bank.active &= !bank.hardware;
        // The line determines this when the vCPU runs again.
        bank.pending &= !bank.hardware | bank.latched;
        state.online &= !(1 << vcpu);
        self.dirty.fetch_and(!(1 << vcpu), Ordering::AcqRel);
        let _ = self.update_lines(&mut state, lrs);
        let online = state.online;
        self.mark(&state, online)
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

    /// Reads the list registers back into the banks. `fill` must rewrite them before the guest runs. Returns the other vCPUs
    /// to which shared interrupts may go now, and the list registers that were pending.
    fn synchronise(
        &self,
        state: &mut State,
        vcpu: usize,
        local: &Local,
        lrs: &impl ListRegisters,
    ) -> (u32, u16) {
        let (mut leaving, mut given) = (0, 0);
        self.end_absent(state, vcpu, lrs);
        for index in 0..lrs.count() {
            let intid = u32::from(local.held[index].get());
            if intid == u32::from(NO_INTID) {
                continue;
            }
            let lr = lrs.read(index);
            let (word, bit) = (intid as usize / 32, 1 << (intid % 32));
            let groups = state.groups;
            let bank = state.bank(vcpu, word);
            let (mut pending, mut active) = (lr.pending(), lr.active());
            if word != 0 && !pending && !active && bank.holder[intid as usize % 32] != vcpu as u8 {
                // It left this list register long ago, and may be in another vCPU's.
                continue;
            }
            if bank.hardware & bit != 0 && word != 0 {
                // `update_lines` deactivates what must not stay.
                if pending || active {
                    bank.taken |= bit;
                }
            } else if bank.hardware & bit != 0 {
                let physical = u32::from(lr.physical_intid());
                let is_latched = bank.latched & bit != 0;
                let is_wanted = bank.forwarded(groups) & bit != 0 && bank.cancel_pending & bit == 0;
                if pending && !active && !(is_wanted && (is_latched || lrs.is_line_high(physical))) {
                    // The guest must not take it now. After deactivation, the physical interrupt fires again when it is
                    // due. An interrupt that software made pending stays pending.
                    lrs.deactivate(physical);
                    pending = is_latched;
                } else if pending || active {
                    bank.taken |= bit;
                }
            } else if bank.edge & bit == 0 && bank.listed_latch & bit == 0 {
                // The line determines whether it is pending.
                pending = false;
            }
            pending &= bank.cancel_pending & bit == 0;
            let is_line = word != 0 && bank.hardware & bit != 0;
            if !pending && bank.pending & bit == 0 && !(is_line && (active || self.is_line_high(intid, lrs)))
            {
                // Taken or cancelled.
                bank.latched &= !bit;
            }
            active &= bank.cancel_active & bit == 0;
            bank.cancel_pending &= !bit;
            bank.cancel_active &= !bit;
            bank.listed_pending &= !bit;
            bank.listed_latch &= !bit;
            bank.listed_active &= !bit;
            if lr.pending() {
                given |= 1 << index;
            }
            if pending {
                bank.pending |= bit;
            }
            if active {
                bank.active |= bit;
            }
            let is_pending = bank.pending_now() & bit != 0;
            if word != 0 {
                bank.holder[intid as usize % 32] = if active { vcpu as u8 } else { NOBODY };
                if is_pending && !active {
                    leaving |= state.affected(vcpu, word, bit);
                }
            }
        }
        // No other interrupt of the private bank can be in a list register.
        let bank = &mut state.private[vcpu];
        bank.cancel_pending = 0;
        bank.cancel_active = 0;
        // Cancelled while it was in no list register.
        let unclaimed = bank.taken & !(bank.pending | bank.active);
        bank.taken &= !unclaimed;
        for link in self.links.iter().filter(|link| unclaimed >> link.virtual_intid & 1 != 0) {
            lrs.deactivate(link.physical_intid);
        }
        Self::disarm_lines(state, vcpu, local);
        local.forget();
        (leaving & !(1 << vcpu), given)
    }

    /// Ends the interrupts outside the list registers that the guest has ended: the most urgent active ones
    /// (ICH_HCR_EL2.EOIcount).
    fn end_absent(&self, state: &mut State, vcpu: usize, lrs: &impl ListRegisters) {
        for _ in 0..lrs.take_eoi_count() {
            let mut urgent: Option<(u8, u32)> = None;
            for word in 0..=SHARED_BANKS {
                let bank = state.bank(vcpu, word);
                for bit in bits(bank.active) {
                    let mine = word == 0 || bank.holder[bit as usize] == vcpu as u8;
                    let key = (bank.priority[bit as usize], 32 * word as u32 + bit);
                    if mine && urgent.is_none_or(|other| key < other) {
                        urgent = Some(key);
                    }
                }
            }
            if let Some((_, intid)) = urgent {
                self.end(state, vcpu, intid, lrs);
            }
        }
    }

    /// Ends an active interrupt that is in no list register.
    fn end(&self, state: &mut State, vcpu: usize, intid: u32, lrs: &impl ListRegisters) {
        let bank = state.bank(vcpu, intid as usize / 32);
        let bit = 1 << (intid % 32);
        bank.active &= !bit;
        if bank.hardware & bit != 0
            && let Some(physical) = self.physical(intid)
        {
            bank.taken &= !bit;
            lrs.deactivate(physical);
        }
        if intid >= 32 {
            bank.holder[intid as usize % 32] = NOBODY;
        }
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

    /// Puts the most urgent interrupts of `vcpu` into its list registers.
    fn fill(&self, state: &mut State, vcpu: usize, local: &Local, lrs: &impl ListRegisters, before: Before) {
        let count = lrs.count().min(MAX_LIST_REGISTERS);
        let mut chosen: heapless::Vec<Candidate, MAX_LIST_REGISTERS> = heapless::Vec::new();
        let (mut left_pending, mut left_active) = (false, false);
        for word in 0..=SHARED_BANKS {
            let groups = state.groups;
            let bank = state.bank(vcpu, word);
            let (deliverable, active) = (bank.deliverable(groups), bank.active);
            for bit in bits(deliverable | active) {
                let intid = 32 * word as u32 + bit;
                let bank = state.bank(vcpu, word);
                let holder = bank.holder[bit as usize];
                let priority = bank.priority[bit as usize];
                if word != 0
                    && holder != vcpu as u8
                    && (holder != NOBODY || state.target(intid) != Some(vcpu))
                {
                    continue;
                }
                let (pending, active) = (deliverable >> bit & 1 != 0, active >> bit & 1 != 0);
                let candidate = Candidate { intid, priority, pending, active };
                let place = chosen.iter().position(|other| priority < other.priority).unwrap_or(chosen.len());
                let leaves = if place == count {
                    Some(candidate)
                } else {
                    let last = if chosen.len() == count { chosen.pop() } else { None };
                    // There is room: `count` is at most the capacity.
                    let _ = chosen.insert(place, candidate);
                    last
                };
                if let Some(last) = leaves {
                    left_pending |= last.pending;
                    left_active |= last.active;
                }
            }
        }
        // A hardware interrupt that is both pending and active waits until it is inactive.
        let waits = |candidate: &Candidate| {
            candidate.pending && Self::is_latched_behind_active(state, vcpu, candidate)
        };
        left_pending |= chosen.iter().any(waits);
        self.place(state, vcpu, local, lrs, &before.held[..count], &chosen);
        for candidate in chosen.iter().filter(|candidate| candidate.pending && !before.had_given(candidate)) {
            lrs.given(candidate.intid);
        }
        lrs.request_maintenance(left_pending, left_active);
        self.prepare_direct(state, vcpu, local, lrs, left_pending);
        self.arm_lines(state, vcpu, local, left_pending);
    }

    /// Writes `chosen` to the list registers, each to the one that held it `before` if possible, so that `local` finds it there
    /// next time.
    fn place(
        &self,
        state: &mut State,
        vcpu: usize,
        local: &Local,
        lrs: &impl ListRegisters,
        before: &[u16],
        chosen: &[Candidate],
    ) {
        let mut slots = [None; MAX_LIST_REGISTERS];
        let mut homeless: heapless::Vec<usize, MAX_LIST_REGISTERS> = heapless::Vec::new();
        for (index, candidate) in chosen.iter().enumerate() {
            match before.iter().position(|&held| u32::from(held) == candidate.intid) {
                Some(slot) => slots[slot] = Some(index),
                None => {
                    let _ = homeless.push(index);
                }
            }
        }
        for index in homeless {
            let unused = |slot: &usize| slots[*slot].is_none();
            let fresh = (0..before.len()).filter(unused).find(|&slot| before[slot] == NO_INTID);
            // There are at least as many list registers as candidates.
            if let Some(slot) = fresh.or_else(|| (0..before.len()).find(unused)) {
                slots[slot] = Some(index);
            }
        }
        for slot in 0..before.len() {
            match slots[slot] {
                Some(index) => {
                    let candidate = chosen[index];
                    let is_waiting = Self::is_latched_behind_active(state, vcpu, &candidate);
                    let bit = 1 << (candidate.intid % 32);
                    let bank = state.bank(vcpu, candidate.intid as usize / 32);
                    if bank.hardware & !bank.taken & bit != 0
                        && let Some(physical) = self.physical(candidate.intid)
                    {
                        // Software made it pending or active: the guest's deactivation must find the physical one active.
                        lrs.activate(physical);
                    }
                    bank.taken &= !bit;
                    lrs.write(slot, self.list_register(state, vcpu, candidate));
                    local.set_held(slot, candidate.intid, self.entry(candidate.intid));
                    let bank = state.bank(vcpu, candidate.intid as usize / 32);
                    if candidate.pending && !is_waiting {
                        bank.listed_latch |= bank.pending & bit;
                        bank.pending &= !bit;
                        bank.listed_pending |= bit;
                    }
                    if candidate.active {
                        bank.active &= !bit;
                        bank.listed_active |= bit;
                    }
                    if candidate.intid >= 32 {
                        bank.holder[candidate.intid as usize % 32] = vcpu as u8;
                    }
                }
                None => {
                    lrs.write(slot, ListRegister::new());
                    if before[slot] != NO_INTID {
                        let intid = u32::from(before[slot]);
                        local.set_held(slot, intid, self.entry(intid));
                    }
                }
            }
        }
    }

    /// Returns true if software made hardware interrupt `intid` of `vcpu` pending.
    fn is_latched(state: &State, vcpu: usize, intid: u32) -> bool {
        intid < 32 && state.private[vcpu].latched >> intid & 1 != 0
    }

    /// Returns true if `candidate` is such an interrupt and also active. Its list register can only hold the active state.
    fn is_latched_behind_active(state: &State, vcpu: usize, candidate: &Candidate) -> bool {
        candidate.active && Self::is_latched(state, vcpu, candidate.intid)
    }

    /// Returns the list register for `candidate`.
    fn list_register(&self, state: &mut State, vcpu: usize, candidate: Candidate) -> ListRegister {
        let bank = state.bank(vcpu, candidate.intid as usize / 32);
        let bit = 1 << (candidate.intid % 32);
        let lr = ListRegister::new()
            .with_virtual_intid(candidate.intid)
            .with_priority(candidate.priority)
            .with_group1(bank.group & bit != 0);
        if bank.hardware & bit != 0
            && let Some(physical) = self.physical(candidate.intid)
        {
            // A hardware interrupt cannot be both pending and active (ICH_LR<n>_EL2).
            return lr
                .with_physical(physical)
                .with_active(candidate.active)
                .with_pending(candidate.pending && !candidate.active);
        }
        lr.with_pending(candidate.pending)
            .with_active(candidate.active)
            .with_eoi_maintenance(bank.edge & bit == 0)
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

    /// Prepares `local` to inject physical private interrupts without the lock, and enables those that the guest would take.
    fn prepare_direct(
        &self,
        state: &mut State,
        vcpu: usize,
        local: &Local,
        lrs: &impl ListRegisters,
        is_overflowing: bool,
    ) {
        let groups = state.groups;
        let forwarded = state.private[vcpu].forwarded(groups);
        let links = self.links.iter().map(|link| (link.virtual_intid, link.physical_intid));
        for (intid, physical) in (0..DIRECT_SGIS).map(|sgi| (sgi, sgi)).chain(links) {
            let is_forwarded = forwarded >> intid & 1 != 0;
            let priority = state.private[vcpu].priority[intid as usize];
            let candidate = Candidate { intid, priority, pending: true, active: false };
            // If interrupts wait outside the list registers, only the slow path keeps the order of priorities.
            let is_group1 = state.private[vcpu].group >> intid & 1 != 0;
            let is_latched = Self::is_latched(state, vcpu, intid);
            let is_direct = is_forwarded && !is_overflowing && !is_latched && (is_group1 || intid >= 16);
            let value = is_direct.then(|| self.list_register(state, vcpu, candidate));
            local.set_direct(physical, value);
            if intid >= 16 && (local.physical_enabled.get() >> physical & 1 != 0) != is_forwarded {
                lrs.set_physical_enable(physical, is_forwarded);
                local.physical_enabled.set(local.physical_enabled.get() ^ 1 << physical);
            }
        }
    }
}
