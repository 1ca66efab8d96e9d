//! `jobs`, `job`, `pause`, `resume`, `cancel`.

use stage2::addr::FRAME_SIZE;
use stage2::controller::ControllerId;
use stage2::migrate::{JobId, JobReport, JobState, MAX_JOBS, Reason, Request, Scope, Select};
use stage2::scale::scaled;

use super::names::{Names, Placed};
use super::prelude::*;
use crate::monitor::machine::{self, reason};
use crate::monitor::migration::{Migration, Order};

/// The work of a job, in a few words.
struct What<'a>(&'a dyn Machine, &'a Request);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(machine, request) = *self;
        match (request.scope, request.select) {
            (Scope::Everything, Select::Touching(_)) => f.write_str("clear")?,
            (Scope::Everything, Select::Behind(_)) if request.to.is_none() => f.write_str("evacuate")?,
            (Scope::Everything, _) => f.write_str("all")?,
            (Scope::Guest(guest), _) => f.write_str(machine.guest_name(guest))?,
            (Scope::Range(guest, ipa, size), _) => {
                write!(f, "{} {}@{:#x}", machine.guest_name(guest), Compact(size), ipa.get())?;
            }
        }
        if request.limit_bytes != u64::MAX {
            write!(f, ", {}", Size(request.limit_bytes))?;
        }
        let from = if request.scope == Scope::Everything { "" } else { " from" };
        match request.select {
            Select::Touching(frames) => {
                write!(f, "{from} {}@{:#x}", Compact(frames.bytes()), frames.start() * FRAME_SIZE)?;
            }
            // Everything outside the target moves: not worth saying.
            Select::Behind(set) if request.to.is_none() || set.len() == 1 => {
                write!(f, "{from} {}", Names(machine, set))?;
            }
            Select::Behind(_) => {}
        }
        if let Some(to) = &request.to {
            write!(f, " to {}", Placed(machine, to))?;
        }
        Ok(())
    }
}

/// Returns the reason why a job was cancelled, or has to wait; empty if there is none.
fn why_in_state(machine: &dyn Machine, migration: &dyn Migration, job: &JobReport) -> machine::Reason {
    let text = from_fn(|f| match (job.state, job.waits_for) {
        (JobState::Cancelled, _) if job.is_abandoned => f.write_str("its guest stopped or was reset"),
        (JobState::Cancelled, _) => f.write_str("by the operator"),
        (JobState::Queued, Some(guest)) => {
            let state = machine.guest(guest.index()).map_or("", |guest| guest.state.name());
            write!(f, "waits for {}, which is {state}", machine.guest_name(guest))
        }
        (JobState::Queued, None) => match reports(migration).find(|other| other.state == JobState::Running) {
            Some(other) => write!(f, "waits for {}", other.id),
            None => Ok(()),
        },
        _ => Ok(()),
    });
    reason(format_args!("{text}"))
}

/// Returns the time since a job began, or that it took, in ticks.
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

/// Returns the bytes that open jobs have yet to move to `controller`, if that is their only target.
pub(super) fn incoming_bytes(migration: &dyn Migration, controller: ControllerId) -> u64 {
    let is_target = |job: &JobReport| {
        let to = job.request.to.as_ref().map(|to| to.named().0);
        !job.state.is_over() && to.is_some_and(|to| to.len() == 1 && to.contains(controller))
    };
    reports(migration).filter(is_target).map(|job| job.total_bytes.saturating_sub(job.scanned_bytes)).sum()
}

/// Draws the jobs that wait or run, each on a line with the line end `end`.
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
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let migration = session.migration()?;
    let now = migration.now();
    let machine = session.machine;
    session.list("jobs", "jobs", "There are no jobs.", reports(migration), |table, job| {
        let time_ns = migration.nanoseconds(ticks(&job, now));
        let why = why_in_state(machine, migration, &job);
        let what = What(machine, &job.request);
        let has_note = !why.is_empty() && (job.is_abandoned || job.state == JobState::Queued);
        let (colon, note) = if has_note { (": ", why.as_str()) } else { ("", "") };
        let done = match job.state {
            JobState::Finished => 1000,
            // Something stayed: never shown as all of it.
            JobState::Incomplete => {
                share(job.total_bytes.saturating_sub(job.unmoved_bytes()), job.total_bytes).min(999)
            }
            _ => share(job.scanned_bytes, job.total_bytes),
        };
        table.row(&[
            ("job=JOB", Count(job.id.get().into())),
            ("state=STATE", Show(&job.state)),
            ("done_permille=DONE", Permille(done)),
            ("moved_bytes=MOVED", Bytes(job.moved.bytes())),
            ("unmoved_bytes=STAYED", Bytes(job.unmoved_bytes())),
            ("moved_bytes_per_s", Bytes(per_second(job.moved.bytes(), time_ns))),
            ("elapsed_ns=TIME", Nanoseconds(time_ns).or_nothing()),
            ("total_bytes", Bytes(job.total_bytes)),
            ("scanned_bytes", Bytes(job.scanned_bytes)),
            ("what", Show(&what)),
            ("reason", Text(&why).or_nothing()),
            ("=WHAT", Show(&format_args!("{what}{colon}{note}"))),
        ])
    })
}

/// Iterates over the remembered jobs. It ends although claims may add new ones meanwhile.
fn reports(migration: &dyn Migration) -> impl Iterator<Item = JobReport> + Clone {
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

/// Shows one job, and the memory that it did not move.
pub(super) fn show(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let migration = session.migration()?;
    let id = number(arguments);
    let Some(job) = migration.job(id) else {
        refuse!(session, "no job {}: jobs lists them", id.get());
    };
    let time_ns = migration.nanoseconds(ticks(&job, migration.now()));
    let shortage = migration.shortage(&job);
    let why = why_in_state(session.machine, migration, &job);
    let colon = if why.is_empty() { "" } else { ": " };
    session.report("job", |report, machine| {
        report.fields(&[
            ("job=Job", Count(job.id.get().into())),
            ("what=What", Show(&What(machine, &job.request))),
            ("state", Show(&job.state)),
            ("reason", Text(&why).or_nothing()),
            ("=State", Show(&format_args!("{}{colon}{why}", job.state))),
            ("scanned_bytes=Scanned", Bytes(job.scanned_bytes)),
            ("total_bytes=  of", Bytes(job.total_bytes)),
            ("moved_bytes=Moved", Bytes(job.moved.bytes())),
            ("moved_blocks=  units of 2 MiB", Count(job.moved.blocks)),
            ("moved_pages=  units of 4 KiB", Count(job.moved.pages)),
            ("moved_bytes_per_s=  per second", Bytes(per_second(job.moved.bytes(), time_ns))),
            ("unmoved_bytes=Stayed", Bytes(job.unmoved_bytes())),
            ("elapsed_ns=Time", Nanoseconds(time_ns)),
            ("worked_ns=  at work", Nanoseconds(migration.nanoseconds(job.worked_ticks))),
        ])?;
        if shortage.bytes > 0 {
            let fits = Names(machine, shortage.fits);
            let fits = if shortage.fits.is_empty() { Nothing } else { Show(&fits) };
            report.fields(&[
                ("missing_bytes=No room for", Bytes(shortage.bytes)),
                ("missing_frames=  frames", Count(shortage.bytes / FRAME_SIZE)),
                ("fits=Has room", fits),
            ])?;
        }
        let unmoved = Reason::ALL.into_iter().map(|reason| (reason, job.unmoved(reason)));
        let unmoved = unmoved.filter(|(_, unmoved)| unmoved.bytes != 0);
        report.list("unmoved", "", unmoved, |table, (reason, unmoved)| {
            table.row(&[
                ("reason=STAYED BECAUSE", Show(&reason)),
                ("leaf_count=UNITS", Count(unmoved.leaf_count)),
                ("bytes=BYTES", Bytes(unmoved.bytes)),
                (
                    "guest=FIRST IN",
                    unmoved.first.map_or(Nothing, |(guest, _)| Text(machine.guest_name(guest))),
                ),
                ("ipa=AT IPA", unmoved.first.map_or(Nothing, |(_, ipa)| Address(ipa.get()))),
            ])
        })
    })
}

/// Pauses a job.
pub(super) fn pause(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    control(session, arguments, Order::Pause, "is pausing")
}

/// Resumes a job.
pub(super) fn resume(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    control(session, arguments, Order::Resume, "resumes")
}

/// Cancels a job.
pub(super) fn cancel(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    control(session, arguments, Order::Cancel, "is cancelled; memory that has moved stays at its new place")
}

fn control(session: &mut Session<'_>, arguments: &Arguments<'_>, order: Order, outcome: &str) -> Done {
    let migration = session.migration()?;
    let id = number(arguments);
    migration.control(id, order).map_err(|error| session.refuse(format_args!("{error}")))?;
    let name = match order {
        Order::Pause => "pause",
        Order::Resume => "resume",
        Order::Cancel => "cancel",
    };
    let number = id.get();
    session.done(name, format_args!("Job {number} {outcome}."), &[("job", Count(number.into()))])
}
