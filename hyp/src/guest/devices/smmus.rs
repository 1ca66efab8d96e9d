//! The host's SMMUs: taken over at boot, before the first guest starts, with every stream aborting.
//!
//! Lock: one for each SMMU, a leaf but for the allocator's. Their interrupts go to the boot CPU.

use super::registers::{self, HostSmmu};
use crate::arch::gic::{Distributor, Priority};
use crate::arch::{cpu, timer, trace};
use crate::board::{self, Board, Interrupt, Stream, Trigger};
use crate::guest;
use crate::observe::log;
use crate::observe::trace::{Access, Kind};
use crate::smmu::{Action, Event, Setup};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::{Mutex, MutexGuard, Once};

/// Microseconds between two polls of an SMMU whose event interrupt is off.
const POLL_US: u64 = 50_000;

/// An SMMU of the board.
pub(super) struct Entry {
    /// Physical address of its registers.
    pub(super) base: u64,
    /// The driver, or the reason why the SMMU cannot be used.
    pub(super) driver: Result<Mutex<HostSmmu>, String>,
    interrupts: [Option<Interrupt>; 2],
}

/// Count at which SMMUs are polled next; 0: none needs it.
static POLL_AT: AtomicU64 = AtomicU64::new(0);

static SMMUS: Once<Vec<Entry>> = Once::new();

/// Returns the SMMUs, by their index in the board.
pub(super) fn all() -> &'static [Entry] {
    SMMUS.get().map_or(&[], |smmus| smmus)
}

/// Locks SMMU `index`.
///
/// # Errors
///
/// The reason why it cannot be used.
pub(super) fn lock(index: u8) -> Result<MutexGuard<'static, HostSmmu>, &'static str> {
    let entry = all().get(usize::from(index)).ok_or("there is no such SMMU")?;
    entry.driver.as_ref().map(Mutex::lock).map_err(String::as_str)
}

/// Returns the state of the streams of an SMMU that failed, which is closed or not.
pub(super) const fn streams_of_failed(is_closed: bool) -> &'static str {
    if is_closed { "its streams abort" } else { "its streams may still reach their DMA windows" }
}

/// Takes over all SMMUs of the board. `streams` are those that guests will use.
pub(super) fn init(board: &Board<'_>, streams: &[Stream], distributor: &Distributor) {
    let smmus = board.smmus.iter().enumerate().map(|(index, smmu)| take_over(index, smmu, streams));
    let smmus = SMMUS.call_once(|| smmus.collect());
    for entry in smmus.iter().filter(|entry| entry.driver.is_ok()) {
        for interrupt in entry.interrupts.iter().flatten().filter(|interrupt| interrupt.is_spi()) {
            distributor.configure(interrupt.intid, interrupt.trigger == Trigger::Edge, Priority::Host);
            distributor.enable_at(interrupt.intid, cpu::current().mpidr());
        }
    }
    // An edge may have come before its interrupt was configured, and no other comes while the queue is not empty.
    smmus.iter().enumerate().for_each(|(index, entry)| serve(index, entry));
}

/// Takes over SMMU `index`: from then on, all its streams abort.
fn take_over(index: usize, smmu: &board::Smmu<'_>, streams: &[Stream]) -> Entry {
    let own = streams.iter().filter(|stream| usize::from(stream.smmu) == index);
    let largest_stream = own.map(|stream| stream.id).max().unwrap_or(0);
    let setup = Setup { is_coherent: smmu.is_coherent, largest_stream };
    let base = smmu.registers.base().get();
    let driver = registers::map(smmu.registers)
        .and_then(|registers| registers::take_over(registers, setup).map_err(|error| error.to_string()));
    match &driver {
        Ok(driver) => {
            log::info!("SMMU {} at {:#x}: translates by {}", index, base, driver.stage().name());
            if !driver.aborts_when_off() {
                // It stays on if it fails, since it would be bypassed.
                log::warn!("SMMU {}: should it fail, it cannot be closed: GBPA.ABORT cannot be set", index);
            }
        }
        Err(why) => log::error!("SMMU {} at {:#x}: {}; devices behind it are refused", index, base, why),
    }
    Entry { base, driver: driver.map(Mutex::new), interrupts: [smmu.event_interrupt, smmu.error_interrupt] }
}

/// Handles interrupt `intid` if it is an SMMU's.
pub(crate) fn interrupt(intid: u32) {
    for (index, entry) in all().iter().enumerate() {
        if entry.interrupts.iter().flatten().any(|interrupt| interrupt.intid == intid) {
            serve(index, entry);
        }
    }
}

/// Serves the SMMUs that have to be polled, if it is time. Called upon EL2's timer on any CPU.
pub(crate) fn poll() {
    let due = POLL_AT.load(Ordering::Relaxed);
    // One CPU takes the turn, and no lock is taken before it is time.
    if due == 0
        || timer::now() < due
        || POLL_AT.compare_exchange(due, 0, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return;
    }
    for (index, entry) in all().iter().enumerate() {
        if let Ok(driver) = &entry.driver
            && driver.lock().is_polled()
        {
            serve(index, entry);
        }
    }
}

/// Takes events and errors from an SMMU, and arms the next poll if it needs one.
fn serve(index: usize, entry: &Entry) {
    let Ok(driver) = &entry.driver else { return };
    let mut driver = driver.lock();
    let before = driver.failure();
    driver.take_events(&mut |event| tell(index, event));
    let errors = driver.take_errors();
    if !errors.is_empty() {
        log::error!("SMMU {}: {}", index, errors);
    }
    if let Some(failure) = driver.failure().filter(|_| before.is_none()) {
        log::error!("SMMU {} failed: {}; {}", index, failure, streams_of_failed(driver.is_closed()));
    }
    if driver.is_polled() {
        let next = timer::now() + timer::ticks(POLL_US);
        // If it is armed, the turn of another SMMU comes first, and does for this one.
        if POLL_AT.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            timer::arm(timer::Purpose::Smmu, next);
        }
    }
}

/// Logs and traces an event. The driver bounds their rate.
fn tell(smmu: usize, event: &Event) {
    let stream = Stream { smmu: smmu as u8, id: event.stream };
    let owner = guest::all().find_map(|guest| Some((guest, guest.devices().name_of(stream)?)));
    let Some((guest, device)) = owner else { return log::warn!("SMMU {}: {}", smmu, event) };
    let access = if event.is_write { Access::Write } else { Access::Read };
    let place = (smmu as u64) << 32 | u64::from(event.stream);
    trace::record(Kind::DeviceFault(access), guest.id().index(), 0, event.address.unwrap_or(0), place);
    log::warn!("{}: device {}: SMMU {}: {}", guest.name(), device, smmu, event);
    if event.action == Action::CutOff {
        log::error!("{}: device {} failed: it is cut off until the guest starts again", guest.name(), device);
    }
}
