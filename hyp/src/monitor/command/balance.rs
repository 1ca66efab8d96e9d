//! `heat`, `balance`: which memory is used, and evening out what controllers carry.

use core::fmt;

use stage2::addr::{FRAME_SIZE, PAGEBLOCK_SIZE};
use stage2::controller::{ControllerId, MAX_CONTROLLERS};
use stage2::migrate::balance::{self, Share, Shift, Side};
use stage2::migrate::{Mobility, Request};
use stage2::owner::{GuestId, Owner};

use super::super::grammar::{Arguments, Failure};
use super::super::machine::GuestState;
use super::super::migration::Heat;
use super::super::mux::GUESTS;
use super::super::region::pieces;
use super::super::report::Value;
use super::super::session::Session;
use super::migrate::{controller_name, migration};

/// Ctrl-C.
const INTERRUPT: u8 = 3;

/// What was touched in a window, by guest and controller, and what it cost to know.
#[derive(Default)]
struct Sample {
    touched: [[u64; MAX_CONTROLLERS]; GUESTS],
    unit_count: u64,
    cost_ticks: u64,
    window_ns: u64,
}

/// Watches for `seconds` what guests touch. Looks at each unit twice; where hardware does not keep access flags, the first
/// access to each unit in the window is a fault.
fn sample(session: &mut Session<'_>, seconds: u64) -> Result<Sample, Failure> {
    let mut sample = Sample::default();
    pass(session, false, &mut sample)?;
    let start = session.io().now_ns();
    let deadline = start.saturating_add(seconds * 1_000_000_000);
    while session.io().now_ns() < deadline {
        if session.io().peek() == Some(INTERRUPT) {
            // What is written next sees the key.
            break;
        }
        session.io().sleep(deadline);
    }
    sample.window_ns = session.io().now_ns().saturating_sub(start);
    pass(session, true, &mut sample)?;
    Ok(sample)
}

/// Looks at all units once, in pieces between which others run.
fn pass(session: &mut Session<'_>, is_end: bool, sample: &mut Sample) -> Result<(), Failure> {
    let migration = migration(session)?;
    for (guest, touched) in sample.touched.iter_mut().enumerate() {
        let mut heat = Heat { is_end, ..Heat::default() };
        let mut next = Some(0);
        while let Some(ipa) = next {
            let started = migration.now();
            next = migration.sample(guest, ipa, &mut heat);
            sample.cost_ticks += migration.now().wrapping_sub(started);
            session.io().pause();
        }
        *touched = heat.touched;
        sample.unit_count += heat.unit_count;
    }
    Ok(())
}

/// Bytes of a guest behind a controller.
fn resident(session: &Session<'_>, guest: usize, controller: ControllerId) -> u64 {
    let id = u8::try_from(guest).ok().and_then(GuestId::try_new);
    let frames = session.machine.memory().zip(id);
    frames.map_or(0, |(memory, id)| memory.resident(Owner::Guest(id), controller) * FRAME_SIZE)
}

fn controllers(session: &Session<'_>) -> impl Iterator<Item = ControllerId> + use<> {
    (0..session.machine.controller_count()).filter_map(|at| ControllerId::try_new(u8::try_from(at).ok()?))
}

/// Shows what guests touch.
pub(super) fn heat(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let seconds = arguments.number(0).unwrap_or(1);
    let sample = sample(session, seconds)?;
    let held: [[u64; MAX_CONTROLLERS]; GUESTS] = core::array::from_fn(|guest| {
        let mut held = [0; MAX_CONTROLLERS];
        controllers(session).for_each(|id| held[id.index()] = resident(session, guest, id));
        held
    });
    let ids = || controllers(session);
    let ids: heapless::Vec<ControllerId, MAX_CONTROLLERS> = ids().collect();
    session.report("heat", |report, machine| {
        report.fields(
            "window_ns=Watched for|unit_count=Units looked at|cost_ns=Looking took",
            &[
                Value::Nanoseconds(sample.window_ns),
                Value::Count(sample.unit_count),
                Value::Nanoseconds(migration.nanoseconds(sample.cost_ticks)),
            ],
        )?;
        let columns = "guest=GUEST|controller=CONTROLLER|resident_bytes=RESIDENT|touched_bytes=TOUCHED|share_permille=SHARE";
        report.table("heat", columns, "No guest has memory.", &mut |table| {
            for (at, guest) in (0..machine.guest_count().min(GUESTS)).filter_map(|at| Some((at, machine.guest(at)?))) {
                for id in ids.iter().filter(|id| held[at][id.index()] > 0) {
                    let (resident, touched) = (held[at][id.index()], sample.touched[at][id.index()]);
                    table.row(&[
                        Value::Text(guest.name),
                        Value::Text(controller_name(machine, *id)),
                        Value::Bytes(resident),
                        Value::Bytes(touched),
                        Value::Permille((touched.min(resident) * 1000).checked_div(resident).unwrap_or(0)),
                    ])?;
                }
            }
            Ok(())
        })
    })
}

/// Shifts memory so that controllers carry alike.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let what = arguments.word(0).unwrap_or("free");
    let sample = if what == "heat" { sample(session, 1)? } else { Sample::default() };
    let mut shares: heapless::Vec<Share, GUESTS> = heapless::Vec::new();
    for at in 0..session.machine.guest_count().min(GUESTS) {
        let is_movable = session.machine.guest(at).is_some_and(|guest| guest.state == GuestState::Running)
            && pieces(migration, at).any(|piece| piece.mobility == Mobility::Movable);
        let Some(guest) = GuestId::try_new(at as u8).filter(|_| is_movable) else { continue };
        let mut share = Share { guest, bytes: [0; MAX_CONTROLLERS], load: [0; MAX_CONTROLLERS] };
        for id in controllers(session) {
            let bytes = resident(session, at, id);
            share.bytes[id.index()] = bytes;
            share.load[id.index()] =
                if what == "heat" { sample.touched[at][id.index()].min(bytes) } else { bytes };
        }
        // No more than there is room for.
        let _ = shares.push(share);
    }
    let mut sides: heapless::Vec<Side, MAX_CONTROLLERS> = heapless::Vec::new();
    let open = |id: &ControllerId| session.machine.controller(id.index()).filter(|side| !side.is_evacuated);
    let most_free = controllers(session).filter_map(|id| Some(open(&id)?.free_bytes)).max().unwrap_or(0);
    for id in controllers(session) {
        let Some(side) = open(&id) else { continue };
        let of_guests = || shares.iter().map(|share| share.load[id.index()]).sum();
        let load = if what == "free" { most_free - side.free_bytes } else { of_guests() };
        // Something stays for tables.
        let _ = sides.push(Side {
            controller: id,
            load,
            room: side.free_bytes.saturating_sub(4 * PAGEBLOCK_SIZE),
        });
    }
    let shifts = balance::plan(&mut sides, &mut shares);
    let mut jobs: heapless::Vec<(u64, Shift), { balance::MAX_SHIFTS }> = heapless::Vec::new();
    for shift in shifts {
        let job = migration.submit(Request::shift(shift.guest, shift.from, shift.to, shift.bytes));
        let job = job.map_err(|error| session.refuse(format_args!("{error}")))?;
        // As many as shifts.
        let _ = jobs.push((job.get().into(), shift));
    }
    session.report("balance", |report, machine| {
        let columns = "job=JOB|guest=GUEST|bytes=BYTES|from=FROM|to=TO";
        report.table(
            "shifts",
            columns,
            "Nothing to shift: the controllers carry alike, or nothing can move.",
            &mut |table| {
                jobs.iter().try_for_each(|(job, shift)| {
                    let name = fmt::from_fn(|f| f.write_str(super::jobs::guest_name(machine, shift.guest)));
                    table.row(&[
                        Value::Count(*job),
                        Value::Show(&name),
                        Value::Bytes(shift.bytes),
                        Value::Text(controller_name(machine, shift.from)),
                        Value::Text(controller_name(machine, shift.to)),
                    ])
                })
            },
        )
    })
}
