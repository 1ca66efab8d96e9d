//! Errors and warnings of designation, in words for the operator.

use core::fmt;

use super::{CoreOption, MAX_BLOCKS};
use crate::addr::{FRAME_SIZE, PAGEBLOCK_SIZE};
use crate::controller::ControllerId;
use crate::name::Name;
use crate::owner::MAX_POOLS;
use crate::phys::map::MAX_MARKS;
use crate::range::FrameRange;
use crate::size::Size;

/// The result of [`designate`](crate::phys::dmb::designate).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Designation {
    /// Frames in designated blocks.
    pub block_frames: u64,
    /// Frames made movable by a general amount.
    pub amount_frames: u64,
    /// A warning for the operator.
    pub warning: Option<Warning>,
}

/// A difference between request and result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warning {
    /// The general amount is more than may become movable.
    AmountClamped {
        /// Frames requested, including blocks.
        asked: u64,
        /// Frames that became movable, including blocks.
        given: u64,
        /// Frames of NORMAL that must stay.
        floor: u64,
    },
    /// The blocks alone exceed the general amount.
    AmountBelowBlocks {
        /// Frames requested.
        asked: u64,
        /// Frames in blocks.
        blocks: u64,
    },
    /// The blocks leave less for NORMAL than `kernelcore=` requests.
    KernelcoreNotMet {
        /// Frames requested.
        asked: u64,
        /// Frames left.
        left: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AmountClamped { asked, given, floor } => write!(
                f,
                "movable memory: {} requested, {} granted: NORMAL keeps {} for Ballast and its tables",
                Bytes(asked * FRAME_SIZE),
                Bytes(given * FRAME_SIZE),
                Bytes(floor * FRAME_SIZE)
            ),
            Self::AmountBelowBlocks { asked, blocks } => write!(
                f,
                "movablecore=: the general amount of {} is less than the {} of the designated blocks, which are kept",
                Bytes(asked * FRAME_SIZE),
                Bytes(blocks * FRAME_SIZE)
            ),
            Self::KernelcoreNotMet { asked, left } => write!(
                f,
                "kernelcore=: {} requested, but the designated blocks, which take precedence, leave {}",
                Bytes(asked * FRAME_SIZE),
                Bytes(left * FRAME_SIZE)
            ),
        }
    }
}

/// A refused item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// An item of a command-line option.
    Option {
        /// The option.
        option: CoreOption,
        /// The number of the item, from 1, over all values of the option.
        number: usize,
        /// The text of the item.
        text: Name,
    },
    /// A node of the host tree or of the configuration.
    Node {
        /// The path of the parent node.
        container: &'static str,
        /// The name of the node.
        name: Name,
    },
    /// All blocks together.
    Whole,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option { option, number, text } => {
                write!(f, "{}= item {number} \"{text}\"", option.name())
            }
            Self::Node { container, name } => write!(f, "{container}/{name}"),
            Self::Whole => f.write_str("designated movable blocks"),
        }
    }
}

/// An edge of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edge {
    /// The first byte.
    Base,
    /// The length.
    Size,
}

/// The broken rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// An empty item.
    EmptyItem,
    /// Not a number.
    NotANumber {
        /// The text.
        text: Name,
    },
    /// A number beyond 64 bits.
    NumberTooLarge {
        /// The text.
        text: Name,
    },
    /// A percentage above 100.
    PercentAbove100,
    /// A percentage with a base.
    PercentWithBase,
    /// A base in an option that accepts none.
    BaseNotAllowed,
    /// A second general amount.
    SecondAmount {
        /// The first.
        first: Name,
    },
    /// A size of zero.
    NoSize,
    /// The end exceeds the 48-bit address limit.
    BeyondAddresses {
        /// The address of the first byte.
        base: u64,
        /// The length.
        size: u64,
    },
    /// Base or size is not a multiple of a pageblock.
    Misaligned {
        /// The edge.
        edge: Edge,
        /// Its value.
        value: u64,
    },
    /// The first byte is not RAM.
    NotRam {
        /// The block.
        range: FrameRange,
    },
    /// The block extends beyond its RAM range, over a hole.
    CrossesHole {
        /// The block.
        range: FrameRange,
        /// The RAM range in which it begins.
        ram: FrameRange,
    },
    /// The block spans two controllers.
    CrossesController {
        /// The block.
        range: FrameRange,
        /// The controller of its first frame.
        first: ControllerId,
        /// The next controller.
        second: ControllerId,
    },
    /// Something else overlaps the block.
    Overlaps {
        /// The block.
        range: FrameRange,
        /// The name of the other range.
        name: Name,
        /// The other range.
        other: FrameRange,
    },
    /// Too many blocks.
    TooManyBlocks,
    /// Too many pools.
    TooManyPools,
    /// Too many separate movable ranges.
    TooManyRanges,
    /// `reusable` is missing.
    NotReusable,
    /// `no-map` is present.
    NoMap,
    /// `linux,cma-default` is present.
    CmaDefault,
    /// `reg` has more than one entry.
    SeveralRanges,
    /// The alignment is not a power of two.
    BadAlignment {
        /// Its value.
        alignment: u64,
    },
    /// No free range for a block whose location Ballast chooses.
    NoRoom {
        /// Its size.
        size: u64,
        /// Its alignment.
        alignment: u64,
        /// The length of the largest free range, ignoring alignment.
        longest: u64,
    },
    /// A pool partly inside a block.
    PartlyInBlock {
        /// The pool.
        range: FrameRange,
        /// The block's name.
        name: Name,
        /// The block.
        block: FrameRange,
    },
    /// Too little unmovable memory would be left.
    LeavesTooLittle {
        /// Bytes of NORMAL that would stay free.
        left: u64,
        /// Bytes that must stay free.
        floor: u64,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::EmptyItem => f.write_str("is empty"),
            Self::NotANumber { text } => write!(
                f,
                "\"{text}\" is not a size: expected decimal, 0x hexadecimal or 0 octal digits, then at most one of K M G T P E"
            ),
            Self::NumberTooLarge { text } => write!(f, "\"{text}\" does not fit in 64 bits"),
            Self::PercentAbove100 => f.write_str("a percentage must be at most 100"),
            Self::PercentWithBase => f.write_str("a percentage cannot have a base"),
            Self::BaseNotAllowed => f.write_str("only movablecore= accepts a base"),
            Self::SecondAmount { first } => {
                write!(f, "a second general amount after \"{first}\"; only one is allowed")
            }
            Self::NoSize => f.write_str("has no size"),
            Self::BeyondAddresses { base, size } => {
                write!(f, "{size:#x} bytes at {base:#x} exceed the 48-bit address limit")
            }
            Self::Misaligned { edge, value } => {
                let edge = match edge {
                    Edge::Base => "base",
                    Edge::Size => "size",
                };
                write!(f, "{edge} {value:#x} is not a multiple of {}", Bytes(PAGEBLOCK_SIZE))
            }
            Self::NotRam { range } => write!(f, "{range} does not begin in RAM"),
            Self::CrossesHole { range, ram } => write!(f, "{range} extends beyond the RAM range {ram}"),
            Self::CrossesController { range, first, second } => {
                write!(f, "{range} spans {first} and {second}")
            }
            Self::Overlaps { range, name, other } => write!(f, "{range} overlaps {name} at {other}"),
            Self::TooManyBlocks => write!(f, "there can be at most {MAX_BLOCKS} designated blocks"),
            Self::TooManyPools => write!(f, "there can be at most {MAX_POOLS} pools"),
            Self::TooManyRanges => write!(f, "there can be at most {MAX_MARKS} separate movable ranges"),
            Self::NotReusable => f.write_str("needs the property reusable"),
            Self::NoMap => f.write_str("must not have the property no-map"),
            Self::CmaDefault => f.write_str("must not have the property linux,cma-default"),
            Self::SeveralRanges => f.write_str("reg has more than one entry; a block must have one"),
            Self::BadAlignment { alignment } => {
                write!(f, "alignment {alignment:#x} is not a power of two")
            }
            Self::NoRoom { size, alignment, longest } => write!(
                f,
                "no free range for {} aligned to {} (largest free range {})",
                Bytes(size),
                Bytes(alignment),
                Size(longest)
            ),
            Self::PartlyInBlock { range, name, block } => {
                write!(
                    f,
                    "{range} lies partly in block {name} at {block}: a pool must lie in one block or outside all"
                )
            }
            Self::LeavesTooLittle { left, floor } => write!(
                f,
                "leave {} of NORMAL memory free; Ballast and its tables need {}",
                Bytes(left),
                Bytes(floor)
            ),
        }
    }
}

/// An error of a designation: the item and the rule that it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesignationError {
    /// A refused item.
    pub item: Item,
    /// The rule.
    pub rule: Rule,
}

impl fmt::Display for DesignationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            Item::Whole => write!(f, "{} {}", self.item, self.rule),
            _ => write!(f, "{}: {}", self.item, self.rule),
        }
    }
}

impl core::error::Error for DesignationError {}

/// A number of bytes in the largest binary unit that divides it.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.0.trailing_zeros() {
            _ if self.0 == 0 => return f.write_str("0 bytes"),
            0..10 => return write!(f, "{} bytes", self.0),
            10..20 => (10, "KiB"),
            20..30 => (20, "MiB"),
            _ => (30, "GiB"),
        };
        write!(f, "{} {}", self.0 >> unit.0, unit.1)
    }
}
