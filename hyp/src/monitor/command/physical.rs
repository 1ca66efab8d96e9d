//! `dmb`, `buddyinfo`, `pagetypeinfo`, `check`: what the allocator knows, and whether it is right.

use alloc::vec::Vec;
use core::fmt;

use stage2::addr::{Frame, PAGEBLOCK_FRAMES};
use stage2::controller::ControllerId;
use stage2::phys::alloc::check::{Check, Problem};
use stage2::phys::alloc::{FreeBlocks, Glance, Memory, ORDERS};
use stage2::phys::dmb::Source;
use stage2::phys::pageblock::MigrateType;
use stage2::phys::zone::Zone;
use stage2::range::FrameRange;

use super::super::grammar::{Arguments, Failure};
use super::super::report::Value;
use super::super::session::Session;
use super::memory::{bytes, controller_name, memory};

/// Pageblocks looked at between two moments at which others run.
const SLICE: u64 = 16;
/// Most problems that `check` lists.
const LISTED: usize = 16;

/// One zone behind one controller.
pub(super) struct Arena {
    pub(super) zone: Zone,
    pub(super) controller: ControllerId,
    pub(super) free: FreeBlocks,
}

/// The free blocks of each zone behind each controller that has some of it.
pub(super) fn arenas(session: &mut Session<'_>, memory: &Memory<'_>) -> Result<Vec<Arena>, Failure> {
    // Taken first: the heap may grow for it, out of the frames that are counted.
    let mut arenas = Vec::with_capacity(Zone::ALL.len() * memory.controllers().iter().count());
    for zone in Zone::ALL {
        for controller in memory.controllers().iter() {
            if memory.arena_totals(zone, controller).present == 0 {
                continue;
            }
            let mut free = FreeBlocks::NONE;
            for (range, _) in memory.ram().filter(|(_, behind)| *behind == controller) {
                for slice in slices(range) {
                    memory.count_free_blocks(zone, slice, &mut free);
                    session.pause()?;
                }
            }
            arenas.push(Arena { zone, controller, free });
        }
    }
    Ok(arenas)
}

/// `range` in slices of a few pageblocks.
fn slices(range: FrameRange) -> impl Iterator<Item = FrameRange> {
    let starts = (range.start()..range.end()).step_by((SLICE * PAGEBLOCK_FRAMES) as usize);
    starts.filter_map(move |start| {
        FrameRange::from_numbers(start, range.end().min(start + SLICE * PAGEBLOCK_FRAMES))
    })
}

/// Orders and how many blocks there are of each: `0:3 9:130`.
struct ByOrder<'a>(&'a [u64; ORDERS]);

impl fmt::Display for ByOrder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for (order, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            write!(f, "{space}{order}:{count}")?;
            space = " ";
        }
        if space.is_empty() { f.write_str("-") } else { Ok(()) }
    }
}

/// Free blocks by order, of one type or of all.
pub(super) fn by_order(free: &FreeBlocks, only: Option<MigrateType>) -> [u64; ORDERS] {
    core::array::from_fn(|order| match only {
        Some(migrate_type) => free.free[migrate_type as usize][order].into(),
        None => free.of_order(order as u8).into(),
    })
}

/// Lists the free blocks by order.
pub(super) fn buddyinfo(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
    let arenas = arenas(session, memory)?;
    let columns = "zone=ZONE|controller=CONTROLLER|free_bytes=FREE|free_blocks=|=FREE BLOCKS, ORDER:COUNT";
    session.report("buddyinfo", |report, machine| {
        report.table("arenas", columns, "There is no memory.", &mut |table| {
            arenas.iter().try_for_each(|arena| {
                let name = controller_name(machine, arena.controller.index());
                let counts = by_order(&arena.free, None);
                table.row(&[
                    Value::Show(&arena.zone),
                    Value::Text(&name),
                    bytes(memory.arena_totals(arena.zone, arena.controller).free),
                    Value::Numbers(&counts),
                    Value::Show(&ByOrder(&counts)),
                ])
            })
        })
    })
}

/// Lists pageblocks and free blocks by type.
pub(super) fn pagetypeinfo(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
    let arenas = arenas(session, memory)?;
    let columns = "zone=ZONE|controller=CONTROLLER|type=TYPE|pageblock_count=PAGEBLOCKS|free_blocks=|=FREE BLOCKS, ORDER:COUNT";
    session.report("pagetypeinfo", |report, machine| {
        report.table("types", columns, "There is no memory.", &mut |table| {
            for arena in &arenas {
                let name = controller_name(machine, arena.controller.index());
                for migrate_type in MigrateType::ALL {
                    let count = arena.free.pageblocks[migrate_type as usize];
                    let counts = by_order(&arena.free, Some(migrate_type));
                    if count > 0 {
                        table.row(&[
                            Value::Show(&arena.zone),
                            Value::Text(&name),
                            Value::Show(&migrate_type),
                            Value::Count(count.into()),
                            Value::Numbers(&counts),
                            Value::Show(&ByOrder(&counts)),
                        ])?;
                    }
                }
                if arena.free.isolated_pageblocks > 0 {
                    let isolated = arena.free.isolated_pageblocks;
                    let zone = Value::Show(&arena.zone);
                    table.row(&[
                        zone,
                        Value::Text(&name),
                        Value::Text("of these isolated"),
                        Value::Count(isolated.into()),
                        Value::None,
                        Value::None,
                    ])?;
                }
            }
            Ok(())
        })
    })
}

/// Lists the designated movable blocks.
pub(super) fn dmb(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
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
    let columns = "dmb=#|base=BASE|size_bytes=SIZE|source=FROM|controller=CONTROLLER|free_bytes=FREE|lent_bytes=LENT|claimed_bytes=CLAIMED|fixed_bytes=|name=NAME";
    session.report("dmb", |report, machine| {
        report.table("blocks", columns, "No movable block is designated.", &mut |table| {
            memory.blocks().iter().zip(&uses).enumerate().try_for_each(|(index, (block, frames))| {
                let name = controller_name(machine, block.controller.index());
                let [free, lent, claimed, fixed] = frames.map(bytes);
                table.row(&[
                    Value::Count(index as u64),
                    Value::Address(block.range.base().get()),
                    bytes(block.range.frames()),
                    Value::Text(source_name(block.source)),
                    Value::Text(&name),
                    free,
                    lent,
                    claimed,
                    fixed,
                    Value::Text(block.name.as_str()),
                ])
            })
        })
    })
}

const fn source_name(source: Source) -> &'static str {
    match source {
        Source::CommandLine => "command line",
        Source::Tree => "host tree",
        Source::Configuration => "configuration",
    }
}

/// Walks the whole frame table and proves that the books are right.
pub(super) fn check(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
    let mut check = Check::new();
    let mut problems: heapless::Vec<Problem, LISTED> = heapless::Vec::new();
    let machine = session.machine;
    let stage2 = |guest, ipa| machine.translate(guest, ipa);
    while !check.step(memory, &stage2, SLICE as u32, &mut |problem| _ = problems.push(problem)) {
        session.pause()?;
    }
    let summary = check.summary();
    let present: u64 = memory.ram().map(|(range, _)| range.frames()).sum();
    session.report("check", |report, _| {
        let verdict = match (summary.problem_count, summary.busy_count) {
            (0, 0) => "in order",
            (0, _) => "in order, but some counters changed too fast to be compared",
            _ => "DAMAGED",
        };
        report.fields("verdict=Memory is|problem_count=Problems|ram_frame_count=Frames of RAM|frame_count=  found in the books|mapped_count=Blocks as in stage 2|unmapped_count=  not in stage 2 now|busy_count=Zones too busy|refused_count=Refused frees", &[
            Value::Text(verdict),
            Value::Count(summary.problem_count),
            Value::Count(present),
            Value::Count(summary.frames),
            Value::Count(summary.mapped_count),
            Value::Count(summary.unmapped_count),
            Value::Count(summary.busy_count),
            Value::Count(memory.refused_count().into()),
        ])?;
        report.table("problems", "text=WHAT IS WRONG", "Nothing is wrong.", &mut |table| {
            problems.iter().try_for_each(|problem| table.row(&[Value::Show(problem)]))
        })
    })
}
