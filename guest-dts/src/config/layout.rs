//! Where a guest's RAM lies in its own address space.
//!
//! Regions with an address of their own lie there. The others follow each other from 0x4000_0000 on, in the
//! order of the configuration, in the first gaps that they fit in. Designated movable blocks come last, above
//! all of it, so that the top of the guest's RAM is exactly those blocks: an unmodified Linux makes them
//! ZONE_MOVABLE by `movablecore=` (measured, Linux 6.1, 6.12 and 7.3).

use heapless::Vec;

use stage2::addr::PAGEBLOCK_SIZE;

use super::{DMB_LIMIT, Guest, REGION_LIMIT, Region, Unit};
use crate::finding::{Finding, Rule, Value};
use crate::guest_tree::platform;
use crate::range::IpaRange;

/// Where arm64 Linux's ZONE_DMA ends. Only its highest zone with RAM in it has a part that is ZONE_MOVABLE
/// (measured, Linux 6.1, 6.12 and 7.3).
const ZONE_BOUNDARY: u64 = 1 << 32;

/// How many banks a guest's RAM may have.
pub const BANK_LIMIT: usize = REGION_LIMIT + DMB_LIMIT;

/// A guest's RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// By rising address.
    pub banks: Vec<Bank, BANK_LIMIT>,
}

/// A range of a guest's RAM that stems from one region or block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// Where the guest sees it.
    pub range: IpaRange,
    /// What it stems from.
    pub kind: BankKind,
}

/// What a bank stems from: its place in the guest's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BankKind {
    /// `Guest::regions`.
    Region(u8),
    /// `Guest::dmbs`.
    Dmb(u8),
}

impl Layout {
    /// Lays out the RAM of `guest`.
    ///
    /// # Errors
    /// Where it does not fit under 2^40, or a block is misaligned for the guest's pages.
    pub fn of<'t>(guest: &Guest<'t>) -> Result<Self, Finding<'t>> {
        let mut layout = Self::default();
        let page = guest.page_size.bytes();
        if let Some(region) = guest.regions.iter().find(|region| !is_whole_pages(region, page)) {
            let rule = Rule::MultipleOfForPages { size: page, page };
            let (name, value) = match region.ipa {
                Some(ipa) => ("reg", Value::Range { base: ipa.base().get(), size: ipa.size() }),
                None => ("size", Value::Size(region.size)),
            };
            return Err(finding(guest, region, name, value, rule));
        }
        for (index, region) in guest.regions.iter().enumerate() {
            if let Some(range) = region.ipa {
                layout.insert(range, BankKind::Region(index as u8));
            }
        }
        for (index, region) in guest.regions.iter().enumerate().filter(|(_, region)| region.ipa.is_none()) {
            let base = layout.first_gap(region.size, alignment(region.unit));
            layout.place(guest, region, base, BankKind::Region(index as u8))?;
        }
        let block_alignment = guest.page_size.block_alignment();
        let alignment_of = |dmb: &Region<'t>| alignment(dmb.unit).max(block_alignment);
        // Blocks below the boundary with RAM above it would not be in ZONE_MOVABLE, and no CMA area crosses it.
        let top = guest.dmbs.iter().try_fold(layout.end(), |end, dmb| {
            end.checked_next_multiple_of(alignment_of(dmb))?.checked_add(dmb.size)
        });
        let is_crossing = layout.end() < ZONE_BOUNDARY && top.is_some_and(|top| top > ZONE_BOUNDARY);
        let lowest = if is_crossing { ZONE_BOUNDARY } else { 0 };
        for (index, dmb) in guest.dmbs.iter().enumerate() {
            if !dmb.size.is_multiple_of(block_alignment) {
                let rule = Rule::MultipleOfForPages { size: block_alignment, page: guest.page_size.bytes() };
                return Err(finding(guest, dmb, "size", Value::Size(dmb.size), rule));
            }
            let base = layout.end().max(lowest).checked_next_multiple_of(alignment_of(dmb));
            layout.place(guest, dmb, base, BankKind::Dmb(index as u8))?;
        }
        Ok(layout)
    }

    /// The first address after all RAM.
    pub fn end(&self) -> u64 {
        self.banks.last().map_or(platform::RAM_BASE, |bank| bank.range.end())
    }

    /// The bank that holds `address`.
    pub fn bank_at(&self, address: u64) -> Option<&Bank> {
        self.banks.iter().find(|bank| bank.range.base().get() <= address && address < bank.range.end())
    }

    /// The designated movable blocks, by rising address.
    pub fn dmbs(&self) -> impl Iterator<Item = &Bank> {
        self.banks.iter().filter(|bank| matches!(bank.kind, BankKind::Dmb(_)))
    }

    fn place<'t>(
        &mut self,
        guest: &Guest<'t>,
        region: &Region<'t>,
        base: Option<u64>,
        kind: BankKind,
    ) -> Result<(), Finding<'t>> {
        let range = base.and_then(|base| IpaRange::from_numbers(base, region.size));
        match range.filter(|range| range.end() <= platform::IPA_LIMIT) {
            Some(range) => {
                self.insert(range, kind);
                Ok(())
            }
            None => {
                let rule = Rule::Must("fit into the guest's address space, below 2^40");
                Err(finding(guest, region, "size", Value::Size(region.size), rule))
            }
        }
    }

    /// The lowest base at which `size` bytes are free.
    fn first_gap(&self, size: u64, alignment: u64) -> Option<u64> {
        let mut base = platform::RAM_BASE.checked_next_multiple_of(alignment)?;
        for bank in &self.banks {
            if base.checked_add(size)? <= bank.range.base().get() {
                break;
            }
            if bank.range.end() > base {
                base = bank.range.end().checked_next_multiple_of(alignment)?;
            }
        }
        Some(base)
    }

    fn insert(&mut self, range: IpaRange, kind: BankKind) {
        let place = self.banks.iter().position(|bank| bank.range.base() > range.base());
        // Room for every region and block that a guest can have.
        let _ = self.banks.insert(place.unwrap_or(self.banks.len()), Bank { range, kind });
    }
}

/// Whether size and address of `region` are multiples of `page`.
fn is_whole_pages(region: &Region<'_>, page: u64) -> bool {
    region.size.is_multiple_of(page) && region.ipa.is_none_or(|ipa| ipa.is_aligned(page))
}

/// RAM begins at whole pageblocks where nobody says otherwise, so that large units fit.
fn alignment(unit: Unit) -> u64 {
    unit.alignment().max(PAGEBLOCK_SIZE)
}

fn finding<'t>(
    guest: &Guest<'t>,
    region: &Region<'t>,
    name: &'static str,
    value: Value<'t>,
    rule: Rule,
) -> Finding<'t> {
    match region.node.or(guest.node) {
        Some(node) => Finding::new(node, Some(name), value, rule),
        None => Finding::argument("memory", value, rule),
    }
}
