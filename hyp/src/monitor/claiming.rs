//! What the monitor asks of the machine about pools and claims.

use stage2::claim::{ClaimId, Claims, RequestError, Wish};
use stage2::owner::PoolId;
use stage2::range::FrameRange;

/// Pools and claims, as the monitor sees them, in the operator's name. Everything returns at once.
pub trait Claiming {
    /// Pools, operations, counters.
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
    /// Gives back all that the operator has of a pool.
    ///
    /// # Errors
    /// Where the pool is somebody else's.
    fn release_all(&self, pool: PoolId) -> Result<(), RequestError>;
    /// Ends a claim of the operator's.
    ///
    /// # Errors
    /// Those of [`Claims::cancel`].
    fn cancel(&self, id: ClaimId) -> Result<(), RequestError>;

    /// The counter now, in ticks.
    fn now(&self) -> u64;
}
