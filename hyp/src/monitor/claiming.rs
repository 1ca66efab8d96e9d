//! Pools and claims as the monitor sees them.

use stage2::claim::{ClaimId, Claims, RequestError, Wish};
use stage2::owner::PoolId;
use stage2::range::FrameRange;

/// Pools, and claims on the operator's behalf. Every call returns at once.
pub trait Claiming {
    /// Returns the pools, operations and counters.
    fn claims(&self) -> &Claims;

    /// Queues a claim.
    ///
    /// # Errors
    /// Those of [`Claims::claim`].
    fn claim(&self, pool: PoolId, wish: Wish) -> Result<ClaimId, RequestError>;
    /// Queues a release.
    ///
    /// # Errors
    /// Those of [`Claims::release`].
    fn release(&self, pool: PoolId, range: FrameRange) -> Result<ClaimId, RequestError>;
    /// Releases everything that the operator has claimed from a pool.
    ///
    /// # Errors
    /// The pool has another owner.
    fn release_all(&self, pool: PoolId) -> Result<(), RequestError>;
    /// Cancels a claim of the operator.
    ///
    /// # Errors
    /// Those of [`Claims::cancel`].
    fn cancel(&self, id: ClaimId) -> Result<(), RequestError>;

    /// Returns the time, in ticks of the counter.
    fn now(&self) -> u64;
}
