//! `heat`: the memory that guests use.

use alloc::vec;
use alloc::vec::Vec;
use stage2::controller::{ControllerId, MAX_CONTROLLERS};

use super::prelude::*;
use crate::monitor::migration::{Heat, Look};
use crate::monitor::mux::{GUESTS, INTERRUPT};

/// The result of one scan of all guests' access flags.
pub(super) struct Sample {
    resident: Vec<[u64; MAX_CONTROLLERS]>,
    touched: Vec<[u64; MAX_CONTROLLERS]>,
    life: [u32; GUESTS],
    unit_count: u64,
    cost_ticks: u64,
}

impl Default for Sample {
    /// Creates an empty sample. The counters are on the heap, since they are large for the monitor's stack.
    fn default() -> Self {
        let counters = || vec![[0; MAX_CONTROLLERS]; GUESTS];
        Self { resident: counters(), touched: counters(), life: [0; GUESTS], unit_count: 0, cost_ticks: 0 }
    }
}

impl Sample {
    /// Returns the bytes that guests have behind a controller.
    pub(super) fn resident(&self, controller: ControllerId) -> u64 {
        self.resident.iter().map(|resident| resident[controller.index()]).sum()
    }

    /// Returns the bytes behind a controller that guests touched.
    pub(super) fn touched(&self, controller: ControllerId) -> u64 {
        self.touched.iter().map(|touched| touched[controller.index()]).sum()
    }

    /// Tests if `life` is the guest's life in this sample, which began a window. If not, all of the guest's memory is new
    /// and counts as touched.
    pub(super) fn has_seen(&self, guest: usize, life: u32) -> bool {
        life != 0 && self.life.get(guest) == Some(&life)
    }

    /// Forgets the touched memory of guests that got their memory after the window began.
    pub(super) fn forget_new(&mut self, begun: &Self) {
        for guest in 0..GUESTS {
            if !begun.has_seen(guest, self.life[guest]) {
                self.touched[guest] = [0; MAX_CONTROLLERS];
            }
        }
    }
}

/// Scans all units once, and lets others run between pieces. The result replaces the contents of `sample`.
pub(super) fn look_at_all(session: &mut Session<'_>, look: Look, sample: &mut Sample) -> Done {
    let migration = session.migration()?;
    (sample.unit_count, sample.cost_ticks) = (0, 0);
    for guest in 0..GUESTS {
        let mut heat = Heat { look, ..Heat::default() };
        let mut next = Some(0);
        while let Some(ipa) = next {
            let started = migration.now();
            next = migration.sample(guest, ipa, &mut heat);
            sample.cost_ticks += migration.now().wrapping_sub(started);
            session.io().pause();
        }
        (sample.resident[guest], sample.touched[guest], sample.life[guest]) =
            (heat.resident, heat.touched, heat.life);
        sample.unit_count += heat.unit_count;
    }
    Ok(())
}

/// Tests if the operator has pressed Ctrl-C. The next write takes the key.
pub(super) fn is_interrupted(session: &mut Session<'_>) -> bool {
    session.io().peek() == Some(INTERRUPT)
}

/// Waits for so many seconds, or until the operator interrupts. Returns the nanoseconds waited.
pub(super) fn wait(session: &mut Session<'_>, seconds: u64) -> Result<u64, Failure> {
    let start = session.io().now_ns();
    let deadline = start.saturating_add(seconds * 1_000_000_000);
    while session.io().now_ns() < deadline && !is_interrupted(session) {
        session.io().sleep(deadline);
    }
    Ok(session.io().now_ns().saturating_sub(start))
}

/// Shows the memory that guests touch.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let migration = session.migration()?;
    let (mut begun, mut sample) = (Sample::default(), Sample::default());
    look_at_all(session, Look::Begin, &mut begun)?;
    let window_ns = wait(session, arguments.number(0).unwrap_or(1))?;
    look_at_all(session, Look::End, &mut sample)?;
    let cost_ticks = begun.cost_ticks + sample.cost_ticks;
    session.report("heat", |report, machine| {
        let mut late: heapless::Vec<&str, GUESTS> = heapless::Vec::new();
        for (at, &life) in sample.life.iter().enumerate().filter(|(_, life)| **life != 0) {
            if let Some(guest) = machine.guest(at).filter(|_| !begun.has_seen(at, life)) {
                // As many as there are.
                let _ = late.push(guest.name);
            }
        }
        report.fields(&[
            ("window_ns=Window", Nanoseconds(window_ns)),
            ("unit_count=Units scanned", Count(begun.unit_count + sample.unit_count)),
            ("cost_ns=Scan time", Nanoseconds(migration.nanoseconds(cost_ticks))),
            ("late=Started too late", Words(&late)),
        ])?;
        let seen = machine.guests().take(GUESTS).filter(|(at, _)| begun.has_seen(*at, sample.life[*at]));
        let rows = seen.flat_map(|(at, guest)| {
            let (resident, touched) = (&sample.resident[at], &sample.touched[at]);
            machine.controllers().map(move |(id, controller)| {
                (guest.name, controller.name, resident[id.index()], touched[id.index()])
            })
        });
        let rows = rows.filter(|(.., resident, _)| *resident > 0);
        report.list("heat", "No guest has memory.", rows, |table, (guest, controller, resident, touched)| {
            table.row(&[
                ("guest=GUEST", Text(guest)),
                ("controller=CONTROLLER", Text(controller)),
                ("resident_bytes=RESIDENT", Bytes(resident)),
                ("touched_bytes=TOUCHED", Bytes(touched)),
                ("share_permille=SHARE", Permille((touched * 1000).checked_div(resident).unwrap_or(0))),
            ])
        })
    })
}
