//! Plans that even out the loads of memory controllers.
//!
//! A *side* is a controller that takes part, a *share* a part of a guest's RAM with one set of allowed controllers, a
//! *shift* an amount of memory of one share that moves from one side to another.

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;
use stage2::addr::{Ipa, PAGEBLOCK_SIZE};
use stage2::controller::{ControllerId, ControllerSet, MAX_CONTROLLERS};
use stage2::owner::GuestId;
use stage2::scale::scaled;

/// Maximum number of shifts in a plan.
pub(crate) const MAX_SHIFTS: usize = 8;

/// The quantity that is balanced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// Bytes: of free memory, or of guests' memory.
    Bytes,
    /// Bytes that were touched in a window of time. Another window gives another number.
    Heat,
}

impl By {
    /// Returns the divisor of the mean load that gives the largest difference between even loads.
    const fn band(self) -> u64 {
        match self {
            Self::Bytes => 8,
            Self::Heat => 4,
        }
    }
}

/// Movable memory of a part of a guest's RAM, by controller. All of the part has the same allowed controllers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// The guest.
    pub(crate) guest: GuestId,
    /// Start of the part.
    pub(crate) ipa: Ipa,
    /// Size of the part in bytes.
    pub(crate) size: u64,
    /// Movable bytes behind each controller.
    pub(crate) bytes: [u64; MAX_CONTROLLERS],
    /// Load of these bytes: the bytes themselves, or those of them that were touched.
    pub(crate) load: [u64; MAX_CONTROLLERS],
    /// Controllers that the part's placement allows.
    pub(crate) allowed: ControllerSet,
}

/// A controller that takes part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    /// The controller.
    pub(crate) controller: ControllerId,
    /// Its load.
    pub(crate) load: u64,
    /// Free bytes that the plan may use.
    pub(crate) room: u64,
}

/// A move of some of a share's bytes from one controller to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shift {
    /// The guest.
    pub(crate) guest: GuestId,
    /// Start of the part of its RAM that the bytes are taken from.
    pub(crate) ipa: Ipa,
    /// Size of that part in bytes.
    pub(crate) size: u64,
    /// Source.
    pub(crate) from: ControllerId,
    /// Target.
    pub(crate) to: ControllerId,
    /// Bytes to move.
    pub(crate) bytes: u64,
    /// Load of these bytes, if they are touched as evenly as the rest of the share behind the source.
    pub(crate) load: u64,
}

/// The reason why a plan has no further shift.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The loads are even.
    Even,
    /// Fewer than two controllers take part.
    Alone,
    /// Nothing behind this controller can move to a less loaded one.
    NothingMoves(ControllerId),
    /// This less loaded controller has no free memory.
    NoRoom(ControllerId),
    /// An earlier plan moved memory from the second controller to the first, and the difference is too small to move it back.
    Back(ControllerId, ControllerId),
    /// The plan has [`MAX_SHIFTS`] shifts.
    Full,
}

/// The directions of earlier shifts: for each source controller a mask of targets.
///
/// No two windows of time measure the same heat. To keep memory from moving back and forth, moving it back takes twice the
/// difference that moving it on takes.
#[derive(Debug)]
pub(crate) struct History([AtomicU64; MAX_CONTROLLERS]);

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// Makes an empty history.
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MAX_CONTROLLERS])
    }

    /// Notes a shift `from` one controller `to` another, and forgets the opposite direction.
    pub(crate) fn note(&self, from: ControllerId, to: ControllerId) {
        self.0[from.index()].fetch_or(1 << to.index(), Ordering::Relaxed);
        self.0[to.index()].fetch_and(!(1 << from.index()), Ordering::Relaxed);
    }

    fn has(&self, from: ControllerId, to: ControllerId) -> bool {
        self.0[from.index()].load(Ordering::Relaxed) & 1 << to.index() != 0
    }
}

/// A list of shifts that evens out loads.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The shifts, in order.
    pub(crate) shifts: Vec<Shift, MAX_SHIFTS>,
    /// The reason why there are no more.
    pub(crate) end: End,
    /// Largest difference between loads that count as even.
    pub(crate) band: u64,
}

/// Plans shifts that even out the loads of `sides`, and updates `sides` and `shares` to the state after them.
///
/// Each shift goes from the most to the least loaded side between which a share can move. It takes the share with the most
/// load behind the source, and as many bytes as bring source or target to the mean. A side above the mean only gives and
/// one below it only takes, so a plan never moves memory back and forth. Loads that differ by at most a part of the mean,
/// or by two pageblocks, count as even; with [`By::Heat`] moving back takes more (see [`History`]).
pub(crate) fn plan(by: By, sides: &mut [Side], shares: &mut [Share], history: &History) -> Plan {
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

/// Sorts `sides` by load, the lightest first. Insertion sort: there are few sides, and the sort of `core` is large.
fn sort(sides: &mut [Side]) {
    for end in 1..=sides.len() {
        let Some((last, sorted)) = sides.get_mut(..end).and_then(<[Side]>::split_last_mut) else { continue };
        let heavier = sorted.iter().rev().take_while(|side| side.load > last.load).count();
        if let Some(part) = sides.get_mut(end - 1 - heavier..end) {
            part.rotate_right(1);
        }
    }
}

/// Plans the next shift and applies it to `sides` and `shares`.
///
/// # Errors
/// The obstacle between the two sides that differ most.
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

/// Plans a shift from `heavy` to `light` and applies it to `shares`.
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
    let can_move =
        |share: &&mut Share| share.bytes[at] > 0 && share.load[at] > 0 && share.allowed.contains(to);
    let share = shares.iter_mut().filter(can_move).max_by_key(|share| share.load[at]);
    let share = share.ok_or(End::NothingMoves(from))?;
    let (held, weight) = (share.bytes[at], share.load[at]);
    // The bytes that carry the difference to the mean, if the share is touched evenly.
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
        Share { guest, ipa, size, bytes: spread(bytes), load: spread(load), allowed: ControllerSet::ALL }
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
        // A quarter of its memory is touched: four times the bytes have to move.
        let mut sides = [side(0, 40 * M2, 0), side(1, 0, 500 * M2)];
        let mut shares = [share(0, &[160 * M2], &[40 * M2])];
        assert_eq!(plan(&mut sides, &mut shares)[0].bytes, 80 * M2);
    }

    #[test]
    fn nothing_moves_if_loads_are_even_or_there_is_no_room() {
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
        shares[0].allowed = ControllerSet::EMPTY.with(controller(0));
        assert_eq!(why(&mut sides(), &mut shares), End::NothingMoves(controller(0)));
    }

    #[test]
    fn the_next_side_gives_if_the_heaviest_cannot() {
        let mut sides = [side(0, 90 * M2, 0), side(1, 60 * M2, 0), side(2, 0, 100 * M2)];
        let mut shares = [share(0, &[0, 60 * M2], &[0, 60 * M2])];
        let shifts = plan(&mut sides, &mut shares);
        assert_eq!((shifts[0].from, shifts[0].to, shifts[0].bytes), (controller(1), controller(2), 10 * M2));
    }

    #[test]
    fn each_part_of_a_guest_moves_only_to_its_allowed_controllers() {
        // The larger part is not allowed behind the controller with free memory.
        let ipa = |block: u64| Ipa::try_new(block * M2).unwrap();
        let allowed = |number: u8| ControllerSet::EMPTY.with(controller(0)).with(controller(number));
        let mut tied = Share { ipa: ipa(0), allowed: allowed(2), ..share(0, &[60 * M2], &[60 * M2]) };
        let free = Share { ipa: ipa(100), allowed: allowed(1), ..share(0, &[30 * M2], &[30 * M2]) };
        let sides = || [side(0, 90 * M2, 0), side(1, 0, 99 * M2)];
        let shifts = plan(&mut sides(), &mut [tied, free]);
        assert_eq!(
            shifts.iter().map(|shift| (shift.ipa, shift.bytes)).collect::<Vec<_, 8>>(),
            [(ipa(100), 30 * M2)]
        );
        assert_eq!(why(&mut sides(), &mut [tied]), End::NothingMoves(controller(0)));
        tied.allowed = allowed(1);
        assert_eq!(plan(&mut sides(), &mut [tied, free])[0].ipa, ipa(0));
    }

    #[test]
    fn heat_moves_back_only_for_twice_the_difference() {
        let history = History::new();
        let heat = |zero: u64, one: u64| {
            let mut sides = [side(0, zero * M2, 500 * M2), side(1, one * M2, 500 * M2)];
            let mut shares = [share(0, &[200 * M2, 200 * M2], &[zero * M2, one * M2])];
            let plan = super::plan(By::Heat, &mut sides, &mut shares, &history);
            plan.shifts.iter().for_each(|shift| history.note(shift.from, shift.to));
            (plan.shifts.len(), plan.end)
        };
        assert_eq!(heat(100, 20), (1, End::Even));
        // In the other direction: a difference that would do to move on, then a larger one.
        assert_eq!(heat(50, 70), (0, End::Back(controller(1), controller(0))));
        assert_eq!(heat(70, 50), (1, End::Even));
        assert_eq!(heat(30, 90), (1, End::Even));
        assert_eq!(heat(70, 50), (0, End::Back(controller(0), controller(1))));
    }

    proptest! {
        /// Once a plan is carried out, no later plan moves memory in the opposite direction.
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
