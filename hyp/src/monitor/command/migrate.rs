//! `migrate`, `pin`, `unpin`: the placement of a guest's memory.

use alloc::vec::Vec;
use stage2::addr::Ipa;
use stage2::controller::{ControllerId, ControllerSet};
use stage2::migrate::{Mobility, Request, Scope};
use stage2::owner::GuestId;
use stage2::phys::placement::{ControllerList, Placement, Strictness, Turns};

use super::backing::parts;
use super::names::Placed;
use super::prelude::*;
use crate::monitor::grammar::find_controller;
use crate::monitor::machine::GuestState;
use crate::monitor::migration::{Migration, Piece};
use crate::monitor::region::{Region, pieces};

/// A region of a guest, as parameters 0 and 1 name it.
struct Selected<'a, 'w> {
    migration: &'a dyn Migration,
    /// The guest's index.
    index: usize,
    id: GuestId,
    name: &'a str,
    /// The region's name.
    word: &'w str,
    region: Region,
}

impl<'a, 'w> Selected<'a, 'w> {
    fn of(session: &mut Session<'a>, arguments: &Arguments<'w>) -> Result<Self, Failure> {
        let index = arguments.guest(0).unwrap_or(usize::MAX);
        let id = u8::try_from(index).ok().and_then(GuestId::try_new);
        let Some((guest, id)) = session.machine.guest(index).zip(id) else {
            refuse!(session, "the guest no longer exists");
        };
        let word = arguments.word(1).unwrap_or("RAM");
        let region = Region::parse(word).unwrap_or(Region::All);
        Ok(Self { migration: session.migration()?, index, id, name: guest.name, word, region })
    }

    /// Returns the region of a guest that is running.
    fn of_running(session: &mut Session<'a>, arguments: &Arguments<'w>) -> Result<Self, Failure> {
        let selected = Self::of(session, arguments)?;
        match session.machine.guest(selected.index).map(|guest| guest.state) {
            Some(GuestState::Running) => Ok(selected),
            state => {
                let (name, state) = (selected.name, state.map_or("gone", GuestState::name));
                refuse!(session, "{name} is {state}: only the memory of running guests can move");
            }
        }
    }

    /// Iterates over all pieces of the guest's RAM.
    fn pieces(&self) -> impl Iterator<Item = Piece> + use<'a> {
        pieces(self.migration, self.index)
    }

    /// Iterates over the pieces that the region touches, with the range of addresses that they have in common.
    fn touched(&self) -> impl Iterator<Item = (Piece, u64, u64)> + use<'a> {
        let (ipa, size) = self.region.range(self.migration, self.index).unwrap_or((0, 0));
        let common = move |piece: Piece| {
            let end = (piece.ipa + piece.size).min(ipa.saturating_add(size));
            (piece, piece.ipa.max(ipa), end)
        };
        self.pieces().map(common).filter(|(_, start, end)| start < end)
    }

    /// Returns the scope of the region, and the bytes of RAM in it.
    fn scope(&self, session: &mut Session<'_>) -> Result<(Scope, u64), Failure> {
        let Some((ipa, size)) = self.region.range(self.migration, self.index) else {
            refuse!(session, "{} has no {}; it has {}", self.name, self.word, Names(self));
        };
        let scope = match self.region {
            Region::All => Scope::Guest(self.id),
            _ => Scope::Range(self.id, Ipa::new_truncate(ipa), size),
        };
        Ok((scope, self.touched().map(|(_, start, end)| end - start).sum()))
    }

    /// Returns the bytes of the region that cannot move.
    ///
    /// # Errors
    /// Nothing in the region can move: the guest opted out, or all of it is mapped 1:1 or a DMA window.
    fn held(&self, session: &mut Session<'_>) -> Result<Held, Failure> {
        let touched = || self.touched().map(|(piece, ..)| piece);
        if touched().any(|piece| piece.mobility == Mobility::OptedOut) {
            refuse!(
                session,
                "{} is configured with no-migration: its memory never moves. To allow migration, remove the property \
                 from the configuration and reboot",
                self.name
            );
        }
        match touched().find(|piece| fixed(piece).is_some()) {
            Some(piece) if touched().all(|piece| fixed(&piece).is_some()) => {
                Err(self.refuse_fixed(session, &piece))
            }
            _ => {
                let bytes = |reason| {
                    let held = touched().filter(|piece| fixed(piece) == Some(reason));
                    held.map(|piece| piece.size).sum()
                };
                Ok(Held { in_place: bytes(IN_PLACE), window: bytes(DMA_WINDOW) })
            }
        }
    }

    /// Returns the refusal to move `piece`, which is mapped 1:1 or a DMA window.
    fn refuse_fixed(&self, session: &mut Session<'_>, piece: &Piece) -> Failure {
        let (ipa, size, name) = (piece.ipa, Compact(piece.size), self.name);
        let reason = fixed(piece).unwrap_or_default();
        session.refuse(format_args!("{size}@{ipa:#x} of {name} is {reason} and cannot move"))
    }

    /// Counts the bytes of the region that can move and lie behind other controllers than `to`.
    fn elsewhere(&self, session: &mut Session<'_>, to: ControllerId) -> Result<u64, Failure> {
        let mut bytes = 0;
        for (_, start, end) in self.touched().filter(|(piece, ..)| piece.mobility == Mobility::Movable) {
            let parts = parts(session, self.index, start, end - start)?;
            let elsewhere = parts.iter().filter(|part| part.controller != to.index());
            bytes += elsewhere.map(|part| part.bytes).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Sets the placement of the pieces in the region; `None` restores that in the configuration.
    fn place(&self, session: &mut Session<'_>, placement: Option<Placement>) -> Done {
        let named = || self.pieces().enumerate().filter(|(_, piece)| self.region.names(piece));
        let is = |mobility| move |(_, piece): &(usize, Piece)| piece.mobility == mobility;
        let movable = || named().filter(|(_, piece)| fixed(piece).is_none());
        // Memory that is mapped 1:1 cannot be pinned; unpinning it does nothing. A DMA window stays where it is when all of
        // the guest's RAM is pinned: every guest with devices has one.
        let in_place = named().find(is(Mobility::PinnedInPlace));
        let window = named().find(is(Mobility::DmaWindow)).filter(|_| movable().next().is_none());
        if let Some((_, piece)) = in_place.or(window).filter(|_| placement.is_some()) {
            return Err(self.refuse_fixed(session, &piece));
        }
        if named().next().is_none() {
            refuse!(session, "{} is not a whole region of {}; it has {}", self.word, self.name, Names(self));
        }
        movable().for_each(|(at, _)| self.migration.place(self.index, at, placement));
        Ok(())
    }
}

/// Bytes that cannot move, by reason.
struct Held {
    in_place: u64,
    window: u64,
}

const IN_PLACE: &str = "mapped 1:1";
const DMA_WINDOW: &str = "a DMA window";

/// Returns the reason why `piece` has a fixed place, if it has one.
fn fixed(piece: &Piece) -> Option<&'static str> {
    match piece.mobility {
        Mobility::PinnedInPlace => Some(IN_PLACE),
        Mobility::DmaWindow => Some(DMA_WINDOW),
        Mobility::Movable | Mobility::OptedOut | Mobility::Claimed | Mobility::InClaim => None,
    }
}

/// The names and ranges of the pieces of a guest's RAM.
struct Names<'a>(&'a Selected<'a, 'a>);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, piece) in self.0.pieces().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}@{:#x}", piece.name(), Compact(piece.size), piece.ipa)?;
        }
        Ok(())
    }
}

/// Returns the controller given for parameter `at`, which must take allocations.
pub(super) fn target(
    session: &mut Session<'_>,
    arguments: &Arguments<'_>,
    at: usize,
) -> Result<ControllerId, Failure> {
    let id = arguments.controller(at).unwrap_or_default();
    if let Some(controller) = session.machine.controller(id.index()).filter(|controller| controller.is_closed)
    {
        let name = controller.name;
        refuse!(session, "{name} takes no allocations: restore {name} first");
    }
    Ok(id)
}

/// Queues `request` and reports the job.
fn submit(session: &mut Session<'_>, name: &str, request: Request, what: fmt::Arguments<'_>) -> Done {
    let migration = session.migration()?;
    let job = migration.submit(request).map_err(|error| session.refuse(format_args!("{error}")))?;
    let number = job.get();
    session.done(name, format_args!("Job {number} {what}."), &[("job", Count(number.into()))])
}

/// Moves a guest's memory to a controller.
pub(super) fn migrate(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let selected = Selected::of_running(session, arguments)?;
    let to = target(session, arguments, 2)?;
    let (scope, size) = selected.scope(session)?;
    let held = selected.held(session)?;
    let (name, to_name) = (selected.name, session.machine.controller_name(to));
    let mut pieces = selected.touched().map(|(piece, ..)| piece);
    let excluding = pieces.find(|piece| piece.mobility == Mobility::Movable && !piece.placement.allows(to));
    if let Some(piece) = excluding.filter(|_| !arguments.has_flag(3)) {
        let (region, allowed) = (piece.name(), Placed(session.machine, &piece.placement));
        let by = if piece.is_pinned { "pin" } else { "the configuration" };
        refuse!(
            session,
            "{region} of {name} must stay behind {allowed} (strict, set by {by}). To change the placement: pin {name} \
             {region} {to_name}; to move it all the same: migrate --force"
        );
    }
    let moving = selected.elsewhere(session, to)?;
    let what = from_fn(|f| {
        write!(f, "moves {} of {name} to {to_name}", Size(moving))?;
        if let Some(piece) = excluding {
            write!(f, ", against the strict placement of {}", piece.name())?;
        }
        match size.saturating_sub(held.in_place + held.window + moving) {
            0 => {}
            there => write!(f, "; {} are there already", Size(there))?,
        }
        for (bytes, reason) in [(held.in_place, IN_PLACE), (held.window, DMA_WINDOW)] {
            if bytes > 0 {
                write!(f, ".\n{} of it cannot move: {reason}", Size(bytes))?;
            }
        }
        Ok(())
    });
    submit(session, "migrate", Request::migrate(scope, to), format_args!("{what}"))
}

/// Pins a region of a guest to controllers, and moves the memory that lies elsewhere.
pub(super) fn pin(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let selected = Selected::of_running(session, arguments)?;
    let placement = placement(session, arguments);
    let (scope, size) = selected.scope(session)?;
    selected.held(session)?;
    let turns = turns(session, selected.id, &placement)?;
    selected.place(session, Some(placement))?;
    let (name, region, machine) = (selected.name, selected.word, session.machine);
    let to = Placed(machine, &placement);
    if let Some((set, turns)) = turns {
        let size = Size(size);
        let what = format_args!("spreads {size} of {name} over {to}; pinned until unpin");
        return submit(session, "pin", Request::spread(scope, set, turns), what);
    }
    let what = format_args!("moves {region} of {name} to {to}; pinned until unpin");
    submit(session, "pin", Request::pin(scope, placement), what)
}

/// Returns the turns of an interleaved `placement`: each controller gets a share in proportion to its free memory and the
/// memory that the guest has there already.
fn turns(
    session: &mut Session<'_>,
    guest: GuestId,
    placement: &Placement,
) -> Result<Option<(ControllerSet, Turns)>, Failure> {
    let Placement::Interleave(set, _) = *placement else { return Ok(None) };
    let migration = session.migration()?;
    match Turns::new(set, |controller| migration.frames_for(guest, controller)) {
        Some(turns) => Ok(Some((set, turns))),
        None => Err(session.refuse(format_args!("no free memory on the listed controllers"))),
    }
}

/// Returns the placement that `CONTROLLER[,…]` (parameter 2) and the mode (parameter 3) describe.
fn placement(session: &Session<'_>, arguments: &Arguments<'_>) -> Placement {
    let machine = session.machine;
    let words = arguments.word(2).unwrap_or("").split(',');
    let list: Vec<ControllerId> = words.filter_map(|name| find_controller(name, machine)).collect();
    let set: ControllerSet = list.iter().copied().collect();
    match arguments.word(3) {
        Some("interleave") => Placement::Interleave(set, Strictness::Strict),
        Some("preferred") => Placement::Listed(ControllerList::new(&list), Strictness::Preferred),
        _ => Placement::Listed(ControllerList::new(&list), Strictness::Strict),
    }
}

/// Restores the placement in the configuration for a region of a guest.
pub(super) fn unpin(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let selected = Selected::of(session, arguments)?;
    selected.place(session, None)?;
    let name = selected.name;
    let text = format_args!("Unpinned: new allocations for {name} follow its configuration.");
    session.done("unpin", text, &[("guest", Text(name))])
}
