//! Migration as the monitor sees it.

use core::fmt;

use super::balance::History;
use stage2::controller::{ControllerId, MAX_CONTROLLERS};
use stage2::migrate::{Engine, JobId, JobReport, Mobility, Request, RequestError, Shortage};
use stage2::owner::GuestId;
use stage2::phys::alloc::Retired;
use stage2::phys::placement::Placement;
use stage2::range::FrameRange;

/// An order about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stops between two units until the job is resumed.
    Pause,
    /// Continues.
    Resume,
    /// Ends between two units.
    Cancel,
}

/// A piece of a guest's RAM: a region or a designated movable block of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// True for a designated movable block.
    pub is_dmb: bool,
    /// Its number among the guest's regions, or among its blocks.
    pub number: u8,
    /// Its guest address.
    pub ipa: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The controllers that it may lie behind.
    pub placement: Placement,
    /// True if the operator set the placement, false if the configuration did.
    pub is_pinned: bool,
    /// Its mobility.
    pub mobility: Mobility,
    /// First physical address, if it was reserved at boot.
    pub backing: Option<u64>,
}

impl Piece {
    /// Returns its name: `ram0`, `dmb0`.
    pub fn name(&self) -> impl fmt::Display {
        let (kind, number) = (if self.is_dmb { "dmb" } else { "ram" }, self.number);
        fmt::from_fn(move |f| write!(f, "{kind}{number}"))
    }
}

/// The effect of a scan on access flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// Clears them, which begins a window of time.
    Begin,
    /// Leaves them unchanged.
    #[default]
    Count,
    /// Sets them, which ends the window and the faults that it causes.
    End,
}

/// The result of scanning a guest's memory.
#[derive(Clone, Debug)]
pub struct Heat {
    /// The effect of the scan on the flags.
    pub look: Look,
    /// A number that changes whenever the guest gets new memory; 0 if it has none.
    pub life: u32,
    /// Bytes of mapped units, by controller.
    pub resident: [u64; MAX_CONTROLLERS],
    /// Bytes of units touched since the window began, by controller.
    pub touched: [u64; MAX_CONTROLLERS],
    /// Units scanned.
    pub unit_count: u64,
}

impl Default for Heat {
    /// Creates an empty result.
    fn default() -> Self {
        let none = [0; MAX_CONTROLLERS];
        Self { look: Look::default(), life: 0, resident: none, touched: none, unit_count: 0 }
    }
}

/// Migration. Guests are identified by their index; every call returns at once.
pub trait Migration {
    /// Returns the engine with its counters and settings.
    fn engine(&self) -> &Engine;

    /// The directions of earlier balancing by heat.
    fn history(&self) -> &History;

    /// Queues a job.
    ///
    /// # Errors
    /// Those of [`Engine::submit`].
    fn submit(&self, request: Request) -> Result<JobId, RequestError>;
    /// Pauses, resumes or cancels a job.
    ///
    /// # Errors
    /// Those of [`Engine::cancel`].
    fn control(&self, job: JobId, order: Order) -> Result<(), RequestError>;
    /// Returns the report of a job.
    fn job(&self, job: JobId) -> Option<JobReport>;
    /// Returns the report of the next job.
    fn job_after(&self, job: JobId) -> Option<JobReport>;
    /// Returns the number of frames that a guest has, or could get, behind a controller.
    fn frames_for(&self, guest: GuestId, controller: ControllerId) -> u64;
    /// Returns the memory for which a job found no frames.
    fn shortage(&self, report: &JobReport) -> Shortage;

    /// Returns piece `index` of a guest's RAM, by ascending address.
    fn piece(&self, guest: usize, index: usize) -> Option<Piece>;
    /// Sets the placement of a piece; `None` restores that in the configuration.
    fn place(&self, guest: usize, index: usize, placement: Option<Placement>);

    /// Scans the access flags of some of a guest's RAM, beginning with the first unit at or above `ipa`. Returns the
    /// address to continue at; `None` at the end, or if the guest has no memory.
    fn sample(&self, guest: usize, ipa: u64, heat: &mut Heat) -> Option<u64>;

    /// Closes a controller to allocations, or opens it again.
    fn close(&self, controller: ControllerId, is_closed: bool);
    /// Marks the first free ones of `frames` as dirty, and returns the rest of the range.
    fn forget_some(&self, frames: FrameRange) -> FrameRange;
    /// Retires the first of `frames`, counts them in `done`, and returns the rest.
    fn retire_some(&self, frames: FrameRange, done: &mut Retired) -> FrameRange;

    /// Converts ticks of the counter to nanoseconds.
    fn nanoseconds(&self, ticks: u64) -> u64;
    /// Returns the time, in ticks of the counter.
    fn now(&self) -> u64;
}
