//! The number of test cases, and memory for tests. Miri takes thousands of times as long for a step, so tests repeat
//! less under it.

use std::sync::atomic::AtomicU32;

use crate::table::Table;

/// Returns the number of cases of a property test: `usual`, or the environment's `PROPTEST_CASES`; few under Miri.
pub(crate) fn cases(usual: u32, under_miri: u32) -> u32 {
    let wished = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    wished.unwrap_or(if cfg!(miri) { under_miri } else { usual })
}

/// Returns all of `all`; under Miri `under_miri` of them, at least two, evenly spread from the first to the last.
pub(crate) fn some<T>(all: impl IntoIterator<Item = T>, under_miri: usize) -> impl Iterator<Item = T> {
    let all: Vec<T> = all.into_iter().collect();
    let (last, steps) = (all.len().saturating_sub(1), under_miri.max(2) - 1);
    let is_chosen = move |at: usize| !cfg!(miri) || (0..=steps).any(|step| step * last / steps == at);
    all.into_iter().enumerate().filter(move |(at, _)| is_chosen(*at)).map(|(_, one)| one)
}

/// Returns words with a nonzero pattern. Under Miri they are zero, because filling the frame table of some GiB would
/// take minutes.
pub(crate) fn words(count: u64) -> Vec<AtomicU32> {
    if cfg!(miri) {
        return zerocopy::FromZeros::new_vec_zeroed(count as usize).unwrap();
    }
    (0..count).map(|word| AtomicU32::new(0xa5a5_0000 ^ word as u32)).collect()
}

#[cfg(not(miri))]
fn table() -> Box<Table> {
    zerocopy::FromZeros::new_box_zeroed().unwrap()
}

#[cfg(miri)]
fn table() -> Box<Table> {
    Box::new(zerocopy::FromZeros::new_box_zeroed().unwrap())
}

/// Returns empty tables. Each is an allocation of its own: Miri checks all atomics behind a reference, which would
/// otherwise be those of all tables.
pub(crate) fn tables(count: usize) -> Vec<Box<Table>> {
    (0..count).map(|_| table()).collect()
}
