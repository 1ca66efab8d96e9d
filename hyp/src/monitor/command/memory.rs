//! `mem`, `zones`, `map`, `frame`: the use of physical memory.

use alloc::vec::Vec;
use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE, Pa};
use stage2::controller::ControllerId;
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::{FrameInfo, FreeBlocks, Memory, ORDERS};
use stage2::phys::frame::{Contents, State};
use stage2::phys::pageblock::MigrateType;
use stage2::phys::zone::Zone;
use stage2::range::FrameRange;

use super::prelude::*;
use crate::monitor::machine::{Reason, reason};

/// Pageblocks that are scanned before others may run.
pub(super) const SLICE: u64 = 16;
/// Cells in a row of the map.
const ROW: u64 = 64;
/// Most rows of a range's map. Larger ranges get larger cells.
const ROWS: u64 = 16;

/// Shows the amount of RAM and its use.
pub(super) fn mem(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let memory = session.memory()?;
    let [normal, movable] = Zone::ALL.map(|zone| memory.zone_totals(zone));
    let guests = (0..session.machine.guest_count() as u8).filter_map(GuestId::try_new);
    let (mut of_guests, mut of_tables) = (0, 0);
    for guest in guests {
        of_guests += memory.resident_everywhere(Owner::Guest(guest));
        of_tables += memory.resident_everywhere(Owner::Tables(guest));
    }
    let pools = session.machine.claiming().and_then(|claiming| claiming.claims().pools());
    let in_blocks = pools.into_iter().flat_map(|pools| pools.iter()).filter(|(_, pool)| pool.block.is_some());
    let in_blocks: u64 = in_blocks.map(|(_, pool)| pool.range.frames()).sum();
    session.report("mem", |report, machine| {
        report.fields(&[
            ("ram_bytes=RAM", Frames(normal.present + movable.present)),
            ("movable_only_bytes=MovableOnly", Frames(movable.present)),
            ("reserved_bytes=Reserved", Frames(normal.reserved() + movable.reserved())),
            ("pool_bytes=Pools", Frames(memory.pool_frames() + in_blocks)),
            ("pool_in_dmb_bytes=  in movable blocks", Frames(in_blocks)),
            ("retired_bytes=Retired", Frames(normal.retired + movable.retired)),
            ("guest_bytes=Guests", Frames(of_guests)),
            ("table_bytes=Stage 2 tables", Frames(of_tables)),
            ("own_bytes=Ballast", Frames(memory.resident_everywhere(Owner::Hypervisor))),
            ("smmu_bytes=  for SMMUs", Bytes(machine.smmus().map(|smmu| smmu.memory_bytes).sum())),
            ("free_bytes=Free", Frames(normal.free + movable.free)),
            ("free_movable_bytes=  in MOVABLE", Frames(movable.free)),
        ])
    })
}

/// The part of a zone behind one controller.
pub(super) struct Arena {
    pub(super) zone: Zone,
    pub(super) controller: ControllerId,
    pub(super) free: FreeBlocks,
}

/// Counts the free blocks of each zone behind each controller that has memory in the zone.
pub(super) fn arenas(session: &mut Session<'_>, memory: &Memory<'_>) -> Result<Vec<Arena>, Failure> {
    // Allocated first, because the heap may grow by frames that are counted.
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

/// Splits `range` into slices of a few pageblocks.
pub(super) fn slices(range: FrameRange) -> impl Iterator<Item = FrameRange> {
    let starts = (range.start()..range.end()).step_by((SLICE * PAGEBLOCK_FRAMES) as usize);
    starts.filter_map(move |start| {
        FrameRange::from_numbers(start, range.end().min(start + SLICE * PAGEBLOCK_FRAMES))
    })
}

/// Numbers of blocks by order, shown as `0:3 9:130`.
pub(super) struct ByOrder<'a>(pub(super) &'a [u64; ORDERS]);

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

/// Returns the numbers of free blocks by order, of one type or of all.
pub(super) fn by_order(free: &FreeBlocks, only: Option<MigrateType>) -> [u64; ORDERS] {
    core::array::from_fn(|order| match only {
        Some(migrate_type) => free.free[migrate_type as usize][order].into(),
        None => free.of_order(order as u8).into(),
    })
}

/// Lists the zones, in total and by controller.
pub(super) fn zones(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let memory = session.memory()?;
    let arenas = arenas(session, memory)?;
    let machine = session.machine;
    let rows = Zone::ALL.into_iter().flat_map(|zone| {
        let ids = machine.controllers().filter(|(id, _)| memory.controllers().contains(*id));
        core::iter::once((zone, None)).chain(ids.map(move |(id, _)| (zone, Some(id))))
    });
    session.list("zones", "zones", "There is no memory.", rows, |table, (zone, controller)| {
        let totals = controller
            .map_or_else(|| memory.zone_totals(zone), |controller| memory.arena_totals(zone, controller));
        let (mut pool_bytes, mut blocks) = (0, [0; ORDERS]);
        for arena in arenas.iter().filter(|arena| {
            arena.zone == zone && controller.is_none_or(|controller| controller == arena.controller)
        }) {
            pool_bytes += u64::from(arena.free.pool_pageblocks) * PAGEBLOCK_SIZE;
            for (sum, more) in blocks.iter_mut().zip(by_order(&arena.free, None)) {
                *sum += more;
            }
        }
        let start = Address(totals.span.start() * FRAME_SIZE);
        table.row(&[
            ("zone=ZONE", Show(&zone)),
            ("controller=CONTROLLER", controller.map_or(Nothing, |id| Text(machine.controller_name(id)))),
            ("start=START", if totals.present == 0 { Nothing } else { start }),
            ("spanned_bytes=SPANNED", Frames(totals.span.frames())),
            ("present_bytes=PRESENT", Frames(totals.present)),
            ("managed_bytes=MANAGED", Frames(totals.managed)),
            ("free_bytes=FREE", Frames(totals.free)),
            ("pool_bytes=POOLS", Bytes(pool_bytes)),
            ("isolated_bytes", Frames(totals.isolated)),
            ("retired_bytes", Frames(totals.retired)),
            ("free_blocks", Numbers(&blocks)),
        ])
    })
}

/// Shows everything known about one frame.
pub(super) fn frame(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let memory = session.memory()?;
    let address = arguments.number(0).unwrap_or(0);
    let Some(pa) = Pa::try_new(address) else {
        refuse!(session, "{address:#x} is not a physical address: more than 48 bits");
    };
    let Some(info) = memory.frame_info(Frame::containing(pa)) else {
        refuse!(session, "{address:#x} is not RAM");
    };
    session.report("frame", |report, machine| {
        let kind = from_fn(|f| {
            let note = if info.is_isolated { ", isolated" } else { "" };
            write!(f, "{}{note}", info.migrate_type)?;
            info.pool.map_or(Ok(()), |pool| write!(f, ", {pool}"))
        });
        let owner = owner_text(machine, info.owner);
        let mapping = info.mapping;
        report.fields(&[
            ("frame=Frame", Address(info.frame.pa().get())),
            ("controller=Controller", Text(machine.controller_name(info.controller))),
            ("zone=Zone", Show(&info.zone)),
            ("pageblock=Pageblock", Show(&kind)),
            ("is_isolated", Flag(info.is_isolated)),
            ("dmb=DMB", info.block.map_or(Nothing, |block| Count(block.into()))),
            ("state=State", Text(state_name(info.state))),
            ("owner=Owner", Text(&owner)),
            ("head=Block at", Address(info.head.pa().get())),
            ("order=  order", Count(info.order.into())),
            ("block_bytes=  size", Bytes(FRAME_SIZE << info.order)),
            ("guest=Guest", mapping.map_or(Nothing, |mapping| Text(machine.guest_name(mapping.guest)))),
            ("ipa=  at IPA", mapping.map_or(Nothing, |mapping| Address(mapping.ipa.get()))),
            ("is_known_zero=Known zero", Flag(info.contents == Contents::Zeroed)),
        ])
    })
}

fn owner_text(machine: &dyn Machine, owner: Option<Owner>) -> Reason {
    match owner {
        None => Reason::new(),
        Some(Owner::Guest(guest)) => reason(format_args!("{}", machine.guest_name(guest))),
        Some(Owner::Tables(guest)) => reason(format_args!("stage 2 tables of {}", machine.guest_name(guest))),
        Some(owner) => reason(format_args!("{owner}")),
    }
}

const fn state_name(state: State) -> &'static str {
    match state {
        State::Free => "free",
        State::Used => "used",
        State::Reserved => "reserved",
        State::Retired => "retired",
    }
}

/// Draws a map of the controllers' RAM.
pub(super) fn map(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let (memory, machine) = (session.memory()?, session.machine);
    let only = arguments.controller(0);
    let controllers = machine.controllers().filter(|(id, _)| only.is_none_or(|only| only == *id));
    let ranges = controllers.flat_map(|(id, controller)| {
        controller.ranges.into_iter().map(move |(base, size)| (machine.controller_name(id), base, size))
    });
    if session.style.is_json {
        return session.list("map", "ranges", "", ranges, |table, (name, base, size)| {
            let unit = unit_for(size);
            table.row(&[
                ("controller", Text(name)),
                ("base", Address(base)),
                ("unit_bytes", Bytes(unit)),
                ("cells", Show(&from_fn(|f| write_cells(f, memory, base, base + size, unit)))),
            ])
        });
    }
    for (name, base, size) in ranges {
        let unit = unit_for(size);
        writeln!(session, "{name}, {} a character:", Size(unit))?;
        for start in (base..base + size).step_by((unit * ROW) as usize) {
            write!(session, "{start:#14x} ")?;
            write_cells(session, memory, start, (base + size).min(start + unit * ROW), unit)?;
            session.write_str("\n")?;
            session.io().pause();
        }
    }
    session
        .write_str("1-8 guest  B Ballast  T tables  R reserved  C claimed  X retired\n: mixed  . free\n")?;
    Ok(())
}

/// Returns the bytes of a cell in the map of a range of `size` bytes.
fn unit_for(size: u64) -> u64 {
    let mut unit = PAGEBLOCK_SIZE;
    while size > unit * ROW * ROWS {
        unit *= 2;
    }
    unit
}

fn write_cells(out: &mut dyn Write, memory: &Memory<'_>, start: u64, end: u64, unit: u64) -> fmt::Result {
    let mut at = start;
    while at < end {
        out.write_char(cell(memory, at, end.min(at + unit)))?;
        at += unit;
    }
    Ok(())
}

/// Returns the character for the memory from `start` to `end`, of which four frames are looked at.
fn cell(memory: &Memory<'_>, start: u64, end: u64) -> char {
    let last = end.saturating_sub(FRAME_SIZE).max(start);
    let third = (last - start) / 3;
    let mut found = None;
    for address in [start, start + third, start + 2 * third, last] {
        let info = Pa::try_new(address).and_then(|pa| memory.frame_info(Frame::containing(pa)));
        let here = info.map_or(' ', |info| symbol(&info));
        if found.is_some_and(|found| found != here) {
            return ':';
        }
        found = Some(here);
        if info.is_some_and(|info| info.order >= PAGEBLOCK_ORDER && end - start <= PAGEBLOCK_SIZE) {
            return here;
        }
    }
    found.unwrap_or(' ')
}

fn symbol(info: &FrameInfo) -> char {
    match (info.state, info.owner) {
        (State::Free, _) => '.',
        (State::Reserved, _) => 'R',
        (State::Retired, _) => 'X',
        (State::Used, Some(Owner::Guest(guest))) => {
            char::from_digit(guest.index() as u32 + 1, 36).unwrap_or('?')
        }
        (State::Used, Some(Owner::Tables(_))) => 'T',
        (State::Used, Some(Owner::Pool(_))) => 'C',
        (State::Used, _) => 'B',
    }
}
