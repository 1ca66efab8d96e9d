//! What the monitor asks of the machine about migration.

use core::fmt;

use super::balance::History;
use stage2::controller::{ControllerId, MAX_CONTROLLERS};
use stage2::migrate::{Engine, JobId, JobReport, Mobility, Request, RequestError, Shortage};
use stage2::owner::GuestId;
use stage2::phys::alloc::Retired;
use stage2::phys::placement::Placement;
use stage2::range::FrameRange;

/// What becomes of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It stops at a clean unit until it is resumed.
    Pause,
    /// It goes on.
    Resume,
    /// It ends at a clean unit.
    Cancel,
}

/// A piece of a guest's RAM: a region or a designated movable block of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whether it is a designated movable block.
    pub is_dmb: bool,
    /// Its number among the guest's regions, or among its blocks.
    pub number: u8,
    /// Where the guest sees it.
    pub ipa: u64,
    /// Its bytes.
    pub size: u64,
    /// Behind which controllers it is to lie.
    pub placement: Placement,
    /// Whether the operator has said so, and not the configuration.
    pub is_pinned: bool,
    /// Whether it can move.
    pub mobility: Mobility,
}

impl Piece {
    /// What operators call it: `ram0`, `dmb0`.
    pub fn name(&self) -> impl fmt::Display {
        let (kind, number) = (if self.is_dmb { "dmb" } else { "ram" }, self.number);
        fmt::from_fn(move |f| write!(f, "{kind}{number}"))
    }
}

/// What a look at access flags does with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// Clears them: a window of time begins.
    Begin,
    /// Leaves them as they are.
    #[default]
    Count,
    /// Sets them: the window ends, and nobody has to fault any more.
    End,
}

/// What was seen of a guest's memory.
#[derive(Clone, Debug)]
pub struct Heat {
    /// What becomes of the flags.
    pub look: Look,
    /// Which memory of the guest's it was: another number each time that it gets memory, 0 where none was seen.
    pub life: u32,
    /// Bytes of the units that there are, by controller.
    pub resident: [u64; MAX_CONTROLLERS],
    /// Bytes of those that were touched since the window began.
    pub touched: [u64; MAX_CONTROLLERS],
    /// Units that were looked at.
    pub unit_count: u64,
}

impl Default for Heat {
    /// Nothing seen yet.
    fn default() -> Self {
        let none = [0; MAX_CONTROLLERS];
        Self { look: Look::default(), life: 0, resident: none, touched: none, unit_count: 0 }
    }
}

/// Migration, as the monitor sees it. Guests are given by their index; everything returns at once.
pub trait Migration {
    /// Its counters and settings.
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
    /// How a job stands.
    fn job(&self, job: JobId) -> Option<JobReport>;
    /// The first job after this one.
    fn job_after(&self, job: JobId) -> Option<JobReport>;
    /// Frames that a guest has, or could have, behind a controller.
    fn frames_for(&self, guest: GuestId, controller: ControllerId) -> u64;
    /// What a job found no frames for.
    fn shortage(&self, report: &JobReport) -> Shortage;

    /// Piece `index` of a guest's RAM, by ascending address.
    fn piece(&self, guest: usize, index: usize) -> Option<Piece>;
    /// Says where a piece is to lie from now on; `None`: where the configuration says.
    fn place(&self, guest: usize, index: usize, placement: Option<Placement>);

    /// Looks at the access flags of some of a guest's RAM: of the first that is at address `ipa` or above. Yields where to
    /// go on, `None` at the end, or where the guest has no memory.
    fn sample(&self, guest: usize, ipa: u64, heat: &mut Heat) -> Option<u64>;

    /// Lets a controller take no more allocations, or take them again.
    fn close(&self, controller: ControllerId, is_closed: bool);
    /// Takes the first of `frames` out of use for good, counts them in `done`, and returns what is left.
    fn retire_some(&self, frames: FrameRange, done: &mut Retired) -> FrameRange;

    /// Ticks of the counter in nanoseconds.
    fn nanoseconds(&self, ticks: u64) -> u64;
    /// The counter now, in ticks.
    fn now(&self) -> u64;
}
