//! `claim`, `claims`, `release`.

use stage2::addr::{FRAME_SIZE, PAGEBLOCK_SIZE};
use stage2::claim::{
    Cause, ClaimId, FULLNESS_CLASSES, Kind, RECORDS, Report, RequestError, SIZE_CLASSES, State, Wish,
};
use stage2::owner::PoolId;
use stage2::range::FrameRange;

use super::pools::{Name, find};
use super::prelude::*;
use crate::monitor::claiming::Claiming;
use crate::monitor::machine::{Reason, reason};
use crate::monitor::units;

/// `claim POOL SIZE [ALIGN]`, `claim POOL SIZE@ADDRESS`, `claim NUMBER`, `claim cancel NUMBER`.
pub(super) fn claim(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let claiming = session.claiming()?;
    if let Some(number) = arguments.number(0) {
        return show(session, claiming, number);
    }
    if arguments.word(0) == Some("cancel") {
        let Some(number) = arguments.word(1).and_then(units::parse_number) else {
            usage!(session, "missing NUMBER of the claim to cancel: claims lists them");
        };
        let id = id_of(number);
        claiming.cancel(id).map_err(|error| session.refuse(format_args!("{error}")))?;
        let text = format_args!("Claim {number} is cancelled; its work is undone.");
        return session.done("claim_cancel", text, &[("claim", Count(number))]);
    }
    let (pool, definition) = find(session, arguments.word(0))?;
    let Some(what) = arguments.word(1) else {
        usage!(session, "missing SIZE: see help claim");
    };
    let wish = match what.split_once('@') {
        Some(_) => Wish::Exactly(range(session, what)?),
        None => {
            let Some(size) = units::parse_size(what) else {
                usage!(session, "invalid SIZE '{what:.32}'; expected a size like 64M");
            };
            match arguments.number(2) {
                None => Wish::of_size(size),
                Some(align) if align.is_multiple_of(FRAME_SIZE) => {
                    Wish::Sized { frames: size.div_ceil(FRAME_SIZE), align: align / FRAME_SIZE }
                }
                Some(_) => {
                    usage!(session, "invalid ALIGNMENT: must be a multiple of 4K");
                }
            }
        }
    };
    let id = claiming.claim(pool, wish).map_err(|error| refused(session, error))?;
    let (number, name) = (id.get(), definition.name);
    let bytes = wish.frames() * FRAME_SIZE;
    let rounded = from_fn(|f| match units::parse_size(what) {
        Some(asked) if asked != bytes => write!(f, " ({what} rounded up to {})", Size(bytes)),
        _ => Ok(()),
    });
    let text = format_args!("Claim {number} of {name}{rounded} submitted: claims shows its progress.");
    let cells =
        [("claim", Count(number.into())), ("pool", Text(name.as_str())), ("size_bytes", Bytes(bytes))];
    session.done("claim", text, &cells)
}

/// Parses the range `SIZE@ADDRESS` of whole frames.
fn range(session: &mut Session<'_>, text: &str) -> Result<FrameRange, Failure> {
    let parsed = text.split_once('@').and_then(|(size, base)| {
        let (size, base) = (units::parse_size(size)?, units::parse_number(base)?);
        let range = FrameRange::inside(base, size)?;
        (range.bytes() == size && size > 0).then_some(range)
    });
    parsed.ok_or_else(|| {
        session.usage(format_args!(
            "invalid range '{text:.32}'; expected whole frames of 4 KiB, like 64M@0x48000000"
        ))
    })
}

/// Returns the refusal of a request.
fn refused(session: &mut Session<'_>, error: RequestError) -> Failure {
    match error {
        RequestError::NotOwner { owner } => {
            let name = Name(session.machine, Some(owner));
            session.refuse(format_args!("the pool belongs to {name}"))
        }
        error => session.refuse(format_args!("{error}")),
    }
}

fn id_of(number: u64) -> ClaimId {
    ClaimId::new(u32::try_from(number).unwrap_or(0))
}

/// `release POOL [SIZE@ADDRESS]`, `release NUMBER`.
pub(super) fn release(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let claiming = session.claiming()?;
    let (pool, range) = if let Some(number) = arguments.number(0) {
        let report = granted(claiming, number);
        let Some(report) = report else {
            refuse!(session, "claim {number} was not granted, or is no longer remembered");
        };
        // The range may have been released and granted to someone else, or may be before a second release runs.
        let is_on_its_way = |other: &Report| {
            other.kind == Kind::Release
                && !other.state.is_over()
                && other.pool == report.pool
                && matches!(other.wish, Wish::Exactly(range) if range.overlaps(report.range))
        };
        match report.returned {
            0 if reports(claiming).any(|other| is_on_its_way(&other)) => {
                refuse!(session, "claim {number} is being released already");
            }
            0 => {}
            all if all == report.range.frames() => {
                refuse!(session, "claim {number} is released already");
            }
            _ => {
                refuse!(session, "claim {number} is partly released: give the pool and the range");
            }
        }
        (report.pool, report.range)
    } else {
        let (pool, definition) = find(session, arguments.word(0))?;
        let Some(text) = arguments.word(1) else {
            claiming.release_all(pool).map_err(|error| refused(session, error))?;
            let name = definition.name;
            let text = format_args!("Releasing all claimed memory of {name}: claims shows the progress.");
            return session.done("release", text, &[("pool", Text(name.as_str()))]);
        };
        (pool, range(session, text)?)
    };
    let id = claiming.release(pool, range).map_err(|error| refused(session, error))?;
    let number = id.get();
    let text = format_args!("Release {number} of {} submitted: claims shows its progress.", range.compact());
    session.done("release", text, &[("claim", Count(number.into()))])
}

fn granted(claiming: &dyn Claiming, number: u64) -> Option<Report> {
    let report = reports(claiming).find(|report| u64::from(report.id.get()) == number)?;
    (report.state == State::Granted).then_some(report)
}

/// Iterates over the remembered operations. It ends although an owner may claim and release faster than they are printed.
fn reports(claiming: &dyn Claiming) -> impl Iterator<Item = Report> + Clone {
    let mut last = ClaimId::new(0);
    let all = core::iter::from_fn(move || {
        let report = claiming.claims().report_after(last)?;
        last = report.id;
        Some(report)
    });
    all.take(RECORDS)
}

fn pool_name(claiming: &dyn Claiming, pool: PoolId) -> &str {
    claiming.claims().pools().and_then(|pools| pools.get(pool)).map_or("?", |pool| pool.name.as_str())
}

/// Returns the time that an operation took, or has taken so far, in nanoseconds.
fn time(claiming: &dyn Claiming, machine: &dyn Machine, report: &Report) -> u64 {
    let end = if report.state.is_over() { report.ended } else { claiming.now() };
    machine.nanoseconds(end.saturating_sub(report.submitted))
}

/// Returns the first address of an operation's range, once it has one.
fn base(report: &Report) -> Value<'static> {
    if report.range.is_empty() { Nothing } else { Address(report.range.base().get()) }
}

const fn kind(report: &Report) -> &'static str {
    match report.kind {
        Kind::Claim => "claim",
        Kind::Release => "release",
    }
}

/// Lists the remembered operations.
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let (claiming, is_json) = (session.claiming()?, session.style.is_json);
    let machine = session.machine;
    session.list("claims", "claims", "There are no claims.", reports(claiming), |table, claim| {
        let (blocker, state) = (blocker_text(&claim), state_text(claiming, &claim));
        let cause = match claim.blocker.cause {
            Cause::Nothing => Nothing,
            cause => Text(Cause::NAMES[cause.index()]),
        };
        table.row(&[
            ("claim=#", Count(claim.id.get().into())),
            ("kind", Text(kind(&claim))),
            ("pool=POOL", Text(pool_name(claiming, claim.pool))),
            ("claimant=BY", Show(&Name(machine, Some(claim.claimant)))),
            ("state=STATE", Text(if is_json { claim.state.name() } else { &state })),
            ("done_permille", Permille(claim.per_cent() * 10)),
            ("size_bytes=SIZE", Frames(claim.wish.frames())),
            ("base=BASE", base(&claim)),
            ("returned_bytes", Frames(claim.returned)),
            ("moved_bytes=MOVED", Bytes(claim.moved.bytes())),
            ("elapsed_ns=TIME", Nanoseconds(time(claiming, machine, &claim))),
            ("try_count", Count(claim.tries.len() as u64)),
            ("cause", cause),
            ("blocker", Text(&blocker).or_nothing()),
            ("=REASON", if claim.state == State::Failed { Text(&blocker) } else { Nothing }),
        ])
    })
}

/// Tests if an operation is neither queued nor over.
fn is_at_work(report: &Report) -> bool {
    report.state != State::Queued && !report.state.is_over()
}

/// Describes the state and the progress of an operation.
fn state_text(claiming: &dyn Claiming, report: &Report) -> Reason {
    match report.state {
        State::Queued => match reports(claiming).find(is_at_work) {
            Some(other) => reason(format_args!("queued behind {}", other.id.get())),
            None => reason(format_args!("queued")),
        },
        State::Cancelled if report.is_orphan() => reason(format_args!("cancelled: its owner stopped")),
        State::Granted if report.returned > 0 => match report.returned == report.range.frames() {
            true => reason(format_args!("released")),
            false => reason(format_args!("granted, partly released")),
        },
        state if state.is_over() => reason(format_args!("{}", state.name())),
        state => reason(format_args!("{} {} %", state.name(), report.per_cent())),
    }
}

fn blocker_text(report: &Report) -> Reason {
    match report.blocker.cause {
        Cause::Nothing => Reason::new(),
        _ => reason(format_args!("{}", report.blocker)),
    }
}

/// Shows one operation and its tries.
fn show(session: &mut Session<'_>, claiming: &dyn Claiming, number: u64) -> Done {
    let found = reports(claiming).find(|report| u64::from(report.id.get()) == number);
    let Some(claim) = found else {
        refuse!(session, "no claim {number}: claims lists them");
    };
    session.report("claim", |report, machine| {
        let blocker = blocker_text(&claim);
        report.fields(&[
            ("claim=Claim", Count(number)),
            ("kind=Kind", Text(kind(&claim))),
            ("pool=Pool", Text(pool_name(claiming, claim.pool))),
            ("claimant=By", Show(&Name(machine, Some(claim.claimant)))),
            ("state=State", Text(claim.state.name())),
            ("done_permille=Done", Permille(claim.per_cent() * 10)),
            ("size_bytes=Size", Frames(claim.wish.frames())),
            ("base=Base", base(&claim)),
            ("ipa=At IPA", Address(claim.ipa.get()).or_nothing()),
            ("moved_bytes=Moved", Bytes(claim.moved.bytes())),
            ("moved_blocks=  units of 2 MiB", Count(claim.moved.blocks)),
            ("moved_pages=  units of 4 KiB", Count(claim.moved.pages)),
            ("lent_permille=Pool lent at start", Permille(u64::from(claim.lent_per_cent) * 10)),
            ("elapsed_ns=Time", Nanoseconds(time(claiming, machine, &claim))),
            ("migration_ns=  migration", Nanoseconds(machine.nanoseconds(claim.migration_ticks))),
            ("own_ns=  other work", Nanoseconds(machine.nanoseconds(claim.own_ticks))),
            ("blocker=Blocked by", Text(&blocker).or_nothing()),
        ])?;
        report.list("tries", "No range was tried yet.", claim.tries.iter(), |table, one| {
            let outcome = match (one.blocker.cause, claim.state) {
                (Cause::Nothing, state) => reason(format_args!("{}", state.name())),
                _ => reason(format_args!("{}", one.blocker)),
            };
            table.row(&[
                ("base=TRIED", Address(one.range.base().get())),
                ("size_bytes=SIZE", Bytes(one.range.bytes())),
                ("used_bytes=IN USE", Frames(one.used)),
                ("outcome=OUTCOME", Text(&outcome)),
            ])
        })
    })
}

/// Lists the operations, or shows the counters: `claims stats`.
pub(super) fn statistics(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    if arguments.word(0).is_none() {
        return list(session, arguments);
    }
    counters(session)
}

/// Shows the counters.
pub(super) fn counters(session: &mut Session<'_>) -> Done {
    let statistics = session.claiming()?.claims().statistics();
    let totals = statistics.totals();
    session.report("claim_stats", |report, machine| {
        report.fields(&[
            ("tried_count=Tried", Count(totals.tried)),
            ("granted_count=Granted", Count(totals.granted)),
            ("granted_bytes=  in all", Bytes(totals.granted_bytes)),
            ("failed_count=Failed", Count(totals.failed)),
            ("cancelled_count=Cancelled", Count(totals.cancelled)),
            ("released_count=Released", Count(totals.released)),
            ("retry_count=Other ranges tried", Count(totals.retries)),
            ("moved_blocks=Moved, units of 2 MiB", Count(totals.moved.blocks)),
            ("moved_pages=  units of 4 KiB", Count(totals.moved.pages)),
            (
                "moved_bytes=  in all",
                Bytes(totals.moved.blocks * PAGEBLOCK_SIZE + totals.moved.pages * FRAME_SIZE),
            ),
        ])?;
        let failures = Cause::NAMES.iter().enumerate().map(|(index, name)| (name, statistics.failed(index)));
        let failures = failures.filter(|(_, count)| *count > 0);
        report.list("failures", "No claim failed.", failures, |table, (name, count)| {
            table.row(&[("cause=CAUSE OF FAILURE", Text(name)), ("count=COUNT", Count(count))])
        })?;
        let classes = SIZE_CLASSES.iter().enumerate().flat_map(|(size, (_, size_name))| {
            let by_fullness = FULLNESS_CLASSES.iter().enumerate();
            by_fullness
                .map(move |(full, (_, full_name))| (size_name, full_name, statistics.latency(size, full)))
        });
        let classes = classes.filter(|(.., latency)| latency.count != 0);
        report.list("latency", "No claim was granted.", classes, |table, (size, full, latency)| {
            let time = |ticks| Nanoseconds(machine.nanoseconds(ticks));
            table.row(&[
                ("size=SIZE", Text(size)),
                ("lent=POOL LENT", Text(full)),
                ("count=COUNT", Count(latency.count)),
                ("mean_ns=MEAN", time(latency.mean)),
                ("p50_ns=P50", time(latency.p50)),
                ("p99_ns=P99", time(latency.p99)),
                ("max_ns=MAX", time(latency.max)),
            ])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fake_pools::FakePools;

    #[test]
    fn the_list_ends_despite_a_stream_of_new_claims() {
        let pools = FakePools::new();
        let (pool, _) = pools.claims().pools().and_then(|pools| pools.iter().next()).unwrap();
        pools.claim(pool, Wish::of_size(FRAME_SIZE)).unwrap();
        let again = || pools.claim(pool, Wish::of_size(FRAME_SIZE)).is_ok();
        let shown = reports(&pools).filter(|_| again());
        assert_eq!(shown.take(10_000).count(), RECORDS);
    }
}
