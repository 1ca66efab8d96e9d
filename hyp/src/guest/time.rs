//! CPU time of migration and claims.

use super::cpu::{self, PerCpu};
use super::migration::{DOORBELL, ENGINE, Host};
use super::{Guest, Vcpu, claims};
use crate::arch::features::{MigrationTraps, has_caches_on, is_interrupt_pending};
use crate::arch::{timer, vcpu};
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::claim;
use stage2::migrate::{Payer, Step};
use stage2::sync::relax;

/// Periods until a vCPU's waits are used again for spare work, after a wait that could not be used.
const LOOKS: u64 = 10;

/// Count at which an idle CPU last worked.
static LAST_IDLE: AtomicU64 = AtomicU64::new(0);

/// Runs a slice in idle time, which no guest pays for.
fn step_idle(ticks: u64) -> Step {
    let step = step(ticks, Payer::Idle);
    if is_more(step) {
        LAST_IDLE.store(timer::now(), Ordering::Relaxed);
    }
    step
}

/// Returns true if a step has left work for idle CPUs.
const fn is_more(step: Step) -> bool {
    matches!(step, Step::More | Step::Spare)
}

/// Returns true if there may be work for an idle CPU.
fn has_work() -> bool {
    DOORBELL.is_pending() || ENGINE.has_spare_work()
}

/// Runs one slice of migration while the caller waits for other CPUs, or for this one's own work.
pub(crate) fn work_along() {
    if !is_more(step_idle(slice())) {
        relax();
    }
}

fn step(ticks: u64, payer: Payer) -> Step {
    let mark = DOORBELL.mark();
    let started = timer::now();
    let claims = claims::step(ticks);
    let spent = timer::now().wrapping_sub(started);
    ENGINE.charge(&Host, payer, spent);
    if claims == claim::Step::More {
        return Step::More;
    }
    let migration = ENGINE.step(&Host, ticks.saturating_sub(spent), payer);
    let step = claims.and_migration(migration, period());
    // Spare work is for idle CPUs: guests need not look for it.
    if matches!(step, Step::Idle | Step::Spare) {
        DOORBELL.acknowledge(mark);
    }
    step
}

/// Returns the length of a slice of work, in ticks.
pub(crate) fn slice() -> u64 {
    ENGINE.slice_ticks(&Host)
}

/// Returns the ticks between two slices of a running guest, at its share.
fn period() -> u64 {
    slice() * 100 / u64::from(ENGINE.policy().share_per_cent().max(1))
}

/// Works on a CPU without a guest, if there is work. Returns true if the caller should call again at once.
pub(crate) fn use_idle(cpu: &PerCpu) -> bool {
    // A kick costs an idle CPU nothing.
    cpu.poller.stop();
    if !has_work() {
        return false;
    }
    let wait = match step_idle(slice()) {
        Step::More | Step::Spare => return true,
        Step::Idle => return false,
        Step::Wait(ticks) => ticks,
        // The other CPU may soon have something else to do.
        Step::Busy => period(),
    };
    debug_assert!(cpu.vcpu().is_none());
    timer::arm(timer::Purpose::Migration, timer::now() + wait);
    false
}

/// Works while the vCPU on this CPU waits for an interrupt, at most until physical count `deadline`. Returns true if the
/// wait is over; else the guest executes the WFI, untrapped.
pub(crate) fn use_wait(cpu: &PerCpu, deadline: u64) -> bool {
    loop {
        let now = timer::now();
        if is_interrupt_pending() || now >= deadline {
            return true;
        }
        // An interrupt in a list register may be pending or active: leave the WFI to the CPU.
        if vcpu::has_virtual_interrupt() {
            break;
        }
        let slice = slice().min(deadline - now);
        if !has_work() || !is_more(step_idle(slice)) {
            break;
        }
    }
    leave_wait(cpu)
}

/// Lets the vCPU on this CPU execute WFI, untrapped. Returns false: its wait is not over.
pub(crate) fn leave_wait(cpu: &PerCpu) -> bool {
    if cpu.poller.poll(&DOORBELL) {
        MigrationTraps { waits: false, caches: true }.set();
        tick_on();
    } else {
        let_alone(cpu);
        // WFI does not trap now. If there is spare work, it traps again from the next look on.
        MigrationTraps::NONE.set();
        let look = if ENGINE.has_spare_work() { timer::now() + LOOKS * period() } else { 0 };
        timer::arm(timer::Purpose::Migration, look);
    }
    false
}

/// Prepares for a vCPU that is about to start on this CPU, with its caches off.
pub(crate) fn begin(vcpu: &Vcpu) {
    vcpu.guest().note_caches(vcpu.index(), false);
    let is_busy = cpu::current().poller.poll(&DOORBELL);
    MigrationTraps { waits: is_busy || ENGINE.has_spare_work(), caches: is_busy }.set();
    timer::arm(timer::Purpose::Migration, if is_busy { timer::now() + period() } else { 0 });
}

/// Sets traps and timer of a CPU with a running vCPU by whether there is work.
pub(crate) fn engage(cpu: &PerCpu) {
    let Some(vcpu) = cpu.vcpu() else { return };
    if !cpu.poller.poll(&DOORBELL) {
        return let_alone(cpu);
    }
    MigrationTraps { waits: true, caches: true }.set();
    if has_caches_on() {
        vcpu.guest().note_caches(vcpu.index(), true);
    }
    tick_on();
}

/// Arms the timer for the next poll, unless it is armed.
fn tick_on() {
    if !timer::is_armed(timer::Purpose::Migration) {
        timer::arm(timer::Purpose::Migration, timer::now() + period());
    }
}

/// Removes traps and timer from this CPU, which does not poll. Only WFI traps, if there is spare work.
fn let_alone(cpu: &PerCpu) {
    if let Some(vcpu) = cpu.vcpu() {
        vcpu.guest().note_caches(vcpu.index(), false);
    }
    MigrationTraps { waits: ENGINE.has_spare_work(), caches: false }.set();
    timer::arm(timer::Purpose::Migration, 0);
}

/// Handles EL2's timer: takes a slice from the vCPU on this CPU if one is due and no CPU was idle.
pub(crate) fn tick(cpu: &PerCpu) {
    let Some(vcpu) = cpu.vcpu() else { return };
    if timer::is_armed(timer::Purpose::Migration) {
        // The timer fired for another purpose.
        return;
    }
    let (guest, now) = (vcpu.guest().id, timer::now());
    if DOORBELL.is_pending() && now.wrapping_sub(LAST_IDLE.load(Ordering::Relaxed)) >= period() {
        let ticks = ENGINE.allowance(&Host, guest);
        if ticks > 0 {
            step(ticks, Payer::Guest(guest));
        }
    }
    engage(cpu);
}

/// Notes a write of the vCPU on this CPU to SCTLR_EL1. If it turns the caches off, it is noted before it is performed.
pub(crate) fn note_control(cpu: &PerCpu, has_caches_on: bool) {
    if let Some(vcpu) = cpu.vcpu() {
        vcpu.guest().note_caches(vcpu.index(), has_caches_on);
    }
}

impl Guest {
    /// Returns true if vCPUs run and all of them are known to have their caches on, and trap when they turn them off. A vCPU
    /// that starts later has its caches off.
    pub(crate) fn has_caches_on(&self) -> bool {
        let running = self.running.load(Ordering::SeqCst);
        running != 0 && running & !self.caches_on.load(Ordering::SeqCst) == 0
    }

    /// Notes whether a vCPU's caches are known to be on.
    pub(crate) fn note_caches(&self, vcpu: usize, are_on: bool) {
        if are_on {
            self.caches_on.fetch_or(1 << vcpu, Ordering::SeqCst);
        } else {
            self.caches_on.fetch_and(!(1 << vcpu), Ordering::SeqCst);
        }
    }
}
