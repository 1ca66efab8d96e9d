//! Guests that were refused because of an error in their configuration.

use super::MAX_GUESTS;
use alloc::string::String;
use spin::Mutex;

/// A refused guest.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// The guest's name.
    pub(crate) name: &'static str,
    /// The error.
    pub(crate) why: String,
}

/// The refused guests. The lock is a leaf.
static REFUSED: Mutex<heapless::Vec<Refused, MAX_GUESTS>> = Mutex::new(heapless::Vec::new());

/// Adds a guest. Only as many are kept as there can be guests; the log has them all.
pub(crate) fn add(name: &'static str, why: String) {
    let _ = REFUSED.lock().push(Refused { name, why });
}

/// Returns the number of refused guests.
pub(crate) fn count() -> usize {
    REFUSED.lock().len()
}

/// Calls `f` with refused guest `index`.
pub(crate) fn with<T>(index: usize, f: impl FnOnce(&Refused) -> T) -> Option<T> {
    REFUSED.lock().get(index).map(f)
}
