//! How many cases the property tests go through.

/// `usual` cases, or as many as the environment's `PROPTEST_CASES` says; few under Miri.
pub(crate) fn cases(usual: u32, under_miri: u32) -> u32 {
    let wished = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    wished.unwrap_or(if cfg!(miri) { under_miri } else { usual })
}
