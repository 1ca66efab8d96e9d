//! The reverse map, read in the order of frames: which guest has which frames at which IPA.

use super::{Layout, Memory};
use crate::addr::{Frame, Ipa, PAGEBLOCK_FRAMES};
use crate::owner::{GuestId, Owner};
use crate::phys::frame::{Head, Mapping, RamRange, State};
use crate::range::FrameRange;

/// Adjacent blocks of one guest's RAM: adjacent in frames and in IPA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tenant {
    /// The guest.
    pub guest: GuestId,
    /// The IPA of the first frame.
    pub ipa: Ipa,
    /// The frames of the blocks: whole blocks, even if only a part of them is in the range in question.
    pub frames: FrameRange,
}

impl<'a> Memory<'a> {
    /// Returns the first block of guest RAM that touches `range`, together with the blocks adjacent to it in frames and
    /// in IPA, up to the end of its pageblock. Reads each block once and takes one lock for each pageblock.
    pub fn tenant_in(&self, range: FrameRange) -> Option<Tenant> {
        let layout = self.layout.get()?;
        let mut number = range.start();
        while number < range.end() {
            let ram_range =
                layout.table.ram_ranges().iter().find(|ram_range| ram_range.range.end() > number)?;
            number = number.max(ram_range.range.start());
            let end = range.end().min(ram_range.range.end());
            while number < end {
                match self.tenant_in_pageblock(layout, ram_range, number, end) {
                    Ok(tenant) => return Some(tenant),
                    Err(next) => number = next,
                }
            }
        }
        None
    }

    /// Returns the first tenant from frame `number` to the end of its pageblock or to `end`; if there is none, the
    /// frame number to continue from.
    fn tenant_in_pageblock(
        &self,
        layout: &Layout<'a>,
        ram_range: &RamRange,
        number: u64,
        end: u64,
    ) -> Result<Tenant, u64> {
        let table = &layout.table;
        let zone = table.words.word(ram_range.slot(number)).zone();
        let _locked = self.arena(zone.arena(ram_range.controller)).lock();
        let end = end.min((number | (PAGEBLOCK_FRAMES - 1)) + 1);
        let mut found: Option<Tenant> = None;
        let mut next = number;
        while next < end {
            let Some(head) = table.head(ram_range, next) else { break };
            next = head.end();
            let Some(mapping) = guest_mapping(layout, ram_range, head) else {
                if found.is_some() {
                    break;
                }
                continue;
            };
            let Some(frames) = FrameRange::from_numbers(head.number, head.end()) else { break };
            match &mut found {
                None => found = Some(Tenant { guest: mapping.guest, ipa: mapping.ipa, frames }),
                Some(tenant)
                    if tenant.guest == mapping.guest
                        && tenant.ipa.checked_add(tenant.frames.bytes()) == Some(mapping.ipa) =>
                {
                    tenant.frames =
                        FrameRange::from_numbers(tenant.frames.start(), head.end()).unwrap_or(tenant.frames);
                }
                Some(_) => break,
            }
        }
        found.ok_or(next.max(end))
    }
}

/// Returns the guest and IPA that map the block `head`, if it is guest RAM.
fn guest_mapping(layout: &Layout<'_>, ram_range: &RamRange, head: Head) -> Option<Mapping> {
    if head.state != State::Used {
        return None;
    }
    Frame::try_new(head.number)?;
    let entry = layout.table.words.entry(ram_range.slot(head.number));
    match entry.meta().owner()? {
        Owner::Guest(_) => entry.mapping(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Pa;
    use crate::controller::ControllerId;
    use crate::phys::alloc::tests::{BASE, guest, words};
    use crate::phys::alloc::{MemoryKind, Request};
    use crate::phys::frame::Contents;
    use crate::phys::map::BootMap;
    use crate::phys::placement::Placement;

    const MIB: u64 = 1 << 20;

    fn range(pa: u64, bytes: u64) -> FrameRange {
        FrameRange::covering(pa, bytes).unwrap()
    }

    fn mapping(ipa: u64) -> Option<Mapping> {
        Some(Mapping { guest: GuestId::try_new(0).unwrap(), ipa: Ipa::new_truncate(ipa) })
    }

    #[test]
    fn tenants_are_found_in_frame_order_and_joined() {
        let mut map = BootMap::new();
        map.add_ram(ControllerId::default(), BASE, 8 * MIB).unwrap();
        let words = words(&map);
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let whole = range(BASE, 8 * MIB);
        assert_eq!(memory.tenant_in(whole), None);

        let request = |order, mapping| Request {
            order,
            kind: MemoryKind::Movable,
            owner: guest(0),
            placement: Placement::Any,
            mapping,
        };
        let block = memory.allocate(&request(9, mapping(0x8000_0000))).unwrap();
        let found = memory.tenant_in(whole).unwrap();
        assert_eq!(found.frames, FrameRange::try_new(block.frame, 512).unwrap());
        // Part of the block is enough to find it.
        let last = FrameRange::from_numbers(found.frames.end() - 1, whole.end()).unwrap();
        assert_eq!(memory.tenant_in(last), Some(found));
        memory.free(block.frame, 9, guest(0), Contents::Zeroed).unwrap();

        // Three frames that are adjacent in IPA, and one that is not. Ballast's own frames are not tenants.
        let own = Request { owner: Owner::Hypervisor, kind: MemoryKind::Unmovable, ..request(0, None) };
        let own = memory.allocate(&own).unwrap();
        let ipas = [0x4000_0000, 0x4000_1000, 0x4000_2000, 0x9000_0000];
        let pages = ipas.map(|ipa| memory.allocate(&request(0, mapping(ipa))).unwrap().frame);
        assert!(pages.windows(2).all(|pair| pair[0].number() + 1 == pair[1].number()), "{pages:?} {own:?}");
        let found = memory.tenant_in(whole).unwrap();
        assert_eq!((found.ipa.get(), found.frames), (0x4000_0000, FrameRange::try_new(pages[0], 3).unwrap()));
        let rest = FrameRange::from_numbers(found.frames.end(), whole.end()).unwrap();
        let found = memory.tenant_in(rest).unwrap();
        assert_eq!((found.ipa.get(), found.frames), (0x9000_0000, FrameRange::try_new(pages[3], 1).unwrap()));
        assert_eq!(memory.tenant_in(range(found.frames.end() << 12, 2 * MIB)), None);
        // Beyond all RAM.
        assert_eq!(memory.tenant_in(range(Pa::new_truncate(0).get(), 0x1000)), None);
    }
}
