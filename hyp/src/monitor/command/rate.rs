//! `rate`.

use stage2::addr::FRAME_SIZE;

use super::prelude::*;

/// The lowest limit, at which a unit of 2 MiB takes half a minute. A lower number was meant in another unit.
const LEAST_RATE: u64 = 64 << 10;

/// Shows or changes the limits of migration.
pub(super) fn rate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let policy = session.migration()?.engine().policy();
    let value = arguments.number(1);
    match (arguments.word(0), value) {
        (Some(name), None) if arguments.word(1).is_none() => {
            usage!(session, "missing VALUE of {name}: see help rate");
        }
        (Some("limit"), None) => policy.set_rate_bytes(0),
        (Some("limit"), Some(bytes @ LEAST_RATE..)) => policy.set_rate_bytes(bytes),
        (Some("slice"), Some(us @ 10..=100_000)) => policy.set_slice_ns(us * 1000),
        (Some("share"), Some(share @ 1..=90)) => policy.set_share_per_cent(share as u32),
        (Some("stall"), Some(bytes)) if bytes <= 2 << 20 && bytes.is_multiple_of(FRAME_SIZE) => {
            policy.set_stall_frames((bytes / FRAME_SIZE) as u16)
        }
        (Some("limit"), Some(bytes)) => {
            usage!(
                session,
                "limit {bytes} is too low: at least {} bytes a second, as in 100M, or off",
                Compact(LEAST_RATE)
            );
        }
        (Some("slice"), _) => usage!(session, "slice must be 10 to 100000 us"),
        (Some("share"), _) => usage!(session, "share must be 1 to 90 per cent"),
        (Some(_), _) => {
            usage!(session, "stall must be a multiple of 4K up to 2M");
        }
        (None, _) => {}
    }
    session.report("rate", |report, _| {
        report.fields(&[
            ("limit_bytes_per_s=Limit per second", Bytes(policy.rate_bytes()).or_nothing()),
            ("slice_ns=Slice", Nanoseconds(policy.slice_ns())),
            ("share_permille=Share of a guest's time", Permille(u64::from(policy.share_per_cent()) * 10)),
            ("stall_bytes=Stall limit", Frames(policy.stall_frames().into())),
        ])
    })
}
