//! The layout of a guest's RAM in its address space.
//!
//! Regions with `reg` lie at that address. The others are placed in the order of the configuration, each in the first
//! gap at or above 0x4000_0000 that it fits into. A DMA window comes first; the others then lie above the RAM that Linux
//! takes for DMA. Designated movable blocks follow above all regions, so that the top
//! of the guest's RAM is exactly those blocks: `movablecore=` makes an unmodified Linux use them as ZONE_MOVABLE
//! (measured with Linux 6.1, 6.12 and 7.3).

use heapless::Vec;

use stage2::addr::PAGEBLOCK_SIZE;

use super::devices::zone_end;
use super::{DMB_LIMIT, Guest, REGION_LIMIT, RamRegion, Unit};
use crate::finding::{Finding, Rule, Value};
use crate::guest_tree::platform;
use crate::range::IpaRange;

/// End of ZONE_DMA in arm64 Linux. Linux takes ZONE_MOVABLE only from the highest zone that has RAM (measured with
/// Linux 6.1, 6.12 and 7.3).
const ZONE_BOUNDARY: u64 = 1 << 32;

/// Most regions and blocks of a guest's RAM.
pub(crate) const RANGE_LIMIT: usize = REGION_LIMIT + DMB_LIMIT;

/// A guest's RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The placed regions and blocks, by ascending address.
    pub ranges: Vec<RamRange, RANGE_LIMIT>,
    /// Index of the DMA window in [`Guest::regions`].
    window: Option<u8>,
}

/// A placed region or block of a guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// The guest addresses.
    pub range: IpaRange,
    /// The region or block.
    pub source: RamSource,
}

/// The position of a region or block in the guest's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamSource {
    /// Index in `Guest::regions`.
    Region(u8),
    /// Index in `Guest::dmbs`.
    Dmb(u8),
}

impl Layout {
    /// Lays out the RAM of `guest`.
    ///
    /// # Errors
    /// The RAM does not fit below 2^40, or a region or block is misaligned for the guest's pages.
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
                layout.insert(range, RamSource::Region(index as u8));
            }
        }
        layout.window = guest.dma_window().map(|(index, _)| index as u8);
        let unplaced = || guest.regions.iter().enumerate().filter(|(_, region)| region.ipa.is_none());
        let (windows, others) = (
            unplaced().filter(|(_, region)| region.is_dma_window),
            unplaced().filter(|(_, region)| !region.is_dma_window),
        );
        for (index, region) in windows.chain(others) {
            let lowest = layout.lowest(region);
            let base = layout.first_gap(lowest, region.size, alignment(region.unit));
            layout.place(guest, region, base, RamSource::Region(index as u8))?;
        }
        let block_alignment = guest.page_size.block_alignment();
        let alignment_of = |dmb: &RamRegion<'t>| alignment(dmb.unit).max(block_alignment);
        let floor = layout.window().map_or(0, zone_end);
        // Blocks below the boundary are not in ZONE_MOVABLE if there is RAM above it, and no CMA area may cross it.
        let top = guest.dmbs.iter().try_fold(layout.end().max(floor), |end, dmb| {
            end.checked_next_multiple_of(alignment_of(dmb))?.checked_add(dmb.size)
        });
        let is_crossing =
            layout.end().max(floor) < ZONE_BOUNDARY && top.is_some_and(|top| top > ZONE_BOUNDARY);
        let lowest = if is_crossing { ZONE_BOUNDARY } else { floor };
        for (index, dmb) in guest.dmbs.iter().enumerate() {
            if !dmb.size.is_multiple_of(block_alignment) {
                let rule = Rule::MultipleOfForPages { size: block_alignment, page: guest.page_size.bytes() };
                return Err(finding(guest, dmb, "size", Value::Size(dmb.size), rule));
            }
            let base = layout.end().max(lowest).checked_next_multiple_of(alignment_of(dmb));
            layout.place(guest, dmb, base, RamSource::Dmb(index as u8))?;
        }
        Ok(layout)
    }

    /// Returns the first address after all RAM.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(platform::RAM_BASE, |ram| ram.range.end())
    }

    /// Returns the region or block that contains `address`.
    pub fn range_at(&self, address: u64) -> Option<&RamRange> {
        self.ranges.iter().find(|ram| ram.range.base().get() <= address && address < ram.range.end())
    }

    /// Iterates over the ranges of the regions that may contain images, by ascending address: all but the DMA window. The
    /// kernel would otherwise take up room there that it needs for DMA.
    pub fn regions(&self) -> impl Iterator<Item = IpaRange> + Clone {
        let window = self.window;
        let is_for_images =
            move |ram: &&RamRange| matches!(ram.source, RamSource::Region(index) if Some(index) != window);
        self.ranges.iter().filter(is_for_images).map(|ram| ram.range)
    }

    /// Returns the DMA window.
    pub fn window(&self) -> Option<IpaRange> {
        let source = RamSource::Region(self.window?);
        self.ranges.iter().find(|ram| ram.source == source).map(|ram| ram.range)
    }

    /// Iterates over the designated movable blocks by ascending address.
    pub fn dmbs(&self) -> impl Iterator<Item = &RamRange> {
        self.ranges.iter().filter(|ram| matches!(ram.source, RamSource::Dmb(_)))
    }

    fn place<'t>(
        &mut self,
        guest: &Guest<'t>,
        region: &RamRegion<'t>,
        base: Option<u64>,
        source: RamSource,
    ) -> Result<(), Finding<'t>> {
        let range = base.and_then(|base| IpaRange::from_numbers(base, region.size));
        match range.filter(|range| range.end() <= platform::IPA_LIMIT) {
            Some(range) => {
                self.insert(range, source);
                Ok(())
            }
            None => {
                let rule = Rule::Must("fit into the guest's address space, below 2^40");
                Err(finding(guest, region, "size", Value::Size(region.size), rule))
            }
        }
    }

    /// Returns the lowest address for `region`: above the RAM that Linux takes for DMA, unless it is the DMA window.
    fn lowest(&self, region: &RamRegion<'_>) -> u64 {
        match self.window() {
            Some(window) if !region.is_dma_window => zone_end(window).max(platform::RAM_BASE),
            _ => platform::RAM_BASE,
        }
    }

    /// Returns the lowest aligned base at or above `lowest` at which `size` bytes are free.
    fn first_gap(&self, lowest: u64, size: u64, alignment: u64) -> Option<u64> {
        let mut base = lowest.checked_next_multiple_of(alignment)?;
        for ram in &self.ranges {
            if base.checked_add(size)? <= ram.range.base().get() {
                break;
            }
            if ram.range.end() > base {
                base = ram.range.end().checked_next_multiple_of(alignment)?;
            }
        }
        Some(base)
    }

    fn insert(&mut self, range: IpaRange, source: RamSource) {
        let place = self.ranges.iter().position(|ram| ram.range.base() > range.base());
        // There is room for the most regions and blocks that a guest can have.
        let _ = self.ranges.insert(place.unwrap_or(self.ranges.len()), RamRange { range, source });
    }
}

/// Tests whether size and address of `region` are multiples of `page`.
fn is_whole_pages(region: &RamRegion<'_>, page: u64) -> bool {
    region.size.is_multiple_of(page) && region.ipa.is_none_or(|ipa| ipa.is_aligned(page))
}

/// Returns the alignment of a region whose address Ballast chooses: at least a pageblock, so that large leaves fit.
fn alignment(unit: Unit) -> u64 {
    unit.alignment().max(PAGEBLOCK_SIZE)
}

fn finding<'t>(
    guest: &Guest<'t>,
    region: &RamRegion<'t>,
    name: &'static str,
    value: Value<'t>,
    rule: Rule,
) -> Finding<'t> {
    match region.node.or(guest.node) {
        Some(node) => Finding::new(node, Some(name), value, rule),
        None => Finding::argument("memory", value, rule),
    }
}
