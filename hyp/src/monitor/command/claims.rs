//! `claim`, `claims`, `release`.

use core::fmt;

use stage2::addr::{FRAME_SIZE, PAGEBLOCK_SIZE};
use stage2::claim::{
    Cause, ClaimId, FULLNESS_CLASSES, Kind, RECORDS, Report, RequestError, SIZE_CLASSES, State, Wish,
};
use stage2::owner::PoolId;
use stage2::range::FrameRange;

use super::super::claiming::Claiming;
use super::super::grammar::{Arguments, Failure};
use super::super::machine::{Machine, Reason, reason};
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::{self, Size};
use super::pools::{Name, claiming, find};

/// `claim POOL SIZE [ALIGN]`, `claim POOL SIZE@ADDRESS`, `claim NUMBER`, `claim cancel NUMBER`.
pub(super) fn claim(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let claiming = claiming(session)?;
    if let Some(number) = arguments.number(0) {
        return show(session, claiming, number);
    }
    if arguments.word(0) == Some("cancel") {
        let Some(number) = arguments.word(1).and_then(units::parse_number) else {
            return Err(session.usage(format_args!("cancel which claim? claims lists them")));
        };
        let id = id_of(number);
        claiming.cancel(id).map_err(|error| session.refuse(format_args!("{error}")))?;
        let text = format_args!("Claim {number} ends; what it did is undone.");
        return session.done("claim_cancel", text, "claim=", &[Value::Count(number)]);
    }
    let (pool, definition) = find(session, arguments.word(0))?;
    let Some(what) = arguments.word(1) else {
        return Err(session.usage(format_args!("claim how much? See help claim")));
    };
    let wish = match what.split_once('@') {
        Some(_) => Wish::Exactly(range(session, what)?),
        None => {
            let Some(size) = units::parse_size(what) else {
                return Err(session.usage(format_args!("'{what:.32}' is no size like 64M")));
            };
            match arguments.number(2) {
                None => Wish::of_size(size),
                Some(align) if align.is_multiple_of(FRAME_SIZE) => {
                    Wish::Sized { frames: size.div_ceil(FRAME_SIZE), align: align / FRAME_SIZE }
                }
                Some(_) => return Err(session.usage(format_args!("alignments are multiples of 4K"))),
            }
        }
    };
    let id = claiming.claim(pool, wish).map_err(|error| refused(session, error))?;
    let (number, name) = (id.get(), definition.name);
    let bytes = wish.frames() * FRAME_SIZE;
    let rounded = fmt::from_fn(|f| match units::parse_size(what) {
        Some(asked) if asked != bytes => write!(f, ", {what} rounded up to {},", Size(bytes)),
        _ => Ok(()),
    });
    let text = format_args!("Claim {number} of {name}{rounded} is under way: see claims.");
    let values = [Value::Count(number.into()), Value::Text(name.as_str()), Value::Bytes(bytes)];
    session.done("claim", text, "claim=|pool=|size_bytes=", &values)
}

/// The range `SIZE@ADDRESS`, in whole frames.
fn range(session: &mut Session<'_>, text: &str) -> Result<FrameRange, Failure> {
    let parsed = text.split_once('@').and_then(|(size, base)| {
        let (size, base) = (units::parse_size(size)?, units::parse_number(base)?);
        let range = FrameRange::inside(base, size)?;
        (range.bytes() == size && size > 0).then_some(range)
    });
    parsed.ok_or_else(|| {
        session.usage(format_args!("'{text:.32}' is no range of whole 4 KiB like 64M@0x48000000"))
    })
}

/// The refusal of a request.
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
pub(super) fn release(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let claiming = claiming(session)?;
    let (pool, range) = if let Some(number) = arguments.number(0) {
        let report = granted(claiming, number);
        let Some(report) = report else {
            return Err(session.refuse(format_args!("claim {number} was not granted, or is not remembered")));
        };
        // Somebody else may have been granted what it had, or may be by the time it is this one's turn.
        let is_on_its_way = |other: &Report| {
            other.kind == Kind::Release
                && !other.state.is_over()
                && other.pool == report.pool
                && matches!(other.wish, Wish::Exactly(range) if range.overlaps(report.range))
        };
        match report.returned {
            0 if reports(claiming).any(|other| is_on_its_way(&other)) => {
                return Err(session.refuse(format_args!("claim {number} is being given back already")));
            }
            0 => {}
            all if all == report.range.frames() => {
                return Err(
                    session.refuse(format_args!("what claim {number} was granted is given back already"))
                );
            }
            _ => {
                return Err(session.refuse(format_args!(
                    "claim {number} is given back in part: name the pool and the range"
                )));
            }
        }
        (report.pool, report.range)
    } else {
        let (pool, definition) = find(session, arguments.word(0))?;
        let Some(text) = arguments.word(1) else {
            claiming.release_all(pool).map_err(|error| refused(session, error))?;
            let name = definition.name;
            let text = format_args!("All that is claimed of {name} is being given back.");
            return session.done("release", text, "pool=", &[Value::Text(name.as_str())]);
        };
        (pool, range(session, text)?)
    };
    let id = claiming.release(pool, range).map_err(|error| refused(session, error))?;
    let number = id.get();
    let text = format_args!("Release {number} of {} is under way: see claims.", range.compact());
    session.done("release", text, "claim=", &[Value::Count(number.into())])
}

fn granted(claiming: &dyn Claiming, number: u64) -> Option<Report> {
    let report = reports(claiming).find(|report| u64::from(report.id.get()) == number)?;
    (report.state == State::Granted).then_some(report)
}

/// Returns the operations that are remembered, at most as many as are remembered at a time: an owner that claims and
/// releases faster than they are printed does not make the list endless.
fn reports(claiming: &dyn Claiming) -> impl Iterator<Item = Report> {
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

/// How long it took, or has taken so far, in nanoseconds.
fn time(claiming: &dyn Claiming, machine: &dyn Machine, report: &Report) -> u64 {
    let end = if report.state.is_over() { report.ended } else { claiming.now() };
    machine.nanoseconds(end.saturating_sub(report.submitted))
}

const fn kind(report: &Report) -> &'static str {
    match report.kind {
        Kind::Claim => "claim",
        Kind::Release => "release",
    }
}

/// Lists the operations that are remembered, and the counters.
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let (claiming, is_json) = (claiming(session)?, session.style.is_json);
    let columns = "claim=#|kind=|pool=POOL|claimant=BY|state=STATE|done_permille=|size_bytes=SIZE|\
                   base=AT|returned_bytes=|moved_bytes=MOVED|elapsed_ns=TIME|try_count=|cause=|blocker=|=WHY";
    session.report("claims", |report, machine| {
        report.table("claims", columns, "Nothing was claimed yet.", &mut |table| {
            for claim in reports(claiming) {
                let blocker = blocker_text(&claim);
                let state = state_text(&claim);
                table.row(&[
                    Value::Count(claim.id.get().into()),
                    Value::Text(kind(&claim)),
                    Value::Text(pool_name(claiming, claim.pool)),
                    Value::Show(&Name(machine, Some(claim.claimant))),
                    Value::Text(if is_json { claim.state.name() } else { &state }),
                    Value::Permille(claim.per_cent() * 10),
                    Value::Bytes(claim.wish.frames() * FRAME_SIZE),
                    match claim.range.is_empty() {
                        true => Value::None,
                        false => Value::Address(claim.range.base().get()),
                    },
                    Value::Bytes(claim.returned * FRAME_SIZE),
                    Value::Bytes(claim.moved.bytes()),
                    Value::Nanoseconds(time(claiming, machine, &claim)),
                    Value::Count(claim.tries.len() as u64),
                    match claim.blocker.cause {
                        Cause::Nothing => Value::None,
                        cause => Value::Text(Cause::NAMES[cause.index()]),
                    },
                    if blocker.is_empty() { Value::None } else { Value::Text(&blocker) },
                    if claim.state == State::Failed { Value::Text(&blocker) } else { Value::None },
                ])?;
            }
            Ok(())
        })
    })
}

/// Says how an operation stands, and how far it is.
fn state_text(report: &Report) -> Reason {
    match report.state {
        State::Queued => reason(format_args!("queued")),
        State::Cancelled if report.is_orphan() => reason(format_args!("cancelled: its owner stopped")),
        State::Granted if report.returned > 0 => match report.returned == report.range.frames() {
            true => reason(format_args!("returned")),
            false => reason(format_args!("granted, part returned")),
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
fn show(session: &mut Session<'_>, claiming: &dyn Claiming, number: u64) -> Result<(), Failure> {
    let found = reports(claiming).find(|report| u64::from(report.id.get()) == number);
    let Some(claim) = found else {
        return Err(session.refuse(format_args!("there is no claim {number}: claims lists them")));
    };
    session.report("claim", |report, machine| {
        let blocker = blocker_text(&claim);
        report.fields(
            "claim=Claim|kind=Kind|pool=Pool|claimant=By|state=State|done_permille=Done|size_bytes=Size|base=At|ipa=Seen at|\
             moved_bytes=Moved|moved_blocks=  units of 2 MiB|moved_pages=  units of 4 KiB|\
             lent_permille=Pool lent at first|elapsed_ns=Time|migration_ns=  of it migration|own_ns=  and other work|blocker=In the way",
            &[
                Value::Count(number),
                Value::Text(kind(&claim)),
                Value::Text(pool_name(claiming, claim.pool)),
                Value::Show(&Name(machine, Some(claim.claimant))),
                Value::Text(claim.state.name()),
                Value::Permille(claim.per_cent() * 10),
                Value::Bytes(claim.wish.frames() * FRAME_SIZE),
                match claim.range.is_empty() {
                    true => Value::None,
                    false => Value::Address(claim.range.base().get()),
                },
                if claim.ipa.get() == 0 { Value::None } else { Value::Address(claim.ipa.get()) },
                Value::Bytes(claim.moved.bytes()),
                Value::Count(claim.moved.blocks),
                Value::Count(claim.moved.pages),
                Value::Permille(u64::from(claim.lent_per_cent) * 10),
                Value::Nanoseconds(time(claiming, machine, &claim)),
                Value::Nanoseconds(machine.nanoseconds(claim.migration_ticks)),
                Value::Nanoseconds(machine.nanoseconds(claim.own_ticks)),
                if blocker.is_empty() { Value::None } else { Value::Text(&blocker) },
            ],
        )?;
        let columns = "base=TRIED|size_bytes=SIZE|used_bytes=IN USE|outcome=OUTCOME";
        report.table("tries", columns, "No range was tried.", &mut |table| {
            for one in &claim.tries {
                let outcome = match (one.blocker.cause, claim.state) {
                    (Cause::Nothing, state) => reason(format_args!("{}", state.name())),
                    _ => reason(format_args!("{}", one.blocker)),
                };
                table.row(&[
                    Value::Address(one.range.base().get()),
                    Value::Bytes(one.range.bytes()),
                    Value::Bytes(one.used * FRAME_SIZE),
                    Value::Text(&outcome),
                ])?;
            }
            Ok(())
        })
    })
}

/// Shows the counters: `claims stats`.
pub(super) fn statistics(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    if arguments.word(0).is_none() {
        return list(session, arguments);
    }
    counters(session)
}

/// The same as `stats claims`.
pub(super) fn counters(session: &mut Session<'_>) -> Result<(), Failure> {
    let statistics = claiming(session)?.claims().statistics();
    let totals = statistics.totals();
    session.report("claim_stats", |report, machine| {
        report.fields(
            "tried_count=Tried|granted_count=Granted|granted_bytes=  in all|failed_count=Failed|\
             cancelled_count=Cancelled|released_count=Released|retry_count=Other ranges tried|\
             moved_blocks=Moved, units of 2 MiB|moved_pages=  units of 4 KiB|moved_bytes=  in all",
            &[
                Value::Count(totals.tried),
                Value::Count(totals.granted),
                Value::Bytes(totals.granted_bytes),
                Value::Count(totals.failed),
                Value::Count(totals.cancelled),
                Value::Count(totals.released),
                Value::Count(totals.retries),
                Value::Count(totals.moved.blocks),
                Value::Count(totals.moved.pages),
                Value::Bytes(totals.moved.blocks * PAGEBLOCK_SIZE + totals.moved.pages * FRAME_SIZE),
            ],
        )?;
        report.table("failures", "cause=FAILED BECAUSE|count=COUNT", "No claim failed.", &mut |table| {
            for (index, name) in Cause::NAMES.iter().enumerate() {
                if statistics.failed(index) > 0 {
                    table.row(&[Value::Text(name), Value::Count(statistics.failed(index))])?;
                }
            }
            Ok(())
        })?;
        let columns = "size=SIZE|lent=POOL LENT|count=COUNT|mean_ns=MEAN|p50_ns=P50|p99_ns=P99|max_ns=MAX";
        report.table("latency", columns, "No claim was granted.", &mut |table| {
            for (size, (_, size_name)) in SIZE_CLASSES.iter().enumerate() {
                for (full, (_, full_name)) in FULLNESS_CLASSES.iter().enumerate() {
                    let latency = statistics.latency(size, full);
                    if latency.count == 0 {
                        continue;
                    }
                    let time = |ticks| Value::Nanoseconds(machine.nanoseconds(ticks));
                    table.row(&[
                        Value::Text(size_name),
                        Value::Text(full_name),
                        Value::Count(latency.count),
                        time(latency.mean),
                        time(latency.p50),
                        time(latency.p99),
                        time(latency.max),
                    ])?;
                }
            }
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::fake_pools::FakePools;
    use super::*;

    #[test]
    fn the_list_ends_though_there_are_always_new_claims() {
        let pools = FakePools::new();
        let (pool, _) = pools.claims().pools().and_then(|pools| pools.iter().next()).unwrap();
        pools.claim(pool, Wish::of_size(FRAME_SIZE)).unwrap();
        let again = || pools.claim(pool, Wish::of_size(FRAME_SIZE)).is_ok();
        let shown = reports(&pools).filter(|_| again());
        assert_eq!(shown.take(10_000).count(), RECORDS);
    }
}
