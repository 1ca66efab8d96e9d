//! Queries about zones, controllers, owners and frames.

use super::Memory;
use crate::addr::Frame;
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::{Owner, PoolId};
use crate::phys::frame::{Contents, Mapping, State};
use crate::phys::pageblock::MigrateType;
use crate::phys::zone::Zone;
use crate::range::FrameRange;

/// A zone, as a whole or behind one controller, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneTotals {
    /// The span from its first present frame to its last; empty if it has none.
    pub span: FrameRange,
    /// Frames of RAM present in it.
    pub present: u64,
    /// Frames that the allocator manages.
    pub managed: u64,
    /// Free frames that can be allocated.
    pub free: u64,
    /// Free frames of isolated pageblocks.
    pub isolated: u64,
    /// Retired frames.
    pub retired: u64,
}

impl ZoneTotals {
    /// Returns the number of frames that the allocator does not manage.
    pub const fn reserved(&self) -> u64 {
        self.present - self.managed
    }

    /// Returns the totals of both.
    fn with(self, other: Self) -> Self {
        let span = match (self.present, other.present) {
            (0, _) => other.span,
            (_, 0) => self.span,
            _ => FrameRange::from_numbers(
                self.span.start().min(other.span.start()),
                self.span.end().max(other.span.end()),
            )
            .unwrap_or(self.span),
        };
        Self {
            span,
            present: self.present + other.present,
            managed: self.managed + other.managed,
            free: self.free + other.free,
            isolated: self.isolated + other.isolated,
            retired: self.retired + other.retired,
        }
    }
}

/// The memory behind a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControllerTotals {
    /// The part of NORMAL.
    pub normal: ZoneTotals,
    /// The part of MOVABLE.
    pub movable: ZoneTotals,
}

impl ControllerTotals {
    /// Returns the number of frames of RAM.
    pub const fn present(&self) -> u64 {
        self.normal.present + self.movable.present
    }

    /// Returns the number of free frames.
    pub const fn free(&self) -> u64 {
        self.normal.free + self.movable.free
    }

    /// Returns the number of retired frames.
    pub const fn retired(&self) -> u64 {
        self.normal.retired + self.movable.retired
    }
}

/// The records of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    /// The frame.
    pub frame: Frame,
    /// The controller that the frame is behind.
    pub controller: ControllerId,
    /// The zone that it is present in.
    pub zone: Zone,
    /// The type of its pageblock.
    pub migrate_type: MigrateType,
    /// True if its pageblock is isolated.
    pub is_isolated: bool,
    /// The designated block that contains it.
    pub block: Option<u8>,
    /// The pool that contains it.
    pub pool: Option<PoolId>,
    /// The first frame of its block.
    pub head: Frame,
    /// log2 of the block's frames.
    pub order: u8,
    /// The block's state.
    pub state: State,
    /// The block's owner, if it is in use.
    pub owner: Option<Owner>,
    /// The guest and IPA that map the frame.
    pub mapping: Option<Mapping>,
    /// The state of a free block's bytes.
    pub contents: Contents,
    /// True if the frame is in use and will be retired when its block is freed.
    pub is_doomed: bool,
}

impl Memory<'_> {
    /// Returns the controllers that have RAM.
    pub fn controllers(&self) -> ControllerSet {
        self.layout.get().map_or(ControllerSet::EMPTY, |layout| layout.controllers)
    }

    /// Returns the totals of `zone` behind `controller`.
    pub fn arena_totals(&self, zone: Zone, controller: ControllerId) -> ZoneTotals {
        let Some(layout) = self.layout.get() else { return ZoneTotals::default() };
        let arena = self.arena(zone.arena(controller));
        let extent = layout.extents[zone.arena(controller)];
        ZoneTotals {
            span: extent.span,
            present: extent.present,
            managed: arena.managed(),
            free: arena.free(),
            isolated: arena.isolated(),
            retired: arena.retired(),
        }
    }

    /// Returns the totals of `zone`.
    pub fn zone_totals(&self, zone: Zone) -> ZoneTotals {
        self.controllers().iter().fold(ZoneTotals::default(), |totals, controller| {
            totals.with(self.arena_totals(zone, controller))
        })
    }

    /// Returns the totals of `controller`.
    pub fn controller_totals(&self, controller: ControllerId) -> ControllerTotals {
        ControllerTotals {
            normal: self.arena_totals(Zone::Normal, controller),
            movable: self.arena_totals(Zone::Movable, controller),
        }
    }

    /// Returns the number of frames of `owner` behind `controller`.
    pub fn resident(&self, owner: Owner, controller: ControllerId) -> u64 {
        Zone::ALL.iter().map(|zone| self.arena(zone.arena(controller)).used(owner)).sum()
    }

    /// Returns the number of frames of `owner` behind all controllers.
    pub fn resident_everywhere(&self, owner: Owner) -> u64 {
        self.controllers().iter().map(|controller| self.resident(owner, controller)).sum()
    }

    /// Returns the controller that `frame` is behind, or `None` if it is not RAM.
    pub fn controller_of(&self, frame: Frame) -> Option<ControllerId> {
        Some(self.layout.get()?.table.ram_range_of(frame)?.controller)
    }

    /// Returns the records of `frame`, or `None` if it is not RAM.
    pub fn frame_info(&self, frame: Frame) -> Option<FrameInfo> {
        let record = self.record(frame)?;
        let (table, ram_range) = (record.table(), record.ram_range);
        let _locked = record.lock();
        let word = table.words.word(record.slot);
        let head = table.head(ram_range, frame.number())?;
        let first = ram_range.slot(head.number);
        let entry = table.words.entry(first);
        let (owner, mapping, contents) = match head.state {
            State::Free => (None, None, table.words.free_map(first.pageblock()).info().contents()),
            State::Used => (entry.meta().owner(), entry.mapping(), Contents::Dirty),
            State::Reserved | State::Retired => (None, None, Contents::Dirty),
        };
        Some(FrameInfo {
            frame,
            controller: ram_range.controller,
            zone: word.zone(),
            migrate_type: word.migrate_type(),
            is_isolated: word.is_isolated(),
            block: word.block(),
            pool: word.pool(),
            head: Frame::try_new(head.number)?,
            order: head.order,
            state: head.state,
            owner,
            mapping: mapping.and_then(|mapping| mapping.offset(frame.number() - head.number)),
            contents,
            is_doomed: head.state == State::Used && Self::is_doomed(&record),
        })
    }
}
