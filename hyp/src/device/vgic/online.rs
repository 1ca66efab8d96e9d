//! vCPUs that come to a CPU and leave it.

use super::list_register::{ListRegister, ListRegisters};
use super::local::Local;
use super::{Kick, Vgic};
use stage2::sync::Ordering;

impl Vgic {
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
}
