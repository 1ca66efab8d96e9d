//! `pools`, `pool`: the use of pools, the part that can be claimed, and the obstacles to the rest.

use alloc::vec::Vec;
use stage2::addr::{PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE};
use stage2::claim::Claimant;
use stage2::owner::PoolId;
use stage2::phys::alloc::Memory;
use stage2::phys::pool::{BlockUse, Pool, Survey, Usage};

use super::prelude::*;

/// Pageblocks in a line of a pool's map.
const LINE: usize = 64;
/// Most pageblocks that are scanned before others may run.
const SLICE: usize = 64;

/// The name of an owner or claimant.
pub(super) struct Name<'a>(pub(super) &'a dyn Machine, pub(super) Option<Claimant>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.1 {
            None => "-",
            Some(Claimant::Operator) => "operator",
            Some(Claimant::Units) => "huge units",
            Some(Claimant::Guest(guest)) => self.0.guest_name(guest),
        })
    }
}

/// Returns the owner of `pool`: the guest that the configuration names, or else the operator. Huge units are for guests that
/// ask for them.
fn owner(pool: &Pool) -> Claimant {
    match (pool.bound, pool.unit_order) {
        (Some(guest), _) => Claimant::Guest(guest),
        (None, Some(_)) => Claimant::Units,
        (None, None) => Claimant::Operator,
    }
}

/// Finds a pool by its name.
pub(super) fn find<'a>(session: &mut Session<'a>, name: Option<&str>) -> Result<(PoolId, &'a Pool), Failure> {
    let pools = session.claiming()?.claims().pools();
    let found = pools.and_then(|pools| {
        let id = pools.find(name?)?;
        Some((id, pools.get(id)?))
    });
    found.ok_or_else(|| session.refuse(format_args!("no such pool: pools lists them")))
}

/// Counts the frames of a pool by their use and calls `visit` for each pageblock. Others run meanwhile.
fn survey(
    session: &mut Session<'_>,
    memory: &Memory<'_>,
    (id, pool): (PoolId, &Pool),
    visit: &mut dyn FnMut(BlockUse),
) -> Result<Usage, Failure> {
    let statistics = session.claiming()?.claims().statistics();
    let mut survey = Survey::new(pool);
    loop {
        let usage = survey.advance(memory, SLICE, visit);
        session.pause()?;
        if let Some(usage) = usage {
            statistics.saw_lent(id, usage.lent);
            return Ok(usage);
        }
    }
}

/// Lists the pools.
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let (claiming, memory) = (session.claiming()?, session.memory()?);
    let mut pools = Vec::new();
    for (id, pool) in claiming.claims().pools().into_iter().flat_map(|pools| pools.iter()) {
        pools.push((pool, survey(session, memory, (id, pool), &mut |_| ())?));
    }
    let machine = session.machine;
    session.list("pools", "pools", "There are no pools.", pools.iter(), |table, (pool, usage)| {
        table.row(&[
            ("pool=POOL", Text(pool.name.as_str())),
            ("size_bytes=SIZE", Frames(usage.frames)),
            ("free_bytes=FREE", Frames(usage.free)),
            ("lent_bytes=LENT", Frames(usage.lent)),
            ("claimed_bytes=CLAIMED", Frames(usage.claimed)),
            ("fixed_bytes", Frames(usage.fixed)),
            ("claimable_bytes=CLAIMABLE", Frames(usage.claimable())),
            ("controller=ON", Text(machine.controller_name(pool.controller))),
            ("base", Address(pool.range.base().get())),
            ("dmb=DMB", pool.block.map_or(Nothing, |block| Count(block.into()))),
            ("owner=OWNER", Show(&Name(machine, Some(owner(pool))))),
        ])
    })
}

/// A line of a pool's map, a character for each pageblock.
struct Line<'a>(&'a [BlockUse]);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|block| f.write_char(block.symbol()))
    }
}

/// Shows one pool.
pub(super) fn show(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let (claiming, memory) = (session.claiming()?, session.memory()?);
    let (id, pool) = find(session, arguments.word(0))?;
    let mut map = Vec::new();
    if map.try_reserve_exact(pool.range.frames().div_ceil(PAGEBLOCK_FRAMES) as usize).is_err() {
        refuse!(session, "no memory for the map of this pool: see pools");
    }
    let usage = survey(session, memory, (id, pool), &mut |block| map.push(block))?;
    let statistics = claiming.claims().statistics();
    session.report("pool", |report, machine| {
        report.fields(&[
            ("pool=Pool", Text(pool.name.as_str())),
            ("controller=Controller", Text(machine.controller_name(pool.controller))),
            ("base=Base", Address(pool.range.base().get())),
            ("size_bytes=Size", Frames(usage.frames)),
            ("dmb=In DMB", pool.block.map_or(Nothing, |block| Count(block.into()))),
            ("owner=Owner", Show(&Name(machine, Some(owner(pool))))),
            ("is_bound=  by configuration", Flag(pool.bound.is_some())),
            ("free_bytes=Free", Frames(usage.free)),
            ("lent_bytes=Lent", Frames(usage.lent)),
            ("lent_permille=  of the lendable", Permille(usage.lent_per_cent() * 10)),
            ("claimed_bytes=Claimed", Frames(usage.claimed)),
            ("fixed_bytes=Unmovable", Frames(usage.fixed)),
            ("high_lent_bytes=Peak lent", Frames(statistics.high_lent(id))),
            ("high_claimed_bytes=Peak claimed", Frames(statistics.high_claimed(id))),
            ("claimable_bytes=Claimable now", Frames(usage.claimable())),
            ("longest_bytes=  contiguous", Frames(usage.longest.frames().min(usage.claimable()))),
            ("elsewhere_bytes=Free elsewhere", Frames(usage.elsewhere)),
        ])?;
        let rest = [
            (usage.claimed, "already claimed"),
            (usage.fixed, "reserved, retired, or unmovable"),
            (usage.stuck(), "lent, and no room for it elsewhere"),
        ];
        let rest = rest.iter().filter(|(frames, _)| *frames > 0);
        report.list("in_the_way", "", rest, |table, (frames, why)| {
            table.row(&[("bytes=NOT CLAIMABLE", Frames(*frames)), ("why=BECAUSE", Text(why))])
        })?;
        report.list("map", "", map.chunks(LINE).enumerate(), |table, (index, line)| {
            let base = pool.range.base().get() + (index * LINE) as u64 * PAGEBLOCK_SIZE;
            table.row(&[
                ("base=MAP", Address(base)),
                ("uses=. free, l L lent, C claimed, i being claimed, X unmovable", Show(&Line(line))),
            ])
        })
    })
}
