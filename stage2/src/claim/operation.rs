//! Operations on a pool, their reports, and the errors of requests.

use core::fmt;

use heapless::Vec;

use super::cause::Blocker;
use crate::addr::{FRAME_SIZE, Ipa, PAGEBLOCK_FRAMES};
use crate::migrate::PairTotals;
use crate::owner::{GuestId, PoolId};
use crate::range::FrameRange;
use crate::size::Compact;

/// Maximum number of ranges tried for one claim.
pub(super) const MAX_TRIES: usize = 4;

/// Number of an operation, counted from 1 since boot; 0 stands for none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ClaimId(u32);

impl ClaimId {
    /// Returns the id with this number. The operation need not exist.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "claim {}", self.0)
    }
}

/// Party that claims and releases.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Claimant {
    /// The operator, through the console.
    #[default]
    Operator,
    /// A guest, through a hypercall.
    Guest(GuestId),
    /// Ballast, for a guest that starts and needs huge units.
    Units,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("the operator"),
            Self::Guest(guest) => guest.fmt(f),
            Self::Units => f.write_str("huge units"),
        }
    }
}

/// Kind of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// Takes a range.
    #[default]
    Claim,
    /// Gives a range back.
    Release,
}

/// Requested range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Wish {
    /// Any range of this size and alignment.
    Sized {
        /// Number of frames.
        frames: u64,
        /// Alignment of the start in frames, a power of two.
        align: u64,
    },
    /// This range only.
    Exactly(FrameRange),
}

impl Wish {
    /// Returns the wish for `bytes`, rounded up to whole frames and aligned to the largest power of two that does not
    /// exceed the size, at most 2 MiB.
    pub const fn of_size(bytes: u64) -> Self {
        let frames = bytes.div_ceil(FRAME_SIZE);
        let align = match frames.checked_ilog2() {
            Some(order) if 1 << order < PAGEBLOCK_FRAMES => 1 << order,
            Some(_) => PAGEBLOCK_FRAMES,
            None => 1,
        };
        Self::Sized { frames, align }
    }

    /// Returns the number of frames.
    pub const fn frames(&self) -> u64 {
        match self {
            Self::Sized { frames, .. } => *frames,
            Self::Exactly(range) => range.frames(),
        }
    }
}

impl Default for Wish {
    fn default() -> Self {
        Self::Sized { frames: 0, align: 0 }
    }
}

/// State of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum State {
    /// Waits in the queue.
    #[default]
    Queued,
    /// Searches for a range.
    Choosing,
    /// Isolates the range.
    Isolating,
    /// Moves the tenants.
    Moving,
    /// Takes and scrubs the frames, and maps them into the owner's window.
    Taking,
    /// Undoes the steps of a try.
    Undoing,
    /// Verifies, unmaps, scrubs and frees the range.
    Releasing,
    /// The owner has the range.
    Granted,
    /// The range has been given back.
    Released,
    /// The operation failed: see [`Report::blocker`].
    Failed,
    /// The claim was cancelled.
    Cancelled,
}

impl State {
    /// Tests whether the state is final.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Granted | Self::Released | Self::Failed | Self::Cancelled)
    }

    /// Returns the name of the state.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Choosing => "choosing",
            Self::Isolating => "isolating",
            Self::Moving => "moving",
            Self::Taking => "taking",
            Self::Undoing => "undoing",
            Self::Releasing => "releasing",
            Self::Granted => "granted",
            Self::Released => "released",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A range that was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Try {
    /// Range that was tried.
    pub range: FrameRange,
    /// Number of frames that were in use when the range was chosen.
    pub used: u64,
    /// Reason of failure. [`Cause::Nothing`](super::Cause::Nothing) if the range was granted or the try is in progress.
    pub blocker: Blocker,
}

/// Report of an operation.
#[derive(Clone, Debug)]
pub struct Report {
    /// Number of the operation.
    pub id: ClaimId,
    /// Claim or release.
    pub kind: Kind,
    /// Present state.
    pub state: State,
    /// Pool that the range belongs to.
    pub pool: PoolId,
    /// Party that asked for it.
    pub claimant: Claimant,
    /// Requested range.
    pub wish: Wish,
    /// Range that is being tried, was granted, or is being released.
    pub range: FrameRange,
    /// IPA of the range in the window of the guest that claimed it; 0 if it is not mapped.
    pub ipa: Ipa,
    /// Tries, in order.
    pub tries: Vec<Try, MAX_TRIES>,
    /// Progress in frames: for a release frames freed, for a claim frames emptied plus frames taken.
    pub done: u64,
    /// Number of granted frames that have been given back since.
    pub returned: u64,
    /// Units migrated for the claim.
    pub moved: PairTotals,
    /// Percentage of the pool's lendable frames that were lent when the claim began.
    pub lent_per_cent: u8,
    /// Reason of failure.
    pub blocker: Blocker,
    /// Set when the claimant has cancelled the claim.
    pub(super) is_cancelled: bool,
    /// Set when the claimant has stopped.
    pub(super) is_orphan: bool,
    /// Set if the operation began before and was returned to the queue.
    pub(super) is_resumed: bool,
    /// Set if a granted unit was adopted, or its release is queued.
    pub(super) is_settled: bool,
    /// Time of the request in ticks.
    pub submitted: u64,
    /// Time of the beginning in ticks.
    pub started: u64,
    /// Time of the end in ticks.
    pub ended: u64,
    /// Ticks that migration jobs for the operation took.
    pub migration_ticks: u64,
    /// Ticks of all other work on the operation.
    pub own_ticks: u64,
}

impl Report {
    /// Tests whether the claimant has stopped.
    pub const fn is_orphan(&self) -> bool {
        self.is_orphan
    }

    /// No operation.
    pub(super) const fn empty() -> Self {
        Self {
            id: ClaimId(0),
            kind: Kind::Claim,
            state: State::Queued,
            pool: PoolId::FIRST,
            claimant: Claimant::Operator,
            wish: Wish::Sized { frames: 0, align: 0 },
            range: FrameRange::EMPTY,
            ipa: Ipa::new_truncate(0),
            tries: Vec::new(),
            done: 0,
            returned: 0,
            moved: PairTotals { blocks: 0, pages: 0 },
            lent_per_cent: 0,
            blocker: Blocker::NOTHING,
            is_cancelled: false,
            is_orphan: false,
            is_resumed: false,
            is_settled: false,
            submitted: 0,
            started: 0,
            ended: 0,
            migration_ticks: 0,
            own_ticks: 0,
        }
    }

    /// Tests whether a unit was granted that was neither adopted nor declined.
    pub(super) fn is_to_be_fetched(&self) -> bool {
        self.claimant == Claimant::Units
            && self.kind == Kind::Claim
            && self.state == State::Granted
            && !self.is_settled
    }

    /// Returns the progress in per cent.
    pub fn per_cent(&self) -> u64 {
        if self.state.is_over() {
            return 100;
        }
        let all = match self.kind {
            Kind::Claim => 2 * self.wish.frames(),
            Kind::Release => self.wish.frames(),
        };
        (self.done.min(all) * 100).checked_div(all).unwrap_or(0).min(99)
    }
}

/// Reason for which a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestError {
    /// The pool does not exist.
    NoSuchPool,
    /// Another claimant owns the pool.
    NotOwner {
        /// Owner of the pool.
        owner: Claimant,
    },
    /// The configuration does not name the guest as the owner of the pool.
    NotNamed,
    /// The size is zero.
    Empty,
    /// The alignment is not a power of two, or exceeds any address.
    BadAlignment {
        /// Requested alignment in frames.
        align: u64,
    },
    /// The size exceeds the pool.
    TooLarge {
        /// Requested number of frames.
        frames: u64,
        /// Number of frames of the pool.
        pool: u64,
    },
    /// The range is not inside the pool.
    OutsidePool {
        /// Requested range.
        range: FrameRange,
        /// Range of the pool.
        pool: FrameRange,
    },
    /// The claimant has reached its limit of open operations.
    TooManyOpen,
    /// The claimant has no such operation.
    NoSuchClaim(ClaimId),
    /// The operation is over.
    IsOver(ClaimId),
    /// A release cannot be cancelled.
    IsRelease(ClaimId),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |frames: u64| Compact(frames.saturating_mul(FRAME_SIZE));
        match *self {
            Self::NoSuchPool => f.write_str("no such pool"),
            Self::NotOwner { owner } => write!(f, "the pool belongs to {owner}"),
            Self::NotNamed => f.write_str("the configuration does not name this guest as the pool's owner"),
            Self::Empty => f.write_str("a size of 0"),
            Self::BadAlignment { align } => {
                write!(f, "alignment {}: not a power of two from 4K on", bytes(align))
            }
            Self::TooLarge { frames, pool } => {
                write!(f, "{} is more than the pool has, {}", bytes(frames), bytes(pool))
            }
            Self::OutsidePool { range, pool } => {
                write!(f, "{} is not inside the pool, {}", range.compact(), pool.compact())
            }
            Self::TooManyOpen => f.write_str("too many operations are open: wait for one to end"),
            Self::NoSuchClaim(id) => write!(f, "{id}: no such claim"),
            Self::IsOver(id) => write!(f, "{id}: over already"),
            Self::IsRelease(id) => write!(f, "{id}: a release, which cannot be cancelled"),
        }
    }
}

impl core::error::Error for RequestError {}
