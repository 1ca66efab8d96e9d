//! Requests: the memory to move, and its target.

use core::fmt;

use super::{JobId, MAX_JOBS};
use crate::addr::{FRAME_SIZE, Ipa, PAGEBLOCK_SIZE};
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::GuestId;
use crate::phys::placement::{Placement, Strictness, Turns};
use crate::range::FrameRange;
use crate::size::Compact;

/// The memory that a job looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All guests.
    Everything,
    /// All RAM of one guest.
    Guest(GuestId),
    /// A range of a guest's IPA: its start and its size in bytes.
    Range(GuestId, Ipa, u64),
}

/// The leaves that a job moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select {
    /// Leaves behind these controllers.
    Behind(ControllerSet),
    /// Leaves that contain some of these frames.
    Touching(FrameRange),
}

/// A request to move memory.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The memory to look at.
    pub scope: Scope,
    /// The leaves to move.
    pub select: Select,
    /// The target; `None` for the region's own placement.
    pub to: Option<Placement>,
    /// The job ends when this much has moved.
    pub limit_bytes: u64,
    /// True if memory stays when its region's own placement does not allow the target.
    pub keeps_placement: bool,
    /// The interleaving of 2 MiB areas over controllers, if there is one: `select` and `to` follow it.
    pub turns: Option<Turns>,
    /// True if the job passes over guests that start instead of waiting for them.
    pub skips_starting: bool,
    /// For a job by frames: moves only memory whose allowed controllers are exactly these. Then no frame beyond
    /// `limit_bytes` moves, and none outside the range.
    pub(crate) of_kind: Option<ControllerSet>,
}

impl Request {
    const fn new(scope: Scope, select: Select, to: Option<Placement>) -> Self {
        Self {
            scope,
            select,
            to,
            limit_bytes: u64::MAX,
            keeps_placement: false,
            turns: None,
            skips_starting: false,
            of_kind: None,
        }
    }

    /// Requests to move everything in `scope` to `target`.
    pub const fn migrate(scope: Scope, target: ControllerId) -> Self {
        Self::new(scope, Select::Behind(ControllerSet::ALL.without(target)), Some(Placement::only(target)))
    }

    /// Requests to move everything behind `controller` to where its placement says. Close the controller first.
    pub const fn evacuate(controller: ControllerId) -> Self {
        Self::new(Scope::Everything, Select::Behind(ControllerSet::EMPTY.with(controller)), None)
    }

    /// Requests to move the memory in `scope` behind other controllers than `placement` names to those that it names.
    pub fn pin(scope: Scope, placement: Placement) -> Self {
        let (named, _) = placement.named();
        let others = named.iter().fold(ControllerSet::ALL, ControllerSet::without);
        Self::new(scope, Select::Behind(others), Some(placement))
    }

    /// Requests to interleave the memory in `scope` over the controllers in `set`, in the order of `turns`.
    pub const fn spread(scope: Scope, set: ControllerSet, turns: Turns) -> Self {
        let to = Placement::Interleave(set, Strictness::Strict);
        Self { turns: Some(turns), ..Self::new(scope, Select::Behind(ControllerSet::ALL), Some(to)) }
    }

    /// Sets the source and target of an interleaving request to those of the area at `ipa`. Returns the end of the
    /// area, or `None` for other requests.
    pub(in super::super) fn aim(&mut self, ipa: Ipa) -> Option<u64> {
        let target = self.turns.as_ref()?.at(ipa);
        self.select = Select::Behind(ControllerSet::ALL.without(target));
        self.to = Some(Placement::only(target));
        Some((ipa.get() & !(PAGEBLOCK_SIZE - 1)) + PAGEBLOCK_SIZE)
    }

    /// Requests to move the tenants of `frames` to where their placement says. Isolate or retire the frames first, so that
    /// they are not allocated again.
    pub const fn retire(frames: FrameRange) -> Self {
        Self::new(Scope::Everything, Select::Touching(frames), None)
    }

    /// Makes the request pass over guests that start: for a job on behalf of a guest that starts, and so waits itself.
    pub const fn without_starting(self) -> Self {
        Self { skips_starting: true, ..self }
    }

    /// Requests to move `count` frames' worth of tenants of `frames` to `target`: of those whose allowed controllers
    /// are exactly `kind`.
    pub(crate) const fn retire_some(
        frames: FrameRange,
        kind: ControllerSet,
        target: ControllerId,
        count: u64,
    ) -> Self {
        Self {
            to: Some(Placement::only(target)),
            limit_bytes: count * FRAME_SIZE,
            of_kind: Some(kind),
            ..Self::retire(frames)
        }
    }

    /// Requests to move `bytes` in `scope` from one controller to another; memory whose placement does not allow the
    /// target stays.
    pub const fn shift(scope: Scope, from: ControllerId, to: ControllerId, bytes: u64) -> Self {
        let select = Select::Behind(ControllerSet::EMPTY.with(from));
        Self {
            limit_bytes: bytes,
            keeps_placement: true,
            ..Self::new(scope, select, Some(Placement::only(to)))
        }
    }

    /// Returns the guest, if the request is about one.
    pub const fn guest(&self) -> Option<GuestId> {
        match self.scope {
            Scope::Everything => None,
            Scope::Guest(guest) | Scope::Range(guest, ..) => Some(guest),
        }
    }

    /// Returns the frames to clear, for a request by frames. Such a job finds tenants by the reverse map and looks at
    /// nothing else.
    pub(in super::super) const fn frames(&self) -> Option<FrameRange> {
        match (self.scope, self.select) {
            (Scope::Everything, Select::Touching(frames)) => Some(frames),
            _ => None,
        }
    }

    /// Returns the controllers to empty, for an evacuation.
    pub(in super::super) const fn evacuated(&self) -> Option<ControllerSet> {
        match (self.scope, self.select, self.to) {
            (Scope::Everything, Select::Behind(controllers), None) => Some(controllers),
            _ => None,
        }
    }

    /// Returns start and end of the IPA range to look at in a guest.
    pub(in super::super) const fn range(&self) -> (u64, u64) {
        match self.scope {
            Scope::Range(_, ipa, size) => (ipa.get(), ipa.get().saturating_add(size)),
            Scope::Everything | Scope::Guest(_) => (0, u64::MAX),
        }
    }

    pub(super) const fn check(&self) -> Result<(), RequestError> {
        match self.scope {
            Scope::Range(_, ipa, size) if size == 0 || (size | ipa.get()) & (FRAME_SIZE - 1) != 0 => {
                Err(RequestError::Misaligned { ipa, size })
            }
            _ => Ok(()),
        }
    }
}

/// The reason why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestError {
    /// The range is empty or not made of whole frames.
    Misaligned {
        /// Start of the range.
        ipa: Ipa,
        /// Size of the range in bytes.
        size: u64,
    },
    /// [`MAX_JOBS`] jobs are queued, running or paused.
    QueueFull,
    /// There is no such job.
    NoSuchJob(JobId),
    /// The job is over.
    JobIsOver(JobId),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Misaligned { ipa, size } => {
                write!(f, "{}@{ipa}: not a range of whole 4 KiB frames", Compact(size))
            }
            Self::QueueFull => write!(f, "{MAX_JOBS} jobs are waiting, running or paused: cancel one"),
            Self::NoSuchJob(id) => write!(f, "{id}: no such job"),
            Self::JobIsOver(id) => write!(f, "{id}: over already"),
        }
    }
}

impl core::error::Error for RequestError {}
