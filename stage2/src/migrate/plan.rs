//! Finds the next unit of a job.

use super::host::{Absence, Frames, Guests, Mobility, Region, Span};
use super::job::{Cursor, Request, Select};
use super::reason::{Reason, Unmoved};
use super::space::Space;
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE, Pa};
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::{GuestId, MAX_GUESTS};
use crate::phys::frame::Contents;
use crate::phys::placement::{Placement, Strictness};
use crate::range::FrameRange;
use crate::table::{Leaf, Level, Maintenance, TableMemory};

/// Number of leaves that are looked at in one critical section of a space's lock.
const LOOK: usize = 128;
/// Number of tenants with a closed space that are passed over in a turn.
const SKIP: u32 = 64;
/// Number of times that a job goes back to guests whose memory was not there. A guest that is reset all the time does
/// not hold it up for ever.
const RETURNS: u8 = 16;
/// Number of frames that are searched for a tenant in a turn.
const SEARCH: u64 = 64 * PAGEBLOCK_FRAMES;

/// A cache of the last result of [`Frames::span_of`].
#[derive(Clone, Copy, Default)]
pub(super) struct SpanCache(Option<Span>);

impl SpanCache {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    /// Returns the controller behind `frame`.
    #[inline(always)]
    pub(super) fn controller(&mut self, frames: &impl Frames, frame: Frame) -> Option<ControllerId> {
        match self.0 {
            Some(span) if span.frames.contains(frame) => Some(span.controller),
            _ => self.look_up(frames, frame),
        }
    }

    #[inline(never)]
    fn look_up(&mut self, frames: &impl Frames, frame: Frame) -> Option<ControllerId> {
        self.0 = frames.span_of(frame);
        self.0.map(|span| span.controller)
    }
}

/// A part of a region that a job looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portion {
    pub(super) guest: GuestId,
    pub(super) region: Region,
    pub(super) from: Ipa,
    pub(super) end: u64,
}

impl Portion {
    /// Returns whether `size` bytes from `ipa` lie in it.
    pub(super) const fn holds(&self, ipa: Ipa, size: u64) -> bool {
        ipa.get() >= self.from.get() && ipa.get() + size <= self.end
    }
}

/// The next thing for a job to do.
pub(super) enum Next {
    /// Look at this portion.
    Portion(Portion),
    /// Continue in another turn: there is nothing up to the cursor.
    Later,
    /// Wait for this guest, which starts, is reset or stops.
    Wait(GuestId),
    /// Give this guest up: its memory has gone each time that the job came to it.
    Missed(GuestId),
    /// End the job.
    End,
}

/// Returns the next thing for a job to do, and advances the cursor to it. Adds frames to `missed` that were to be
/// cleared and belong to guests that cannot be reached and that the job does not wait for.
pub(super) fn next_portion<G: Guests + Frames>(
    guests: &G,
    request: &Request,
    cursor: &mut Cursor,
    missed: &mut Unmoved,
) -> Next {
    match request.frames() {
        Some(frames) => next_tenant(guests, request, frames, cursor, missed),
        None => match next_region(guests, request, cursor) {
            Some(portion) => Next::Portion(portion),
            None => go_back(guests, request, cursor),
        },
    }
}

/// Returns whether `request` is about `guest`.
fn is_wanted(request: &Request, guest: GuestId) -> bool {
    request.guest().is_none_or(|wanted| wanted == guest)
}

/// Returns whether the memory of `guest` cannot be reached now, but will be back or gone soon.
pub(super) fn is_away<G: Guests>(guests: &G, guest: GuestId) -> bool {
    // In this order: the second condition sees a guest that has just come back.
    guests.absence(guest).is_some() && guests.space(guest).is_none()
}

/// Goes back, after the last guest, to one that is not done and whose memory is there now, or waits for one.
fn go_back<G: Guests>(guests: &G, request: &Request, cursor: &mut Cursor) -> Next {
    let done = cursor.done;
    let mut left = (0..MAX_GUESTS as u8)
        .filter(|guest| done & 1 << guest == 0)
        .filter_map(GuestId::try_new)
        .filter(|guest| is_wanted(request, *guest));
    let is_there = |guest: &GuestId| guests.space(*guest).is_some();
    match left.clone().find(is_there) {
        Some(guest) if cursor.return_count == RETURNS => {
            cursor.done |= 1 << guest.index();
            Next::Missed(guest)
        }
        Some(guest) => {
            (cursor.guest, cursor.next) = (guest.index() as u8, Ipa::default());
            cursor.return_count += 1;
            Next::Later
        }
        None => left.find(|guest| guests.absence(*guest).is_some()).map_or(Next::End, Next::Wait),
    }
}

/// Returns the next portion of a job by guests.
fn next_region<G: Guests>(guests: &G, request: &Request, cursor: &mut Cursor) -> Option<Portion> {
    let (first, end) = request.range();
    loop {
        if usize::from(cursor.guest) >= MAX_GUESTS {
            return None;
        }
        let guest = GuestId::try_new(cursor.guest)?;
        let from = cursor.next.get().max(first);
        let is_open = is_wanted(request, guest)
            && cursor.done & 1 << guest.index() == 0
            && guests.space(guest).is_some();
        let region = match is_open {
            true => Ipa::try_new(from).and_then(|from| guests.region(guest, from)),
            false => None,
        };
        let Some(region) = region.filter(|region| region.ipa.get() < end) else {
            cursor.done |= u32::from(is_open) << guest.index();
            cursor.guest += 1;
            cursor.next = Ipa::default();
            continue;
        };
        let from = from.max(region.ipa.get());
        let end = end.min(region.ipa.get() + region.size);
        if from < end {
            return Some(Portion { guest, region, from: Ipa::new_truncate(from), end });
        }
        cursor.next = Ipa::new_truncate(region.ipa.get() + region.size);
    }
}

/// Returns the next portion of a job by frames. Notes the first frame of a guest that is out of reach, and
/// comes back to it after the last frame.
fn next_tenant<G: Guests + Frames>(
    guests: &G,
    request: &Request,
    frames: FrameRange,
    cursor: &mut Cursor,
    missed: &mut Unmoved,
) -> Next {
    for _ in 0..SKIP {
        if cursor.next < cursor.end
            && let Some(guest) = GuestId::try_new(cursor.guest)
        {
            let is_waited_for = cursor.return_count < RETURNS && can_wait_for(guests, request, guest);
            if guests.space(guest).is_some() {
                let region = guests.region(guest, cursor.next);
                match region.filter(|region| region.holds(cursor.next, FRAME_SIZE)) {
                    Some(region) if request.of_kind.is_none_or(|kind| region.allowed() == kind) => {
                        let end = cursor.end.get().min(region.ipa.get() + region.size);
                        return Next::Portion(Portion { guest, region, from: cursor.next, end });
                    }
                    Some(_) => {}
                    None => count_missed(cursor, guest, frames, missed),
                }
            } else if is_waited_for || cursor.return_count < RETURNS && can_wait_for(guests, request, guest) {
                cursor.away.get_or_insert((guest, cursor.tenant));
            } else {
                count_missed(cursor, guest, frames, missed);
            }
        }
        cursor.next = cursor.end;
        let from = cursor.frame.max(frames.start());
        let to = frames.end().min(from.saturating_add(SEARCH));
        let Some(part) = FrameRange::from_numbers(from, to).filter(|part| !part.is_empty()) else {
            return come_back(guests, cursor);
        };
        let Some(tenant) = guests.tenant(part) else {
            cursor.frame = to;
            return Next::Later;
        };
        cursor.guest = tenant.guest.index() as u8;
        cursor.next = tenant.ipa;
        cursor.end = tenant.ipa.checked_add(tenant.frames.bytes()).unwrap_or(tenant.ipa);
        cursor.tenant = tenant.frames.start().max(from);
        cursor.frame = tenant.frames.end().max(from + 1);
    }
    Next::Later
}

/// Returns whether `guest` is out of reach and the job waits for it.
fn can_wait_for<G: Guests>(guests: &G, request: &Request, guest: GuestId) -> bool {
    match guests.absence(guest) {
        None => false,
        Some(Absence::Starting) => !request.skips_starting,
        Some(Absence::Resetting | Absence::Stopping) => true,
    }
}

/// Counts the rest of the tenant at the cursor as unmoved.
fn count_missed(cursor: &Cursor, guest: GuestId, frames: FrameRange, missed: &mut Unmoved) {
    let bytes = (cursor.end.get() - cursor.next.get()).min(frames.bytes());
    missed.add(guest, cursor.next, 1, bytes);
}

/// Goes back, after the last frame, to the first that was passed over, once its guest can be reached or is off.
fn come_back<G: Guests>(guests: &G, cursor: &mut Cursor) -> Next {
    let Some((guest, frame)) = cursor.away else { return Next::End };
    if is_away(guests, guest) {
        return Next::Wait(guest);
    }
    cursor.away = None;
    cursor.frame = frame;
    cursor.return_count += 1;
    Next::Later
}

/// Returns the bytes that a job by frames has looked at; `None` for other jobs.
pub(super) fn cleared_bytes(request: &Request, cursor: &Cursor) -> Option<u64> {
    let frames = request.frames()?;
    if let Some((_, frame)) = cursor.away {
        // The job comes back to this frame.
        return Some((frame.clamp(frames.start(), frames.end()) - frames.start()) * FRAME_SIZE);
    }
    let left = cursor.end.get().saturating_sub(cursor.next.get());
    let passed = cursor.frame.clamp(frames.start(), frames.end()) - frames.start();
    Some((passed * FRAME_SIZE).saturating_sub(left))
}

/// Returns the number of frames of `leaf` that have to move if it can be split.
pub(super) fn frames_to_move(request: &Request, leaf: Leaf) -> u64 {
    let frames = leaf.size() / FRAME_SIZE;
    match request.select {
        Select::Behind(_) => frames,
        Select::Touching(range) => FrameRange::try_new(Frame::containing(leaf.pa()), frames)
            .map_or(0, |frames| range.intersection(frames).frames()),
    }
}

/// Returns the first frame of `leaf` that has to move.
pub(super) fn first_to_move(request: &Request, leaf: Leaf) -> Frame {
    let first = Frame::containing(leaf.pa());
    match request.select {
        Select::Behind(_) => first,
        Select::Touching(range) => first.max(range.first()),
    }
}

/// Returns whether enough of `leaf` has to move to move all of it, if `left` bytes may move.
pub(super) fn moves_as_one(request: &Request, leaf: Leaf, left: u64) -> bool {
    let frames = leaf.size() / FRAME_SIZE;
    match request.of_kind {
        None => frames_to_move(request, leaf) > frames / 2,
        Some(_) => frames_to_move(request, leaf) == frames && leaf.size() <= left,
    }
}

/// Returns the bytes that a job looks at.
pub(super) fn total_bytes<G: Guests + Frames>(guests: &G, request: &Request) -> u64 {
    if let Some(frames) = request.frames() {
        return frames.bytes();
    }
    let (mut cursor, mut bytes) = (Cursor::default(), 0);
    while let Some(portion) = next_region(guests, request, &mut cursor) {
        bytes += portion.end - portion.from.get();
        cursor.next = Ipa::new_truncate(portion.end);
    }
    bytes
}

/// Returns whether a job moves `leaf`.
pub(super) fn is_selected(select: &Select, frames: &impl Frames, spans: &mut SpanCache, leaf: Leaf) -> bool {
    selects(select, frames, spans, Frame::containing(leaf.pa()), leaf.size() / FRAME_SIZE)
}

/// Returns whether a job moves the memory on `count` frames from `first`.
#[inline(always)]
pub(super) fn selects(
    select: &Select,
    frames: &impl Frames,
    spans: &mut SpanCache,
    first: Frame,
    count: u64,
) -> bool {
    match select {
        Select::Behind(set) => {
            spans.controller(frames, first).is_some_and(|controller| set.contains(controller))
        }
        Select::Touching(range) => {
            FrameRange::try_new(first, count).is_some_and(|frames| frames.overlaps(*range))
        }
    }
}

/// Returns the reason why nothing of `region` can move for `request`, if there is one.
pub(super) fn obstacle(request: &Request, region: &Region) -> Option<Reason> {
    match region.mobility {
        Mobility::PinnedInPlace => return Some(Reason::PinnedInPlace),
        Mobility::DmaWindow => return Some(Reason::DmaWindow),
        Mobility::OptedOut => return Some(Reason::OptedOut),
        Mobility::Claimed => return Some(Reason::Claimed),
        Mobility::InClaim => return Some(Reason::InClaim),
        Mobility::Movable => {}
    }
    let placement = request.to.as_ref().unwrap_or(&region.placement);
    let (named, _) = placement.named();
    if request.keeps_placement && named.iter().any(|controller| !region.placement.allows(controller)) {
        return Some(Reason::Placement);
    }
    match (request.select, placement.named()) {
        (Select::Behind(from), (named, Strictness::Strict)) if is_subset(named, from) => {
            Some(Reason::Placement)
        }
        _ => None,
    }
}

fn is_subset(small: ControllerSet, large: ControllerSet) -> bool {
    small.intersection(large) == small
}

/// Returns the number of free frames that [`allocate`] could take.
pub(super) fn free_frames(host: &impl Frames, request: &Request, placement: &Placement) -> u64 {
    let Select::Behind(from) = request.select else { return host.free_frames(placement) };
    let is_of_use = |controller: &ControllerId| !from.contains(*controller) && placement.allows(*controller);
    let free = |controller| host.free_frames(&Placement::only(controller));
    ControllerSet::ALL.iter().filter(is_of_use).map(free).sum()
}

/// Returns whether `frame` may be a target: it is not behind a controller that the job clears.
#[inline(always)]
fn is_useful(host: &impl Frames, request: &Request, frame: Frame) -> bool {
    match request.select {
        Select::Behind(from) => host.span_of(frame).is_some_and(|span| !from.contains(span.controller)),
        Select::Touching(_) => true,
    }
}

/// Allocates a target block that is not behind a controller that the job clears.
pub(super) fn allocate(
    host: &impl Frames,
    request: &Request,
    placement: &Placement,
    (guest, ipa): (GuestId, Ipa),
    order: u8,
) -> Option<Frame> {
    let frame = host.allocate(guest, order, placement, ipa)?;
    if is_useful(host, request, frame) {
        return Some(frame);
    }
    host.release(guest, frame, order, Contents::Dirty);
    None
}

/// Allocates `1 << order` contiguous single frames, with the condition of [`allocate`].
pub(super) fn allocate_run(
    host: &impl Frames,
    request: &Request,
    placement: &Placement,
    (guest, ipa): (GuestId, Ipa),
    order: u8,
) -> Option<Frame> {
    let frame = host.allocate_run(guest, order, placement, ipa)?;
    if is_useful(host, request, frame) {
        return Some(frame);
    }
    host.release_run(guest, frame, 1 << order, Contents::Dirty);
    None
}

/// The result of a search in a space.
pub(super) enum Found {
    /// A leaf to move.
    Leaf(Leaf),
    /// No leaf to move up to this address.
    None(Ipa),
}

/// A summary of an area of 4 KiB leaves.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Survey {
    /// Number of units that are mapped and at rest.
    pub(super) present: u64,
    /// Number of units to move.
    pub(super) selected: u64,
}

impl<T: TableMemory, M: Maintenance> Space<T, M> {
    /// Returns the first leaf of a portion for which `is_wanted`. Looks at a bounded number of leaves.
    pub(super) fn find(&self, portion: &Portion, mut is_wanted: impl FnMut(Leaf) -> bool) -> Found {
        self.with(|stage2| {
            let size = portion.end - portion.from.get();
            let mut reached = portion.end;
            for (looked, leaf) in stage2.leaves(portion.from, size).enumerate() {
                if looked == LOOK {
                    reached = leaf.ipa().get();
                    break;
                }
                if is_wanted(leaf) {
                    return Found::Leaf(leaf);
                }
            }
            Found::None(Ipa::new_truncate(reached))
        })
    }

    /// Returns the number of leading 4 KiB leaves from `ipa`, up to `most`, that are at rest and selected.
    pub(super) fn leading(&self, ipa: Ipa, most: usize, is_selected: impl FnMut(Pa) -> bool) -> usize {
        self.with(|stage2| stage2.leading(ipa, most, is_selected))
    }

    /// Summarises the 4 KiB leaves from `ipa` to the end of its area, at most `most`.
    pub(super) fn survey(&self, ipa: Ipa, most: u64, mut is_selected: impl FnMut(Leaf) -> bool) -> Survey {
        let left = PAGEBLOCK_FRAMES - (ipa.get() % PAGEBLOCK_SIZE) / FRAME_SIZE;
        let size = left.min(most) * FRAME_SIZE;
        self.with(|stage2| {
            let mut survey = Survey::default();
            for leaf in stage2.leaves(ipa, size) {
                if leaf.level() != Level::L3 || leaf.is_broken() {
                    break;
                }
                survey.present += 1;
                survey.selected += u64::from(is_selected(leaf));
            }
            survey
        })
    }
}

/// Returns the placement of the targets for a portion.
pub(super) fn placement_of<'a>(request: &'a Request, portion: &'a Portion) -> &'a Placement {
    request.to.as_ref().unwrap_or(&portion.region.placement)
}
