//! The memory reservation block (specification, 5.3). fdt-rs gives no access to its entries.

use core::slice::ChunksExact;

/// An entry of the reservation block. Its end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// First address.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
}

/// Iterates over the reservation block.
#[derive(Clone)]
pub struct Reservations<'t>(ChunksExact<'t, u8>);

impl<'t> Reservations<'t> {
    /// Creates an iterator over the entries in `bytes` up to the terminating one.
    pub(super) fn new(bytes: &'t [u8]) -> Self {
        Self(bytes.chunks_exact(16))
    }
}

impl Iterator for Reservations<'_> {
    type Item = Reservation;

    fn next(&mut self) -> Option<Reservation> {
        // Does not advance past the terminating entry.
        let (base, size) = decode(self.0.clone().next()?);
        if base == 0 && size == 0 {
            return None;
        }
        self.0.next();
        Some(Reservation { base, size })
    }
}

/// Returns base and size in the 16 bytes of `entry`.
pub(super) fn decode(entry: &[u8]) -> (u64, u64) {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
    let (base, size) = entry.split_at(entry.len().min(8));
    (number(base), number(size))
}
