//! Operations on a pool: what is asked for, and how it stands.

use core::fmt;

use heapless::Vec;

use super::cause::Blocker;
use crate::addr::{FRAME_SIZE, Ipa, PAGEBLOCK_FRAMES};
use crate::migrate::PairTotals;
use crate::owner::{GuestId, PoolId};
use crate::range::FrameRange;
use crate::size::Compact;

/// Most ranges that are tried for one claim.
pub(super) const MAX_TRIES: usize = 4;

/// The number of an operation, counted from 1 since boot; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ClaimId(u32);

impl ClaimId {
    /// Operation `number`, which need not exist.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "claim {}", self.0)
    }
}

/// Who claims and releases.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Claimant {
    /// The operator, on the console.
    #[default]
    Operator,
    /// A guest, by hypercall.
    Guest(GuestId),
    /// Ballast, for a guest that starts and asks for huge units.
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

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// It takes a range.
    #[default]
    Claim,
    /// It gives one back.
    Release,
}

/// Which range is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Wish {
    /// Any of so many frames whose first one's number is a multiple of `align`, a power of two.
    Sized {
        /// How many frames.
        frames: u64,
        /// What its start is a multiple of, in frames.
        align: u64,
    },
    /// Just this one.
    Exactly(FrameRange),
}

impl Wish {
    /// A range of `bytes`, cut up to whole frames, aligned to the largest power of two that it holds, at most 2 MiB.
    pub const fn of_size(bytes: u64) -> Self {
        let frames = bytes.div_ceil(FRAME_SIZE);
        let align = match frames.checked_ilog2() {
            Some(order) if 1 << order < PAGEBLOCK_FRAMES => 1 << order,
            Some(_) => PAGEBLOCK_FRAMES,
            None => 1,
        };
        Self::Sized { frames, align }
    }

    /// How many frames are wanted.
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

/// How an operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum State {
    /// It waits for its turn.
    #[default]
    Queued,
    /// It looks for the range that is cheapest to empty.
    Choosing,
    /// It isolates the range.
    Isolating,
    /// Tenants are on the move.
    Moving,
    /// Free frames become the owner's and are scrubbed.
    Taking,
    /// It undoes what it did.
    Undoing,
    /// Frames are verified, unmapped, scrubbed and given back.
    Releasing,
    /// The owner has the range.
    Granted,
    /// The range is given back.
    Released,
    /// It came to nothing: see [`Report::blocker`].
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl State {
    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Granted | Self::Released | Self::Failed | Self::Cancelled)
    }

    /// Its name.
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
    /// The range.
    pub range: FrameRange,
    /// How many frames were in use when it was chosen.
    pub used: u64,
    /// What stood in the way; nothing where it was granted, or is under way.
    pub blocker: Blocker,
}

/// How an operation stands, in full.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its number.
    pub id: ClaimId,
    /// What it does.
    pub kind: Kind,
    /// How it stands.
    pub state: State,
    /// The pool.
    pub pool: PoolId,
    /// Whose it is.
    pub claimant: Claimant,
    /// What was asked for.
    pub wish: Wish,
    /// The range chosen, granted, or being released.
    pub range: FrameRange,
    /// Where the range appears in the guest that claimed it; 0 where it appears nowhere.
    pub ipa: Ipa,
    /// The ranges tried, in this order.
    pub tries: Vec<Try, MAX_TRIES>,
    /// Frames emptied, taken or given back so far, of twice as many as the range has for a claim.
    pub done: u64,
    /// Frames of what was granted that were given back since.
    pub returned: u64,
    /// Units moved.
    pub moved: PairTotals,
    /// How much of what can be lent of the pool was, when the claim began, in per cent.
    pub lent_per_cent: u8,
    /// What stood in the way, of a claim that failed.
    pub blocker: Blocker,
    /// Whether it is to end as soon as it can.
    pub(super) is_cancelled: bool,
    /// Whether its claimant stopped.
    pub(super) is_orphan: bool,
    /// Whether it has begun before, and was put back into the queue.
    pub(super) is_resumed: bool,
    /// Whether what was granted is taken note of: it was adopted, or is on its way back.
    pub(super) is_settled: bool,
    /// When it was asked for, in ticks.
    pub submitted: u64,
    /// When it began, in ticks.
    pub started: u64,
    /// When it was over, in ticks.
    pub ended: u64,
    /// Ticks that migration worked for it.
    pub migration_ticks: u64,
    /// Ticks that were worked on it otherwise.
    pub own_ticks: u64,
}

impl Report {
    /// Whether its claimant stopped meanwhile.
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

    /// Whether it is a unit that was granted, and that nobody has fetched yet.
    pub(super) fn is_to_be_fetched(&self) -> bool {
        self.claimant == Claimant::Units
            && self.kind == Kind::Claim
            && self.state == State::Granted
            && !self.is_settled
    }

    /// How far it got, from 0 to 100.
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

/// Why an operation was not accepted, or not found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestError {
    /// There is no such pool.
    NoSuchPool,
    /// The pool belongs to somebody else.
    NotOwner {
        /// To whom.
        owner: Claimant,
    },
    /// The guest is not the owner of the pool, which belongs to nobody.
    NotNamed,
    /// A size of zero.
    Empty,
    /// An alignment that is no power of two, or larger than any address.
    BadAlignment {
        /// The alignment, in frames.
        align: u64,
    },
    /// More than the pool has.
    TooLarge {
        /// How many frames were asked for.
        frames: u64,
        /// How many the pool has.
        pool: u64,
    },
    /// Not inside the pool.
    OutsidePool {
        /// What was asked for.
        range: FrameRange,
        /// The pool.
        pool: FrameRange,
    },
    /// The claimant has as many operations open as it may.
    TooManyOpen,
    /// There is no such operation of this claimant.
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
