//! The windows in which guests see the frames claimed from their pools.
//!
//! Windows fill the upper half of a guest's address space in the order of the pools' numbers, so the windows of a guest
//! with several pools do not overlap. The window of a pool with `pinned-in-place` is at the pool's own address.

use core::fmt;
use core::ops::Range;

use super::Pools;
use crate::owner::PoolId;
use crate::size::Size;

/// The offset of a window from a multiple of this equals the offset of its pool, so that the largest leaves fit.
const ALIGNMENT: u64 = 1 << 30;

/// The window does not fit into its owner's address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowError {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// The end of the owner's address space.
    pub limit: u64,
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end, limit } = *self;
        write!(
            f,
            "its window of {}, from {start:#x} to {end:#x}, must end by {limit:#x}: windows lie in the upper half of the \
             owner's address space of {}",
            Size(end - start),
            Size(limit)
        )
    }
}

impl core::error::Error for WindowError {}

impl Pools {
    /// Returns the addresses of the window of pool `id` in a guest whose address space ends at `limit`, or `None` if
    /// the pool does not exist.
    ///
    /// # Errors
    /// Fails if the window does not fit below `limit`.
    pub fn window(&self, id: PoolId, limit: u64) -> Option<Result<Range<u64>, WindowError>> {
        let mut base = limit / 2;
        for (other, pool) in self.iter() {
            // Each is below 2^48 and there are few, so no sum overflows.
            let (address, bytes) = (pool.range.base().get(), pool.range.bytes());
            let start = base + address % ALIGNMENT;
            if other == id {
                let start = if pool.is_in_place { address } else { start };
                let end = start + bytes;
                return Some(if end <= limit {
                    Ok(start..end)
                } else {
                    Err(WindowError { start, end, limit })
                });
            }
            base = (start + bytes).next_multiple_of(ALIGNMENT);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ControllerId;
    use crate::name::Name;
    use crate::phys::block::{Pool, Source};
    use crate::range::FrameRange;

    const GIB: u64 = 1 << 30;

    fn pools(ranges: &[(u64, u64, bool)]) -> Pools {
        let mut pools = Pools::default();
        for &(base, bytes, is_in_place) in ranges {
            let range = FrameRange::inside(base, bytes).unwrap();
            let pool =
                Pool::new(range, ControllerId::default(), None, Source::Configuration, Name::new("pool"));
            let pool = Pool { is_in_place, ..pool };
            pools.list.push(pool).unwrap();
        }
        pools
    }

    fn window(pools: &Pools, number: u8, limit: u64) -> Option<Result<Range<u64>, WindowError>> {
        pools.window(PoolId::try_new(number).unwrap(), limit)
    }

    #[test]
    fn windows_lie_in_the_upper_half_and_never_overlap() {
        let pools = pools(&[(0x4420_0000, 2 * GIB, false), (5 * GIB, GIB, true), (7 * GIB, GIB, false)]);
        let limit = 64 * GIB;
        assert_eq!(window(&pools, 0, limit), Some(Ok(32 * GIB + 0x420_0000..34 * GIB + 0x420_0000)));
        assert_eq!(window(&pools, 1, limit), Some(Ok(5 * GIB..6 * GIB)));
        // After the space that the second would have used.
        assert_eq!(window(&pools, 2, limit), Some(Ok(36 * GIB..37 * GIB)));
        assert_eq!(window(&pools, 3, limit), None);
    }

    #[test]
    fn a_window_that_ends_past_the_address_space_is_refused_with_the_reason() {
        let limit = 8 * GIB;
        assert_eq!(window(&pools(&[(GIB, 4 * GIB, false)]), 0, limit), Some(Ok(4 * GIB..8 * GIB)));
        let two = pools(&[(GIB, 3 * GIB, false), (4 * GIB, GIB + 4096, false)]);
        let error = window(&two, 1, limit).unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "its window of 1.0 GiB, from 0x1c0000000 to 0x200001000, must end by 0x200000000: windows lie in the upper \
             half of the owner's address space of 8 GiB"
        );
        let error = window(&pools(&[(1 << 47, GIB, true)]), 0, limit).unwrap().unwrap_err();
        assert_eq!((error.start, error.end), (1 << 47, (1 << 47) + GIB));
    }
}
