//! What memory knows of itself.

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
    /// From its first present frame to its last; empty if it has none.
    pub span: FrameRange,
    /// Frames of RAM in it.
    pub present: u64,
    /// Frames that the allocator was given.
    pub managed: u64,
    /// Free frames that can be allocated.
    pub free: u64,
    /// Free frames of isolated pageblocks.
    pub isolated: u64,
    /// Retired frames.
    pub retired: u64,
}

impl ZoneTotals {
    /// Frames that the allocator was never given.
    pub const fn reserved(&self) -> u64 {
        self.present - self.managed
    }

    /// The totals of both together.
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

/// What lies behind a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControllerTotals {
    /// Its part of NORMAL.
    pub normal: ZoneTotals,
    /// Its part of MOVABLE.
    pub movable: ZoneTotals,
}

impl ControllerTotals {
    /// Frames of RAM.
    pub const fn present(&self) -> u64 {
        self.normal.present + self.movable.present
    }

    /// Free frames.
    pub const fn free(&self) -> u64 {
        self.normal.free + self.movable.free
    }

    /// Retired frames.
    pub const fn retired(&self) -> u64 {
        self.normal.retired + self.movable.retired
    }
}

/// Everything known of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    /// The frame asked about.
    pub frame: Frame,
    /// The controller that it lies behind.
    pub controller: ControllerId,
    /// The zone that it is present in.
    pub zone: Zone,
    /// What its pageblock serves.
    pub migrate_type: MigrateType,
    /// Whether its pageblock is isolated.
    pub is_isolated: bool,
    /// The designated block that it lies in.
    pub block: Option<u8>,
    /// The pool that it lies in.
    pub pool: Option<PoolId>,
    /// The first frame of its block.
    pub head: Frame,
    /// log2 of the block's frames.
    pub order: u8,
    /// The block's state.
    pub state: State,
    /// The block's owner, if it is in use.
    pub owner: Option<Owner>,
    /// Where the frame appears.
    pub mapping: Option<Mapping>,
    /// What is known of a free block's bytes.
    pub contents: Contents,
    /// Whether the frame, in use, is to be retired when its block is freed.
    pub is_doomed: bool,
}

impl Memory<'_> {
    /// The controllers that have RAM.
    pub fn controllers(&self) -> ControllerSet {
        self.layout.get().map_or(ControllerSet::EMPTY, |layout| layout.controllers)
    }

    /// The part of `zone` behind `controller`.
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

    /// All of `zone`.
    pub fn zone_totals(&self, zone: Zone) -> ZoneTotals {
        self.controllers().iter().fold(ZoneTotals::default(), |totals, controller| {
            totals.with(self.arena_totals(zone, controller))
        })
    }

    /// All of `controller`.
    pub fn controller_totals(&self, controller: ControllerId) -> ControllerTotals {
        ControllerTotals {
            normal: self.arena_totals(Zone::Normal, controller),
            movable: self.arena_totals(Zone::Movable, controller),
        }
    }

    /// How many frames `owner` has behind `controller`.
    pub fn resident(&self, owner: Owner, controller: ControllerId) -> u64 {
        Zone::ALL.iter().map(|zone| self.arena(zone.arena(controller)).used(owner)).sum()
    }

    /// How many frames `owner` has behind all controllers.
    pub fn resident_everywhere(&self, owner: Owner) -> u64 {
        self.controllers().iter().map(|controller| self.resident(owner, controller)).sum()
    }

    /// The controller that `frame` lies behind; `None` where it is no RAM.
    pub fn controller_of(&self, frame: Frame) -> Option<ControllerId> {
        Some(self.layout.get()?.table.region_of(frame)?.controller)
    }

    /// Everything known of `frame`; `None` where it is no RAM.
    pub fn frame_info(&self, frame: Frame) -> Option<FrameInfo> {
        let record = self.record(frame)?;
        let (table, region) = (record.table(), record.region);
        let _locked = record.lock();
        let word = table.words.word(record.slot);
        let head = table.head(region, frame.number())?;
        let first = region.slot(head.number);
        let entry = table.words.entry(first);
        let (owner, mapping, contents) = match head.state {
            State::Free => (None, None, table.words.free_map(first.pageblock()).info().contents()),
            State::Used => (entry.meta().owner(), entry.mapping(), Contents::Dirty),
            State::Reserved | State::Retired => (None, None, Contents::Dirty),
        };
        Some(FrameInfo {
            frame,
            controller: region.controller,
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
