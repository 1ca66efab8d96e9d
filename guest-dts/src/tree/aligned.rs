//! Blobs at an aligned address.

use alloc::vec::Vec;

/// A copy of a blob, aligned to 8 bytes, for files and buffers at any address.
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
        // The vector does not move, since it does not grow beyond its capacity.
        bytes.resize(start, 0);
        bytes.extend_from_slice(blob);
        Self { bytes, start }
    }

    /// Returns the blob.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}
