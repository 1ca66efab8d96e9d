//! The boot memory map: which frames are RAM, behind which controller, and what each range is for.
//!
//! It consists of three independent lists, each exact to the frame:
//!
//! - **RAM**: disjoint ranges, each behind one controller. Adjacent ranges behind the same controller merge; adding and
//!   removing split exactly.
//! - **Reservations**: named ranges that nothing else may use (Ballast's image, boot modules, the device tree,
//!   firmware). They may overlap, and each keeps its name for error messages.
//! - **Movable marks**: designated blocks (DMBs) and the general amount at the top of memory.
//!
//! Because the lists are independent, later edits of RAM change neither reservations nor marks, even if RAM is removed
//! and added again, as when a firmware map arrives late. [`BootMap::segments`] combines the lists.
//!
//! Order of use: RAM, then reservations, then designation (`crate::phys::dmb`), and only then
//! [`carve`](BootMap::carve), so that no early allocation lands in a block that is to be movable.

use core::fmt;

use crate::addr::{FRAME_SIZE, Frame, PAGEBLOCK_FRAMES};
use crate::controller::ControllerId;
use crate::name::Name;
use crate::owner::MAX_POOLS;
use crate::phys::block::{Block, MAX_BLOCKS, Pool};
use crate::range::FrameRange;

mod intervals;
mod place;
mod segments;
#[cfg(test)]
mod tests;

pub(crate) use intervals::Intervals;
pub use segments::{Segment, Segments};

/// The maximum number of separate RAM ranges.
pub const MAX_RAM_RANGES: usize = 64;
/// The maximum number of reservations.
pub const MAX_RESERVATIONS: usize = 128;
/// The maximum number of separate movable marks: 19 blocks, and a general amount over up to 64 ranges.
pub const MAX_MARKS: usize = 96;

/// The purpose of a reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservationKind {
    /// Ballast's own image.
    Image,
    /// A boot module: a kernel, a ramdisk, a configuration.
    Module,
    /// The host's device tree.
    DeviceTree,
    /// Used by firmware, or by a `/reserved-memory` node that may be mapped.
    Firmware,
    /// A `/reserved-memory` node with `no-map`: never to be mapped, not even for speculation.
    NoMap,
    /// RAM of one guest, at its physical address.
    Pinned,
    /// Carved for Ballast by [`BootMap::carve`].
    Carved,
    /// Withheld because the node that describes it was refused.
    Withheld,
}

impl ReservationKind {
    /// Returns whether EL2 must not map these frames.
    pub const fn is_no_map(self) -> bool {
        matches!(self, Self::NoMap)
    }
}

/// A named range that nothing else may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// The frames.
    pub range: FrameRange,
    /// The purpose.
    pub kind: ReservationKind,
    /// The name, for messages.
    pub name: Name,
}

/// The reason why a range is movable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MovableMark {
    /// A designated movable block, by index.
    Block(u8),
    /// Part of the general amount of `movablecore=`, or of the rest left by `kernelcore=`.
    Amount,
}

/// An error of an edit of the map.
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
        /// The range that did not fit.
        range: FrameRange,
    },
    /// More separate RAM ranges than [`MAX_RAM_RANGES`].
    RamFull {
        /// The range that did not fit.
        range: FrameRange,
    },
    /// RAM claimed for two controllers.
    TwoControllers {
        /// The frames that both claim.
        range: FrameRange,
        /// The controller that had them first.
        first: ControllerId,
        /// The controller added later.
        second: ControllerId,
    },
    /// More reservations than [`MAX_RESERVATIONS`].
    ReservationsFull {
        /// The name of the reservation.
        name: Name,
        /// Its range.
        range: FrameRange,
    },
    /// No free range of NORMAL memory is long enough.
    NoRoom {
        /// The name of the allocation.
        name: Name,
        /// The number of bytes requested.
        bytes: u64,
        /// The alignment in bytes.
        align: u64,
        /// The length of the longest free range in bytes, ignoring alignment.
        longest: u64,
    },
    /// The alignment is not a power of two.
    BadAlignment {
        /// The name of the allocation.
        name: Name,
        /// The requested alignment in bytes.
        align: u64,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondAddresses { base, bytes } => {
                write!(f, "{bytes:#x} bytes at {base:#x}: exceeds the 48-bit address limit")
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
                "{name}: no {bytes:#x} bytes aligned to {align:#x} in NORMAL memory (largest free range {longest:#x})"
            ),
            Self::BadAlignment { name, align } => {
                write!(f, "{name}: alignment {align:#x} is not a power of two")
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
    /// Creates a map without RAM.
    pub const fn new() -> Self {
        Self {
            ram: Intervals::new(),
            reservations: heapless::Vec::new(),
            marks: Intervals::new(),
            blocks: heapless::Vec::new(),
            pools: heapless::Vec::new(),
        }
    }

    /// Adds `bytes` bytes of RAM from `base` on, behind `controller`, trimmed to whole frames.
    ///
    /// # Errors
    /// Fails if the range exceeds the address limit, if another controller has some of it, or if the map is full. The
    /// map does not change then.
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

    /// Removes `range` from RAM. Reservations and movable marks stay.
    ///
    /// # Errors
    /// Fails if this splits a range and the map is full. The map does not change then.
    pub fn remove_ram(&mut self, range: FrameRange) -> Result<(), MapError> {
        self.ram.remove(range).map_err(|_| MapError::RamFull { range })
    }

    /// Reserves `bytes` bytes from `base` on, extended to whole frames, as `name`. They need not be RAM.
    ///
    /// # Errors
    /// Fails if the range exceeds the address limit or the map is full.
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

    /// Reserves `range` as `name`.
    ///
    /// # Errors
    /// Fails if the map is full.
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

    /// Releases the reservations of `kind` whose range is exactly `range`.
    pub fn release(&mut self, range: FrameRange, kind: ReservationKind) {
        self.reservations.retain(|reservation| reservation.range != range || reservation.kind != kind);
    }

    /// Allocates `bytes` bytes, rounded up to whole frames and aligned to `align` bytes, at the lowest free address of
    /// NORMAL memory, and reserves them as `name`.
    ///
    /// # Errors
    /// Fails if there is no such range, if the alignment is not a power of two, or if the map is full.
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

    /// Keeps unmovable allocations out of all memory from frame number `start` on: free whole pageblocks there become
    /// movable, and smaller remainders are reserved as `name`. Must be the last edit.
    ///
    /// # Errors
    /// Fails if the map is full.
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

    /// Returns a copy of the movable marks, to be edited and passed to [`Self::set_designation`].
    pub(crate) fn marks_to_edit(&self) -> Intervals<MovableMark, MAX_MARKS> {
        self.marks.clone()
    }

    /// Stores a checked designation in the map.
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

    /// Marks `range` movable without checks.
    #[cfg(test)]
    pub(crate) fn mark_movable(&mut self, range: FrameRange, mark: MovableMark) {
        self.marks.insert(range, mark).expect("room for the mark");
    }

    /// Returns the RAM ranges with their controllers, in ascending order.
    pub fn ram(&self) -> impl Iterator<Item = (FrameRange, ControllerId)> + Clone {
        self.ram.iter()
    }

    /// Returns the reservations, in ascending order of their start.
    pub fn reservations(&self) -> &[Reservation] {
        &self.reservations
    }

    /// Returns the movable marks, in ascending order.
    pub fn movable(&self) -> impl Iterator<Item = (FrameRange, MovableMark)> + Clone {
        self.marks.iter()
    }

    /// Returns the designated movable blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Returns the pools.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Returns the first reservation that overlaps `range`.
    pub fn reservation_in(&self, range: FrameRange) -> Option<&Reservation> {
        self.reservations.iter().find(|reservation| reservation.range.overlaps(range))
    }

    /// Returns the RAM range that contains `frame`, with its controller.
    pub fn ram_at(&self, frame: Frame) -> Option<(FrameRange, ControllerId)> {
        self.ram.iter().find(|(range, _)| range.contains(frame))
    }

    /// Returns the number of frames of RAM.
    pub fn ram_frames(&self) -> u64 {
        self.ram.iter().map(|(range, _)| range.frames()).sum()
    }

    /// Returns the number of frames of RAM outside all reservations.
    pub fn unreserved_frames(&self) -> u64 {
        let free = self.segments().filter(|segment| segment.reservation.is_none());
        free.map(|segment| segment.range.frames()).sum()
    }

    /// Returns RAM as the longest segments that have the same controller, reservation and mark throughout.
    pub fn segments(&self) -> Segments<'_> {
        Segments::new(self)
    }
}
