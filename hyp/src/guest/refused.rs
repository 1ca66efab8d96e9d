//! Guests of the configuration that are no guests, since something is wrong with them: their names, and what.

use super::MAX_GUESTS;
use alloc::string::String;
use spin::Mutex;

/// A guest that is left out.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// Its name.
    pub(crate) name: &'static str,
    /// What is wrong.
    pub(crate) why: String,
}

/// A leaf: nothing else is taken while it is held.
static REFUSED: Mutex<heapless::Vec<Refused, MAX_GUESTS>> = Mutex::new(heapless::Vec::new());

/// Adds one. As many are kept as there can be guests; the log has the others.
pub(crate) fn add(name: &'static str, why: String) {
    let _ = REFUSED.lock().push(Refused { name, why });
}

/// How many there are.
pub(crate) fn count() -> usize {
    REFUSED.lock().len()
}

/// Calls `f` with the one with number `index`.
pub(crate) fn with<T>(index: usize, f: impl FnOnce(&Refused) -> T) -> Option<T> {
    REFUSED.lock().get(index).map(f)
}
