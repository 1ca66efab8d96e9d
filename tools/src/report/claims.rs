//! The report's section on pools and claims.

use std::fmt::{self, Write as _};

use super::chart::{self, Series, Style};
use super::{Material, Text, time};
use crate::model::{ClaimStats, Pool, Snapshot};
use crate::top::size;

/// Writes the pools, their use over time, the claims and their latencies.
pub(super) fn write(page: &mut String, material: &Material, last: &Snapshot) -> fmt::Result {
    if last.pools.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<h2>Pools</h2>\n<table><tr><th>Pool<th>Controller<th>Owner<th class=n>Size<th class=n>Lent\
         <th class=n>Claimed<th class=n>Free<th class=n>Claimable\n",
    );
    for pool in &last.pools {
        writeln!(
            page,
            "<tr><td>{}<td>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}",
            Text(&pool.pool),
            Text(&pool.controller),
            Text(pool.owner.as_deref().unwrap_or("-")),
            size(pool.size_bytes),
            size(pool.lent_bytes),
            size(pool.claimed_bytes),
            size(pool.free_bytes),
            size(pool.claimable_bytes)
        )?;
    }
    page.push_str("</table>\n");
    for pool in &last.pools {
        let line = |name: &str, colour: &'static str, value: fn(&Pool) -> u64| {
            let value_at = |snapshot: &Snapshot| {
                let one = snapshot.pools.iter().find(|one| one.pool == pool.pool);
                (snapshot.seconds, one.map_or(0.0, |one| value(one) as f64))
            };
            Series { name: name.into(), colour, points: material.snapshots.iter().map(value_at).collect() }
        };
        let series = [
            line("claimed", "#ffab00", |one| one.claimed_bytes),
            line("lent", "#4a86c5", |one| one.lent_bytes),
            line("fixed", "#8c959f", |one| one.fixed_bytes),
            line("free", "#e6ebf0", |one| one.free_bytes),
        ];
        chart::write(page, &pool.pool, &series, Style::Stack, &material.marks(), |value| size(value as u64))?;
    }
    write_claims(page, material, last)
}

fn write_claims(page: &mut String, material: &Material, last: &Snapshot) -> fmt::Result {
    let stats = &last.claim_stats;
    writeln!(
        page,
        "<h2>Claims</h2>\n<p>{} tried since boot: {} granted ({}), {} failed, {} cancelled; {} released; {} moved \
         to empty ranges.</p>",
        stats.tried_count,
        stats.granted_count,
        size(stats.granted_bytes),
        stats.failed_count,
        stats.cancelled_count,
        stats.released_count,
        size(stats.moved_bytes)
    )?;
    if stats.tried_count == 0 && last.claims.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<table><tr><th class=n>Claim<th>Kind<th>Pool<th>Claimant<th>State<th class=n>Size<th class=n>Moved\
         <th class=n>Time<th>Obstacle\n",
    );
    for claim in &last.claims {
        let class = if claim.state == "failed" { " class=failed" } else { "" };
        writeln!(
            page,
            "<tr><td class=n>{}<td>{}<td>{}<td>{}<td{class}>{}<td class=n>{}<td class=n>{}<td class=n>{}<td>{}",
            claim.claim,
            Text(&claim.kind),
            Text(&claim.pool),
            Text(&claim.claimant),
            Text(&claim.state),
            size(claim.size_bytes),
            size(claim.moved_bytes),
            time(claim.elapsed_ns),
            Text(claim.blocker.as_deref().unwrap_or(""))
        )?;
    }
    page.push_str("</table>\n");
    let line = |name: &str, colour: &'static str, value: fn(&ClaimStats) -> u64| {
        let value_at = |snapshot: &Snapshot| (snapshot.seconds, value(&snapshot.claim_stats) as f64);
        Series { name: name.into(), colour, points: material.snapshots.iter().map(value_at).collect() }
    };
    let series = [
        line("granted", "#1a7f37", |stats| stats.granted_count),
        line("failed", "#b71c1c", |stats| stats.failed_count),
        line("released", "#4a86c5", |stats| stats.released_count),
    ];
    let count = |value: f64| if value.fract() == 0.0 { value.to_string() } else { String::new() };
    chart::write(page, "Claims since boot", &series, Style::Lines, &material.marks(), count)?;
    write_latency(page, last)
}

/// Writes latencies: a bar for each remembered claim, and a table of all claims since boot by class.
fn write_latency(page: &mut String, last: &Snapshot) -> fmt::Result {
    let granted = last.claims.iter().filter(|claim| claim.kind == "claim" && claim.state == "granted");
    let bars: Vec<(String, u64)> = granted
        .map(|claim| (format!("{}: {}", claim.claim, size(claim.size_bytes)), claim.elapsed_ns))
        .collect();
    if !bars.is_empty() {
        page.push_str("<h3>Latency of claims</h3>\n<p class=quiet>The most recent granted claims.</p>\n");
        chart::write_bars(page, "claims", "#ffab00", &bars, time)?;
    }
    if last.claim_stats.latency.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<table><tr><th>Size<th>Pool lent<th class=n>Claims<th class=n>Mean<th class=n>Median\
         <th class=n>99 %<th class=n>Maximum\n",
    );
    for class in &last.claim_stats.latency {
        writeln!(
            page,
            "<tr><td>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}",
            Text(&class.size),
            Text(&class.lent),
            class.count,
            time(class.mean_ns),
            time(class.p50_ns),
            time(class.p99_ns),
            time(class.max_ns)
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}
