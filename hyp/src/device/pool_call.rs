//! Hypercalls with which a guest claims memory from the pools that it owns.
//!
//! They are fast 64-bit calls in the vendor-specific hypervisor range of the SMC Calling Convention (Arm DEN 0028), by HVC or
//! SMC. A guest first checks Ballast's UID (0x8600_FF01) and asks which functions are available.
//!
//! | function | identifier | X1 | X2 | X3 |
//! |---|---|---|---|---|
//! | FEATURES | 0x8600_0000 | | | |
//! | POOL_INFO | 0xC600_0010 | pool | | |
//! | CLAIM | 0xC600_0011 | pool | bytes | alignment in bytes, 0: natural |
//! | CLAIM_AT | 0xC600_0012 | pool | offset in the pool | bytes |
//! | RELEASE | 0xC600_0013 | IPA | bytes | |
//! | STATUS | 0xC600_0014 | ticket | | |
//! | CANCEL | 0xC600_0015 | ticket | | |
//!
//! `pool` numbers the pools that the guest owns, from 0. X0 returns a [`Status`]:
//!
//! | function | X1 | X2 | X3 |
//! |---|---|---|---|
//! | FEATURES (X0 is not a status: bit 0) | bit n: function 0x10 + n is available | INTID of the interrupt below | |
//! | POOL_INFO | bytes | IPA of the pool's window | bytes claimed |
//! | CLAIM, CLAIM_AT, RELEASE | ticket | | |
//! | STATUS, operation in progress ([`Status::Pending`]) | per cent done | | |
//! | STATUS, operation succeeded | IPA | PA if the window is 1:1, else all ones | bytes |
//!
//! CLAIM and RELEASE return immediately; STATUS reports their progress. When an operation ends, an edge arrives on a shared
//! interrupt. FEATURES returns its INTID, as does `interrupts` of `/hypervisor` in the guest's tree. A guest may sleep until
//! then. It calls STATUS before each sleep, since one edge may stand for several operations.
//!
//! A claimed range appears in the pool's window at the IPA that STATUS returns, contiguous in IPA and PA, and zeroed. Any part
//! of it can be released, in units of 4 KiB. Released memory leaves the window before it is scrubbed and lent again.
//!
//! A guest can have two operations open at a time, and its last two tickets are remembered. A cancelled claim counts as open
//! until 10 ms after it was requested. A guest that stops or resets releases everything that it claimed.

use super::function_id::{FunctionId, INVALID_PARAMETER, NOT_SUPPORTED, status};
use guest_dts::guest_tree::platform::POOL_SPI;
use stage2::addr::{FRAME_SIZE, Ipa};
use stage2::claim::{Cause, ClaimId, Report, RequestError, State, Wish};
use stage2::owner::PoolId;
use stage2::range::FrameRange;

const FEATURES: u32 = 0x8600_0000;
/// The first of the 64-bit functions.
#[cfg(test)]
const FIRST: u32 = 0xc600_0010;
/// Number of the 64-bit functions.
const COUNT: u32 = 6;

/// The result of a call or of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Status {
    /// The operation succeeded.
    Success = 0,
    /// The operation is in progress.
    Pending = 1,
    /// Invalid argument: a size, an alignment or an offset that is not a multiple of 4 KiB, or a range outside the pool.
    InvalidParameter = INVALID_PARAMETER,
    /// The guest has no such pool.
    NoPool = -16,
    /// The size exceeds that of the pool.
    TooLarge = -17,
    /// Too many operations are open or were cancelled a moment ago.
    Busy = -18,
    /// The guest has no such ticket, or the ticket was forgotten.
    NoTicket = -19,
    /// The operation has ended, or cannot be cancelled.
    TooLate = -20,
    /// No range of that size and alignment is unclaimed, or the requested range is claimed.
    NoRange = -32,
    /// Too few free frames elsewhere for the memory that occupies the range.
    NoMemory = -33,
    /// Something in the range cannot be migrated.
    Blocked = -34,
    /// Part of the range is not claimed.
    NotClaimed = -35,
    /// The operation was cancelled.
    Cancelled = -36,
    /// The pool has no window in the guest's address space.
    NoWindow = -37,
}

/// A call with unchecked arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// FEATURES.
    Features,
    /// POOL_INFO.
    Info {
        /// The pool's number among the guest's pools.
        pool: u64,
    },
    /// CLAIM: any range.
    Claim {
        /// The pool's number.
        pool: u64,
        /// Size in bytes.
        bytes: u64,
        /// Alignment in bytes; 0 means natural.
        align: u64,
    },
    /// CLAIM_AT: one range.
    ClaimAt {
        /// The pool's number.
        pool: u64,
        /// Offset in the pool in bytes.
        offset: u64,
        /// Size in bytes.
        bytes: u64,
    },
    /// RELEASE.
    Release {
        /// Address in the pool's window.
        ipa: u64,
        /// Size in bytes.
        bytes: u64,
    },
    /// STATUS.
    Status {
        /// Ticket of the operation.
        ticket: u64,
    },
    /// CANCEL.
    Cancel {
        /// Ticket of the claim.
        ticket: u64,
    },
}

/// A pool that the calling guest owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned {
    /// Identifier of the pool on this machine.
    pub(crate) id: PoolId,
    /// Frames of the pool.
    pub(crate) range: FrameRange,
    /// Start of the pool's window, if it has one.
    pub(crate) window: Option<Ipa>,
    /// Number of claimed frames.
    pub(crate) claimed: u64,
    /// True if the window maps the pool at its physical address.
    pub(crate) is_in_place: bool,
}

/// The calling guest.
pub(crate) trait Owner {
    /// Returns the guest's pool number `index`.
    fn pool(&self, index: usize) -> Option<Owned>;
    /// Queues a claim.
    ///
    /// # Errors
    /// The reason why the claim is refused.
    fn claim(&self, pool: PoolId, wish: Wish) -> Result<ClaimId, RequestError>;
    /// Queues a release.
    ///
    /// # Errors
    /// The reason why the release is refused.
    fn release(&self, pool: PoolId, range: FrameRange) -> Result<ClaimId, RequestError>;
    /// Cancels a claim.
    ///
    /// # Errors
    /// The reason why the claim cannot be cancelled.
    fn cancel(&self, id: ClaimId) -> Result<(), RequestError>;
    /// Returns the state of an operation.
    fn report(&self, id: ClaimId) -> Option<Report>;
}

/// Decodes the call `id` with the guest's X1 to X3. Returns `None` for an unknown function.
pub(crate) fn decode(id: FunctionId, [first, second, third]: [u64; 3]) -> Option<Call> {
    Some(match id.get() {
        FEATURES => Call::Features,
        0xc600_0010 => Call::Info { pool: first },
        0xc600_0011 => Call::Claim { pool: first, bytes: second, align: third },
        0xc600_0012 => Call::ClaimAt { pool: first, offset: second, bytes: third },
        0xc600_0013 => Call::Release { ipa: first, bytes: second },
        0xc600_0014 => Call::Status { ticket: first },
        0xc600_0015 => Call::Cancel { ticket: first },
        _ => return None,
    })
}

/// Performs the call. Returns X0 to X3.
pub(crate) fn answer(call: Call, owner: &impl Owner) -> [u64; 4] {
    match try_answer(call, owner) {
        Ok(values) => values,
        Err(error) => [status(error as i32), 0, 0, 0],
    }
}

/// The answer to an unknown function.
pub(crate) const UNKNOWN: [u64; 4] = [status(NOT_SUPPORTED), 0, 0, 0];

fn try_answer(call: Call, owner: &impl Owner) -> Result<[u64; 4], Status> {
    let pool_of =
        |index: u64| usize::try_from(index).ok().and_then(|index| owner.pool(index)).ok_or(Status::NoPool);
    let ticket = |id: ClaimId| [Status::Success as u64, id.get().into(), 0, 0];
    Ok(match call {
        Call::Features => [1, (1 << COUNT) - 1, u64::from(32 + POOL_SPI), 0],
        Call::Info { pool } => {
            let pool = pool_of(pool)?;
            let window = pool.window.ok_or(Status::NoWindow)?;
            [Status::Success as u64, pool.range.bytes(), window.get(), pool.claimed * FRAME_SIZE]
        }
        Call::Claim { pool, bytes, align } => {
            let pool = pool_of(pool)?;
            let bytes = whole_frames(bytes)? * FRAME_SIZE;
            let wish = match align {
                0 => Wish::of_size(bytes),
                _ if !align.is_power_of_two() => return Err(Status::InvalidParameter),
                _ => Wish::Sized { frames: bytes / FRAME_SIZE, align: whole_frames(align)? },
            };
            ticket(owner.claim(pool.id, wish).map_err(refusal)?)
        }
        Call::ClaimAt { pool, offset, bytes } => {
            let pool = pool_of(pool)?;
            let range = part(pool.range, offset, bytes)?;
            ticket(owner.claim(pool.id, Wish::Exactly(range)).map_err(refusal)?)
        }
        Call::Release { ipa, bytes } => {
            let (pool, offset) = (0..)
                .map_while(|index| owner.pool(index))
                .find_map(|pool| {
                    let offset = ipa.checked_sub(pool.window?.get())?;
                    (offset < pool.range.bytes()).then_some((pool, offset))
                })
                .ok_or(Status::InvalidParameter)?;
            ticket(owner.release(pool.id, part(pool.range, offset, bytes)?).map_err(refusal)?)
        }
        Call::Status { ticket } => status_of(&report(owner, ticket)?, owner)?,
        Call::Cancel { ticket } => {
            let id = report(owner, ticket)?.id;
            owner.cancel(id).map_err(refusal)?;
            [Status::Success as u64, 0, 0, 0]
        }
    })
}

/// Converts `bytes` to frames; it must be a multiple of 4 KiB and not 0.
fn whole_frames(bytes: u64) -> Result<u64, Status> {
    match bytes {
        0 => Err(Status::InvalidParameter),
        _ if bytes.is_multiple_of(FRAME_SIZE) => Ok(bytes / FRAME_SIZE),
        _ => Err(Status::InvalidParameter),
    }
}

/// Returns `bytes` bytes of `pool` from `offset`.
fn part(pool: FrameRange, offset: u64, bytes: u64) -> Result<FrameRange, Status> {
    let frames = whole_frames(bytes)?;
    if !offset.is_multiple_of(FRAME_SIZE) {
        return Err(Status::InvalidParameter);
    }
    let start = pool.start().checked_add(offset / FRAME_SIZE).ok_or(Status::InvalidParameter)?;
    let end = start.checked_add(frames).ok_or(Status::InvalidParameter)?;
    let range = FrameRange::from_numbers(start, end).ok_or(Status::InvalidParameter)?;
    if pool.contains_range(range) { Ok(range) } else { Err(Status::InvalidParameter) }
}

fn report(owner: &impl Owner, ticket: u64) -> Result<Report, Status> {
    let id = u32::try_from(ticket).map_err(|_| Status::NoTicket)?;
    owner.report(ClaimId::new(id)).ok_or(Status::NoTicket)
}

fn status_of(report: &Report, owner: &impl Owner) -> Result<[u64; 4], Status> {
    match report.state {
        State::Granted | State::Released => {
            let pool = (0..).map_while(|index| owner.pool(index)).find(|pool| pool.id == report.pool);
            let pa = match pool {
                Some(pool) if pool.is_in_place => report.range.base().get(),
                _ => u64::MAX,
            };
            Ok([Status::Success as u64, report.ipa.get(), pa, report.range.bytes()])
        }
        State::Failed => Err(failure(report.blocker.cause)),
        State::Cancelled => Err(Status::Cancelled),
        _ => Ok([Status::Pending as u64, report.per_cent(), 0, 0]),
    }
}

fn refusal(error: RequestError) -> Status {
    match error {
        RequestError::NoSuchPool | RequestError::NotOwner { .. } | RequestError::NotNamed => Status::NoPool,
        RequestError::TooLarge { .. } => Status::TooLarge,
        RequestError::TooManyOpen => Status::Busy,
        RequestError::NoSuchClaim(_) => Status::NoTicket,
        RequestError::IsOver(_) | RequestError::IsRelease(_) => Status::TooLate,
        RequestError::Empty | RequestError::BadAlignment { .. } | RequestError::OutsidePool { .. } => {
            Status::InvalidParameter
        }
    }
}

fn failure(cause: Cause) -> Status {
    match cause {
        Cause::NoRange(_) | Cause::Claimed => Status::NoRange,
        Cause::NoFrame { .. } | Cause::NoTable => Status::NoMemory,
        Cause::NotClaimed => Status::NotClaimed,
        Cause::Cancelled | Cause::OwnerGone => Status::Cancelled,
        Cause::NoWindow => Status::NoWindow,
        _ => Status::Blocked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const WINDOW: u64 = 0x80_0000_0000;

    /// A guest with one pool of 16 MiB.
    #[derive(Default)]
    struct Guest {
        report: RefCell<Option<Report>>,
        wished: RefCell<Vec<Wish>>,
        refuses: RefCell<Option<RequestError>>,
    }

    impl Guest {
        fn submit(&self, wish: Wish) -> Result<ClaimId, RequestError> {
            match self.refuses.take() {
                Some(error) => Err(error),
                None => {
                    self.wished.borrow_mut().push(wish);
                    Ok(ClaimId::new(7))
                }
            }
        }
    }

    impl Owner for Guest {
        fn pool(&self, index: usize) -> Option<Owned> {
            let range = FrameRange::from_numbers(0x10_0000, 0x10_1000)?;
            let (id, window) = (PoolId::FIRST, Ipa::try_new(WINDOW));
            (index == 0).then_some(Owned { id, range, window, claimed: 3, is_in_place: false })
        }
        fn claim(&self, _: PoolId, wish: Wish) -> Result<ClaimId, RequestError> {
            self.submit(wish)
        }
        fn release(&self, _: PoolId, range: FrameRange) -> Result<ClaimId, RequestError> {
            self.submit(Wish::Exactly(range))
        }
        fn cancel(&self, id: ClaimId) -> Result<(), RequestError> {
            Err(RequestError::IsOver(id))
        }
        fn report(&self, id: ClaimId) -> Option<Report> {
            self.report.borrow().clone().filter(|_| id.get() == 7)
        }
    }

    fn ask(guest: &Guest, function: u32, arguments: [u64; 3]) -> [u64; 4] {
        let call = decode(FunctionId::new(function), arguments);
        call.map_or(UNKNOWN, |call| answer(call, guest))
    }

    fn code(guest: &Guest, function: u32, arguments: [u64; 3]) -> i64 {
        ask(guest, function, arguments)[0] as i64
    }

    #[test]
    fn functions_are_discovered() {
        let guest = Guest::default();
        assert_eq!(ask(&guest, FEATURES, [0; 3]), [1, 0x3f, 34, 0]);
        assert_eq!(ask(&guest, FIRST, [0; 3]), [0, 16 << 20, WINDOW, 3 * 4096]);
        for unknown in [0xc600_0000, 0xc600_0016, 0x8600_0010, 0xc600_ffff] {
            assert_eq!(code(&guest, unknown, [0; 3]), -1, "{unknown:#x}");
        }
    }

    #[test]
    fn claims_and_releases_give_tickets() {
        let guest = Guest::default();
        assert_eq!(ask(&guest, 0xc600_0011, [0, 4 << 20, 0]), [0, 7, 0, 0]);
        assert_eq!(ask(&guest, 0xc600_0011, [0, 4096, 65536]), [0, 7, 0, 0]);
        assert_eq!(ask(&guest, 0xc600_0012, [0, 8192, 4096]), [0, 7, 0, 0]);
        assert_eq!(ask(&guest, 0xc600_0013, [WINDOW + 4096, 8192, 0]), [0, 7, 0, 0]);
        let range =
            |start: u64, end: u64| FrameRange::from_numbers(0x10_0000 + start, 0x10_0000 + end).unwrap();
        let wished = [
            Wish::of_size(4 << 20),
            Wish::Sized { frames: 1, align: 16 },
            Wish::Exactly(range(2, 3)),
            Wish::Exactly(range(1, 3)),
        ];
        assert_eq!(*guest.wished.borrow(), wished);
    }

    #[test]
    fn hostile_arguments_get_errors() {
        let guest = Guest::default();
        let (claim, at, release) = (0xc600_0011, 0xc600_0012, 0xc600_0013);
        for bytes in [0, 1, 4095, 4097, u64::MAX] {
            assert_eq!(code(&guest, claim, [0, bytes, 0]), -3, "{bytes:#x}");
            assert_eq!(code(&guest, at, [0, 0, bytes]), -3, "{bytes:#x}");
            assert_eq!(code(&guest, release, [WINDOW, bytes, 0]), -3, "{bytes:#x}");
        }
        for align in [1, 2048, 4097, 12288, u64::MAX] {
            assert_eq!(code(&guest, claim, [0, 4096, align]), -3, "{align:#x}");
        }
        for pool in [1, 19, u64::MAX] {
            assert_eq!(code(&guest, claim, [pool, 4096, 0]), -16, "{pool}");
            assert_eq!(code(&guest, FIRST, [pool, 0, 0]), -16, "{pool}");
        }
        for offset in [1, 16 << 20, 1 << 63, u64::MAX - 4095] {
            assert_eq!(code(&guest, at, [0, offset, 4096]), -3, "{offset:#x}");
        }
        for ipa in [0, WINDOW - 4096, WINDOW + 1, WINDOW + (16 << 20), u64::MAX] {
            assert_eq!(code(&guest, release, [ipa, 4096, 0]), -3, "{ipa:#x}");
        }
        for ticket in [0, 8, 1 << 32 | 7, u64::MAX] {
            assert_eq!(code(&guest, 0xc600_0014, [ticket, 0, 0]), -19, "{ticket}");
            assert_eq!(code(&guest, 0xc600_0015, [ticket, 0, 0]), -19, "{ticket}");
        }
        assert!(guest.wished.borrow().is_empty());
        *guest.refuses.borrow_mut() = Some(RequestError::TooManyOpen);
        assert_eq!(code(&guest, claim, [0, 4096, 0]), -18);
    }

    proptest::proptest! {
        #[test]
        fn no_call_panics(function in 0u32..32, wide: bool, arguments: [u64; 3]) {
            let guest = Guest::default();
            let base = if wide { 0xc600_0000 } else { 0x8600_0000 };
            let values = ask(&guest, base + function, arguments);
            proptest::prop_assert!((values[0] as i64) <= 1 && (values[0] as i64) >= -40);
        }
    }
}
