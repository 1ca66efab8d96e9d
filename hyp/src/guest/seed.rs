//! Random seeds for guests' trees: `kaslr-seed` and `rng-seed` of `/chosen`, Linux's first entropy.
//!
//! They derive from the host's `rng-seed`; without one guests get no seeds, and runs are reproducible. They come from a
//! ChaCha20 key stream, and each draw replaces the key (fast key erasure): neither the kept key nor one guest's seeds reveal
//! the seeds of others.
//!
//! The lock is a leaf.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use spin::Mutex;

/// Bytes of a key, and of an `rng-seed`.
const KEY_SIZE: usize = 32;

/// The seeds of a guest, new at each start.
pub(crate) struct Seeds {
    /// `kaslr-seed`.
    pub(crate) kaslr: [u8; 8],
    /// `rng-seed`.
    pub(crate) rng: [u8; KEY_SIZE],
}

static KEY: Mutex<Option<[u8; KEY_SIZE]>> = Mutex::new(None);

/// Takes the host's seed, if it is long enough.
pub(crate) fn init(host: &[u8]) {
    if host.len() < KEY_SIZE {
        return;
    }
    let mut key = [0; KEY_SIZE];
    for (at, byte) in host.iter().enumerate() {
        key[at % KEY_SIZE] ^= byte;
    }
    *KEY.lock() = Some(key);
}

/// Returns true if there are seeds.
pub(crate) fn is_available() -> bool {
    KEY.lock().is_some()
}

/// Draws seeds that no other guest gets.
pub(crate) fn draw() -> Option<Seeds> {
    let mut stream = [0; KEY_SIZE + KEY_SIZE + 8];
    {
        let mut key = KEY.lock();
        let key = key.as_mut()?;
        ChaCha20::new(&(*key).into(), &[0; 12].into()).apply_keystream(&mut stream);
        key.copy_from_slice(&stream[..KEY_SIZE]);
    }
    let mut seeds = Seeds { kaslr: [0; 8], rng: [0; KEY_SIZE] };
    seeds.rng.copy_from_slice(&stream[KEY_SIZE..2 * KEY_SIZE]);
    seeds.kaslr.copy_from_slice(&stream[2 * KEY_SIZE..]);
    Some(seeds)
}
