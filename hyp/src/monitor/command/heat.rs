//! `heat`: which memory is used.

use alloc::vec;
use alloc::vec::Vec;
use stage2::controller::{ControllerId, MAX_CONTROLLERS};

use super::super::grammar::{Arguments, Failure};
use super::super::machine::Machine;
use super::super::migration::{Heat, Look};
use super::super::mux::GUESTS;
use super::super::report::Value;
use super::super::session::Session;
use super::migrate::{controller_name, migration};

/// Ctrl-C.
const INTERRUPT: u8 = 3;

/// What a look at all guests saw.
pub(super) struct Sample {
    resident: Vec<[u64; MAX_CONTROLLERS]>,
    touched: Vec<[u64; MAX_CONTROLLERS]>,
    life: [u32; GUESTS],
    unit_count: u64,
    cost_ticks: u64,
}

impl Default for Sample {
    /// Nothing seen yet. The counters lie on the heap: they are large for the monitor's stack.
    fn default() -> Self {
        let counters = || vec![[0; MAX_CONTROLLERS]; GUESTS];
        Self { resident: counters(), touched: counters(), life: [0; GUESTS], unit_count: 0, cost_ticks: 0 }
    }
}

impl Sample {
    /// Bytes of all guests behind a controller.
    pub(super) fn resident(&self, controller: ControllerId) -> u64 {
        self.resident.iter().map(|resident| resident[controller.index()]).sum()
    }

    /// Those of them that were touched.
    pub(super) fn touched(&self, controller: ControllerId) -> u64 {
        self.touched.iter().map(|touched| touched[controller.index()]).sum()
    }

    /// Whether `life` is that which a guest had in this look, which began a window: else all of its memory is new, and
    /// counts as touched.
    pub(super) fn has_seen(&self, guest: usize, life: u32) -> bool {
        life != 0 && self.life.get(guest) == Some(&life)
    }

    /// Forgets what guests have touched that got their memory since the window began.
    pub(super) fn forget_new(&mut self, begun: &Self) {
        for guest in 0..GUESTS {
            if !begun.has_seen(guest, self.life[guest]) {
                self.touched[guest] = [0; MAX_CONTROLLERS];
            }
        }
    }
}

/// Looks at all units once, in pieces between which others run. What it sees takes the place of what is in `sample`, which
/// is large for the monitor's stack.
pub(super) fn look_at_all(session: &mut Session<'_>, look: Look, sample: &mut Sample) -> Result<(), Failure> {
    let migration = migration(session)?;
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

/// Whether the operator has pressed Ctrl-C. Who writes next sees the key.
pub(super) fn is_interrupted(session: &mut Session<'_>) -> bool {
    session.io().peek() == Some(INTERRUPT)
}

/// Lets a window of so many seconds pass, or of less where the operator interrupts. Yields its nanoseconds.
pub(super) fn wait(session: &mut Session<'_>, seconds: u64) -> Result<u64, Failure> {
    let start = session.io().now_ns();
    let deadline = start.saturating_add(seconds * 1_000_000_000);
    while session.io().now_ns() < deadline && !is_interrupted(session) {
        session.io().sleep(deadline);
    }
    Ok(session.io().now_ns().saturating_sub(start))
}

/// All controllers.
pub(super) fn controllers(machine: &dyn Machine) -> impl Iterator<Item = ControllerId> + use<> {
    (0..machine.controller_count()).filter_map(|at| ControllerId::try_new(u8::try_from(at).ok()?))
}

/// Shows what guests touch.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
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
        report.fields(
            "window_ns=Watched for|unit_count=Units looked at|cost_ns=Looking took|late=Not watched",
            &[
                Value::Nanoseconds(window_ns),
                Value::Count(begun.unit_count + sample.unit_count),
                Value::Nanoseconds(migration.nanoseconds(cost_ticks)),
                Value::Words(&late),
            ],
        )?;
        let columns = "guest=GUEST|controller=CONTROLLER|resident_bytes=RESIDENT|touched_bytes=TOUCHED|share_permille=SHARE";
        report.table("heat", columns, "No guest has memory.", &mut |table| {
            for (at, guest) in (0..machine.guest_count().min(GUESTS)).filter_map(|at| Some((at, machine.guest(at)?))) {
                if !begun.has_seen(at, sample.life[at]) {
                    continue;
                }
                let (resident, touched) = (&sample.resident[at], &sample.touched[at]);
                for id in controllers(machine).filter(|id| resident[id.index()] > 0) {
                    let (resident, touched) = (resident[id.index()], touched[id.index()]);
                    table.row(&[
                        Value::Text(guest.name),
                        Value::Text(controller_name(machine, id)),
                        Value::Bytes(resident),
                        Value::Bytes(touched),
                        Value::Permille((touched * 1000).checked_div(resident).unwrap_or(0)),
                    ])?;
                }
            }
            Ok(())
        })
    })
}
