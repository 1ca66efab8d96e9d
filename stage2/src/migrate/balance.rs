//! What to shift so that controllers carry alike.

use heapless::Vec;

use crate::addr::PAGEBLOCK_SIZE;
use crate::controller::{ControllerId, MAX_CONTROLLERS};
use crate::owner::GuestId;

/// Most shifts of one plan.
pub const MAX_SHIFTS: usize = 8;

/// What a guest has behind each controller.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The guest.
    pub guest: GuestId,
    /// Bytes of it that can move.
    pub bytes: [u64; MAX_CONTROLLERS],
    /// What they weigh: the bytes themselves, or those of them that were touched.
    pub load: [u64; MAX_CONTROLLERS],
}

/// A controller that takes part.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// The controller.
    pub controller: ControllerId,
    /// What it carries.
    pub load: u64,
    /// Free bytes.
    pub room: u64,
}

/// Bytes of a guest from one controller to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shift {
    /// The guest.
    pub guest: GuestId,
    /// Where from.
    pub from: ControllerId,
    /// Where to.
    pub to: ControllerId,
    /// How much.
    pub bytes: u64,
}

/// What evens out the loads of `sides`.
///
/// It shifts from the heaviest to the lightest, from the guest with the most load there, and as much as brings one of them
/// to the mean: who is above it only gives, who is below only takes, so nothing moves back and forth. Loads that differ
/// by at most an eighth of their mean, or by two pageblocks, count as even.
pub fn plan(sides: &mut [Side], shares: &mut [Share]) -> Vec<Shift, MAX_SHIFTS> {
    let mut shifts = Vec::new();
    while !shifts.is_full() {
        let Some(heavy) = (0..sides.len()).max_by_key(|at| sides[*at].load) else { break };
        let lightest = (0..sides.len()).filter(|at| sides[*at].room >= PAGEBLOCK_SIZE);
        let Some(light) = lightest.min_by_key(|at| sides[*at].load) else { break };
        let mean = sides.iter().map(|side| side.load).sum::<u64>() / sides.len() as u64;
        let excess = sides[heavy].load.saturating_sub(sides[light].load);
        if excess <= (mean / 8).max(2 * PAGEBLOCK_SIZE) {
            break;
        }
        let (from, to) = (sides[heavy].controller, sides[light].controller);
        let at = from.index();
        let Some(share) = shares.iter_mut().max_by_key(|share| share.load[at]) else { break };
        let (held, weight) = (share.bytes[at], share.load[at]);
        if held == 0 || weight == 0 {
            break;
        }
        // As many bytes as carry the difference to the mean, if they are like the others of the guest there.
        let weight_wanted =
            sides[heavy].load.saturating_sub(mean).min(mean.saturating_sub(sides[light].load));
        let wanted = u128::from(weight_wanted) * u128::from(held) / u128::from(weight);
        let room = sides[light].room;
        let bytes = (wanted.min(held.min(room).into()) as u64) / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
        if bytes == 0 {
            break;
        }
        let load = (u128::from(weight) * u128::from(bytes) / u128::from(held)) as u64;
        share.bytes[at] -= bytes;
        share.load[at] -= load;
        share.bytes[to.index()] += bytes;
        share.load[to.index()] += load;
        sides[heavy].load -= load;
        sides[heavy].room += bytes;
        sides[light].load += load;
        sides[light].room -= bytes;
        // Not full: the loop's condition.
        let _ = shifts.push(Shift { guest: share.guest, from, to, bytes });
    }
    shifts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const M2: u64 = PAGEBLOCK_SIZE;

    fn controller(number: u8) -> ControllerId {
        ControllerId::try_new(number).unwrap()
    }

    fn share(guest: u8, bytes: &[u64], load: &[u64]) -> Share {
        let spread = |values: &[u64]| {
            let mut all = [0; MAX_CONTROLLERS];
            all[..values.len()].copy_from_slice(values);
            all
        };
        Share { guest: GuestId::try_new(guest).unwrap(), bytes: spread(bytes), load: spread(load) }
    }

    fn side(number: u8, load: u64, room: u64) -> Side {
        Side { controller: controller(number), load, room }
    }

    #[test]
    fn half_of_the_difference_moves_from_the_heaviest_guest() {
        let mut sides = [side(0, 100 * M2, 0), side(1, 20 * M2, 200 * M2)];
        let mut shares =
            [share(0, &[30 * M2], &[30 * M2]), share(1, &[70 * M2, 20 * M2], &[70 * M2, 20 * M2])];
        let shifts = plan(&mut sides, &mut shares);
        let guest = GuestId::try_new(1).unwrap();
        assert_eq!(shifts, [Shift { guest, from: controller(0), to: controller(1), bytes: 40 * M2 }]);
        assert!(plan(&mut sides, &mut shares).is_empty());
    }

    #[test]
    fn a_hot_guest_moves_by_its_density() {
        // A quarter of what it has is touched: four times the bytes have to move.
        let mut sides = [side(0, 40 * M2, 0), side(1, 0, 500 * M2)];
        let mut shares = [share(0, &[160 * M2], &[40 * M2])];
        assert_eq!(plan(&mut sides, &mut shares)[0].bytes, 80 * M2);
    }

    #[test]
    fn what_is_even_or_has_no_room_stays() {
        let mut shares = [share(0, &[50 * M2, 45 * M2], &[50 * M2, 45 * M2])];
        assert!(plan(&mut [side(0, 50 * M2, 9 * M2), side(1, 45 * M2, 9 * M2)], &mut shares).is_empty());
        assert!(plan(&mut [side(0, 50 * M2, 9 * M2), side(1, 0, 0)], &mut shares).is_empty());
        assert!(plan(&mut [], &mut shares).is_empty());
    }

    proptest! {
        /// Nothing moves back and forth: a plan that is carried out leaves no shift in the other direction to be made.
        #[test]
        fn a_plan_is_not_undone(
            held in prop::collection::vec(prop::collection::vec(0..500u64, 4), 1..4),
            heat in 1..100u64,
            room in prop::collection::vec(0..2000u64, 4),
        ) {
            let mut shares: std::vec::Vec<Share> = held.iter().enumerate().map(|(guest, held)| {
                let bytes: std::vec::Vec<u64> = held.iter().map(|blocks| blocks * M2).collect();
                let load: std::vec::Vec<u64> = bytes.iter().map(|bytes| bytes / 100 * heat).collect();
                share(guest as u8, &bytes, &load)
            }).collect();
            let mut sides: std::vec::Vec<Side> = (0..4u8).map(|at| {
                let load = shares.iter().map(|share| share.load[usize::from(at)]).sum();
                side(at, load, room[usize::from(at)] * M2)
            }).collect();
            let total: u64 = sides.iter().map(|side| side.load).sum();
            let mut all: std::vec::Vec<Shift> = std::vec::Vec::new();
            for _ in 0..50 {
                let shifts = plan(&mut sides, &mut shares);
                prop_assert_eq!(sides.iter().map(|side| side.load).sum::<u64>(), total);
                if shifts.is_empty() {
                    break;
                }
                all.extend(shifts);
            }
            prop_assert!(plan(&mut sides, &mut shares).is_empty(), "it comes to an end");
            for (index, shift) in all.iter().enumerate() {
                let is_back = |other: &Shift| other.from == shift.to && other.to == shift.from && other.guest == shift.guest;
                prop_assert!(!all[index..].iter().any(is_back), "{:?}", all);
            }
        }
    }
}
