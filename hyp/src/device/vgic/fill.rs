//! Filling list registers with the most urgent interrupts of a vCPU, and preparing its fast path.

use super::bank::NOBODY;
use super::list_register::{ListRegister, ListRegisters};
use super::local::{Local, MAX_LIST_REGISTERS, NO_INTID};
use super::{DIRECT_SGIS, SHARED_BANKS, State, Vgic, bits};

/// An interrupt that needs a list register.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) intid: u32,
    pub(super) priority: u8,
    pub(super) pending: bool,
    pub(super) active: bool,
}

/// The list registers before a refill.
#[derive(Clone, Copy)]
pub(super) struct Before {
    /// By list register: its INTID.
    pub(super) held: [u16; MAX_LIST_REGISTERS],
    /// List registers with a pending interrupt, a bit each.
    pub(super) given: u16,
}

impl Before {
    fn had_given(&self, candidate: &Candidate) -> bool {
        let slot = self.held.iter().position(|&held| u32::from(held) == candidate.intid);
        slot.is_some_and(|slot| self.given >> slot & 1 != 0)
    }
}

impl Vgic {
    /// Puts the most urgent interrupts of `vcpu` into its list registers.
    pub(super) fn fill(
        &self,
        state: &mut State,
        vcpu: usize,
        local: &Local,
        lrs: &impl ListRegisters,
        before: Before,
    ) {
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
    pub(super) fn list_register(&self, state: &mut State, vcpu: usize, candidate: Candidate) -> ListRegister {
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
