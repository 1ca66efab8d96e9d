//! `stats migration`: the work of migration since boot, and its effect on guests.

use stage2::owner::GuestId;

use super::prelude::*;

/// Shows the counters of migration by guest and by pair of controllers, and the stalls as a histogram.
pub(super) fn run(session: &mut Session<'_>) -> Done {
    let migration = session.migration()?;
    let statistics = migration.engine().statistics();
    let time = |ticks: u64| Nanoseconds(migration.nanoseconds(ticks));
    let is_json = session.style.is_json;
    session.report("migration", |report, machine| {
        let ids = (0..machine.guest_count()).filter_map(|at| GuestId::try_new(u8::try_from(at).ok()?));
        let guests = ids.filter_map(|id| Some((machine.guest(id.index())?.name, statistics.guest(id))));
        report.list("guests", "There are no guests.", guests.clone(), |table, (name, counters)| {
            let totals = counters.totals();
            table.row(&[
                ("name=GUEST", Text(name)),
                ("moved_bytes=MOVED", Bytes(totals.moved.bytes())),
                ("moved_blocks=2 MiB", Count(totals.moved.blocks)),
                ("moved_pages=4 KiB", Count(totals.moved.pages)),
                ("copy_ns=COPYING", time(totals.copy_ticks)),
                ("scrub_ns", time(totals.scrub_ticks)),
                ("wait_ns", time(totals.wait_ticks)),
                ("demotion_count", Count(totals.demotions)),
                ("promotion_count", Count(totals.promotions)),
                ("split_count=SPLIT", Count(totals.splits)),
                ("coalesced_count=COALESCED", Count(totals.coalesced)),
                ("gathered_count", Count(totals.gathered)),
                ("retry_count", Count(totals.retries)),
                ("invalidation_count", Count(totals.invalidations)),
                ("fault_count=FAULTS", Count(totals.faults)),
                ("help_count", Count(totals.helps)),
                ("stall_count=STALLS", Count(totals.stalls.count)),
            ])
        })?;
        let stalls = guests.clone().map(|(name, counters)| (name, counters.totals().stalls));
        let stalls = stalls.filter(|(_, stalls)| stalls.count != 0);
        report.list("stalls", "No guest has stalled.", stalls, |table, (name, stalls)| {
            table.row(&[
                ("guest=STALLS OF", Text(name)),
                ("count=COUNT", Count(stalls.count)),
                ("mean_ns=MEAN", time(stalls.mean)),
                ("p50_ns=P50", time(stalls.p50)),
                ("p99_ns=P99", time(stalls.p99)),
                ("max_ns=MAX", time(stalls.max)),
            ])
        })?;
        if is_json {
            report.list("stall_histogram", "", guests, |table, (name, counters)| {
                counters.stalls().octaves().try_for_each(|(limit, count)| {
                    table.row(&[("guest", Text(name)), ("below_ns", time(limit)), ("count", Count(count))])
                })
            })?;
        }
        let pairs = machine.controllers().flat_map(|(from, _)| {
            machine.controllers().map(move |(to, _)| (from, to, statistics.pair(from, to)))
        });
        let pairs = pairs.filter(|(.., totals)| totals.bytes() != 0);
        report.list("pairs", "Nothing has moved.", pairs, |table, (from, to, totals)| {
            table.row(&[
                ("from=FROM", Text(machine.controller_name(from))),
                ("to=TO", Text(machine.controller_name(to))),
                ("moved_bytes=MOVED", Bytes(totals.bytes())),
                ("moved_blocks=2 MiB", Count(totals.blocks)),
                ("moved_pages=4 KiB", Count(totals.pages)),
            ])
        })
    })
}
