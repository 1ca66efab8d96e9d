//! The interrupt handler of the checks: it logs interrupts in order, with their CPU, and runs an action.

use bare::{exception, gic, mmio, mrs, msr, smp, timer};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

/// Maximum number of logged interrupts.
pub(crate) const LOG_SIZE: usize = 1100;

static LOG: [AtomicU32; LOG_SIZE] = [const { AtomicU32::new(0) }; LOG_SIZE];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static ACTION: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Flag in the log for an interrupt of group 0, taken as FIQ.
pub(crate) const AS_FIQ: u32 = 1 << 16;
/// Flag in the log for an interrupt that CPU 1 took.
pub(crate) const BY_CPU_1: u32 = 1 << 20;
/// Flag in the log for the end of an interrupt's handler, logged by actions.
pub(crate) const END: u32 = 1 << 24;

/// Installs the handlers on this CPU; interrupts stay masked.
pub(crate) fn start() {
    bare::register::mask_interrupts();
    exception::on_irq(take_irq);
    exception::on_fiq(take_fiq);
    set_action(|_| {});
    clear();
}

/// Masks and disables all interrupts of this CPU, as before [`start`].
pub(crate) fn stop() {
    bare::register::mask_interrupts();
    timer::stop_virtual();
    timer::stop_physical();
    mmio::write32(gic::base_of(0) + gic::register::ICENABLER, u32::MAX);
    mmio::write32(gic::base_of(0) + gic::register::ICPENDR, u32::MAX);
    mmio::write32(gic::base_of(0) + gic::register::ICACTIVER, u32::MAX);
    set_action(|_| {});
    msr!("icc_pmr_el1", 0xff);
    msr!("icc_bpr1_el1", 0);
    msr!("icc_ctlr_el1", 0);
}

/// The action of the handler for an INTID, between acknowledging and ending it.
pub(crate) fn set_action(action: fn(u32)) {
    ACTION.store(action as *mut (), Ordering::Release);
}

/// Clears the log.
pub(crate) fn clear() {
    COUNT.store(0, Ordering::SeqCst);
}

/// Logs an entry.
pub(crate) fn log(entry: u32) {
    let place = COUNT.fetch_add(1, Ordering::SeqCst);
    if let Some(slot) = LOG.get(place) {
        slot.store(entry, Ordering::SeqCst);
    }
}

/// Returns the number of entries.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::SeqCst)
}

/// Returns entry `index`.
pub(crate) fn entry(index: usize) -> u32 {
    LOG.get(index).map_or(u32::MAX, |slot| slot.load(Ordering::SeqCst))
}

/// Returns true if the log has exactly `entries`, in this order.
pub(crate) fn came(entries: &[u32]) -> bool {
    count() == entries.len() && entries.iter().enumerate().all(|(index, want)| entry(index) == *want)
}

/// Returns the first entries, for messages.
pub(crate) fn entries() -> impl core::fmt::Debug {
    let all: [Option<u32>; 8] = core::array::from_fn(|index| (index < count()).then(|| entry(index)));
    all
}

/// Takes interrupts until the log has `want` entries, and for a moment more to detect extra ones; then masks them again.
pub(crate) fn settle(want: usize) {
    bare::register::unmask_interrupts();
    timer::wait_for(2_000_000, || count() >= want);
    timer::delay(300);
    bare::register::mask_interrupts();
}

fn act(intid: u32) {
    let action = ACTION.load(Ordering::Acquire);
    if !action.is_null() {
        // SAFETY: `set_action` stores functions of this type.
        let action: fn(u32) = unsafe { core::mem::transmute(action) };
        action(intid);
    }
}

fn mark() -> u32 {
    if smp::index() == 1 { BY_CPU_1 } else { 0 }
}

fn take_irq() {
    // A nested interrupt overwrites the return state of this one, which the library's vectors keep on the stack.
    let intid = gic::acknowledge();
    log(intid | mark());
    if intid >= 1020 {
        return;
    }
    if intid == timer::VIRTUAL_INTID {
        msr!("cntv_ctl_el0", mrs!("cntv_ctl_el0") & !1);
    } else if intid == timer::PHYSICAL_INTID {
        msr!("cntp_ctl_el0", mrs!("cntp_ctl_el0") & !1);
    }
    act(intid);
    gic::end(intid);
}

fn take_fiq() {
    let intid = mrs!("icc_iar0_el1") as u32;
    log(intid | AS_FIQ | mark());
    if intid < 1020 {
        act(intid);
        msr!("icc_eoir0_el1", u64::from(intid));
    }
}
