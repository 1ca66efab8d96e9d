//! Secondary CPUs, and per-CPU data.

use crate::boot::{platform, stack_top};
use crate::exception::Caught;
use crate::platform::{MAX_CPUS, Platform};
use crate::{cache, gic, mrs, msr, psci};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The data of a CPU, to which TPIDR_EL1 points. boot.S reads the first five words.
#[repr(C, align(256))]
pub(crate) struct Record {
    stack: AtomicU64,
    sctlr: AtomicU64,
    ttbr: AtomicU64,
    tcr: AtomicU64,
    mair: AtomicU64,
    index: AtomicUsize,
    work: AtomicPtr<()>,
    running: AtomicBool,
    pub(crate) redistributor: AtomicUsize,
    pub(crate) on_irq: AtomicPtr<()>,
    pub(crate) on_fiq: AtomicPtr<()>,
    pub(crate) catching: AtomicBool,
    pub(crate) caught_count: AtomicU64,
    pub(crate) caught: [AtomicU64; 4],
}

static RECORDS: [Record; MAX_CPUS] = [const { Record::new() }; MAX_CPUS];

unsafe extern "C" {
    fn secondary_start();
}

impl Record {
    const fn new() -> Self {
        Self {
            stack: AtomicU64::new(0),
            sctlr: AtomicU64::new(0),
            ttbr: AtomicU64::new(0),
            tcr: AtomicU64::new(0),
            mair: AtomicU64::new(0),
            index: AtomicUsize::new(0),
            work: AtomicPtr::new(core::ptr::null_mut()),
            running: AtomicBool::new(false),
            redistributor: AtomicUsize::new(0),
            on_irq: AtomicPtr::new(core::ptr::null_mut()),
            on_fiq: AtomicPtr::new(core::ptr::null_mut()),
            catching: AtomicBool::new(false),
            caught_count: AtomicU64::new(0),
            caught: [const { AtomicU64::new(0) }; 4],
        }
    }

    pub(crate) fn last_caught(&self) -> Caught {
        let [esr, far, elr, number] = &self.caught;
        Caught {
            esr: esr.load(Ordering::Relaxed),
            far: far.load(Ordering::Relaxed),
            elr: elr.load(Ordering::Relaxed),
            number: number.load(Ordering::Relaxed) as usize,
        }
    }
}

/// Returns this CPU's record.
pub(crate) fn record() -> &'static Record {
    let address = mrs!("tpidr_el1") as usize;
    let base = RECORDS.as_ptr() as usize;
    // A guest may change TPIDR_EL1.
    let index = address.wrapping_sub(base) / size_of::<Record>();
    RECORDS.get(index).unwrap_or(&RECORDS[0])
}

/// Returns the record of CPU `index`.
pub(crate) fn record_of(index: usize) -> Option<&'static Record> {
    RECORDS.get(index)
}

/// Returns this CPU's index in [`Platform::cpus`].
#[must_use]
pub fn index() -> usize {
    record().index.load(Ordering::Relaxed)
}

/// Returns true if CPU `index` runs the work of [`start`].
#[must_use]
pub fn is_running(index: usize) -> bool {
    record_of(index).is_some_and(|record| record.running.load(Ordering::Acquire))
}

/// Returns true if CPU `index` has taken the work of [`start`]. It may already be done.
fn has_begun(index: usize) -> bool {
    record_of(index).is_some_and(|record| record.work.load(Ordering::Acquire).is_null())
}

/// Returns the entry point for a CPU that is started without [`start`]; its context is [`context`].
#[must_use]
pub fn entry() -> usize {
    secondary_start as *const () as usize
}

pub(crate) fn adopt_first(_platform: &Platform) {
    msr!("tpidr_el1", RECORDS.as_ptr() as u64);
    RECORDS[0].running.store(true, Ordering::Release);
}

/// Prepares CPU `index` to start with `work`, on an empty stack. Returns its context for `CPU_ON`.
#[must_use]
pub fn context(index: usize, work: fn(usize)) -> u64 {
    let record = &RECORDS[index];
    record.index.store(index, Ordering::Relaxed);
    record.stack.store(stack_top(index) as u64, Ordering::Relaxed);
    record.sctlr.store(mrs!("sctlr_el1"), Ordering::Relaxed);
    record.ttbr.store(mrs!("ttbr0_el1"), Ordering::Relaxed);
    record.tcr.store(mrs!("tcr_el1"), Ordering::Relaxed);
    record.mair.store(mrs!("mair_el1"), Ordering::Relaxed);
    record.work.store(work as *mut (), Ordering::Release);
    record.catching.store(false, Ordering::Relaxed);
    // The CPU reads this with its MMU off.
    cache::clean(core::ptr::from_ref(record) as usize, size_of::<Record>());
    core::ptr::from_ref(record) as u64
}

/// Starts CPU `index` with `work`, which gets the index. When `work` returns, the CPU turns itself off.
///
/// # Errors
/// PSCI's result, if it is not success.
pub fn start(index: usize, work: fn(usize)) -> Result<(), i64> {
    let affinity = platform().and_then(|platform| platform.cpus().get(index).copied());
    let affinity = affinity.ok_or(psci::result::INVALID_PARAMETERS)?;
    let context = context(index, work);
    match psci::cpu_on(affinity, entry(), context) {
        psci::result::SUCCESS => Ok(()),
        error => Err(error),
    }
}

/// Starts all other CPUs with `work` and waits until they run. Returns the total number of running CPUs.
pub fn start_all(work: fn(usize)) -> usize {
    let count = platform().map_or(1, |platform| platform.cpu_count);
    let mut running = 1;
    for index in 1..count {
        match start(index, work) {
            Ok(()) => {
                while !has_begun(index) {
                    crate::sync::relax();
                }
                running += 1;
            }
            Err(error) => crate::say!("fatal CPU {} does not start: PSCI says {}", index, error),
        }
    }
    running
}

/// Continues a secondary CPU after boot.S, with the MMU in the first CPU's state.
pub(crate) extern "C" fn secondary(record: &'static Record) -> ! {
    msr!("tpidr_el1", core::ptr::from_ref(record) as u64);
    let index = record.index.load(Ordering::Relaxed);
    if let Some(platform) = platform() {
        gic::start_cpu(platform);
    }
    record.running.store(true, Ordering::Release);
    let work = record.work.swap(core::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: `context` stored a function of this type.
    let work: fn(usize) = unsafe { core::mem::transmute(work) };
    work(index);
    crate::register::mask_interrupts();
    record.running.store(false, Ordering::Release);
    let error = psci::cpu_off();
    crate::say!("fatal CPU {} does not go off: PSCI says {}", index, error);
    psci::stay()
}
