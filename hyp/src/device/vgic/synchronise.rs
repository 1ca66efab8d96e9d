//! Reading list registers back into the banks, and ending interrupts that are in none.

use super::bank::NOBODY;
use super::list_register::ListRegisters;
use super::local::{Local, NO_INTID};
use super::{SHARED_BANKS, State, Vgic, bits};

impl Vgic {
    /// Reads the list registers back into the banks. `fill` must rewrite them before the guest runs. Returns the other vCPUs
    /// to which shared interrupts may go now, and the list registers that were pending.
    pub(super) fn synchronise(
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
    pub(super) fn end(&self, state: &mut State, vcpu: usize, intid: u32, lrs: &impl ListRegisters) {
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
}
