//! `iommu-map` (binding `pci-iommu`): from the requester IDs of PCI functions to streams.

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::tree::{Node, Property};

use super::bridge::HostBridge;
use super::smmu::{Smmu, Stream};

/// Entries of an `iommu-map` that are read. Bounds the time of a search.
const ENTRY_LIMIT: usize = 256;

/// A node's `iommu-map`, with its mask.
#[derive(Clone, Copy, Debug)]
pub struct StreamMap<'t> {
    node: Node<'t>,
    map: Property<'t>,
    mask: u32,
}

/// An entry of an `iommu-map`.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// First requester ID, after the mask.
    rid: u32,
    phandle: u32,
    /// First StreamID.
    stream: u32,
    length: u32,
}

impl Entry {
    fn contains(&self, masked: u32) -> bool {
        masked.checked_sub(self.rid).is_some_and(|offset| offset < self.length)
    }
}

impl<'t> StreamMap<'t> {
    /// Returns the map of `node`, or `None` if it has none.
    ///
    /// # Errors
    /// The map or its mask is malformed.
    #[inline(never)]
    pub fn read(node: Node<'t>) -> Result<Option<Self>, Finding<'t>> {
        let Some(map) = node.property("iommu-map") else { return Ok(None) };
        let length = map.bytes().len();
        if length == 0 || !length.is_multiple_of(16) || length / 16 > ENTRY_LIMIT {
            let rule =
                Rule::Must("have 1 to 256 entries of four cells: first RID, SMMU, first StreamID, number");
            return Err(Finding::property(node, map, rule));
        }
        let mask = match node.property("iommu-map-mask") {
            None => u32::MAX,
            Some(mask) => mask
                .u32()
                .ok_or_else(|| Finding::property(node, mask, Rule::Must("be one cell, a mask for RIDs")))?,
        };
        Ok(Some(Self { node, map, mask }))
    }

    fn entries(self) -> impl Iterator<Item = Entry> {
        let cell = |bytes: &[u8], index: usize| {
            let cell = bytes.get(index * 4..index * 4 + 4).unwrap_or_default();
            cell.iter().fold(0, |word: u32, &byte| word << 8 | u32::from(byte))
        };
        self.map.bytes().chunks_exact(16).map(move |entry| Entry {
            rid: cell(entry, 0),
            phandle: cell(entry, 1),
            stream: cell(entry, 2),
            length: cell(entry, 3),
        })
    }

    /// Returns the stream of function `rid`, or `None` if its DMA does not pass an SMMU.
    ///
    /// # Errors
    /// The entry for `rid` names an SMMU that Ballast cannot use, or a StreamID beyond 32 bits.
    #[inline(never)]
    pub fn stream(self, smmus: &[Smmu<'t>], rid: u16) -> Result<Option<Stream>, Finding<'t>> {
        let masked = self.masked(rid);
        let Some((_, entry)) = self.entry(masked) else { return Ok(None) };
        let smmu = Smmu::find(smmus, self.node, self.map, entry.phandle)?;
        match entry.stream.checked_add(masked - entry.rid) {
            Some(id) => Ok(Some(Stream { smmu, id })),
            None => {
                let value = Value::Number(u64::from(entry.stream) + u64::from(masked - entry.rid));
                Err(Finding::new(self.node, Some("iommu-map"), value, Rule::Must("be a StreamID below 2^32")))
            }
        }
    }

    /// Iterates over the requester IDs that use `stream`.
    pub fn users(self, smmus: &[Smmu<'t>], stream: Stream) -> impl Iterator<Item = u16> {
        let masked = self.entries().enumerate().filter_map(move |(index, entry)| {
            let offset = stream.id.checked_sub(entry.stream).filter(|&offset| offset < entry.length)?;
            let masked = entry.rid.checked_add(offset)?;
            // Only the first entry for a RID counts.
            let is_first = self.entry(masked).is_some_and(|(first, _)| first == index);
            let smmu = is_first.then(|| Smmu::find(smmus, self.node, self.map, entry.phandle))?;
            (smmu == Ok(stream.smmu)).then_some(masked)
        });
        masked.flat_map(move |masked| {
            // With a full mask, a RID is its masked number.
            let is_full = self.mask & 0xffff == 0xffff;
            let range = if is_full { masked..masked.saturating_add(1) } else { 0..0x1_0000 };
            range.filter_map(|rid| u16::try_from(rid).ok()).filter(move |&rid| self.masked(rid) == masked)
        })
    }

    fn masked(self, rid: u16) -> u32 {
        u32::from(rid) & self.mask
    }

    /// Returns the entry for a masked requester ID, with its index.
    fn entry(self, masked: u32) -> Option<(usize, Entry)> {
        self.entries().enumerate().find(|(_, entry)| entry.contains(masked))
    }
}

impl<'t> HostBridge<'t> {
    /// Returns the stream of function `rid`, or `None` if its DMA does not pass an SMMU.
    ///
    /// # Errors
    /// See [`StreamMap`].
    pub fn stream(&self, smmus: &[Smmu<'t>], rid: u16) -> Result<Option<Stream>, Finding<'t>> {
        match StreamMap::read(self.node)? {
            Some(map) => map.stream(smmus, rid),
            None => Ok(None),
        }
    }
}
