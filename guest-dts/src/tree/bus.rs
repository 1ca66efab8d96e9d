//! Addresses: their numbers of cells, `reg`, and translation through `ranges`.

use super::DEPTH_LIMIT;
use super::node::Node;
use super::property::Property;
use crate::finding::{Finding, Rule, Value};

/// Numbers of cells in addresses and sizes of a node's children: 0, 1 or 2 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// `#address-cells`.
    pub address: u32,
    /// `#size-cells`.
    pub size: u32,
}

impl Cells {
    /// Defaults for a node without these properties (specification, 2.3.5).
    pub(crate) const DEFAULT: Self = Self { address: 2, size: 1 };

    /// Returns the bytes of an address and a size together.
    fn stride(self) -> usize {
        (self.address + self.size) as usize * 4
    }
}

/// An entry of `reg`, in the address space of the node's parent. Its end may overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// First address.
    pub base: u64,
    /// Size in bytes; 0 if the parent's `#size-cells` is 0.
    pub size: u64,
}

impl Reg {
    /// Returns the first address after the entry, or `None` if that overflows.
    pub fn end(&self) -> Option<u64> {
        self.base.checked_add(self.size)
    }
}

/// Iterates over address and size pairs.
#[derive(Clone, Debug)]
pub struct RegIter<'t> {
    bytes: &'t [u8],
    cells: Cells,
}

impl Iterator for RegIter<'_> {
    type Item = Reg;

    fn next(&mut self) -> Option<Reg> {
        if self.bytes.is_empty() {
            return None;
        }
        let base = take_number(&mut self.bytes, self.cells.address)?;
        let size = take_number(&mut self.bytes, self.cells.size)?;
        Some(Reg { base, size })
    }
}

/// Removes a number of `cells` cells from the front of `bytes` and returns it.
fn take_number(bytes: &mut &[u8], cells: u32) -> Option<u64> {
    let (number, rest) = bytes.split_at_checked(cells as usize * 4)?;
    *bytes = rest;
    Some(number.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// The result of translating an address to the address space of the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// The address as CPUs see it.
    Address(u64),
    /// The CPUs cannot reach the address: a bus on the path has no `ranges`, or no range that contains it.
    Unreachable,
}

impl<'t> Node<'t> {
    /// Returns the numbers of cells for the node's children.
    ///
    /// # Errors
    /// A property is not one cell of 0, 1 or 2.
    #[inline(never)]
    pub fn child_cells(self) -> Result<Cells, Finding<'t>> {
        let cells = |name: &'static str, default| match self.property(name) {
            None => Ok(default),
            Some(property) => match property.u32() {
                Some(cells @ 0..=2) => Ok(cells),
                _ => Err(Finding::property(self, property, Rule::Must("be one cell of 0, 1 or 2"))),
            },
        };
        Ok(Cells {
            address: cells("#address-cells", Cells::DEFAULT.address)?,
            size: cells("#size-cells", Cells::DEFAULT.size)?,
        })
    }

    /// Returns the numbers of cells for the node's own `reg`, which its parent states.
    ///
    /// # Errors
    /// See [`Node::child_cells`].
    #[inline(never)]
    pub(crate) fn own_cells(self) -> Result<Cells, Finding<'t>> {
        match self.parent() {
            Some(parent) => parent.child_cells(),
            None => Ok(Cells::DEFAULT),
        }
    }

    /// Returns the entries of `reg`, in the address space of the parent.
    ///
    /// # Errors
    /// `reg` is missing, or its length does not match the parent's cells.
    pub fn reg(self) -> Result<RegIter<'t>, Finding<'t>> {
        self.pairs("reg", self.own_cells()?)
    }

    /// Returns the entries of property `name`, read as addresses and sizes of `cells`.
    ///
    /// # Errors
    /// The property is missing or empty, or its length does not match the cells.
    #[inline(never)]
    pub fn pairs(self, name: &'static str, cells: Cells) -> Result<RegIter<'t>, Finding<'t>> {
        let Some(property) = self.property(name) else {
            return Err(Finding::missing(self, name, Rule::Required("addresses")));
        };
        let bytes = property.bytes();
        let stride = cells.stride();
        if cells.address == 0 || bytes.is_empty() || !bytes.len().is_multiple_of(stride) {
            return Err(Finding::property(
                self,
                property,
                Rule::Cells { address: cells.address, size: cells.size },
            ));
        }
        Ok(RegIter { bytes, cells })
    }

    /// Returns the entries of `reg` in the address space of the CPUs, translated through the `ranges` of every bus
    /// above.
    ///
    /// # Errors
    /// `reg` or a `ranges` on the path is malformed, the CPUs cannot reach an entry, or an entry is empty or extends
    /// past the end of the address space.
    pub fn cpu_reg<const N: usize>(self) -> Result<heapless::Vec<Reg, N>, Finding<'t>> {
        let mut found = heapless::Vec::new();
        for (index, reg) in self.reg()?.enumerate() {
            let finding =
                |rule| Finding::new(self, Some("reg"), Value::Range { base: reg.base, size: reg.size }, rule);
            if reg.size == 0 || reg.end().is_none() {
                return Err(finding(Rule::Must("not be empty or extend past the end of the address space")));
            }
            let base = match self.translate(reg)? {
                Translation::Address(base) if base.checked_add(reg.size).is_some() => base,
                _ => return Err(finding(Rule::Must("lie within the `ranges` of every bus above"))),
            };
            if found.push(Reg { base, size: reg.size }).is_err() {
                return Err(finding(Rule::TooMany { index, limit: N, what: "entries of reg" }));
            }
        }
        Ok(found)
    }

    /// Translates `reg` from the parent's address space to the one of the CPUs. It must lie in a single entry of each
    /// `ranges`.
    ///
    /// # Errors
    /// A `ranges` is malformed.
    #[inline(never)]
    pub fn translate(self, reg: Reg) -> Result<Translation, Finding<'t>> {
        let mut path: heapless::Vec<Self, DEPTH_LIMIT> = self.ancestors().collect();
        path.reverse();
        Self::translate_below(&path, reg)
    }

    /// Translates `reg` like [`Node::translate`] for a node with the ancestors `path`, the root first. A caller that walks
    /// the tree knows them; a node has to search for each.
    ///
    /// # Errors
    /// A `ranges` is malformed.
    #[inline(never)]
    pub fn translate_below(path: &[Self], reg: Reg) -> Result<Translation, Finding<'t>> {
        let mut base = reg.base;
        for pair in path.windows(2).rev() {
            let &[parent, bus] = pair else { break };
            let Some(ranges) = bus.property("ranges") else { return Ok(Translation::Unreachable) };
            // An empty `ranges` maps addresses to the same addresses (specification, 2.3.8).
            if ranges.bytes().is_empty() {
                continue;
            }
            match translate_once(parent, bus, ranges, Reg { base, size: reg.size })? {
                Some(address) => base = address,
                None => return Ok(Translation::Unreachable),
            }
        }
        Ok(Translation::Address(base))
    }
}

/// Translates `reg` to the address space of `parent`, the parent of `bus`.
fn translate_once<'t>(
    parent: Node<'t>,
    bus: Node<'t>,
    ranges: Property<'t>,
    reg: Reg,
) -> Result<Option<u64>, Finding<'t>> {
    let child = bus.child_cells()?;
    let parent = parent.child_cells()?;
    let mut bytes = ranges.bytes();
    let stride = (child.address + parent.address + child.size) as usize * 4;
    if child.address == 0 || parent.address == 0 || child.size == 0 || !bytes.len().is_multiple_of(stride) {
        let rule = Rule::Must("have entries of three parts: child address, parent address, size");
        return Err(Finding::property(bus, ranges, rule));
    }
    while !bytes.is_empty() {
        let entry = (|| {
            let from = take_number(&mut bytes, child.address)?;
            let to = take_number(&mut bytes, parent.address)?;
            Some((from, to, take_number(&mut bytes, child.size)?))
        })();
        let Some((from, to, size)) = entry else { return Ok(None) };
        let offset = reg.base.wrapping_sub(from);
        if reg.base >= from && size >= reg.size && offset <= size - reg.size {
            return Ok(to.checked_add(offset));
        }
    }
    Ok(None)
}
