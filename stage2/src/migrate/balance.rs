//! What to shift so that controllers carry alike.

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;

use crate::addr::{Ipa, PAGEBLOCK_SIZE};
use crate::controller::{ControllerId, ControllerSet, MAX_CONTROLLERS};
use crate::owner::GuestId;
use crate::scale::scaled;

/// Most shifts of one plan.
pub const MAX_SHIFTS: usize = 8;

/// What loads are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Bytes, of which as many are to be free everywhere, or of guests' memory.
    Bytes,
    /// Bytes that were touched in a window: another window gives another number.
    Heat,
}

impl By {
    /// Which part of the mean two loads may differ by and still count as even.
    const fn band(self) -> u64 {
        match self {
            Self::Bytes => 8,
            Self::Heat => 4,
        }
    }
}

/// What of a part of a guest's RAM can move, by controller. All of it may lie behind the same controllers.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The guest.
    pub guest: GuestId,
    /// Where the part begins.
    pub ipa: Ipa,
    /// The bytes of the part.
    pub size: u64,
    /// Bytes of it that can move.
    pub bytes: [u64; MAX_CONTROLLERS],
    /// What they weigh: the bytes themselves, or those of them that were touched.
    pub load: [u64; MAX_CONTROLLERS],
    /// Where the part's placement lets it go.
    pub open: ControllerSet,
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
    /// Where the part of its RAM begins that it comes out of.
    pub ipa: Ipa,
    /// The bytes of the part.
    pub size: u64,
    /// Where from.
    pub from: ControllerId,
    /// Where to.
    pub to: ControllerId,
    /// How much.
    pub bytes: u64,
    /// What that weighs, if it is like the rest of the guest there.
    pub load: u64,
}

/// Why a plan ends where it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The loads count as even.
    Even,
    /// Fewer than two controllers take part.
    Alone,
    /// Nothing behind this controller, which carries more, can move to one that carries less.
    NothingMoves(ControllerId),
    /// This controller, which carries less, has no room.
    NoRoom(ControllerId),
    /// It would go back from the first to the second, where an earlier plan took it away, for too little.
    Back(ControllerId, ControllerId),
    /// As many shifts as a plan has room for.
    Full,
}

/// Which ways plans have taken.
///
/// Two windows never give the same heat. Lest they let memory go to and fro, going back takes twice the difference that
/// going on does.
#[derive(Debug)]
pub struct History([AtomicU64; MAX_CONTROLLERS]);

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// Of no plan.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MAX_CONTROLLERS])
    }

    /// Something goes `from` one controller `to` another.
    pub fn note(&self, from: ControllerId, to: ControllerId) {
        self.0[from.index()].fetch_or(1 << to.index(), Ordering::Relaxed);
        self.0[to.index()].fetch_and(!(1 << from.index()), Ordering::Relaxed);
    }

    fn has(&self, from: ControllerId, to: ControllerId) -> bool {
        self.0[from.index()].load(Ordering::Relaxed) & 1 << to.index() != 0
    }
}

/// What evens out loads.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to shift.
    pub shifts: Vec<Shift, MAX_SHIFTS>,
    /// Why that is all.
    pub end: End,
    /// What loads may differ by.
    pub band: u64,
}

/// What evens out the loads of `sides`, which are changed to what they then are.
///
/// It shifts from the heaviest to the lightest between which something can, from the share with the most load there, and
/// as much as brings one of them to the mean: who is above it only gives, who is below only takes, so nothing moves back
/// and forth in a plan. Loads that differ by at most a part of their mean, or by two pageblocks, count as even; with
/// [`By::Heat`] going back takes more (see [`History`]).
pub fn plan(by: By, sides: &mut [Side], shares: &mut [Share], history: &History) -> Plan {
    sort(sides);
    let mean = sides.iter().map(|side| side.load).sum::<u64>() / sides.len().max(1) as u64;
    let band = (mean / by.band()).max(2 * PAGEBLOCK_SIZE);
    let mut plan = Plan { shifts: Vec::new(), end: End::Even, band };
    if sides.len() < 2 {
        plan.end = End::Alone;
    } else {
        while !plan.shifts.is_full() {
            match next(by, sides, shares, history, mean, band) {
                // Not full: the loop's condition.
                Ok(shift) => _ = plan.shifts.push(shift),
                Err(end) => {
                    plan.end = end;
                    return plan;
                }
            }
        }
        plan.end = End::Full;
    }
    plan
}

/// By load, the lightest first: by insertion, for they are few, and core's sorting is large.
fn sort(sides: &mut [Side]) {
    for end in 1..=sides.len() {
        let Some((last, sorted)) = sides.get_mut(..end).and_then(<[Side]>::split_last_mut) else { continue };
        let heavier = sorted.iter().rev().take_while(|side| side.load > last.load).count();
        if let Some(part) = sides.get_mut(end - 1 - heavier..end) {
            part.rotate_right(1);
        }
    }
}

/// The next shift, which is done to `sides` and `shares`, or what is in the way between the two that differ most.
fn next(
    by: By,
    sides: &mut [Side],
    shares: &mut [Share],
    history: &History,
    mean: u64,
    band: u64,
) -> Result<Shift, End> {
    sort(sides);
    let mut end = None;
    for heavy in (0..sides.len()).rev() {
        for light in 0..heavy {
            match between(by, (sides[heavy], sides[light]), shares, history, (mean, band)) {
                Ok(shift) => {
                    sides[heavy].load -= shift.load;
                    sides[heavy].room += shift.bytes;
                    sides[light].load += shift.load;
                    sides[light].room -= shift.bytes;
                    return Ok(shift);
                }
                Err(other) => _ = end.get_or_insert(other),
            }
        }
    }
    Err(end.unwrap_or(End::Even))
}

fn between(
    by: By,
    (heavy, light): (Side, Side),
    shares: &mut [Share],
    history: &History,
    (mean, band): (u64, u64),
) -> Result<Shift, End> {
    let (from, to) = (heavy.controller, light.controller);
    let excess = heavy.load.saturating_sub(light.load);
    if excess <= band {
        return Err(End::Even);
    }
    if by == By::Heat && history.has(to, from) && excess <= 2 * band {
        return Err(End::Back(from, to));
    }
    if light.room < PAGEBLOCK_SIZE {
        return Err(End::NoRoom(to));
    }
    let at = from.index();
    let can_move = |share: &&mut Share| share.bytes[at] > 0 && share.load[at] > 0 && share.open.contains(to);
    let share = shares.iter_mut().filter(can_move).max_by_key(|share| share.load[at]);
    let share = share.ok_or(End::NothingMoves(from))?;
    let (held, weight) = (share.bytes[at], share.load[at]);
    // As many bytes as carry the difference to the mean, if they are like the others of the guest there.
    let weight_wanted = heavy.load.saturating_sub(mean).min(mean.saturating_sub(light.load));
    let wanted = scaled(weight_wanted, held, weight);
    let bytes = wanted.min(held.min(light.room)) / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
    if bytes == 0 {
        return Err(End::Even);
    }
    let load = scaled(weight, bytes, held);
    share.bytes[at] -= bytes;
    share.load[at] -= load;
    share.bytes[to.index()] += bytes;
    share.load[to.index()] += load;
    Ok(Shift { guest: share.guest, ipa: share.ipa, size: share.size, from, to, bytes, load })
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
        let guest = GuestId::try_new(guest).unwrap();
        let (ipa, size) = (Ipa::default(), bytes.iter().sum());
        Share { guest, ipa, size, bytes: spread(bytes), load: spread(load), open: ControllerSet::ALL }
    }

    fn side(number: u8, load: u64, room: u64) -> Side {
        Side { controller: controller(number), load, room }
    }

    fn plan(sides: &mut [Side], shares: &mut [Share]) -> Vec<Shift, MAX_SHIFTS> {
        super::plan(By::Bytes, sides, shares, &History::new()).shifts
    }

    fn why(sides: &mut [Side], shares: &mut [Share]) -> End {
        super::plan(By::Bytes, sides, shares, &History::new()).end
    }

    #[test]
    fn half_of_the_difference_moves_from_the_heaviest_guest() {
        let mut sides = [side(0, 100 * M2, 0), side(1, 20 * M2, 200 * M2)];
        let mut shares =
            [share(0, &[30 * M2], &[30 * M2]), share(1, &[70 * M2, 20 * M2], &[70 * M2, 20 * M2])];
        let shifts = plan(&mut sides, &mut shares);
        let guest = GuestId::try_new(1).unwrap();
        let (from, to) = (controller(0), controller(1));
        let (ipa, size) = (Ipa::default(), 90 * M2);
        assert_eq!(shifts, [Shift { guest, ipa, size, from, to, bytes: 40 * M2, load: 40 * M2 }]);
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

    #[test]
    fn a_plan_says_why_it_ends() {
        let mut shares = [share(0, &[50 * M2], &[50 * M2])];
        let sides = || [side(0, 50 * M2, 9 * M2), side(1, 0, 99 * M2)];
        assert_eq!(why(&mut sides()[..1], &mut shares.clone()), End::Alone);
        assert_eq!(why(&mut sides(), &mut shares.clone()), End::Even);
        assert_eq!(why(&mut [sides()[0], side(1, 0, 0)], &mut shares.clone()), End::NoRoom(controller(1)));
        assert_eq!(why(&mut sides(), &mut []), End::NothingMoves(controller(0)));
        shares[0].open = ControllerSet::EMPTY.with(controller(0));
        assert_eq!(why(&mut sides(), &mut shares), End::NothingMoves(controller(0)));
    }

    #[test]
    fn where_the_heaviest_cannot_give_the_next_one_does() {
        let mut sides = [side(0, 90 * M2, 0), side(1, 60 * M2, 0), side(2, 0, 100 * M2)];
        let mut shares = [share(0, &[0, 60 * M2], &[0, 60 * M2])];
        let shifts = plan(&mut sides, &mut shares);
        assert_eq!((shifts[0].from, shifts[0].to, shifts[0].bytes), (controller(1), controller(2), 10 * M2));
    }

    #[test]
    fn parts_of_a_guest_go_where_each_of_them_may() {
        // The larger part may not go to where there is room.
        let ipa = |block: u64| Ipa::try_new(block * M2).unwrap();
        let open = |number: u8| ControllerSet::EMPTY.with(controller(0)).with(controller(number));
        let mut tied = Share { ipa: ipa(0), open: open(2), ..share(0, &[60 * M2], &[60 * M2]) };
        let free = Share { ipa: ipa(100), open: open(1), ..share(0, &[30 * M2], &[30 * M2]) };
        let sides = || [side(0, 90 * M2, 0), side(1, 0, 99 * M2)];
        let shifts = plan(&mut sides(), &mut [tied, free]);
        assert_eq!(
            shifts.iter().map(|shift| (shift.ipa, shift.bytes)).collect::<Vec<_, 8>>(),
            [(ipa(100), 30 * M2)]
        );
        assert_eq!(why(&mut sides(), &mut [tied]), End::NothingMoves(controller(0)));
        tied.open = open(1);
        assert_eq!(plan(&mut sides(), &mut [tied, free])[0].ipa, ipa(0));
    }

    #[test]
    fn heat_goes_back_only_for_much() {
        let history = History::new();
        let heat = |zero: u64, one: u64| {
            let mut sides = [side(0, zero * M2, 500 * M2), side(1, one * M2, 500 * M2)];
            let mut shares = [share(0, &[200 * M2, 200 * M2], &[zero * M2, one * M2])];
            let plan = super::plan(By::Heat, &mut sides, &mut shares, &history);
            plan.shifts.iter().for_each(|shift| history.note(shift.from, shift.to));
            (plan.shifts.len(), plan.end)
        };
        assert_eq!(heat(100, 20), (1, End::Even));
        // The other way round by as little as what would do to go on, and by more.
        assert_eq!(heat(50, 70), (0, End::Back(controller(1), controller(0))));
        assert_eq!(heat(70, 50), (1, End::Even));
        assert_eq!(heat(30, 90), (1, End::Even));
        assert_eq!(heat(70, 50), (0, End::Back(controller(0), controller(1))));
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
