//! Room for the tenants of a range elsewhere.
//!
//! The *kind* of a tenant is the set of controllers that it may move to: all of them, unless its placement is strict;
//! none if it cannot move. There is room for all tenants if and only if, for every subset of the kinds, the controllers
//! that these kinds allow have as many free frames together as the tenants of these kinds need (Hall's theorem).
//!
//! The order of the moves matters: a tenant that may go anywhere must not take the last free frames of the only
//! controller that another tenant may go to. [`Tenants::next_move`] chooses moves that leave room for the rest.

use heapless::Vec;

use crate::addr::FRAME_SIZE;
use crate::controller::{ControllerId, ControllerSet, MAX_CONTROLLERS};
use crate::migrate::Mobility;
use crate::phys::alloc::Occupant;

use super::cause::Cause;
use super::host::{Ground, Host};
use super::search::is_fixed;

/// Maximum number of kinds that are distinguished. All their subsets are visited.
const KINDS: usize = 8;
/// Spare frames with which moves need no plan: at each end of a range, a unit of 2 MiB may move as a whole.
const SPARE: u64 = 2 << crate::addr::PAGEBLOCK_ORDER;

/// Number of free frames by controller.
#[derive(Clone)]
pub(super) struct Room {
    behind: [u64; MAX_CONTROLLERS],
    total: u64,
}

impl Room {
    /// Returns the frames that are free now. Those of isolated pageblocks do not count.
    pub(super) fn of(ground: &impl Ground) -> Self {
        let mut room = Self { behind: [0; MAX_CONTROLLERS], total: ground.free_frames() };
        for controller in ground.controllers().iter() {
            room.behind[controller.index()] = ground.free_frames_behind(controller);
        }
        room
    }

    /// Returns this room without `frames` free frames behind `controller`.
    pub(super) fn less(&self, frames: u64, controller: ControllerId) -> Self {
        let mut room = self.clone();
        let behind = &mut room.behind[controller.index()];
        *behind = behind.saturating_sub(frames);
        room.total = room.total.saturating_sub(frames);
        room
    }

    /// Returns the number of free frames behind `controllers`.
    fn behind(&self, controllers: ControllerSet) -> u64 {
        let of = |controller: ControllerId| self.behind.get(controller.index()).copied().unwrap_or(0);
        controllers.iter().map(of).sum::<u64>().min(self.total)
    }

    /// Tests whether each of `controllers` alone has room for `used` frames, so that no tenant can take another's place.
    pub(super) fn is_ample(&self, used: u64, controllers: ControllerSet) -> bool {
        controllers
            .iter()
            .all(|controller| self.behind(ControllerSet::EMPTY.with(controller)) >= used + SPARE)
    }
}

/// Move of some tenants of one kind to one controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    /// Kind of the tenants.
    pub(super) kind: ControllerSet,
    /// Target controller.
    pub(super) to: ControllerId,
    /// Number of frames.
    pub(super) frames: u64,
}

/// Number of frames of tenants, by kind.
#[derive(Clone, Default)]
pub(super) struct Tenants {
    /// Kinds seen so far. Their order never changes.
    kinds: Vec<ControllerSet, KINDS>,
    frames: [u64; KINDS],
    /// Frames of tenants that cannot move, or whose kind had no place in the list.
    stuck: u64,
}

impl Tenants {
    /// Returns the count for `kind`.
    fn count(&mut self, kind: ControllerSet) -> &mut u64 {
        let known = self.kinds.iter().position(|known| *known == kind);
        let place = match known {
            _ if kind.is_empty() => None,
            None => self.kinds.push(kind).ok().map(|()| self.kinds.len() - 1),
            known => known,
        };
        match place.and_then(|place| self.frames.get_mut(place)) {
            Some(frames) => frames,
            None => &mut self.stuck,
        }
    }

    /// Adds `frames` frames of tenants of `kind`.
    pub(super) fn add(&mut self, kind: ControllerSet, frames: u64) {
        *self.count(kind) += frames;
    }

    /// Subtracts `frames` frames of tenants of `kind`.
    pub(super) fn remove(&mut self, kind: ControllerSet, frames: u64) {
        let count = self.count(kind);
        *count = count.saturating_sub(frames);
    }

    /// Clears the counts, but not the kinds.
    pub(super) fn clear(&mut self) {
        (self.frames, self.stuck) = ([0; KINDS], 0);
    }

    /// Returns the number of frames of all tenants.
    pub(super) fn used(&self) -> u64 {
        self.frames.iter().sum::<u64>() + self.stuck
    }

    /// Returns every non-empty subset of the kinds: its bit mask, the frames that it needs, and the controllers that any
    /// of its kinds allows.
    fn choices(&self) -> impl Iterator<Item = (u32, u64, ControllerSet)> {
        (1..1_u32 << self.kinds.len()).map(|choice| {
            let chosen = self.kinds.iter().zip(self.frames).enumerate();
            let chosen = chosen.filter(|(at, _)| choice & 1 << at != 0);
            chosen.fold((choice, 0, ControllerSet::EMPTY), |(choice, need, allowed), (_, (kind, frames))| {
                (choice, need + frames, allowed.union(*kind))
            })
        })
    }

    /// Returns the number of frames that `room` lacks.
    pub(super) fn missing(&self, room: &Room) -> u64 {
        let short = self.choices().map(|(_, need, allowed)| need.saturating_sub(room.behind(allowed)));
        short.max().unwrap_or(0).max(self.stuck)
    }

    /// Tests whether all tenants find room in any order of moves.
    pub(super) fn need_no_plan(&self, room: &Room) -> bool {
        let kinds = || self.kinds.iter().zip(self.frames).filter(|(_, frames)| *frames > 0);
        self.stuck == 0
            && kinds().all(|(kind, _)| {
                let rivals = kinds().filter(|(other, _)| !kind.intersection(**other).is_empty());
                room.behind(*kind) >= rivals.map(|(_, frames)| frames).sum::<u64>() + SPARE
            })
    }

    /// Returns the largest move that leaves room for the rest, given that there is room for all.
    pub(super) fn next_move(&self, room: &Room) -> Option<Move> {
        let mut best: Option<Move> = None;
        for (at, (kind, frames)) in self.kinds.iter().zip(self.frames).enumerate() {
            for to in kind.iter() {
                // Frames that each subset of the other kinds leaves of this controller.
                let spare = |(choice, need, allowed): (u32, u64, ControllerSet)| {
                    let limit = if allowed.contains(to) { room.behind(allowed) } else { room.total };
                    (choice & 1 << at == 0).then(|| limit.saturating_sub(need))
                };
                let spare = self.choices().filter_map(spare).min().unwrap_or(u64::MAX);
                let frames = frames.min(room.behind(ControllerSet::EMPTY.with(to))).min(spare);
                if frames > best.map_or(0, |best| best.frames) {
                    best = Some(Move { kind: *kind, to, frames });
                }
            }
        }
        best
    }
}

/// First frames of a range that have the same use.
pub(super) enum Piece {
    /// Free frames up to frame number `end`, exclusive.
    Free { end: u64 },
    /// Frames of a tenant of this kind up to `end`. `why` says why it cannot move, if `kind` is empty.
    Tenant { end: u64, kind: ControllerSet, why: Cause },
    /// Frames up to `end` that are in use and cannot move.
    Fixed { end: u64 },
}

impl Piece {
    /// Returns the piece from frame `number` on, up to at most `limit`, which lies in the same pageblock or at its end.
    pub(super) fn at(ground: &impl Ground, host: &impl Host, number: u64, limit: u64) -> Self {
        let range = crate::range::FrameRange::from_numbers(number, limit).unwrap_or_default();
        match ground.occupant(range) {
            None => Self::Free { end: limit },
            Some(occupant) if occupant.frame.number() > number => {
                Self::Free { end: occupant.frame.number().min(limit) }
            }
            Some(occupant) => {
                let end = occupant.end().min(limit);
                if is_fixed(&occupant) {
                    return Self::Fixed { end };
                }
                let (kind, why) = kind_of(host, &occupant, number);
                Self::Tenant { end, kind, why }
            }
        }
    }
}

/// Returns the controllers that the tenant on frame `number` of `occupant` may move to, and the reason if there are none.
fn kind_of(host: &impl Host, occupant: &Occupant, number: u64) -> (ControllerSet, Cause) {
    let offset = number.saturating_sub(occupant.frame.number()) * FRAME_SIZE;
    let place = occupant.mapping.and_then(|mapping| Some((mapping.guest, mapping.ipa.checked_add(offset)?)));
    let region = place
        .and_then(|(guest, ipa)| host.region_at(guest, ipa).filter(|region| region.ipa.get() <= ipa.get()));
    let Some(region) = region else { return (ControllerSet::EMPTY, Cause::Busy) };
    let why = match region.mobility {
        Mobility::Movable => Cause::Nothing,
        Mobility::PinnedInPlace => Cause::PinnedInPlace,
        Mobility::DmaWindow => Cause::DmaWindow,
        Mobility::OptedOut => Cause::OptedOut,
        Mobility::Claimed => Cause::Claimed,
        Mobility::InClaim => Cause::Isolated,
    };
    (region.allowed(), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds: the controllers of each, and the frames of its tenants.
    type Kinds<'a> = &'a [(&'a [u8], u64)];

    fn set(numbers: &[u8]) -> ControllerSet {
        numbers.iter().filter_map(|number| ControllerId::try_new(*number)).collect()
    }

    fn room(frames: &[u64]) -> Room {
        let mut room = Room { behind: [0; MAX_CONTROLLERS], total: frames.iter().sum() };
        room.behind[..frames.len()].copy_from_slice(frames);
        room
    }

    fn tenants(kinds: &[(&[u8], u64)]) -> Tenants {
        let mut tenants = Tenants::default();
        kinds.iter().for_each(|(kind, frames)| tenants.add(set(kind), *frames));
        tenants
    }

    #[test]
    fn the_subset_of_kinds_with_the_least_room_decides_what_is_missing() {
        let cases: [(Kinds<'_>, &[u64], u64); 6] = [
            (&[(&[0], 10), (&[0, 1], 10)], &[10, 10], 0),
            (&[(&[0], 11), (&[0, 1], 9)], &[10, 10], 1),
            (&[(&[0, 1], 21)], &[10, 10], 1),
            (&[(&[0, 1], 10), (&[1, 2], 10), (&[0, 2], 10)], &[10, 10, 10], 0),
            (&[(&[0], 10), (&[0, 1], 5), (&[1], 6)], &[10, 10, 10], 1),
            (&[(&[], 3), (&[0], 1)], &[10], 3),
        ];
        for (kinds, frames, missing) in cases {
            assert_eq!(tenants(kinds).missing(&room(frames)), missing, "{kinds:?} {frames:?}");
        }
    }

    #[test]
    fn moves_leave_room_for_the_rest() {
        let cases: [(Kinds<'_>, &[u64]); 4] = [
            (&[(&[0, 1], 10), (&[0], 10)], &[10, 10]),
            (&[(&[0, 1], 10), (&[1, 2], 10), (&[0, 2], 10)], &[10, 10, 10]),
            (&[(&[0, 1, 2], 12), (&[1, 2], 7), (&[2], 3), (&[1], 8)], &[10, 10, 10]),
            (&[(&[0, 1], 3), (&[0, 2], 4), (&[0, 3], 5)], &[2, 3, 3, 4]),
        ];
        for (kinds, frames) in cases {
            let (mut left, mut free, mut moves) = (tenants(kinds), room(frames), 0);
            while left.used() > 0 {
                assert_eq!(left.missing(&free), 0, "{kinds:?} after {moves} moves");
                let next = left.next_move(&free).unwrap();
                left.remove(next.kind, next.frames);
                free = free.less(next.frames, next.to);
                moves += 1;
                assert!(moves <= 12, "{kinds:?}");
            }
        }
    }

    #[test]
    fn kinds_beyond_the_limit_count_as_stuck() {
        let mut tenants = Tenants::default();
        for bits in 1..=KINDS as u8 + 1 {
            let kind: Vec<u8, 8> = (0..4).filter(|bit| bits & 1 << bit != 0).collect();
            tenants.add(set(&kind), 1);
        }
        assert_eq!((tenants.used(), tenants.missing(&room(&[100; 4]))), (9, 1));
        tenants.remove(set(&[0, 3]), 1);
        assert_eq!((tenants.used(), tenants.missing(&room(&[100; 4]))), (8, 0));
    }
}
