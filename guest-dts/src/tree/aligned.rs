//! A blob brought to an address that it can be read at.

use alloc::vec::Vec;

/// A copy of a blob at a multiple of 8 bytes, for files and buffers that lie anywhere.
pub struct AlignedBlob {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBlob {
    /// Copies `blob`.
    pub fn new(blob: &[u8]) -> Self {
        let mut bytes: Vec<u8> = Vec::with_capacity(blob.len() + 7);
        let address = bytes.as_ptr();
        let start = address.addr().next_multiple_of(8) - address.addr();
        // Within the capacity, so the vector does not move.
        bytes.resize(start, 0);
        bytes.extend_from_slice(blob);
        Self { bytes, start }
    }

    /// The blob.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}
