//! A guest's life: starting, leaving, resetting, stopping.

use super::cpu::{self, PerCpu};
use super::{Guest, Phase, StopReason, Vcpu, claims, interrupts, migration, note, time, uart};
use crate::arch::cpu::{Request, idle};
use crate::arch::gic::Lists;
use crate::arch::{timer, trace, vcpu};
use crate::device::psci::Start;
use crate::observe::log;
use crate::observe::trace::Kind;
use alloc::string::ToString;
use core::sync::atomic::Ordering;

impl Guest {
    fn home(&self) -> &'static PerCpu {
        self.vcpus[0].cpu()
    }

    /// Changes the phase from one of `from` to `to`, or returns the phase if it is none of them.
    fn change_phase(&self, from: &[Phase], to: Phase) -> Result<(), Phase> {
        let mut now = self.phase.load(Ordering::SeqCst);
        loop {
            if !from.contains(&Phase::from_u8(now)) {
                return Err(Phase::from_u8(now));
            }
            match self.phase.compare_exchange(now, to as u8, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(()),
                Err(other) => now = other,
            }
        }
    }

    /// Makes the guest's home CPU start it.
    ///
    /// # Errors
    ///
    /// The guest's phase, if it is not `Stopped`.
    pub(crate) fn start(&self) -> Result<(), Phase> {
        self.change_phase(&[Phase::Stopped], Phase::Starting)?;
        self.home().request(Request::Look);
        Ok(())
    }

    /// Stops the guest. Its memory is freed once its vCPUs have left, or its home CPU has given up starting it.
    ///
    /// # Errors
    ///
    /// The guest's phase, if it cannot be stopped.
    pub(crate) fn stop(&self, reason: StopReason) -> Result<(), Phase> {
        {
            // A CPU that sees the phase also sees the reason, since it waits for the lock.
            let mut slot = self.reason.lock();
            self.change_phase(&[Phase::Starting, Phase::Running, Phase::Resetting], Phase::Stopping)?;
            *slot = reason;
        }
        self.call_out();
        Ok(())
    }

    /// Resets the guest.
    ///
    /// # Errors
    ///
    /// The guest's phase, if it is not `Running`.
    pub(crate) fn reset(&self) -> Result<(), Phase> {
        self.change_phase(&[Phase::Running], Phase::Resetting)?;
        self.call_out();
        Ok(())
    }

    /// Kicks every CPU of the guest, so that its vCPUs leave and the home CPU sees the phase.
    fn call_out(&self) {
        for vcpu in &self.vcpus {
            vcpu.cpu().request(Request::Look);
        }
    }
}

/// Stops the guest on this CPU, and does not return to it.
pub(crate) fn stop_current(vcpu: &'static Vcpu, reason: StopReason) -> ! {
    // If another vCPU was first, its reason counts.
    let _ = vcpu.guest().stop(reason);
    leave(vcpu)
}

/// Resets the guest on this CPU, and does not return to it.
pub(crate) fn reset_current(vcpu: &'static Vcpu) -> ! {
    let _ = vcpu.guest().reset();
    leave(vcpu)
}

/// Leaves the guest, whose vCPU on this CPU has turned itself off.
pub(crate) fn turn_off(vcpu: &'static Vcpu) -> ! {
    leave(vcpu)
}

/// Takes the vCPU off this CPU and goes idle.
pub(crate) fn leave(vcpu: &'static Vcpu) -> ! {
    let (cpu, guest) = (cpu::current(), vcpu.guest());
    note(vcpu, [("off, phase", guest.phase() as u64), ("vCPUs on", guest.running().into())]);
    vcpu::quiet();
    guest.note_caches(vcpu.index(), false);
    vcpu::hold_sgis();
    let others = guest.vgic.take_offline(vcpu.index(), &cpu.local, &Lists);
    Lists.reset();
    cpu.set_vcpu(None);
    for other in guest.vcpus.iter().filter(|other| others.0 >> other.index() & 1 != 0) {
        other.cpu().kick();
    }
    // The home CPU waits for the last vCPU.
    if guest.running.fetch_and(!(1 << vcpu.index()), Ordering::SeqCst) == 1 << vcpu.index()
        && guest.is_leaving()
    {
        guest.home().request(Request::Look);
    }
    idle()
}

/// Does the idle loop's work for the vCPU that owns this CPU: the work between phases, on the home CPU. Returns the
/// vCPU's initial state if it has been turned on and is on this CPU now; the caller enters the guest.
pub(crate) fn serve(vcpu: &'static Vcpu) -> Option<vcpu::Start> {
    let guest = vcpu.guest();
    if vcpu.index() == 0 {
        between_phases(guest);
    }
    if guest.phase() != Phase::Running {
        return None;
    }
    enter(vcpu, guest.power.take_start(vcpu.index())?)
}

/// Does the home CPU's work between phases.
fn between_phases(guest: &'static Guest) {
    if guest.running() != 0 {
        return;
    }
    match guest.phase() {
        Phase::Starting => {
            *guest.start_claim.lock() = None;
            match guest.plan.fit().and_then(|()| guest.space.build(guest)) {
                Ok(()) => load_and_run(guest),
                Err(error) => fail(guest, &error),
            }
        }
        Phase::Resetting => {
            guest.quiet_lines();
            guest.devices.detach(guest);
            guest.space.close();
            match claims::abandon(guest) {
                true => load_and_run(guest),
                false => fail(guest, "its claimed memory cannot be unmapped"),
            }
        }
        Phase::Stopping => {
            guest.quiet_lines();
            guest.devices.detach(guest);
            guest.space.close();
            // Claimed memory that is still mapped is unmapped with the rest.
            let _ = claims::abandon(guest);
            guest.space.release();
            guest.phase.store(Phase::Stopped as u8, Ordering::SeqCst);
            trace::record(Kind::Life, guest.id.index(), 0, Phase::Stopped as u64, 0);
            log::info!("{}: {}", guest.name(), guest.reason());
            migration::note_freed();
        }
        Phase::Stopped | Phase::Running => {}
    }
}

/// Loads a guest and turns on its first vCPU. Migration cannot work in its space meanwhile.
fn load_and_run(guest: &'static Guest) {
    guest.power.reset();
    // Every vCPU has left, and the SGIs that it sent have arrived.
    guest.vcpus.iter().for_each(|vcpu| vcpu::forget_sgis(vcpu.cpu()));
    guest.quiet_lines();
    guest.vgic.reset();
    // All vCPUs are off: nobody needs a kick.
    let _ = guest.uart.reset(|level| uart::set_line(guest, level));
    let entry = match guest.space.load(&guest.plan) {
        Ok(entry) => entry,
        Err(error) => return fail(guest, &error),
    };
    guest.space.open();
    guest.counter_offset.store(timer::now(), Ordering::Relaxed);
    guest.start_count.fetch_add(1, Ordering::Relaxed);
    guest.devices.attach(guest);
    guest.open_lines();
    // All vCPUs are off, so this cannot fail.
    let _ = guest.power.turn_on(0, Start { entry: entry.kernel, context: entry.tree.get() });
    // If the operator has stopped it meanwhile, it continues to stop.
    if guest.change_phase(&[Phase::Starting, Phase::Resetting], Phase::Running).is_err() {
        guest.home().request(Request::Look);
    } else {
        trace::record(Kind::Life, guest.id.index(), 0, Phase::Running as u64, 0);
        log::info!("{}: started, entry {}, device tree at {}", guest.name(), entry.kernel, entry.tree);
    }
}

fn fail(guest: &'static Guest, why: &str) {
    if guest.phase() == Phase::Stopping {
        // The operator was first: the guest continues to stop.
        return guest.home().request(Request::Look);
    }
    log::error!("{}: cannot start: {}", guest.name(), why);
    *guest.reason.lock() = StopReason::StartFailed(why.to_string());
    guest.space.release();
    guest.phase.store(Phase::Stopped as u8, Ordering::SeqCst);
}

/// Puts a vCPU on this CPU, if its guest still runs. Returns its initial state.
fn enter(vcpu: &'static Vcpu, start: Start) -> Option<vcpu::Start> {
    let (cpu, guest) = (cpu::current(), vcpu.guest());
    guest.running.fetch_or(1 << vcpu.index(), Ordering::SeqCst);
    if guest.is_leaving() {
        if guest.running.fetch_and(!(1 << vcpu.index()), Ordering::SeqCst) == 1 << vcpu.index() {
            guest.home().request(Request::Look);
        }
        return None;
    }
    for (index, target) in cpu.sgi_targets.iter().enumerate() {
        target.set(guest.vcpus.get(index).map_or(0, |other| other.cpu().sgi_target()));
    }
    cpu.self_target.set(cpu.sgi_target());
    cpu.self_bit.set(1 << vcpu.index());
    vcpu::prepare_interrupts();
    cpu.set_vcpu(Some(vcpu));
    time::begin(vcpu);
    let others = guest.vgic.bring_online(vcpu.index(), &cpu.local, &Lists);
    interrupts::kick_others(cpu, others);
    note(vcpu, [("on, entry", start.entry.get()), ("x0", start.context)]);
    Some(vcpu::Start {
        entry: start.entry,
        context: start.context,
        mpidr: vcpu.index() as u64,
        stage2: guest.space.stage2(),
        counter_offset: guest.counter_offset.load(Ordering::Relaxed),
    })
}
