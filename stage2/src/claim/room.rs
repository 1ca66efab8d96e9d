//! Tenants of a range by where they may move to, and whether there is room for all of them.
//!
//! A *kind* is the set of controllers that a tenant may lie behind: all of them, unless its placement is strict; none if
//! it cannot move. There is room for the tenants of a range if and only if, for every choice of kinds, the controllers
//! that any of these kinds allows have as many free frames together as the tenants of these kinds need (Hall's theorem).
//! The order in which tenants move matters too: one that may go anywhere must not take the last free frames of the only
//! controller that another may go to. [`Tenants::next_move`] chooses moves that leave room for the rest.

use heapless::Vec;

use crate::addr::FRAME_SIZE;
use crate::controller::{ControllerId, ControllerSet, MAX_CONTROLLERS};
use crate::migrate::Mobility;
use crate::phys::alloc::Occupant;

use super::cause::Cause;
use super::host::{Ground, Host};
use super::search::is_fixed;

/// Most kinds that are told apart: all choices of them are gone through.
const KINDS: usize = 8;
/// Free frames beyond those needed with which moves need no plan: a unit of 2 MiB at each end of a range may move as a
/// whole.
const SPARE: u64 = 2 << crate::addr::PAGEBLOCK_ORDER;

/// Free frames by controller.
#[derive(Clone)]
pub(super) struct Room {
    behind: [u64; MAX_CONTROLLERS],
    total: u64,
}

impl Room {
    /// The frames that are free now. Those of isolated pageblocks do not count.
    pub(super) fn of(ground: &impl Ground) -> Self {
        let mut room = Self { behind: [0; MAX_CONTROLLERS], total: ground.free_frames() };
        for controller in ground.controllers().iter() {
            room.behind[controller.index()] = ground.free_frames_behind(controller);
        }
        room
    }

    /// The same room without `frames` free frames behind `controller`.
    pub(super) fn less(&self, frames: u64, controller: ControllerId) -> Self {
        let mut room = self.clone();
        let behind = &mut room.behind[controller.index()];
        *behind = behind.saturating_sub(frames);
        room.total = room.total.saturating_sub(frames);
        room
    }

    /// The free frames behind any of `controllers`.
    fn behind(&self, controllers: ControllerSet) -> u64 {
        let of = |controller: ControllerId| self.behind.get(controller.index()).copied().unwrap_or(0);
        controllers.iter().map(of).sum::<u64>().min(self.total)
    }

    /// Whether `used` frames have room behind each of `controllers` alone: no tenant can take another's place.
    pub(super) fn is_ample(&self, used: u64, controllers: ControllerSet) -> bool {
        controllers
            .iter()
            .all(|controller| self.behind(ControllerSet::EMPTY.with(controller)) >= used + SPARE)
    }
}

/// Some tenants that are to move to one controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    /// The kind of the tenants.
    pub(super) kind: ControllerSet,
    /// Where they move to.
    pub(super) to: ControllerId,
    /// How many frames of them.
    pub(super) frames: u64,
}

/// How many frames tenants have, by kind.
#[derive(Clone, Default)]
pub(super) struct Tenants {
    /// The kinds seen so far, in this order for good.
    kinds: Vec<ControllerSet, KINDS>,
    frames: [u64; KINDS],
    /// Frames of tenants that cannot move, or of kinds that there was no place for in the list.
    stuck: u64,
}

impl Tenants {
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

    pub(super) fn add(&mut self, kind: ControllerSet, frames: u64) {
        *self.count(kind) += frames;
    }

    pub(super) fn remove(&mut self, kind: ControllerSet, frames: u64) {
        let count = self.count(kind);
        *count = count.saturating_sub(frames);
    }

    /// Forgets all frames, but not the kinds.
    pub(super) fn clear(&mut self) {
        (self.frames, self.stuck) = ([0; KINDS], 0);
    }

    /// The frames of all.
    pub(super) fn used(&self) -> u64 {
        self.frames.iter().sum::<u64>() + self.stuck
    }

    /// Every choice of kinds: which they are, a bit each, the frames that they need, and the controllers that any of them
    /// allows.
    fn choices(&self) -> impl Iterator<Item = (u32, u64, ControllerSet)> {
        (1..1_u32 << self.kinds.len()).map(|choice| {
            let chosen = self.kinds.iter().zip(self.frames).enumerate();
            let chosen = chosen.filter(|(at, _)| choice & 1 << at != 0);
            chosen.fold((choice, 0, ControllerSet::EMPTY), |(choice, need, allowed), (_, (kind, frames))| {
                (choice, need + frames, allowed.union(*kind))
            })
        })
    }

    /// How many frames are missing in `room`.
    pub(super) fn missing(&self, room: &Room) -> u64 {
        let short = self.choices().map(|(_, need, allowed)| need.saturating_sub(room.behind(allowed)));
        short.max().unwrap_or(0).max(self.stuck)
    }

    /// Whether they all find a place in whatever order they move.
    pub(super) fn need_no_plan(&self, room: &Room) -> bool {
        let kinds = || self.kinds.iter().zip(self.frames).filter(|(_, frames)| *frames > 0);
        self.stuck == 0
            && kinds().all(|(kind, _)| {
                let rivals = kinds().filter(|(other, _)| !kind.intersection(**other).is_empty());
                room.behind(*kind) >= rivals.map(|(_, frames)| frames).sum::<u64>() + SPARE
            })
    }

    /// The largest move after which there is still room for the rest, if there is room for all now.
    pub(super) fn next_move(&self, room: &Room) -> Option<Move> {
        let mut best: Option<Move> = None;
        for (at, (kind, frames)) in self.kinds.iter().zip(self.frames).enumerate() {
            for to in kind.iter() {
                // What the others leave of it, whichever of them are chosen.
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

/// What stands on the first frames of a range.
pub(super) enum Piece {
    /// Nothing, before frame number `end`.
    Free { end: u64 },
    /// A tenant of this kind, before frame number `end`; `why` says why it cannot move, if that is so.
    Tenant { end: u64, kind: ControllerSet, why: Cause },
    /// What can neither move nor was free.
    Fixed { end: u64 },
}

impl Piece {
    /// What stands on frame `number`, and on those after it before `limit`, which lies in the same pageblock.
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

/// The controllers that the tenant on frame `number`, one of `occupant`'s, may move to, and why it may move to none.
fn kind_of(host: &impl Host, occupant: &Occupant, number: u64) -> (ControllerSet, Cause) {
    let offset = number.saturating_sub(occupant.frame.number()) * FRAME_SIZE;
    let place = occupant.mapping.and_then(|mapping| Some((mapping.guest, mapping.ipa.checked_add(offset)?)));
    let region = place
        .and_then(|(guest, ipa)| host.region_at(guest, ipa).filter(|region| region.ipa.get() <= ipa.get()));
    let Some(region) = region else { return (ControllerSet::EMPTY, Cause::Busy) };
    let why = match region.mobility {
        Mobility::Movable => Cause::Nothing,
        Mobility::PinnedInPlace => Cause::PinnedInPlace,
        Mobility::OptedOut => Cause::OptedOut,
        Mobility::Claimed => Cause::Claimed,
        Mobility::InClaim => Cause::Isolated,
    };
    (region.allowed(), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tenants: the controllers that each may move to, and its frames.
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
    fn what_is_missing_is_that_of_the_kinds_with_the_least_room() {
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
    fn more_kinds_than_are_told_apart_count_as_stuck() {
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
