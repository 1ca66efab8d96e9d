//! The trace: the last events of each CPU, with counter time.
//!
//! Each CPU writes a ring of its own, without locks. A reader copies an event and then checks that the writer has not
//! overwritten it. Recording is off until `trace on`; it then costs slow paths a load and a branch for each event, and fast
//! paths nothing (`arch::trace`).

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::counters::Exit;

/// Number of events in a ring: with 32 bytes each and their count, two frames.
pub(crate) const EVENTS: usize = 255;
/// Oldest events of a ring that the writer may be about to overwrite.
const MARGIN: u64 = 4;

static IS_ON: AtomicBool = AtomicBool::new(false);

/// Turns recording on or off, on all CPUs.
pub(crate) fn set_recording(is_on: bool) {
    IS_ON.store(is_on, Ordering::Relaxed);
}

/// Returns true if events are recorded.
#[inline(always)]
pub(crate) fn is_recording() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An exit of a vCPU; `detail` is the accessed address or the syndrome, `place` the program counter.
    Exit(Exit),
    /// An interrupt was given to a vCPU; `detail` is its INTID.
    Inject,
    /// One or several adjacent units have moved; `detail` is the IPA of the first, `place` its new physical address.
    Migrate,
    /// Progress of a claim or a release, by a guest or the operator; `detail` is its number, `place` the first address of its
    /// range, or 0 while it has none.
    Claim(Step),
    /// A guest was started (`detail` 2) or has stopped (0).
    Life,
    /// An SMMU denied an access of a guest's device; `detail` is the address, `place` the SMMU's number, shifted left by 32
    /// bits, and the StreamID.
    DeviceFault(Access),
}

/// An access of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A read.
    Read,
    /// A write.
    Write,
}

/// Progress of a claim or a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The claim begins.
    Begins,
    /// The owner has the range.
    Granted,
    /// The owner has given the range back.
    Released,
    /// The claim failed.
    Failed,
    /// The claim was cancelled.
    Cancelled,
}

impl Step {
    const ALL: [Self; 5] = [Self::Begins, Self::Granted, Self::Released, Self::Failed, Self::Cancelled];

    const fn name(self) -> &'static str {
        match self {
            Self::Begins => "begins",
            Self::Granted => "granted",
            Self::Released => "released",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The number of the first step of claims.
const FIRST_STEP: u64 = 0x30;

impl Kind {
    /// Returns the kind's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Exit(_) => "exit",
            Self::Inject => "inject",
            Self::Migrate => "migrate",
            Self::Claim(_) => "claim",
            Self::Life => "life",
            Self::DeviceFault(_) => "device",
        }
    }

    /// Returns the word that a ring keeps for the kind, the guest and its vCPU; a constant for a constant kind.
    #[inline(always)]
    pub(crate) fn with(self, guest: usize, vcpu: usize) -> What {
        What(self.number() | (guest as u64 & 0xff) << 8 | (vcpu as u64 & 0xff) << 16)
    }

    #[inline(always)]
    const fn number(self) -> u64 {
        match self {
            Self::Exit(exit) => exit as u64,
            Self::Inject => 0x20,
            Self::Migrate => 0x21,
            Self::Claim(step) => FIRST_STEP + step as u64,
            Self::Life => 0x23,
            Self::DeviceFault(access) => 0x24 + access as u64,
        }
    }

    fn from_number(number: u64) -> Option<Self> {
        match number {
            0x20 => Some(Self::Inject),
            0x21 => Some(Self::Migrate),
            FIRST_STEP..0x40 => Step::ALL.get((number - FIRST_STEP) as usize).map(|&step| Self::Claim(step)),
            0x23 => Some(Self::Life),
            0x24 => Some(Self::DeviceFault(Access::Read)),
            0x25 => Some(Self::DeviceFault(Access::Write)),
            _ => Exit::ALL.get(usize::try_from(number).ok()?).map(|&exit| Self::Exit(exit)),
        }
    }
}

/// A ring's word for an event's kind, guest and vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct What(u64);

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Time, by the machine's counter.
    pub(crate) ticks: u64,
    /// Kind of the event.
    pub(crate) kind: Kind,
    /// Index of the guest.
    pub(crate) guest: u8,
    /// Number of the vCPU.
    pub(crate) vcpu: u8,
    /// See [`Kind`].
    pub(crate) detail: u64,
    /// See [`Kind`].
    pub(crate) place: u64,
}

impl fmt::Display for Event {
    /// Returns the event as text, without time, CPU and guest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { detail, place, .. } = self;
        match self.kind {
            Kind::Exit(Exit::Interrupt) => write!(f, "exit interrupt {detail} at {place:#x}"),
            Kind::Exit(exit) => write!(f, "exit {:9} {detail:#x} at {place:#x}", exit.name()),
            Kind::Inject => write!(f, "inject interrupt {detail}"),
            Kind::Migrate => write!(f, "migrate IPA {detail:#x} to {place:#x}"),
            Kind::Claim(step) if *place == 0 => write!(f, "claim {detail} {}", step.name()),
            Kind::Claim(step) => write!(f, "claim {detail} {}, {place:#x}", step.name()),
            Kind::DeviceFault(access) => {
                let access = if access == Access::Read { "read" } else { "write" };
                let (smmu, stream) = (place >> 32, place & 0xffff_ffff);
                write!(f, "device fault: {access} of {detail:#x} by stream {smmu}:{stream:#x}")
            }
            Kind::Life => f.write_str(if *detail == 0 { "stopped" } else { "started" }),
        }
    }
}

/// One CPU's ring.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Number of events recorded since boot.
    next: AtomicU64,
    events: [[AtomicU64; 4]; EVENTS],
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

impl Ring {
    /// Makes an empty ring.
    pub(crate) const fn new() -> Self {
        Self { next: AtomicU64::new(0), events: [const { [const { AtomicU64::new(0) }; 4] }; EVENTS] }
    }

    /// Records an event, whether or not recording is on ([`is_recording`]). On the ring's own CPU only.
    #[inline(always)]
    pub(crate) fn record(&self, ticks: u64, what: What, detail: u64, place: u64) {
        let next = self.next.load(Ordering::Relaxed);
        let [time, subject, about, place_of] = &self.events[next as usize % EVENTS];
        // Orders the stores below after the count: a reader that sees parts of this event sees that count.
        fence(Ordering::Release);
        time.store(ticks, Ordering::Relaxed);
        subject.store(what.0, Ordering::Relaxed);
        about.store(detail, Ordering::Relaxed);
        place_of.store(place, Ordering::Relaxed);
        self.next.store(next + 1, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn record_event(&self, event: &Event) {
        let what = event.kind.with(event.guest.into(), event.vcpu.into());
        self.record(event.ticks, what, event.detail, event.place);
    }

    /// Returns the number of events recorded since boot.
    pub(crate) fn recorded_count(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Returns the number of the oldest event in the ring.
    pub(crate) fn oldest(&self) -> u64 {
        self.recorded_count().saturating_sub(EVENTS as u64 - MARGIN)
    }

    /// Returns the event with this number, if it is still in the ring.
    pub(crate) fn event(&self, number: u64) -> Option<Event> {
        if number >= self.recorded_count() {
            return None;
        }
        let [time, what, detail, place] = self.events.get(number as usize % EVENTS)?;
        let what = what.load(Ordering::Relaxed);
        let event = Event {
            ticks: time.load(Ordering::Relaxed),
            kind: Kind::from_number(what & 0xff)?,
            guest: (what >> 8) as u8,
            vcpu: (what >> 16) as u8,
            detail: detail.load(Ordering::Relaxed),
            place: place.load(Ordering::Relaxed),
        };
        // Orders the loads above before the load of the writer's count.
        fence(Ordering::Acquire);
        (number >= self.oldest()).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> Event {
        Event { ticks: n, kind: Kind::Inject, guest: 1, vcpu: 2, detail: n, place: !n }
    }

    #[test]
    fn it_takes_two_frames() {
        assert!(size_of::<Ring>() <= 2 * 4096);
    }

    #[test]
    fn kinds_have_numbers() {
        let kinds = Exit::ALL.map(Kind::Exit).into_iter();
        let kinds = kinds.chain(Step::ALL.map(Kind::Claim));
        let kinds = kinds.chain([Access::Read, Access::Write].map(Kind::DeviceFault));
        for kind in kinds.chain([Kind::Inject, Kind::Migrate, Kind::Life]) {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(Kind::from_number(0xff), None);
    }

    #[test]
    fn the_newest_events_are_kept() {
        let ring = Ring::new();
        assert_eq!(ring.event(0), None);
        for n in 0..1000 {
            ring.record_event(&event(n));
        }
        assert_eq!(ring.oldest(), 1000 - 251);
        assert_eq!(ring.event(ring.oldest() - 1), None);
        assert_eq!(ring.event(999), Some(event(999)));
        assert_eq!(ring.event(1000), None);
    }

    #[test]
    fn a_reader_never_sees_two_halves() {
        let ring = Ring::new();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (ring, stop) = (&ring, &stop);
            scope.spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    ring.record_event(&event(n));
                    n += 1;
                }
            });
            for _ in 0..200_000 {
                if let Some(event) = ring.event(ring.oldest()) {
                    assert_eq!((event.detail, event.place), (event.ticks, !event.ticks));
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
