//! Jobs: their requests, states and reports.

mod queue;
mod request;

use core::fmt;

use super::reason::{Reason, Unmoved};
use super::statistics::PairTotals;
use crate::controller::ControllerSet;
use crate::owner::GuestId;
use crate::phys::placement::{Placement, Strictness};
use crate::table::Level;

pub(super) use queue::{Cursor, Jobs};
pub use request::{Request, RequestError, Scope, Select};

/// Maximum number of jobs, including finished ones that are still listed.
pub const MAX_JOBS: usize = 16;

/// The number of a job. Jobs are numbered from 1 since boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(u32);

impl JobId {
    /// Makes the number of a job, which need not exist.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// The state of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// Waiting for its turn, or for a guest: see [`JobReport::waits_for`].
    Queued,
    /// Being worked on.
    Running,
    /// Being worked on until the unit in flight has arrived, then paused.
    Pausing,
    /// Waiting to be resumed.
    Paused,
    /// Being worked on until no unit is in flight, then over.
    Cancelling,
    /// Over: everything selected has moved.
    Finished,
    /// Over: some selected memory has not moved. [`JobReport::unmoved`] has the reasons.
    Incomplete,
    /// Over: cancelled. Memory that has moved stays at its target.
    Cancelled,
}

impl JobState {
    /// Returns whether the job is over.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Incomplete | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Finished => "finished",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Controllers of the memory for which there was no target frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stuck {
    /// Controllers that it lies behind.
    pub(super) behind: ControllerSet,
    /// Controllers that all of its regions allow.
    pub(super) allowed: ControllerSet,
}

impl Stuck {
    /// Adds memory behind `behind` whose region has `placement`.
    pub(super) fn add(&mut self, behind: ControllerSet, placement: &Placement) {
        self.behind = self.behind.union(behind);
        if let (named, Strictness::Strict) = placement.named() {
            self.allowed = self.allowed.intersection(named);
        }
    }
}

/// The progress of a job.
#[derive(Clone, Copy, Debug)]
pub struct JobReport {
    /// The job's number.
    pub id: JobId,
    /// The request.
    pub request: Request,
    /// The state.
    pub state: JobState,
    /// Bytes of IPA, or of frames, to look at. Known once the job has started.
    pub total_bytes: u64,
    /// Bytes looked at so far, of `total_bytes`.
    pub scanned_bytes: u64,
    /// Units moved.
    pub moved: PairTotals,
    /// Memory that did not move, by reason, in the order of [`Reason::ALL`].
    pub unmoved: [Unmoved; Reason::ALL.len()],
    /// Controllers of the memory that did not move for want of frames.
    pub(super) stuck: Stuck,
    /// True if the job was cancelled because its guest stopped or was reset, not by the operator.
    pub is_abandoned: bool,
    /// The guest that a queued job waits for: one with selected memory that starts, is reset or stops.
    pub waits_for: Option<GuestId>,
    /// Time of the start, in ticks.
    pub started: u64,
    /// Time of the end, in ticks.
    pub ended: u64,
    /// Ticks that the worker spent on the job.
    pub worked_ticks: u64,
}

impl JobReport {
    const fn new(id: JobId, request: Request) -> Self {
        Self {
            id,
            request,
            state: JobState::Queued,
            total_bytes: 0,
            scanned_bytes: 0,
            moved: PairTotals { blocks: 0, pages: 0 },
            unmoved: [Unmoved { leaf_count: 0, bytes: 0, first: None, frame: None }; Reason::ALL.len()],
            stuck: Stuck { behind: ControllerSet::EMPTY, allowed: ControllerSet::ALL },
            is_abandoned: false,
            waits_for: None,
            started: 0,
            ended: 0,
            worked_ticks: 0,
        }
    }

    /// Returns whether the job is queued and does not wait for a guest that `is_away`.
    fn is_ready(&self, is_away: impl Fn(GuestId) -> bool) -> bool {
        self.state == JobState::Queued && !self.waits_for.is_some_and(is_away)
    }

    /// Returns the memory that did not move for `reason`.
    pub const fn unmoved(&self, reason: Reason) -> Unmoved {
        self.unmoved[reason.index()]
    }

    /// Returns the bytes that did not move, for all reasons.
    pub fn unmoved_bytes(&self) -> u64 {
        self.unmoved.iter().map(|unmoved| unmoved.bytes).sum()
    }

    /// Returns whether memory stayed that the request asked to move.
    fn has_fallen_short(&self) -> bool {
        self.unmoved_bytes() > 0 && self.moved.bytes() < self.request.limit_bytes
    }

    /// Counts memory that owners of pools have claimed and that therefore stays. Claims that a guest sees in a window may
    /// have been counted unit by unit.
    pub(super) fn count_claimed(&mut self, bytes: u64) {
        let claimed = &mut self.unmoved[Reason::Claimed.index()];
        claimed.bytes = claimed.bytes.max(bytes);
    }

    /// Counts `count` moved units of `level`.
    pub(super) fn count_moved(&mut self, level: Level, count: u64) {
        if level == Level::L3 {
            self.moved.pages += count;
        } else {
            self.moved.blocks += count;
        }
    }

    /// Counts memory that did not move for `reason`.
    pub(super) fn count_unmoved(&mut self, reason: Reason, more: &Unmoved) {
        let unmoved = &mut self.unmoved[reason.index()];
        unmoved.leaf_count += more.leaf_count;
        unmoved.bytes += more.bytes;
        unmoved.first = unmoved.first.or(more.first);
        unmoved.frame = unmoved.frame.or(more.frame);
    }
}
