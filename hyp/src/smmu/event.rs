//! Events (IHI 0070, "Event records").

use core::fmt;

/// Action that the driver took upon an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// None: the stream stays attached.
    Counted,
    /// The stream exceeded its limit: it aborts without events from now on.
    CutOff,
    /// None: the stream is not attached to a window.
    Unassigned,
}

/// An event that a device's access caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// StreamID of the device.
    pub(crate) stream: u32,
    /// Number of the event's type.
    pub(crate) kind: u8,
    /// Address that the device accessed, if the type has one.
    pub(crate) address: Option<u64>,
    /// True for a write.
    pub(crate) is_write: bool,
    /// The driver's action.
    pub(crate) action: Action,
    /// Time at which the driver took it from the queue.
    pub(crate) time_ns: u64,
}

impl Event {
    /// Decodes an entry of the event queue, taken at `time_ns`.
    pub(super) fn decode(words: [u64; 4], time_ns: u64) -> Self {
        let kind = words[0] as u8;
        Self {
            stream: (words[0] >> 32) as u32,
            kind,
            address: matches!(kind, 0x01 | 0x05 | 0x07 | 0x0b | 0x10..=0x13 | 0x20 | 0x24)
                .then_some(words[2]),
            // RnW is 1 for a read.
            is_write: words[1] >> 35 & 1 == 0,
            action: Action::Unassigned,
            time_ns,
        }
    }

    /// Returns the name of the event's type.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            0x01 => "F_UUT",
            0x02 => "C_BAD_STREAMID",
            0x03 => "F_STE_FETCH",
            0x04 => "C_BAD_STE",
            0x05 => "F_BAD_ATS_TREQ",
            0x06 => "F_STREAM_DISABLED",
            0x07 => "F_TRANSL_FORBIDDEN",
            0x08 => "C_BAD_SUBSTREAMID",
            0x09 => "F_CD_FETCH",
            0x0a => "C_BAD_CD",
            0x0b => "F_WALK_EABT",
            0x10 => "F_TRANSLATION",
            0x11 => "F_ADDR_SIZE",
            0x12 => "F_ACCESS",
            0x13 => "F_PERMISSION",
            0x20 => "F_TLB_CONFLICT",
            0x21 => "F_CFG_CONFLICT",
            0x24 => "E_PAGE_REQUEST",
            0x25 => "F_VMS_FETCH",
            _ => "unknown event",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        if self.name() == "unknown event" {
            write!(f, " {:#04x}", self.kind)?;
        }
        write!(f, ", stream {:#x}", self.stream)?;
        if let Some(address) = self.address {
            let access = if self.is_write { "write" } else { "read" };
            write!(f, ", {access} at {address:#x}")?;
        }
        match self.action {
            Action::Counted => Ok(()),
            Action::CutOff => f.write_str("; too many events, stream cut off"),
            Action::Unassigned => f.write_str("; stream is not assigned"),
        }
    }
}

/// A limit of events by time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limiter {
    start_ns: u64,
    count: u32,
}

impl Limiter {
    /// Most events in a period.
    pub(super) const LIMIT: u32 = 64;
    /// Length of a period.
    pub(super) const PERIOD_NS: u64 = 100_000_000;

    /// Counts an event. Returns true if it exceeds the limit.
    pub(super) fn exceeds(&mut self, now_ns: u64) -> bool {
        if !self.is_within(now_ns) {
            *self = Self { start_ns: now_ns, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count > Self::LIMIT
    }

    /// Returns true while the period of the last events lasts.
    pub(super) fn is_within(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.start_ns) < Self::PERIOD_NS
    }
}
