//! The boot memory map: which frames are RAM, behind which controller, and what each part is for.
//!
//! Three independent lists, each with edges exact to the frame:
//!
//! - **RAM**: disjoint ranges, each behind one controller. Neighbours behind the same controller merge; adding and
//!   removing splits exactly.
//! - **Reservations**: named ranges that nothing else may use (Ballast's image, boot modules, the device tree,
//!   firmware). They may overlap, and each keeps its name, so that a refusal can say *what* is in the way.
//! - **Movable marks**: what is designated movable: a block (DMB) or the general amount at the top.
//!
//! Because the lists are independent, a mark survives every later edit of the RAM list: removing RAM and adding it
//! again, as a firmware map that arrives late does, changes neither reservations nor marks. [`BootMap::segments`]
//! lays the lists over each other.
//!
//! Order of use: RAM, then reservations, then designation (`crate::phys::dmb`), and only then
//! [`carve`](BootMap::carve), so that no early allocation lands in a block that is to be movable.

use core::fmt;

use crate::addr::{FRAME_SIZE, Frame, PAGEBLOCK_FRAMES};
use crate::controller::ControllerId;
use crate::name::Name;
use crate::owner::MAX_POOLS;
use crate::phys::dmb::{Block, MAX_BLOCKS, Pool};
use crate::range::FrameRange;

mod intervals;
mod segments;
#[cfg(test)]
mod tests;

pub(crate) use intervals::Intervals;
pub use segments::{Segment, Segments};

/// How many separate ranges of RAM the map holds.
pub const MAX_RAM_RANGES: usize = 64;
/// How many reservations the map holds.
pub const MAX_RESERVATIONS: usize = 128;
/// How many separate movable marks the map holds: 19 blocks, and a general amount over up to 64 ranges.
pub const MAX_MARKS: usize = 96;

/// What a reservation keeps its frames for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservationKind {
    /// Ballast's own image.
    Image,
    /// A boot module: a kernel, a ramdisk, a configuration.
    Module,
    /// The host's device tree.
    DeviceTree,
    /// Taken by firmware, or by a node of `/reserved-memory` that may be mapped.
    Firmware,
    /// A node of `/reserved-memory` with `no-map`: never to be mapped, not even for speculation.
    NoMap,
    /// Kept for the one guest whose RAM it is, at its physical address.
    Pinned,
    /// Taken by [`BootMap::carve`] for Ballast.
    Carved,
    /// Kept out of use because the node that described it was refused.
    Withheld,
}

impl ReservationKind {
    /// Whether EL2 must not map these frames.
    pub const fn is_no_map(self) -> bool {
        matches!(self, Self::NoMap)
    }
}

/// A named range that nothing else may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// The frames.
    pub range: FrameRange,
    /// What for.
    pub kind: ReservationKind,
    /// Whose, for messages.
    pub name: Name,
}

/// What makes a range movable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MovableMark {
    /// Designated movable block with this index.
    Block(u8),
    /// Part of the general amount of `movablecore=` or of what `kernelcore=` leaves.
    Amount,
}

/// Why the map refused an edit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The range runs past the 48-bit address limit.
    BeyondAddresses {
        /// The address of its first byte.
        base: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// More movable ranges than [`MAX_MARKS`].
    MarksFull {
        /// The range that found no room.
        range: FrameRange,
    },
    /// More separate RAM ranges than [`MAX_RAM_RANGES`].
    RamFull {
        /// The range that found no place.
        range: FrameRange,
    },
    /// Two controllers claim the same RAM.
    TwoControllers {
        /// The frames that both have.
        range: FrameRange,
        /// Who had them.
        first: ControllerId,
        /// Who asks for them.
        second: ControllerId,
    },
    /// More reservations than [`MAX_RESERVATIONS`].
    ReservationsFull {
        /// The reservation that found no place.
        name: Name,
        /// Its range.
        range: FrameRange,
    },
    /// No free stretch of NORMAL memory is long enough.
    NoRoom {
        /// For whom.
        name: Name,
        /// How many bytes were asked for.
        bytes: u64,
        /// Aligned to how many bytes.
        align: u64,
        /// The longest free stretch, in bytes, alignment aside.
        longest: u64,
    },
    /// An alignment that is no power of two.
    BadAlignment {
        /// For whom.
        name: Name,
        /// What was asked for.
        align: u64,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondAddresses { base, bytes } => {
                write!(f, "{bytes:#x} bytes at {base:#x}: runs past the 48-bit address limit")
            }
            Self::RamFull { range } => {
                write!(f, "RAM {range}: the map holds at most {MAX_RAM_RANGES} separate ranges")
            }
            Self::MarksFull { range } => {
                write!(f, "movable memory {range}: the map holds at most {MAX_MARKS} separate ranges")
            }
            Self::TwoControllers { range, first, second } => {
                write!(f, "RAM {range}: claimed by {second}, but already behind {first}")
            }
            Self::ReservationsFull { name, range } => {
                write!(f, "reservation {name} ({range}): the map holds at most {MAX_RESERVATIONS}")
            }
            Self::NoRoom { name, bytes, align, longest } => write!(
                f,
                "{name}: no {bytes:#x} bytes aligned to {align:#x} in NORMAL memory (longest free stretch {longest:#x})"
            ),
            Self::BadAlignment { name, align } => {
                write!(f, "{name}: alignment {align:#x} is no power of two")
            }
        }
    }
}

impl core::error::Error for MapError {}

/// The boot memory map.
#[derive(Clone, Debug)]
pub struct BootMap {
    ram: Intervals<ControllerId, MAX_RAM_RANGES>,
    reservations: heapless::Vec<Reservation, MAX_RESERVATIONS>,
    marks: Intervals<MovableMark, MAX_MARKS>,
    blocks: heapless::Vec<Block, MAX_BLOCKS>,
    pools: heapless::Vec<Pool, MAX_POOLS>,
}

impl Default for BootMap {
    fn default() -> Self {
        Self::new()
    }
}

impl BootMap {
    /// A map without RAM.
    pub const fn new() -> Self {
        Self {
            ram: Intervals::new(),
            reservations: heapless::Vec::new(),
            marks: Intervals::new(),
            blocks: heapless::Vec::new(),
            pools: heapless::Vec::new(),
        }
    }

    /// Adds `bytes` bytes of RAM from `base` on, behind `controller`, cut inward to whole frames.
    ///
    /// # Errors
    /// Where the range runs past the address limit, where another controller has some of it, or where the map is full;
    /// the map is then unchanged.
    pub fn add_ram(&mut self, controller: ControllerId, base: u64, bytes: u64) -> Result<(), MapError> {
        let range = FrameRange::inside(base, bytes).ok_or(MapError::BeyondAddresses { base, bytes })?;
        if let Some((other, first)) =
            self.ram.iter().find(|(other, first)| other.overlaps(range) && *first != controller)
        {
            return Err(MapError::TwoControllers {
                range: other.intersection(range),
                first,
                second: controller,
            });
        }
        self.ram.insert(range, controller).map_err(|_| MapError::RamFull { range })
    }

    /// Takes `range` out of RAM. Reservations and movable marks stay.
    ///
    /// # Errors
    /// Where the split that this needs finds the map full; the map is then unchanged.
    pub fn remove_ram(&mut self, range: FrameRange) -> Result<(), MapError> {
        self.ram.remove(range).map_err(|_| MapError::RamFull { range })
    }

    /// Reserves `bytes` bytes from `base` on, widened to whole frames, under `name`. They need not be RAM.
    ///
    /// # Errors
    /// Where the range runs past the address limit or the map is full.
    pub fn reserve(
        &mut self,
        base: u64,
        bytes: u64,
        kind: ReservationKind,
        name: &str,
    ) -> Result<(), MapError> {
        let range = FrameRange::covering(base, bytes).ok_or(MapError::BeyondAddresses { base, bytes })?;
        self.reserve_range(range, kind, Name::new(name))
    }

    /// Reserves `range` under `name`.
    ///
    /// # Errors
    /// Where the map is full.
    pub fn reserve_range(
        &mut self,
        range: FrameRange,
        kind: ReservationKind,
        name: Name,
    ) -> Result<(), MapError> {
        if range.is_empty() {
            return Ok(());
        }
        let place = self.reservations.partition_point(|other| other.range <= range);
        self.reservations
            .insert(place, Reservation { range, kind, name })
            .map_err(|_| MapError::ReservationsFull { name, range })
    }

    /// Takes `bytes` bytes, rounded up to whole frames and aligned to `align` bytes, from the lowest place in NORMAL
    /// memory that is free, and reserves them under `name`.
    ///
    /// # Errors
    /// Where there is no such place, the alignment is no power of two, or the map is full.
    pub fn carve(&mut self, bytes: u64, align: u64, name: &str) -> Result<FrameRange, MapError> {
        let name = Name::new(name);
        if !align.is_power_of_two() {
            return Err(MapError::BadAlignment { name, align });
        }
        let frames = bytes.div_ceil(FRAME_SIZE);
        let step = align.div_ceil(FRAME_SIZE);
        let mut longest = 0;
        for segment in self.segments().filter(Segment::is_free_normal) {
            longest = longest.max(segment.range.bytes());
            let start = segment.range.start().next_multiple_of(step);
            if start + frames <= segment.range.end()
                && let Some(range) = FrameRange::from_numbers(start, start + frames)
            {
                self.reserve_range(range, ReservationKind::Carved, name)?;
                return Ok(range);
            }
        }
        Err(MapError::NoRoom { name, bytes, align, longest })
    }

    /// Keeps unmovable allocations out of all memory from frame number `start` on: whole pageblocks that are free there
    /// become movable, smaller remainders are reserved under `name`. Call it last.
    ///
    /// # Errors
    /// The map is full.
    pub fn restrict_to_movable(&mut self, start: u64, name: &str) -> Result<(), MapError> {
        let above = |segment: Segment| {
            let range = FrameRange::from_numbers(segment.range.start().max(start), segment.range.end())?;
            (!range.is_empty()).then_some(range)
        };
        while let Some(free) = self.segments().filter(Segment::is_free_normal).find_map(above) {
            let whole = free.aligned_inside(PAGEBLOCK_FRAMES);
            if whole.is_empty() {
                self.reserve_range(free, ReservationKind::Carved, Name::new(name))?;
            } else {
                self.marks
                    .insert(whole, MovableMark::Amount)
                    .map_err(|_| MapError::MarksFull { range: whole })?;
            }
        }
        Ok(())
    }

    /// The movable marks, to be edited and given back by [`Self::set_designation`].
    pub(crate) fn marks_to_edit(&self) -> Intervals<MovableMark, MAX_MARKS> {
        self.marks.clone()
    }

    /// Puts a checked designation into the map.
    pub(crate) fn set_designation(
        &mut self,
        marks: Intervals<MovableMark, MAX_MARKS>,
        blocks: heapless::Vec<Block, MAX_BLOCKS>,
        pools: heapless::Vec<Pool, MAX_POOLS>,
    ) {
        self.marks = marks;
        self.blocks = blocks;
        self.pools = pools;
    }

    /// Marks `range` movable without any check.
    #[cfg(test)]
    pub(crate) fn mark_movable(&mut self, range: FrameRange, mark: MovableMark) {
        self.marks.insert(range, mark).expect("room for the mark");
    }

    /// The RAM ranges with their controllers, ascending.
    pub fn ram(&self) -> impl Iterator<Item = (FrameRange, ControllerId)> + Clone {
        self.ram.iter()
    }

    /// The reservations, ascending by start.
    pub fn reservations(&self) -> &[Reservation] {
        &self.reservations
    }

    /// The movable marks, ascending.
    pub fn movable(&self) -> impl Iterator<Item = (FrameRange, MovableMark)> + Clone {
        self.marks.iter()
    }

    /// The designated movable blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The pools.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The first reservation that touches `range`.
    pub fn reservation_in(&self, range: FrameRange) -> Option<&Reservation> {
        self.reservations.iter().find(|reservation| reservation.range.overlaps(range))
    }

    /// The RAM range that `frame` lies in, with its controller.
    pub fn ram_at(&self, frame: Frame) -> Option<(FrameRange, ControllerId)> {
        self.ram.iter().find(|(range, _)| range.contains(frame))
    }

    /// How many frames of RAM there are.
    pub fn ram_frames(&self) -> u64 {
        self.ram.iter().map(|(range, _)| range.frames()).sum()
    }

    /// How many frames of RAM no reservation has.
    pub fn unreserved_frames(&self) -> u64 {
        let free = self.segments().filter(|segment| segment.reservation.is_none());
        free.map(|segment| segment.range.frames()).sum()
    }

    /// RAM cut into the longest stretches in which controller, reservation and mark are the same.
    pub fn segments(&self) -> Segments<'_> {
        Segments::new(self)
    }
}
