//! `pools`, `pool`: what lies in pools, how much can be claimed, and what stands in the way of the rest.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use stage2::addr::{FRAME_SIZE, PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE};
use stage2::claim::Claimant;
use stage2::controller::ControllerId;
use stage2::owner::{Owner, PoolId};
use stage2::phys::alloc::Memory;
use stage2::phys::pool::{BlockUse, Pool, Survey, Usage};

use super::super::claiming::Claiming;
use super::super::grammar::{Arguments, Failure};
use super::super::machine::Machine;
use super::super::report::Value;
use super::super::session::Session;
use super::migrate::controller_name;

/// Pageblocks in a line of the map.
const LINE: usize = 64;
/// Most pageblocks that are looked at before others may run.
const SLICE: usize = 64;

/// Pools and claims, or the refusal to say anything about them.
pub(super) fn claiming<'a>(session: &mut Session<'a>) -> Result<&'a dyn Claiming, Failure> {
    match session.machine.claiming() {
        Some(claiming) if claiming.claims().pools().is_some() => Ok(claiming),
        _ => Err(session.refuse(format_args!("there are no pools"))),
    }
}

fn memory<'a>(session: &mut Session<'a>) -> Result<&'a Memory<'static>, Failure> {
    session.machine.memory().ok_or_else(|| session.refuse(format_args!("memory is not set up yet")))
}

/// Bytes behind `controller` that owners of pools have claimed.
pub(super) fn claimed_behind(machine: &dyn Machine, controller: ControllerId) -> u64 {
    let (Some(memory), Some(claiming)) = (machine.memory(), machine.claiming()) else { return 0 };
    let pools = claiming.claims().pools().into_iter().flat_map(|pools| pools.iter());
    let here = pools.filter(|(_, pool)| pool.controller == controller);
    here.map(|(id, _)| memory.resident_everywhere(Owner::Pool(id)) * FRAME_SIZE).sum()
}

fn bytes(frames: u64) -> Value<'static> {
    Value::Bytes(frames * FRAME_SIZE)
}

/// Who owns or asks.
pub(super) struct Name<'a>(pub(super) &'a dyn Machine, pub(super) Option<Claimant>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.1 {
            None => "-",
            Some(Claimant::Operator) => "operator",
            Some(Claimant::Units) => "huge units",
            Some(Claimant::Guest(guest)) => self.0.guest(guest.index()).map_or("?", |guest| guest.name),
        })
    }
}

/// Returns the owner of `pool`, whatever is claimed of it: who the configuration names, or else the operator; huge units are
/// for guests that ask for them.
fn owner(pool: &Pool) -> Claimant {
    match (pool.bound, pool.unit_order) {
        (Some(guest), _) => Claimant::Guest(guest),
        (None, Some(_)) => Claimant::Units,
        (None, None) => Claimant::Operator,
    }
}

/// The pool called `name`.
pub(super) fn find<'a>(session: &mut Session<'a>, name: Option<&str>) -> Result<(PoolId, &'a Pool), Failure> {
    let pools = claiming(session)?.claims().pools();
    let found = pools.and_then(|pools| {
        let id = pools.find(name?)?;
        Some((id, pools.get(id)?))
    });
    found.ok_or_else(|| session.refuse(format_args!("there is no such pool: pools lists them")))
}

/// What the frames of a pool are used for, and a character for each of its pageblocks. Others run meanwhile.
fn survey(
    session: &mut Session<'_>,
    memory: &Memory<'_>,
    (id, pool): (PoolId, &Pool),
    visit: &mut dyn FnMut(BlockUse),
) -> Result<Usage, Failure> {
    let statistics = claiming(session)?.claims().statistics();
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
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let (claiming, memory) = (claiming(session)?, memory(session)?);
    let columns = "pool=POOL|size_bytes=SIZE|free_bytes=FREE|lent_bytes=LENT|claimed_bytes=CLAIMED|\
                   fixed_bytes=|claimable_bytes=CLAIMABLE|controller=BEHIND|base=|dmb=DMB|owner=OWNER";
    let mut pools = Vec::new();
    for (id, pool) in claiming.claims().pools().into_iter().flat_map(|pools| pools.iter()) {
        pools.push((pool, survey(session, memory, (id, pool), &mut |_| ())?));
    }
    session.report("pools", |report, machine| {
        report.table("pools", columns, "There are no pools.", &mut |table| {
            for (pool, usage) in &pools {
                table.row(&[
                    Value::Text(pool.name.as_str()),
                    bytes(usage.frames),
                    bytes(usage.free),
                    bytes(usage.lent),
                    bytes(usage.claimed),
                    bytes(usage.fixed),
                    bytes(usage.claimable()),
                    Value::Text(controller_name(machine, pool.controller)),
                    Value::Address(pool.range.base().get()),
                    pool.block.map_or(Value::None, |block| Value::Count(block.into())),
                    Value::Show(&Name(machine, Some(owner(pool)))),
                ])?;
            }
            Ok(())
        })
    })
}

/// A line of a pool's map.
struct Line<'a>(&'a [BlockUse]);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|block| f.write_char(block.symbol()))
    }
}

/// Shows one pool.
pub(super) fn show(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let (claiming, memory) = (claiming(session)?, memory(session)?);
    let (id, pool) = find(session, arguments.word(0))?;
    let mut map = Vec::new();
    if map.try_reserve_exact(pool.range.frames().div_ceil(PAGEBLOCK_FRAMES) as usize).is_err() {
        return Err(session.refuse(format_args!("there is no room for its map: see pools")));
    }
    let usage = survey(session, memory, (id, pool), &mut |block| map.push(block))?;
    let statistics = claiming.claims().statistics();
    let is_json = session.style.is_json;
    session.report("pool", |report, machine| {
        report.fields(
            "pool=Pool|controller=Behind|base=From|size_bytes=Size|dmb=In DMB|owner=Owner|is_bound=  by configuration|\
             free_bytes=Free|lent_bytes=Lent|lent_permille=  of what can be|claimed_bytes=Claimed|\
             fixed_bytes=Cannot move|high_lent_bytes=Most lent seen|high_claimed_bytes=Most claimed|\
             claimable_bytes=Claimable now|longest_bytes=  in one piece|elsewhere_bytes=Free elsewhere",
            &[
                Value::Text(pool.name.as_str()),
                Value::Text(controller_name(machine, pool.controller)),
                Value::Address(pool.range.base().get()),
                bytes(usage.frames),
                pool.block.map_or(Value::None, |block| Value::Count(block.into())),
                Value::Show(&Name(machine, Some(owner(pool)))),
                Value::Flag(pool.bound.is_some()),
                bytes(usage.free),
                bytes(usage.lent),
                Value::Permille(usage.lent_per_cent() * 10),
                bytes(usage.claimed),
                bytes(usage.fixed),
                bytes(statistics.high_lent(id)),
                bytes(statistics.high_claimed(id)),
                bytes(usage.claimable()),
                bytes(usage.longest.frames().min(usage.claimable())),
                bytes(usage.elsewhere),
            ],
        )?;
        let rest = [
            (usage.claimed, "claimed already"),
            (usage.fixed, "reserved, retired, or in use by what cannot move"),
            (usage.stuck(), "lent, and there is no room for it elsewhere"),
        ];
        if is_json || rest.iter().any(|(frames, _)| *frames > 0) {
            report.table("in_the_way", "bytes=IN THE WAY|why=BECAUSE", "", &mut |table| {
                for (frames, why) in rest.iter().filter(|(frames, _)| *frames > 0) {
                    table.row(&[bytes(*frames), Value::Text(why)])?;
                }
                Ok(())
            })?;
        }
        let columns = "base=MAP|uses=. free, l L lent, C claimed, i being claimed, X cannot move";
        report.table("map", columns, "", &mut |table| {
            for (index, line) in map.chunks(LINE).enumerate() {
                let base = pool.range.base().get() + (index * LINE) as u64 * PAGEBLOCK_SIZE;
                table.row(&[Value::Address(base), Value::Show(&Line(line))])?;
            }
            Ok(())
        })
    })
}
