//! Addresses of BARs: on the host's bus, around what firmware has set up for all functions, and in a guest's PCI memory.

use alloc::vec::Vec;
use core::ops::Range;

use stage2::addr::{FRAME_SIZE, Pa};

use super::bar::{self, BAR_LIMIT, Bar, at_rest};
use super::bridge::Bridge;
use super::config::{Bus, CLASS, HEADER_TYPE, ID, MULTI_FUNCTION, RegisterSpace, Rid, command, set_command};
use super::error::{Error, Fault};
use super::probe::{Function, NO_VENDOR};

/// Base class and sub-class of a host bridge. Its BARs may be the way to RAM and are never touched.
const HOST_BRIDGE: u32 = 0x0600;
/// BARs of a PCI-to-PCI bridge.
const BRIDGE_BARS: u8 = 2;

/// A memory window of a host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The first address on the bus.
    pub(crate) bus: u64,
    /// The CPU's address for it.
    pub(crate) cpu: u64,
    /// The size in bytes.
    pub(crate) size: u64,
    /// The word of the tree that allows prefetching: only prefetchable BARs go here.
    pub(crate) is_prefetchable: bool,
}

/// Addresses on the bus that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    rid: Rid,
    start: u64,
    end: u64,
    /// A bridge's window, in which the BARs of the functions behind it lie.
    is_window: bool,
}

/// Addresses that a BAR may have, and what the CPU's addresses are more.
struct Room {
    addresses: Range<u64>,
    offset: u64,
}

/// Buses below one host bridge: their bridges, and the addresses that functions hold there.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    bridges: Vec<Bridge>,
    taken: Vec<Taken>,
    first_bus: u8,
}

impl Survey {
    /// Scans `first_bus` and all buses up to `last_bus` that bridges lead to. BARs are sized with decoding off, so nothing may
    /// use a function of these buses meanwhile. Functions that break the rules are passed over, with a call of `tell`.
    pub(crate) fn scan(bus: &impl Bus, first_bus: u8, last_bus: u8, tell: &mut dyn FnMut(Error)) -> Self {
        let mut survey = Self { first_bus, ..Self::default() };
        survey.scan_bus(bus, first_bus, false, tell);
        let mut next = 0;
        // Each bus once: a bridge leads down, to a bus above all that were scanned on the way to it.
        while let Some(bridge) = survey.bridges.get(next).cloned() {
            let number = bridge.secondary;
            let is_second = survey.bridges[..next].iter().any(|other| other.secondary == number);
            if number > bridge.rid.bus() && number <= last_bus && !is_second {
                survey.scan_bus(bus, number, bridge.has_link(), tell);
            }
            next += 1;
        }
        survey
    }

    fn scan_bus(&mut self, bus: &impl Bus, number: u8, is_link: bool, tell: &mut dyn FnMut(Error)) {
        for device in 0..if is_link { 1 } else { 32 } {
            for function in 0..8 {
                let rid = Rid::from_parts(number, device, function);
                let Some(space) = bus.function(rid).filter(|space| space.read16(ID) != NO_VENDOR) else {
                    if function == 0 {
                        break;
                    }
                    continue;
                };
                if let Err(error) = self.scan_function(rid, &space) {
                    // Its addresses are not known, so it must not have any.
                    set_command(&space, command(&space).with_memory(false).with_io(false));
                    tell(error);
                }
                if function == 0 && space.read8(HEADER_TYPE) & MULTI_FUNCTION == 0 {
                    break;
                }
            }
        }
    }

    fn scan_function(&mut self, rid: Rid, space: &impl RegisterSpace) -> Result<(), Error> {
        let count = match space.read8(HEADER_TYPE) & !MULTI_FUNCTION {
            0 if space.read32(CLASS) >> 16 == HOST_BRIDGE => return Ok(()),
            0 => BAR_LIMIT,
            1 => {
                let bridge = Bridge::read(rid, space);
                for window in [&bridge.memory, &bridge.prefetchable] {
                    self.take(rid, window.start, window.end, true);
                }
                self.bridges.push(bridge);
                BRIDGE_BARS
            }
            _ => return Ok(()),
        };
        for bar in bar::read(rid, space, count)?.iter().filter(|bar| bar.address != 0) {
            self.take(rid, bar.address, bar.address.saturating_add(bar.size), false);
        }
        Ok(())
    }

    fn take(&mut self, rid: Rid, start: u64, end: u64, is_window: bool) {
        if start < end {
            self.taken.push(Taken { rid, start, end, is_window });
        }
    }

    /// Returns the bridge to the bus of `rid`, or `None` on the first bus.
    ///
    /// # Errors
    ///
    /// No bridge leads there, or one does that is not a root port.
    fn bridge_to(&self, rid: Rid) -> Result<Option<&Bridge>, Error> {
        let number = rid.bus();
        if number == self.first_bus {
            return Ok(None);
        }
        let bridge = self.bridges.iter().find(|bridge| bridge.secondary == number);
        let bridge = bridge.ok_or(Fault::Unreachable(number).of(rid))?;
        if !bridge.is_root_port() || bridge.rid.bus() != self.first_bus {
            return Err(Fault::NotBehindRootPort { bridge: bridge.rid, kind: bridge.kind }.of(rid));
        }
        Ok(Some(bridge))
    }

    /// Gives each BAR of `function` an address in `windows`, with frames that no other BAR uses, and writes the BARs. An address
    /// that firmware chose is kept if it meets that. The function is left at rest, and a root port above it open.
    ///
    /// # Errors
    ///
    /// No space, a BAR that does not keep its address, or a bus that Ballast does not support. The function then decodes
    /// nothing, except on such a bus, where it stays as it was.
    pub(crate) fn place(
        &mut self,
        bus: &impl Bus,
        function: &mut Function,
        windows: &[Window],
    ) -> Result<(), Error> {
        let rid = function.rid;
        let bridge = self.bridge_to(rid)?.cloned();
        let above = bridge.as_ref().map(|bridge| bridge.rid);
        let space = bus.function(rid).ok_or(Fault::Absent.of(rid))?;
        // Its own entries go first: those of BARs that move, and of those that stay, which come again.
        self.taken.retain(|taken| taken.rid != rid);
        // What ends in an error holds no addresses.
        set_command(&space, at_rest(command(&space)).with_memory(false));
        let mut to_move: Vec<usize> = Vec::new();
        for (index, bar) in function.bars.iter_mut().enumerate() {
            let range = bar.address..bar.address.saturating_add(bar.mapped_size());
            let cpu = rooms(windows, bar, bridge.as_ref())
                .iter()
                .find(|room| room.addresses.start <= range.start && range.end <= room.addresses.end)
                .and_then(|room| Pa::try_new(range.start.wrapping_add(room.offset)))
                .filter(|cpu| cpu.is_aligned(FRAME_SIZE) && range.start.is_multiple_of(FRAME_SIZE));
            match cpu.filter(|_| bar.address != 0 && self.conflict(&range, above).is_none()) {
                Some(cpu) => {
                    bar.cpu = cpu;
                    self.take(rid, range.start, range.end, false);
                }
                None => to_move.push(index),
            }
        }
        largest_first(&mut to_move, |&index| function.bars[index].size);
        for index in to_move {
            let bar = &mut function.bars[index];
            let rooms = rooms(windows, bar, bridge.as_ref());
            let found = rooms.iter().find_map(|room| self.free(room, bar, above));
            let (start, cpu) =
                found.ok_or(Fault::BarSpace { register: bar.register(), size: bar.size }.of(rid))?;
            (bar.address, bar.cpu) = (start, cpu);
            self.take(rid, start, start + bar.mapped_size(), false);
        }
        bar::write(rid, &space, &function.bars)?;
        set_command(&space, at_rest(command(&space)));
        if let Some(rid) = above {
            let space = bus.function(rid).ok_or(Fault::Absent.of(rid))?;
            set_command(&space, command(&space).with_memory(true).with_bus_master(true));
        }
        Ok(())
    }

    /// Returns the end of an entry that shares a frame with `range`. The windows of the bridge `above` do not count.
    fn conflict(&self, range: &Range<u64>, above: Option<Rid>) -> Option<u64> {
        let shares_frame = |taken: &&Taken| {
            let start = taken.start / FRAME_SIZE * FRAME_SIZE;
            start < range.end && range.start < round_up(taken.end, FRAME_SIZE)
        };
        let is_above = |taken: &Taken| taken.is_window && Some(taken.rid) == above;
        self.taken.iter().filter(|taken| !is_above(taken)).find(shares_frame).map(|taken| taken.end)
    }

    /// Finds a place for `bar` in `room`.
    fn free(&self, room: &Room, bar: &Bar, above: Option<Rid>) -> Option<(u64, Pa)> {
        let align = bar.size.max(FRAME_SIZE);
        // 0 stands for a BAR without an address.
        let mut start = round_up(room.addresses.start.max(FRAME_SIZE), align);
        // Each step passes one entry at least.
        for _ in 0..=self.taken.len() {
            let end = start.checked_add(bar.mapped_size()).filter(|&end| end <= room.addresses.end)?;
            match self.conflict(&(start..end), above) {
                Some(end) => start = round_up(end, align),
                None => {
                    let cpu = Pa::try_new(start.wrapping_add(room.offset))?;
                    return cpu.is_aligned(FRAME_SIZE).then_some((start, cpu));
                }
            }
        }
        None
    }
}

/// Sorts a few BARs by size, the largest first; those of one size keep their order. By insertion: the library's sort is far
/// larger than all else here.
fn largest_first<T>(bars: &mut [T], size: impl Fn(&T) -> u64) {
    for end in 1..bars.len() {
        let mut at = end;
        while at > 0 && size(&bars[at - 1]) < size(&bars[at]) {
            bars.swap(at - 1, at);
            at -= 1;
        }
    }
}

/// Rounds `value` up to a multiple of `align`, a power of two; at the top of the address space, up to the last one.
fn round_up(value: u64, align: u64) -> u64 {
    value.checked_next_multiple_of(align).unwrap_or(u64::MAX / align * align)
}

/// Returns the addresses in `windows` that `bar` may have behind `bridge`.
fn rooms(windows: &[Window], bar: &Bar, bridge: Option<&Bridge>) -> Vec<Room> {
    let is_prefetchable = bar.is_prefetchable();
    let limit = if bar.is_64() { u64::MAX } else { 1 << 32 };
    // What passes the bridge; a prefetchable BAR may also lie in the other window.
    let passed = match bridge {
        None => [0..u64::MAX, 0..0],
        Some(bridge) if is_prefetchable => [bridge.prefetchable.clone(), bridge.memory.clone()],
        Some(bridge) => [bridge.memory.clone(), 0..0],
    };
    let mut rooms = Vec::new();
    for window in windows.iter().filter(|window| is_prefetchable || !window.is_prefetchable) {
        let end = window.bus.saturating_add(window.size).min(limit);
        for passed in &passed {
            let addresses = window.bus.max(passed.start)..end.min(passed.end);
            rooms.push(Room { addresses, offset: window.cpu.wrapping_sub(window.bus) });
        }
    }
    rooms
}

/// Gives the BARs of all `functions` of a guest addresses in its PCI memory, `size` bytes at `base`: the largest first, each
/// aligned to its size and in frames of its own.
///
/// # Errors
///
/// The memory is too small.
pub(crate) fn give_guest_addresses(functions: &mut [Function], base: u64, size: u64) -> Result<(), Error> {
    let mut order: Vec<(Rid, &mut Bar)> = Vec::new();
    for function in functions {
        let rid = function.rid;
        order.extend(function.bars.iter_mut().map(|bar| (rid, bar)));
    }
    largest_first(&mut order, |(_, bar)| bar.size);
    let (mut next, end) = (base, base.saturating_add(size));
    for (rid, bar) in order {
        let start = round_up(next, bar.size.max(FRAME_SIZE));
        let stop = start.checked_add(bar.mapped_size()).filter(|&stop| stop <= end);
        let fault = Fault::GuestSpace { register: bar.register(), size: bar.size, window: size };
        next = stop.ok_or(fault.of(rid))?;
        bar.guest = start;
    }
    Ok(())
}
