//! Random seeds for guests' trees: `kaslr-seed` and `rng-seed` of `/chosen`, which Linux takes its first entropy from.
//!
//! They come from the host's own `rng-seed`; without one guests get none, and runs are the same each time. A ChaCha20
//! key stream makes them, and each draw replaces the key (fast key erasure): from what is kept here, nothing that a
//! guest got before can be computed, nor from what one guest got what another gets.
//!
//! Lock: a leaf.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use spin::Mutex;

/// Bytes of a key, and of an `rng-seed`.
const KEY_SIZE: usize = 32;

/// What a guest gets for one life.
pub(crate) struct Seeds {
    /// `kaslr-seed`.
    pub(crate) kaslr: [u8; 8],
    /// `rng-seed`.
    pub(crate) rng: [u8; KEY_SIZE],
}

static KEY: Mutex<Option<[u8; KEY_SIZE]>> = Mutex::new(None);

/// Takes the host's seed, where it is long enough to be one.
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

/// Whether there are seeds to be had.
pub(crate) fn is_available() -> bool {
    KEY.lock().is_some()
}

/// Seeds that nobody else gets.
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
