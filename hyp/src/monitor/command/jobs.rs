//! `jobs`, `job`, `pause`, `resume`, `cancel`, `rate`.

use core::fmt::{self, Write};

use stage2::addr::FRAME_SIZE;
use stage2::controller::{ControllerId, ControllerSet};
use stage2::migrate::{JobId, JobReport, JobState, MAX_JOBS, Reason, Request, Scope, Select};
use stage2::owner::GuestId;
use stage2::phys::placement::{Placement, Strictness};

use super::super::grammar::{Arguments, Failure};
use super::super::machine::Machine;
use super::super::migration::{Migration, Order};
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::{Compact, Size};
use super::migrate::{controller_name, migration};
use stage2::scale::scaled;

/// The guest's name.
pub(super) fn guest_name(machine: &dyn Machine, guest: GuestId) -> &str {
    machine.guest(guest.index()).map_or("?", |guest| guest.name)
}

/// What a job does, in a few words.
struct What<'a>(&'a dyn Machine, &'a Request);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(machine, request) = *self;
        match request.scope {
            Scope::Everything => f.write_str("all")?,
            Scope::Guest(guest) => f.write_str(guest_name(machine, guest))?,
            Scope::Range(guest, ipa, size) => {
                write!(f, "{} {}@{:#x}", guest_name(machine, guest), Compact(size), ipa.get())?;
            }
        }
        if request.limit_bytes != u64::MAX {
            write!(f, ", {}", Size(request.limit_bytes))?;
        }
        match request.select {
            Select::Touching(frames) => {
                write!(f, " on {}@{:#x}", Compact(frames.bytes()), frames.start() * FRAME_SIZE)?;
            }
            // What does not lie at the target is not worth saying.
            Select::Behind(from) if request.to.is_none() || from.len() == 1 => {
                write!(f, " off {}", Names(machine, from))?;
            }
            Select::Behind(_) => {}
        }
        if let Some(to) = &request.to {
            write!(f, " to {}", Placed(machine, to))?;
        }
        Ok(())
    }
}

/// A placement: which controllers, and how.
pub(super) struct Placed<'a>(pub(super) &'a dyn Machine, pub(super) &'a Placement);

impl fmt::Display for Placed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (set, strictness) = self.1.named();
        match self.1 {
            Placement::Any => return f.write_str("any"),
            // In the order in which they are tried.
            Placement::Listed(list, _) => {
                for (at, controller) in list.as_slice().iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    f.write_str(controller_name(self.0, *controller))?;
                }
            }
            Placement::Interleave(..) => write!(f, "{} in turns", Names(self.0, set))?,
        }
        if strictness == Strictness::Preferred { f.write_str(" if possible") } else { Ok(()) }
    }
}

/// Returns why a job was cancelled, or does not begin.
fn why_in_state(job: &JobReport) -> &'static str {
    match (job.state, job.is_abandoned) {
        (JobState::Cancelled, true) => "its guest stopped or was reset",
        (JobState::Cancelled, false) => "by the operator",
        (JobState::Queued, _) if job.waits_for.is_some() => {
            "waits for a guest that starts, is reset or stops"
        }
        _ => "",
    }
}

/// The names of controllers.
pub(super) struct Names<'a>(pub(super) &'a dyn Machine, pub(super) ControllerSet);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.1.iter().filter(|controller| controller.index() < self.0.controller_count());
        for (at, controller) in known.enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            f.write_str(controller_name(self.0, controller))?;
        }
        Ok(())
    }
}

/// How long it has been under way, in ticks.
fn ticks(report: &JobReport, now: u64) -> u64 {
    let end = if report.state.is_over() { report.ended } else { now };
    if report.started == 0 { 0 } else { end.saturating_sub(report.started) }
}

fn share(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { scaled(part, 1000, whole).min(1000) }
}

fn per_second(bytes: u64, time_ns: u64) -> u64 {
    if time_ns == 0 { 0 } else { scaled(bytes, 1_000_000_000, time_ns) }
}

/// What open jobs have yet to bring behind `controller`, where they know no other target.
pub(super) fn incoming_bytes(migration: &dyn Migration, controller: ControllerId) -> u64 {
    let is_target = |job: &JobReport| {
        let to = job.request.to.as_ref().map(|to| to.named().0);
        !job.state.is_over() && to.is_some_and(|to| to.len() == 1 && to.contains(controller))
    };
    reports(migration).filter(is_target).map(|job| job.total_bytes.saturating_sub(job.scanned_bytes)).sum()
}

/// Draws the jobs that wait or run, a line each, which `end` ends.
pub(super) fn draw_open(
    out: &mut dyn Write,
    machine: &dyn Machine,
    migration: &dyn Migration,
    end: &str,
) -> fmt::Result {
    for (at, job) in reports(migration).filter(|job| !job.state.is_over()).enumerate() {
        if at == 0 {
            write!(out, "{end}")?;
        }
        let done = share(job.scanned_bytes, job.total_bytes);
        let what = What(machine, &job.request);
        write!(out, "job {} {} {}.{} %: {what}{end}", job.id.get(), job.state, done / 10, done % 10)?;
    }
    Ok(())
}

/// Lists the jobs.
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let now = migration.now();
    let columns = "job=JOB|state=STATE|done_permille=DONE|moved_bytes=MOVED|unmoved_bytes=STAYED|\
                   moved_bytes_per_s=|elapsed_ns=TIME|total_bytes=|scanned_bytes=|what=|reason=|=WHAT";
    session.report("jobs", |report, machine| {
        report.table("jobs", columns, "There are no jobs.", &mut |table| {
            for job in reports(migration) {
                let time_ns = migration.nanoseconds(ticks(&job, now));
                let why = why_in_state(&job);
                let what = fmt::from_fn(|f| {
                    let why = if job.is_abandoned { why } else { "" };
                    let colon = if why.is_empty() { "" } else { ": " };
                    write!(f, "{}{colon}{why}", What(machine, &job.request))
                });
                let done = match job.state {
                    JobState::Finished => 1000,
                    // Some was left behind: never shown as all of it.
                    JobState::Incomplete => {
                        share(job.total_bytes.saturating_sub(job.unmoved_bytes()), job.total_bytes).min(999)
                    }
                    _ => share(job.scanned_bytes, job.total_bytes),
                };
                table.row(&[
                    Value::Count(job.id.get().into()),
                    Value::Show(&job.state),
                    Value::Permille(done),
                    Value::Bytes(job.moved.bytes()),
                    Value::Bytes(job.unmoved_bytes()),
                    Value::Bytes(per_second(job.moved.bytes(), time_ns)),
                    if time_ns == 0 { Value::None } else { Value::Nanoseconds(time_ns) },
                    Value::Bytes(job.total_bytes),
                    Value::Bytes(job.scanned_bytes),
                    Value::Show(&What(machine, &job.request)),
                    if why.is_empty() { Value::None } else { Value::Text(why) },
                    Value::Show(&what),
                ])?;
            }
            Ok(())
        })
    })
}

/// Returns the jobs that are remembered, at most as many as are remembered at a time: claims make new ones meanwhile.
fn reports(migration: &dyn Migration) -> impl Iterator<Item = JobReport> {
    let mut last = JobId::new(0);
    let all = core::iter::from_fn(move || {
        let report = migration.job_after(last)?;
        last = report.id;
        Some(report)
    });
    all.take(MAX_JOBS)
}

fn number(arguments: &Arguments<'_>) -> JobId {
    JobId::new(arguments.number(0).and_then(|number| u32::try_from(number).ok()).unwrap_or(0))
}

/// Shows one job, and what it left where it was.
pub(super) fn show(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let id = number(arguments);
    let Some(job) = migration.job(id) else {
        return Err(session.refuse(format_args!("there is no job {}: jobs lists them", id.get())));
    };
    let time_ns = migration.nanoseconds(ticks(&job, migration.now()));
    let (shortage, is_json) = (migration.shortage(&job), session.style.is_json);
    let why = why_in_state(&job);
    let state = fmt::from_fn(|f| write!(f, "{}{}{why}", job.state, if why.is_empty() { "" } else { ": " }));
    session.report("job", |report, machine| {
        report.fields(
            "job=Job|what=What|state=|reason=|=State|scanned_bytes=Looked at|total_bytes=  of|moved_bytes=Moved|\
             moved_blocks=  units of 2 MiB|moved_pages=  units of 4 KiB|moved_bytes_per_s=  per second|\
             unmoved_bytes=Stayed|elapsed_ns=Time|worked_ns=  at work",
            &[
                Value::Count(job.id.get().into()),
                Value::Show(&What(machine, &job.request)),
                Value::Show(&job.state),
                if why.is_empty() { Value::None } else { Value::Text(why) },
                Value::Show(&state),
                Value::Bytes(job.scanned_bytes),
                Value::Bytes(job.total_bytes),
                Value::Bytes(job.moved.bytes()),
                Value::Count(job.moved.blocks),
                Value::Count(job.moved.pages),
                Value::Bytes(per_second(job.moved.bytes(), time_ns)),
                Value::Bytes(job.unmoved_bytes()),
                Value::Nanoseconds(time_ns),
                Value::Nanoseconds(migration.nanoseconds(job.worked_ticks)),
            ],
        )?;
        if shortage.bytes > 0 {
            let fits = Names(machine, shortage.fits);
            let fits = if shortage.fits.is_empty() { Value::None } else { Value::Show(&fits) };
            report.fields(
                "missing_bytes=Missing|missing_frames=  frames|fits=Would fit",
                &[Value::Bytes(shortage.bytes), Value::Count(shortage.bytes / FRAME_SIZE), fits],
            )?;
        }
        if job.unmoved_bytes() == 0 && !is_json {
            return Ok(());
        }
        let columns = "reason=STAYED BECAUSE|leaf_count=UNITS|bytes=BYTES|guest=FIRST IN|ipa=AT";
        report.table("unmoved", columns, "", &mut |table| {
            for reason in Reason::ALL {
                let unmoved = job.unmoved(reason);
                if unmoved.leaf_count == 0 {
                    continue;
                }
                let (guest, ipa) = match unmoved.first {
                    Some((guest, ipa)) => {
                        (Value::Text(guest_name(machine, guest)), Value::Address(ipa.get()))
                    }
                    None => (Value::None, Value::None),
                };
                table.row(&[
                    Value::Show(&reason),
                    Value::Count(unmoved.leaf_count),
                    Value::Bytes(unmoved.bytes),
                    guest,
                    ipa,
                ])?;
            }
            Ok(())
        })
    })
}

/// Pauses a job.
pub(super) fn pause(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    control(session, arguments, Order::Pause, "pauses")
}

/// Lets a job go on.
pub(super) fn resume(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    control(session, arguments, Order::Resume, "goes on")
}

/// Ends a job.
pub(super) fn cancel(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    control(session, arguments, Order::Cancel, "ends; what has moved stays where it is")
}

fn control(
    session: &mut Session<'_>,
    arguments: &Arguments<'_>,
    order: Order,
    outcome: &str,
) -> Result<(), Failure> {
    let migration = migration(session)?;
    let id = number(arguments);
    migration.control(id, order).map_err(|error| session.refuse(format_args!("{error}")))?;
    let name = match order {
        Order::Pause => "pause",
        Order::Resume => "resume",
        Order::Cancel => "cancel",
    };
    let number = id.get();
    session.done(name, format_args!("Job {number} {outcome}."), "job=", &[Value::Count(number.into())])
}

/// The lowest limit: a unit of 2 MiB takes it half a minute, and what is less was meant in other units.
const LEAST_RATE: u64 = 64 << 10;

/// Shows or changes how fast migration goes, and what it may take.
pub(super) fn rate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let policy = migration(session)?.engine().policy();
    let value = arguments.number(1);
    match (arguments.word(0), value) {
        (Some(name), None) if arguments.word(1).is_none() => {
            return Err(session.usage(format_args!("{name} of how much? See help rate")));
        }
        (Some("limit"), None) => policy.set_rate_bytes(0),
        (Some("limit"), Some(bytes @ LEAST_RATE..)) => policy.set_rate_bytes(bytes),
        (Some("slice"), Some(us @ 10..=100_000)) => policy.set_slice_ns(us * 1000),
        (Some("share"), Some(share @ 1..=90)) => policy.set_share_per_cent(share as u32),
        (Some("stall"), Some(bytes)) if bytes <= 2 << 20 && bytes.is_multiple_of(FRAME_SIZE) => {
            policy.set_stall_frames((bytes / FRAME_SIZE) as u16)
        }
        (Some("limit"), Some(bytes)) => {
            return Err(session.usage(format_args!(
                "{bytes} bytes a second are too few: a limit is at least {}, as in 100M, or off",
                Compact(LEAST_RATE)
            )));
        }
        (Some("slice"), _) => return Err(session.usage(format_args!("a slice has 10 to 100000 us"))),
        (Some("share"), _) => return Err(session.usage(format_args!("a share is 1 to 90 per cent"))),
        (Some(_), _) => {
            return Err(
                session.usage(format_args!("a guest waits for at most 2M to be copied, in steps of 4K"))
            );
        }
        (None, _) => {}
    }
    let limit = policy.rate_bytes();
    session.report("rate", |report, _| {
        report.fields(
            "limit_bytes_per_s=Limit per second|slice_ns=Longest slice|share_permille=Share of a guest's time|\
             stall_bytes=Wait for at most",
            &[
                if limit == 0 { Value::None } else { Value::Bytes(limit) },
                Value::Nanoseconds(policy.slice_ns()),
                Value::Permille(u64::from(policy.share_per_cent()) * 10),
                Value::Bytes(u64::from(policy.stall_frames()) * FRAME_SIZE),
            ],
        )
    })
}
