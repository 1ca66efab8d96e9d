//! `dmb`, `buddyinfo`, `pagetypeinfo`, `check`: the allocator's state, and a check of it.

use alloc::vec::Vec;
use stage2::addr::{Frame, PAGEBLOCK_FRAMES};
use stage2::phys::alloc::Glance;
use stage2::phys::alloc::check::{Check, Problem};
use stage2::phys::dmb::Source;
use stage2::phys::pageblock::MigrateType;

use super::memory::{ByOrder, SLICE, arenas, by_order, slices};
use super::prelude::*;
use crate::monitor::devices::Devices;

/// Most problems that `check` lists.
const LISTED: usize = 16;

/// Lists the free blocks by order.
pub(super) fn buddyinfo(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let memory = session.memory()?;
    let arenas = arenas(session, memory)?;
    let machine = session.machine;
    session.list("buddyinfo", "arenas", "There is no memory.", arenas.iter(), |table, arena| {
        let counts = by_order(&arena.free, None);
        table.row(&[
            ("zone=ZONE", Show(&arena.zone)),
            ("controller=CONTROLLER", Text(machine.controller_name(arena.controller))),
            ("free_bytes=FREE", Frames(memory.arena_totals(arena.zone, arena.controller).free)),
            ("free_blocks", Numbers(&counts)),
            ("=FREE BLOCKS, ORDER:COUNT", Show(&ByOrder(&counts))),
        ])
    })
}

/// Lists pageblocks and free blocks by type.
pub(super) fn pagetypeinfo(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let memory = session.memory()?;
    let arenas = arenas(session, memory)?;
    let machine = session.machine;
    let rows = arenas.iter().flat_map(|arena| {
        let types = MigrateType::ALL.into_iter().map(Some).chain([None]);
        types.map(move |migrate_type| match migrate_type {
            Some(migrate_type) => (arena, Some(migrate_type), arena.free.pageblocks[migrate_type as usize]),
            None => (arena, None, arena.free.isolated_pageblocks),
        })
    });
    let rows = rows.filter(|(.., count)| *count > 0);
    session.list(
        "pagetypeinfo",
        "types",
        "There is no memory.",
        rows,
        |table, (arena, migrate_type, count)| {
            let counts = migrate_type.map(|migrate_type| by_order(&arena.free, Some(migrate_type)));
            let shown = counts.as_ref().map(ByOrder);
            table.row(&[
                ("zone=ZONE", Show(&arena.zone)),
                ("controller=CONTROLLER", Text(machine.controller_name(arena.controller))),
                ("type=TYPE", migrate_type.as_ref().map_or(Text("of these isolated"), |name| Show(name))),
                ("pageblock_count=PAGEBLOCKS", Count(count.into())),
                ("free_blocks", counts.as_ref().map_or(Nothing, |counts| Numbers(counts))),
                ("=FREE BLOCKS, ORDER:COUNT", shown.as_ref().map_or(Nothing, |counts| Show(counts))),
            ])
        },
    )
}

/// Lists the designated movable blocks.
pub(super) fn dmb(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let memory = session.memory()?;
    let mut uses: Vec<[u64; 4]> = Vec::new();
    for block in memory.blocks() {
        let mut frames = [0u64; 4];
        for slice in slices(block.range) {
            let pageblocks = (slice.start()..slice.end()).step_by(PAGEBLOCK_FRAMES as usize);
            let looks = pageblocks.filter_map(|number| memory.glance(Frame::try_new(number)?));
            for look in looks {
                let Glance { free, claimed, fixed, .. } = look;
                for (sum, more) in frames.iter_mut().zip([free, look.lent(), claimed, fixed]) {
                    *sum += u64::from(more);
                }
            }
            session.pause()?;
        }
        uses.push(frames);
    }
    let machine = session.machine;
    let blocks = memory.blocks().iter().zip(&uses).enumerate();
    session.list(
        "dmb",
        "blocks",
        "There are no designated movable blocks.",
        blocks,
        |table, (index, (block, frames))| {
            let [free, lent, claimed, fixed] = frames.map(Frames);
            table.row(&[
                ("dmb=#", Count(index as u64)),
                ("base=BASE", Address(block.range.base().get())),
                ("size_bytes=SIZE", Frames(block.range.frames())),
                ("source=FROM", Text(source_name(block.source))),
                ("controller=CONTROLLER", Text(machine.controller_name(block.controller))),
                ("free_bytes=FREE", free),
                ("lent_bytes=LENT", lent),
                ("claimed_bytes=CLAIMED", claimed),
                ("fixed_bytes", fixed),
                ("name=NAME", Text(block.name.as_str())),
            ])
        },
    )
}

const fn source_name(source: Source) -> &'static str {
    match source {
        Source::CommandLine => "command line",
        Source::Tree => "host tree",
        Source::Configuration => "configuration",
    }
}

/// Walks the whole frame table and checks it against counters, free lists and stage 2. Checks the SMMUs' tables.
pub(super) fn check(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let memory = session.memory()?;
    let mut check = Check::new();
    let mut problems: heapless::Vec<Problem, LISTED> = heapless::Vec::new();
    let machine = session.machine;
    let stage2 = |guest, ipa| machine.translate(guest, ipa);
    while !check.step(memory, &stage2, SLICE as u32, &mut |problem| _ = problems.push(problem)) {
        session.pause()?;
    }
    let summary = check.summary();
    let smmus = machine.smmus().next().and(machine.devices()).map(Devices::check);
    let damage = smmus.as_ref().and_then(|smmus| smmus.as_ref().err());
    let problem_count = summary.problem_count + u64::from(damage.is_some());
    let present: u64 = memory.ram().map(|(range, _)| range.frames()).sum();
    session.report("check", |report, _| {
        let verdict = match (problem_count, summary.busy_count) {
            (0, 0) => "in order",
            (0, _) => "in order, but some counters changed too fast to be compared",
            _ => "DAMAGED",
        };
        report.fields(&[
            ("verdict=Memory is", Text(verdict)),
            ("problem_count=Problems", Count(problem_count)),
            ("ram_frame_count=Frames of RAM", Count(present)),
            ("frame_count=  accounted for", Count(summary.frames)),
            ("mapped_count=Blocks that match stage 2", Count(summary.mapped_count)),
            ("unmapped_count=  not mapped now", Count(summary.unmapped_count)),
            (
                "smmu_tables=SMMU tables",
                smmus
                    .as_ref()
                    .map_or(Nothing, |smmus| Text(if smmus.is_ok() { "in order" } else { "DAMAGED" })),
            ),
            ("busy_count=Zones not compared", Count(summary.busy_count)),
            ("refused_count=Invalid frees refused", Count(memory.refused_count().into())),
        ])?;
        let problems = problems.iter().map(|problem| problem as &dyn fmt::Display);
        let problems = problems.chain(damage.map(|damage| damage as &dyn fmt::Display));
        report.list("problems", "Nothing is wrong.", problems, |table, problem| {
            table.row(&[("text=PROBLEM", Show(problem))])
        })
    })
}
