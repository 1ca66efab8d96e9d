//! RAM, and the controller of each range.
//!
//! The controller is determined by the first of these that is present:
//!
//! 1. `controllers=` on Ballast's command line: `size@base` for each controller, separated by commas. Several ranges of one
//!    controller are joined by `+`. Controllers are numbered in the given order.
//! 2. `numa-node-id` of the `memory` node: the number of the controller.
//! 3. Otherwise, each range of each `memory` node is a controller. They are numbered by address.

use guest_dts::argument;
use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Tree};
use heapless::Vec;
use stage2::addr::FRAME_SIZE;

use super::Warnings;

/// Maximum number of controllers.
pub const CONTROLLER_LIMIT: usize = stage2::controller::MAX_CONTROLLERS;
/// Maximum number of ranges of RAM.
pub const RAM_LIMIT: usize = 64;

/// The host's RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram {
    /// Ranges of whole frames, by rising address, without overlap.
    pub ranges: Vec<RamRange, RAM_LIMIT>,
    /// Controllers, by rising number.
    pub controllers: Vec<Controller, CONTROLLER_LIMIT>,
}

/// A range of RAM of one controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Addresses.
    pub range: PaRange,
    /// Index of the controller in [`Ram::controllers`].
    pub controller: u8,
}

/// A memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Number, as operators use it.
    pub id: u32,
}

/// One past the largest number of a controller.
const NUMBERS: usize = 256;

/// Names of controllers by number, with their lengths: `mc0` to `mc255`.
static NAMES: [([u8; 5], u8); NUMBERS] = {
    let mut names = [(*b"mc000", 3); NUMBERS];
    let mut number = 0;
    while number < NUMBERS {
        let digits = [number as u8 / 100, number as u8 / 10 % 10, number as u8 % 10];
        let length = if number >= 100 {
            3
        } else if number >= 10 {
            2
        } else {
            1
        };
        let mut at = 0;
        while at < length {
            names[number].0[2 + at] = b'0' + digits[3 - length + at];
            at += 1;
        }
        names[number].1 = 2 + length as u8;
        number += 1;
    }
    names
};

impl Controller {
    /// Returns the name that operators use: `mc` and the number.
    pub fn name(self) -> &'static str {
        let name = NAMES.get(self.id as usize).and_then(|(name, length)| name.get(..usize::from(*length)));
        name.and_then(|name| core::str::from_utf8(name).ok()).unwrap_or("mc?")
    }
}

impl Ram {
    /// Reads the `memory` nodes and, from `bootargs`, `controllers=`.
    #[inline(never)]
    pub(super) fn read<'t>(
        tree: &Tree<'t>,
        bootargs: &'t str,
        warnings: &mut Warnings<'t>,
    ) -> Result<Self, Finding<'t>> {
        let mut ram = from_nodes(tree, warnings)?;
        match argument::value(bootargs, "controllers") {
            None => {}
            Some(list) => ram.reassign(list)?,
        }
        ram.sort_controllers();
        Ok(ram)
    }

    /// Returns the total size in bytes.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(|ram| ram.range.size()).sum()
    }

    /// Returns the size in bytes of the controller at index `place` of [`Ram::controllers`].
    pub fn controller_size(&self, place: u8) -> u64 {
        self.ranges.iter().filter(|ram| ram.controller == place).map(|ram| ram.range.size()).sum()
    }

    /// Returns the index of the controller with number `id`.
    pub fn controller(&self, id: u32) -> Option<u8> {
        self.controllers.iter().position(|controller| controller.id == id).map(|place| place as u8)
    }

    /// Inserts `range` in the order of addresses.
    #[inline(never)]
    fn insert(&mut self, range: PaRange, controller: u8) -> Result<(), Insert> {
        let place = self.ranges.iter().position(|ram| ram.range.base() > range.base());
        if self.ranges.iter().any(|ram| ram.range.overlaps(&range)) {
            return Err(Insert::Overlap);
        }
        let ram = RamRange { range, controller };
        self.ranges.insert(place.unwrap_or(self.ranges.len()), ram).map_err(|_| Insert::Full)
    }

    /// Returns the index of the controller with number `id`, which it adds if necessary. `None` if there are too many.
    fn controller_or_new(&mut self, id: u32) -> Option<u8> {
        if let Some(place) = self.controller(id) {
            return Some(place);
        }
        self.controllers.push(Controller { id }).ok()?;
        Some((self.controllers.len() - 1) as u8)
    }

    /// Sorts the controllers by number.
    #[inline(never)]
    fn sort_controllers(&mut self) {
        // Numbers have 8 bits.
        let numbered = |id| self.controllers.iter().copied().find(|controller| controller.id == id);
        let order: Vec<Controller, CONTROLLER_LIMIT> = (0..=255).filter_map(numbered).collect();
        for ram in &mut self.ranges {
            let id = self.controllers.get(usize::from(ram.controller)).map(|controller| controller.id);
            let place = order.iter().position(|controller| Some(controller.id) == id);
            ram.controller = place.map_or(ram.controller, |place| place as u8);
        }
        self.controllers = order;
    }

    /// Assigns all RAM to the controllers of `list`.
    #[inline(never)]
    fn reassign<'t>(&mut self, list: &'t str) -> Result<(), Finding<'t>> {
        let finding = |value, rule| Finding::argument("controllers", value, rule);
        let mut new = Self { ranges: Vec::new(), controllers: Vec::new() };
        for (index, item) in list.split(',').enumerate() {
            let limit = Rule::TooMany { index, limit: CONTROLLER_LIMIT, what: "controllers" };
            let place = new.controller_or_new(index as u32);
            let place = place.ok_or_else(|| finding(Value::Text(item), limit))?;
            for part in item.split('+') {
                let (size, base) = argument::size_at_base(part).ok_or_else(|| {
                    finding(Value::Text(part), Rule::Must("be size@base, joined by `+` and separated by `,`"))
                })?;
                let range = PaRange::from_numbers(base, size)
                    .filter(|range| !range.is_empty() && range.is_aligned(FRAME_SIZE))
                    .ok_or_else(|| {
                        finding(Value::Text(part), Rule::Must("be whole frames of 4 KiB below 2^48"))
                    })?;
                if !self.is_ram(range) {
                    return Err(finding(
                        Value::Text(part),
                        Rule::Must("lie completely in RAM of the `memory` nodes"),
                    ));
                }
                new.insert(range, place).map_err(|error| match error {
                    Insert::Overlap => finding(Value::Text(part), Rule::OverlapsWith("another controller")),
                    Insert::Full => finding(
                        Value::Text(part),
                        Rule::TooMany { index: RAM_LIMIT, limit: RAM_LIMIT, what: "ranges of RAM" },
                    ),
                })?;
            }
        }
        for old in &self.ranges {
            if let Some(lost) = first_gap(old.range, &new.ranges) {
                let value = Value::Range { base: lost.base().get(), size: lost.size() };
                return Err(finding(value, Rule::Must("belong to a controller: it is RAM")));
            }
        }
        *self = new;
        Ok(())
    }

    /// Returns true if all of `range` is RAM, of one or several adjacent ranges.
    fn is_ram(&self, range: PaRange) -> bool {
        first_gap(range, &self.ranges).is_none()
    }
}

/// The reason why a range cannot be inserted.
enum Insert {
    Overlap,
    Full,
}

/// Returns the first part of `range` that `ranges`, sorted by address, do not cover.
fn first_gap(range: PaRange, ranges: &[RamRange]) -> Option<PaRange> {
    let mut at = range.base().get();
    for ram in ranges {
        if ram.range.base().get() > at {
            return PaRange::between(at, ram.range.base().get().min(range.end()))
                .filter(|gap| !gap.is_empty());
        }
        at = at.max(ram.range.end());
        if at >= range.end() {
            return None;
        }
    }
    PaRange::between(at, range.end()).filter(|gap| !gap.is_empty())
}

#[inline(never)]
fn from_nodes<'t>(tree: &Tree<'t>, warnings: &mut Warnings<'t>) -> Result<Ram, Finding<'t>> {
    let mut ram = Ram { ranges: Vec::new(), controllers: Vec::new() };
    let mut unnumbered: Vec<PaRange, RAM_LIMIT> = Vec::new();
    let cells = tree.root().child_cells()?;
    let is_memory =
        |node: &Node<'t>| node.property("device_type").and_then(|kind| kind.str()) == Some("memory");
    for node in tree.root().children().filter(|node| is_memory(node) && node.is_enabled()) {
        let id = match node.property("numa-node-id") {
            None => None,
            Some(property) => match property.u32() {
                Some(id @ 0..=255) => Some(id),
                _ => return Err(Finding::property(node, property, Rule::Must("be one cell of 0 to 255"))),
            },
        };
        for (index, reg) in node.pairs("reg", cells)?.enumerate() {
            // U-Boot fills unused banks with zeros.
            if reg.size == 0 {
                continue;
            }
            let value = Value::Range { base: reg.base, size: reg.size };
            let finding = |rule| Finding::new(node, Some("reg"), value, rule);
            let Some(whole) = whole_frames(reg.base, reg.size) else {
                return Err(finding(Rule::Must("hold at least a frame of 4 KiB, and end below 2^48")));
            };
            if whole.size() != reg.size {
                warnings.push(finding(Rule::Must("be whole frames of 4 KiB; the odd ends are left unused")));
            }
            let full = Rule::TooMany { index, limit: RAM_LIMIT, what: "ranges of RAM" };
            // Ranges without a number get their controllers at the end (`number_the_rest`).
            let place = match id {
                Some(id) => ram.controller_or_new(id).ok_or_else(|| {
                    finding(Rule::TooMany { index, limit: CONTROLLER_LIMIT, what: "controllers" })
                })?,
                None => {
                    unnumbered.push(whole).map_err(|_| finding(full))?;
                    u8::MAX
                }
            };
            ram.insert(whole, place).map_err(|error| match error {
                Insert::Overlap => finding(Rule::OverlapsWith("another range of RAM")),
                Insert::Full => finding(full),
            })?;
        }
    }
    if ram.ranges.is_empty() {
        let what = "node with device_type \"memory\"";
        return Err(Finding::no_node(what, Rule::Required("the host's RAM")));
    }
    number_the_rest(&mut ram)?;
    Ok(ram)
}

/// Adds a controller for each range that has none, by rising address.
#[inline(never)]
fn number_the_rest<'t>(ram: &mut Ram) -> Result<(), Finding<'t>> {
    for index in 0..ram.ranges.len() {
        if ram.ranges.get(index).is_none_or(|range| range.controller != u8::MAX) {
            continue;
        }
        let mut free = 0;
        while ram.controller(free).is_some() {
            free += 1;
        }
        let Some(place) = ram.controller_or_new(free) else {
            let rule =
                Rule::TooMany { index: CONTROLLER_LIMIT, limit: CONTROLLER_LIMIT, what: "controllers" };
            return Err(Finding::no_node("memory nodes", rule));
        };
        if let Some(range) = ram.ranges.get_mut(index) {
            range.controller = place;
        }
    }
    Ok(())
}

/// Returns the whole frames in a range, if any.
fn whole_frames(base: u64, size: u64) -> Option<PaRange> {
    let end = base.checked_add(size)? & !(FRAME_SIZE - 1);
    let start = base.checked_next_multiple_of(FRAME_SIZE)?;
    PaRange::between(start, end).filter(|range| !range.is_empty())
}
