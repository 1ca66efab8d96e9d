//! Claims for the monitor's commands.

use crate::arch::timer;
use crate::guest::claims::CLAIMS;
use crate::guest::migration::{self, Host};
use crate::monitor::claiming::Claiming;
use stage2::claim::{ClaimId, Claimant, Claims, RequestError, Wish};
use stage2::owner::PoolId;
use stage2::range::FrameRange;

/// The operator's access to claims.
pub(crate) struct Operator;

impl Claiming for Operator {
    fn claims(&self) -> &Claims {
        &CLAIMS
    }

    fn claim(&self, pool: PoolId, wish: Wish) -> Result<ClaimId, RequestError> {
        let id = CLAIMS.claim(&Host, Claimant::Operator, pool, wish)?;
        migration::wake();
        Ok(id)
    }

    fn release(&self, pool: PoolId, range: FrameRange) -> Result<ClaimId, RequestError> {
        let id = CLAIMS.release(&Host, Claimant::Operator, pool, range)?;
        migration::wake();
        Ok(id)
    }

    fn release_all(&self, pool: PoolId) -> Result<(), RequestError> {
        CLAIMS.release_all(Claimant::Operator, pool)?;
        migration::wake();
        Ok(())
    }

    fn cancel(&self, id: ClaimId) -> Result<(), RequestError> {
        CLAIMS.cancel(&Host, Claimant::Operator, id)?;
        migration::wake();
        Ok(())
    }

    fn now(&self) -> u64 {
        timer::now()
    }
}
