//! `mem`, `zones`, `map`, `frame`: what the physical memory is used for.

use core::fmt::{self, Write};

use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE, Pa};
use stage2::controller::ControllerId;
use stage2::owner::Owner;
use stage2::phys::alloc::{FrameInfo, Memory, ORDERS, ZoneTotals};
use stage2::phys::frame::{Contents, State};
use stage2::phys::zone::Zone;

use super::super::grammar::{Arguments, Failure};
use super::super::machine::{Machine, Reason, reason};
use super::super::report::Value;
use super::super::session::Session;
use super::physical::{arenas, by_order};

/// Cells in a row of the map.
const ROW: u64 = 64;
/// Most rows of a range's map: larger ranges get larger cells.
const ROWS: u64 = 16;

/// The machine's memory, or the refusal to say anything about it.
pub(super) fn memory<'a>(session: &mut Session<'a>) -> Result<&'a Memory<'static>, Failure> {
    session.machine.memory().ok_or_else(|| session.refuse(format_args!("memory is not set up yet")))
}

pub(super) fn bytes(frames: u64) -> Value<'static> {
    Value::Bytes(frames * FRAME_SIZE)
}

/// The guest with this number in the allocator's books.
fn guest_name(machine: &dyn Machine, index: usize) -> Reason {
    match machine.guest(index) {
        Some(guest) => reason(format_args!("{}", guest.name)),
        None => reason(format_args!("guest {index}")),
    }
}

pub(super) fn controller_name(machine: &dyn Machine, index: usize) -> Reason {
    match machine.controller(index) {
        Some(controller) => reason(format_args!("{}", controller.name)),
        None => reason(format_args!("controller {index}")),
    }
}

/// Shows what RAM there is and what it is used for.
pub(super) fn mem(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
    let [normal, movable] = Zone::ALL.map(|zone| memory.zone_totals(zone));
    let guests = (0..session.machine.guest_count() as u8).filter_map(stage2::owner::GuestId::try_new);
    let (mut of_guests, mut of_tables) = (0, 0);
    for guest in guests {
        of_guests += memory.resident_everywhere(Owner::Guest(guest));
        of_tables += memory.resident_everywhere(Owner::Tables(guest));
    }
    let pools = session.machine.claiming().and_then(|claiming| claiming.claims().pools());
    let in_blocks = pools.into_iter().flat_map(|pools| pools.iter()).filter(|(_, pool)| pool.block.is_some());
    let in_blocks: u64 = in_blocks.map(|(_, pool)| pool.range.frames()).sum();
    session.report("mem", |report, _| {
        report.fields("ram_bytes=RAM|movable_only_bytes=MovableOnly|reserved_bytes=Reserved|pool_bytes=Pools|pool_in_dmb_bytes=  in movable blocks|retired_bytes=Retired|guest_bytes=Guests|table_bytes=Guests' tables|own_bytes=Ballast|free_bytes=Free|free_movable_bytes=  in MOVABLE", &[bytes(normal.present + movable.present), bytes(movable.present), bytes(normal.reserved() + movable.reserved()), bytes(memory.pool_frames() + in_blocks), bytes(in_blocks), bytes(normal.retired + movable.retired), bytes(of_guests), bytes(of_tables), bytes(memory.resident_everywhere(Owner::Hypervisor)), bytes(normal.free + movable.free), bytes(movable.free)])
    })?;
    Ok(())
}

/// Lists the zones, as a whole and behind each controller.
pub(super) fn zones(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
    let arenas = arenas(session, memory)?;
    let columns = "zone=ZONE|controller=CONTROLLER|start=START|spanned_bytes=SPANNED|present_bytes=PRESENT|managed_bytes=MANAGED|free_bytes=FREE|pool_bytes=POOLS|isolated_bytes=|retired_bytes=|free_blocks=";
    session.report("zones", |report, machine| {
        report.table("zones", columns, "There is no memory.", &mut |table| {
            for zone in Zone::ALL {
                let of_zone = || arenas.iter().filter(|arena| arena.zone == zone);
                let mut put = |controller: Option<ControllerId>, name: Value<'_>, totals: ZoneTotals| {
                    let mut pool_bytes = 0;
                    let mut blocks = [0; ORDERS];
                    let wanted =
                        of_zone().filter(|arena| controller.is_none_or(|only| only == arena.controller));
                    for arena in wanted {
                        pool_bytes += u64::from(arena.free.pool_pageblocks) * PAGEBLOCK_SIZE;
                        for (sum, more) in blocks.iter_mut().zip(by_order(&arena.free, None)) {
                            *sum += more;
                        }
                    }
                    let is_empty = totals.present == 0;
                    let start = Value::Address(totals.span.start() * FRAME_SIZE);
                    table.row(&[
                        Value::Show(&zone),
                        name,
                        if is_empty { Value::None } else { start },
                        bytes(totals.span.frames()),
                        bytes(totals.present),
                        bytes(totals.managed),
                        bytes(totals.free),
                        Value::Bytes(pool_bytes),
                        bytes(totals.isolated),
                        bytes(totals.retired),
                        Value::Numbers(&blocks),
                    ])
                };
                put(None, Value::None, memory.zone_totals(zone))?;
                for controller in memory.controllers().iter() {
                    let name = controller_name(machine, controller.index());
                    put(Some(controller), Value::Text(&name), memory.arena_totals(zone, controller))?;
                }
            }
            Ok(())
        })
    })?;
    Ok(())
}

/// Shows everything known of one frame.
pub(super) fn frame(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
    let address = arguments.number(0).unwrap_or(0);
    let Some(pa) = Pa::try_new(address) else {
        return Err(session.refuse(format_args!("{address:#x} is no physical address: they have 48 bits")));
    };
    let Some(info) = memory.frame_info(Frame::containing(pa)) else {
        return Err(session.refuse(format_args!("{address:#x} is no RAM")));
    };
    session.report("frame", |report, machine| {
        let controller = controller_name(machine, info.controller.index());
        let kind = fmt::from_fn(|f| {
            let note = if info.is_isolated { ", isolated" } else { "" };
            write!(f, "{}{note}", info.migrate_type)?;
            info.pool.map_or(Ok(()), |pool| write!(f, ", {pool}"))
        });
        let owner = owner_text(machine, info.owner);
        let mapping =
            info.mapping.map(|mapping| (guest_name(machine, mapping.guest.index()), mapping.ipa.get()));
        let mapping_guest = mapping.as_ref().map_or(Value::None, |(name, _)| Value::Text(name));
        report.fields("frame=Frame|controller=Controller|zone=Zone|pageblock=Pageblock|is_isolated=|dmb=DMB|state=State|owner=Owner|head=Its block at|order=  of order|block_bytes=  that is|guest=Guest|ipa=  at IPA|is_known_zero=Known to be zero", &[Value::Address(info.frame.pa().get()), Value::Text(&controller), Value::Show(&info.zone), Value::Show(&kind), Value::Flag(info.is_isolated), info.block.map_or(Value::None, |block| Value::Count(block.into())), Value::Text(state_name(info.state)), Value::Text(&owner), Value::Address(info.head.pa().get()), Value::Count(info.order.into()), Value::Bytes(FRAME_SIZE << info.order), mapping_guest, mapping.as_ref().map_or(Value::None, |(_, ipa)| Value::Address(*ipa)), Value::Flag(info.contents == Contents::Zeroed)])
    })?;
    Ok(())
}

fn owner_text(machine: &dyn Machine, owner: Option<Owner>) -> Reason {
    match owner {
        None => Reason::new(),
        Some(Owner::Guest(guest)) => guest_name(machine, guest.index()),
        Some(Owner::Tables(guest)) => {
            reason(format_args!("stage-2 tables of {}", guest_name(machine, guest.index())))
        }
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

/// Draws what lies where behind the controllers.
pub(super) fn map(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let memory = memory(session)?;
    let only = match arguments.get(0) {
        Some(super::super::grammar::Argument::Controller(controller)) => Some(controller),
        _ => None,
    };
    if session.style.is_json {
        return map_json(session, memory, only);
    }
    let machine = session.machine;
    for controller in (0..machine.controller_count()).filter(|&at| only.is_none_or(|only| only == at)) {
        let Some(described) = machine.controller(controller) else { continue };
        for &(base, size) in &described.ranges {
            let unit = unit_for(size);
            writeln!(session, "{}, {} a character:", described.name, super::super::units::Size(unit))?;
            for row in 0..size.div_ceil(unit * ROW) {
                let start = base + row * unit * ROW;
                write!(session, "{start:#14x} ")?;
                write_cells(session, memory, start, (base + size).min(start + unit * ROW), unit)?;
                session.write_str("\n")?;
                session.io().pause();
            }
        }
    }
    session.write_str(
        "1-8 guest  B Ballast  T tables  R reserved  C claimed  H huge  X retired\n: mixed  . free\n",
    )?;
    Ok(())
}

fn map_json(session: &mut Session<'_>, memory: &Memory<'_>, only: Option<usize>) -> Result<(), Failure> {
    let columns = "controller=|base=|unit_bytes=|cells=";
    session.report("map", |report, machine| {
        report.table("ranges", columns, "", &mut |table| {
            for controller in (0..machine.controller_count()).filter(|&at| only.is_none_or(|only| only == at))
            {
                let Some(described) = machine.controller(controller) else { continue };
                for &(base, size) in &described.ranges {
                    let unit = unit_for(size);
                    let cells = fmt::from_fn(|f| write_cells(f, memory, base, base + size, unit));
                    table.row(&[
                        Value::Text(described.name),
                        Value::Address(base),
                        Value::Bytes(unit),
                        Value::Show(&cells),
                    ])?;
                }
            }
            Ok(())
        })
    })?;
    Ok(())
}

/// The bytes of a cell in the map of a range of `size` bytes.
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

/// What lies from `start` to `end`, judged by four places: one character.
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
