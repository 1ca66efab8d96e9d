//! Invariants of the machine.

use super::{Machine, WINDOW, guest_id};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES};
use crate::owner::Owner;
use crate::phys::zone::Zone;

impl Machine {
    /// Describes zone, type, isolation, block and pool of every pageblock, and the number of frames of each owner.
    pub(crate) fn picture(&self) -> Vec<String> {
        let memory = self.memory();
        let mut lines = Vec::new();
        for controller in memory.controllers().iter() {
            for zone in Zone::ALL {
                let totals = memory.arena_totals(zone, controller);
                for number in (totals.span.start()..totals.span.end()).step_by(PAGEBLOCK_FRAMES as usize) {
                    let info = memory.frame_info(Frame::try_new(number).unwrap()).unwrap();
                    lines.push(format!(
                        "{number:#x}: {} {} {} {:?} {:?}",
                        info.zone, info.migrate_type, info.is_isolated, info.block, info.pool
                    ));
                }
            }
        }
        let owners = Owner::all().map(|owner| (owner, memory.resident_everywhere(owner)));
        lines.extend(
            owners.filter(|(_, frames)| *frames > 0).map(|(owner, frames)| format!("{owner} {frames}")),
        );
        lines
    }

    /// Checks the invariants that hold between steps of claims.
    pub(crate) fn check(&self) {
        let memory = self.memory();
        // Every page of every guest holds what it wrote last.
        for (index, guest) in self.guests.iter().enumerate() {
            let id = guest_id(index as u8);
            let leaves: Vec<_> = guest.space.with(|stage2| stage2.leaves(Ipa::default(), WINDOW).collect());
            let contents = self.contents.lock().unwrap();
            let expected = self.expected.lock().unwrap();
            let mut pages = 0;
            for leaf in leaves.iter().filter(|leaf| !leaf.is_broken()) {
                let first = Frame::containing(leaf.pa());
                let (first, start) = (first.number(), leaf.ipa().get());
                let found = contents.range(first..first + leaf.size() / FRAME_SIZE);
                let found = found.map(|(number, value)| (start + (number - first) * FRAME_SIZE, *value));
                let wanted = expected.range((id, start)..(id, start + leaf.size()));
                let wanted = wanted.map(|((_, ipa), value)| (*ipa, *value));
                for (found, wanted) in found.clone().zip(wanted.clone()) {
                    assert_eq!(found, wanted, "IPA and contents of {id}");
                }
                assert_eq!(found.clone().count(), wanted.count(), "{id} from {start:#x} on");
                pages += found.count() as u64;
            }
            let of_guest = expected.keys().filter(|(of, _)| *of == id).count() as u64;
            assert_eq!(pages, of_guest, "pages of {id}");
        }
        // The allocator's account of claimed frames agrees with the frame table.
        for (id, pool) in self.claims.pools().unwrap().iter() {
            let mut claimed = 0;
            for occupant in memory.occupants(pool.range) {
                if occupant.owner != Some(Owner::Pool(id)) {
                    continue;
                }
                claimed += 1 << occupant.order;
            }
            assert_eq!(claimed, memory.resident_everywhere(Owner::Pool(id)), "claimed of {id}");
        }
        for controller in memory.controllers().iter() {
            let used: u64 = Owner::all().map(|owner| memory.resident(owner, controller)).sum();
            let zones = Zone::ALL.map(|zone| memory.arena_totals(zone, controller));
            let others: u64 = zones.iter().map(|zone| zone.free + zone.isolated + zone.retired).sum();
            let managed: u64 = zones.iter().map(|zone| zone.managed).sum();
            assert_eq!(used + others, managed, "behind {controller:?}");
        }
    }

    /// Tests whether no pageblock is isolated.
    pub(crate) fn is_open(&self) -> bool {
        !self.picture().iter().any(|line| line.contains("true"))
    }
}
