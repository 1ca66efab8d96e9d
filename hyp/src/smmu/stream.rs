//! Attached streams, and the counts of an SMMU.

use super::event::{Event, Limiter};

/// Identity of a window, valid until it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowId(pub(super) u8);

/// State of an attached stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamState {
    /// Accesses are translated.
    Translating,
    /// Aborting: it was cut off.
    CutOff,
    /// Aborting: the SMMU failed and is closed.
    Closed,
    /// Unknown: the SMMU failed.
    Unknown,
}

/// An attached stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// StreamID.
    pub(crate) id: u32,
    /// The window that it is attached to.
    pub(crate) window: WindowId,
    /// True if its device snoops the CPUs' caches.
    pub(crate) is_coherent: bool,
    /// State.
    pub(crate) state: StreamState,
    /// Number of its events.
    pub(crate) event_count: u64,
    /// Its last event.
    pub(crate) last_event: Option<Event>,
    pub(super) limiter: Limiter,
}

/// Counts of an SMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Events.
    pub(crate) events: u64,
    /// Events that were counted but not told, because there were too many.
    pub(crate) suppressed_events: u64,
    /// Events of streams that are not attached.
    pub(crate) unassigned_events: u64,
    /// Times that the event queue overflowed, and events were lost.
    pub(crate) overflows: u64,
    /// Global errors.
    pub(crate) errors: u64,
    /// Streams that were cut off.
    pub(crate) cut_offs: u64,
}
