//! `stats migration`: what migration did since boot, and what guests felt of it.

use stage2::controller::ControllerId;
use stage2::owner::GuestId;

use super::super::grammar::Failure;
use super::super::report::Value;
use super::super::session::Session;
use super::migrate::{controller_name, migration};

/// Shows the counters of migration: by guest, by pair of controllers, and the stalls as a histogram.
pub(super) fn run(session: &mut Session<'_>) -> Result<(), Failure> {
    let migration = migration(session)?;
    let statistics = migration.engine().statistics();
    let time = |ticks: u64| Value::Nanoseconds(migration.nanoseconds(ticks));
    let is_json = session.style.is_json;
    session.report("migration", |report, machine| {
        let guests = || {
            let ids = (0..machine.guest_count()).filter_map(|at| GuestId::try_new(u8::try_from(at).ok()?));
            ids.filter_map(|id| Some((machine.guest(id.index())?, statistics.guest(id))))
        };
        let columns = "name=GUEST|moved_bytes=MOVED|moved_blocks=2 MiB|moved_pages=4 KiB|copy_ns=COPYING|scrub_ns=|wait_ns=|\
                       demotion_count=|promotion_count=|split_count=SPLIT|coalesced_count=COALESCED|gathered_count=|retry_count=|\
                       invalidation_count=|fault_count=FAULTS|help_count=|stall_count=STALLS";
        report.table("guests", columns, "There are no guests.", &mut |table| {
            guests().try_for_each(|(guest, counters)| {
                let totals = counters.totals();
                table.row(&[
                    Value::Text(guest.name),
                    Value::Bytes(totals.moved.bytes()),
                    Value::Count(totals.moved.blocks),
                    Value::Count(totals.moved.pages),
                    time(totals.copy_ticks),
                    time(totals.scrub_ticks),
                    time(totals.wait_ticks),
                    Value::Count(totals.demotions),
                    Value::Count(totals.promotions),
                    Value::Count(totals.splits),
                    Value::Count(totals.coalesced),
                    Value::Count(totals.gathered),
                    Value::Count(totals.retries),
                    Value::Count(totals.invalidations),
                    Value::Count(totals.faults),
                    Value::Count(totals.helps),
                    Value::Count(totals.stalls.count),
                ])
            })
        })?;
        let columns = "guest=STALLS OF|count=COUNT|mean_ns=MEAN|p50_ns=HALF WITHIN|p99_ns=99 % WITHIN|max_ns=LONGEST";
        report.table("stalls", columns, "No guest has waited.", &mut |table| {
            guests().filter(|(_, counters)| counters.totals().stalls.count != 0).try_for_each(
                |(guest, counters)| {
                    let stalls = counters.totals().stalls;
                    table.row(&[
                        Value::Text(guest.name),
                        Value::Count(stalls.count),
                        time(stalls.mean),
                        time(stalls.p50),
                        time(stalls.p99),
                        time(stalls.max),
                    ])
                },
            )
        })?;
        if is_json {
            report.table("stall_histogram", "guest=|below_ns=|count=", "", &mut |table| {
                guests().try_for_each(|(guest, counters)| {
                    counters.stalls().octaves().try_for_each(|(limit, count)| {
                        table.row(&[Value::Text(guest.name), time(limit), Value::Count(count)])
                    })
                })
            })?;
        }
        let ids = || (0..machine.controller_count()).filter_map(|at| ControllerId::try_new(u8::try_from(at).ok()?));
        let columns = "from=FROM|to=TO|moved_bytes=MOVED|moved_blocks=2 MiB|moved_pages=4 KiB";
        report.table("pairs", columns, "Nothing has moved.", &mut |table| {
            for (from, to) in ids().flat_map(|from| ids().map(move |to| (from, to))) {
                let totals = statistics.pair(from, to);
                if totals.bytes() != 0 {
                    table.row(&[
                        Value::Text(controller_name(machine, from)),
                        Value::Text(controller_name(machine, to)),
                        Value::Bytes(totals.bytes()),
                        Value::Count(totals.blocks),
                        Value::Count(totals.pages),
                    ])?;
                }
            }
            Ok(())
        })
    })
}
