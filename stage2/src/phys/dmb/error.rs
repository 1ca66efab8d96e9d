//! Why a designation was refused, in words for the operator.

use core::fmt;

use super::{CoreOption, MAX_BLOCKS};
use crate::addr::{FRAME_SIZE, PAGEBLOCK_SIZE};
use crate::controller::ControllerId;
use crate::name::Name;
use crate::owner::MAX_POOLS;
use crate::phys::map::MAX_MARKS;
use crate::range::FrameRange;
use crate::size::Size;

/// What [`designate`](crate::phys::dmb::designate) did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Designation {
    /// Frames in designated blocks.
    pub block_frames: u64,
    /// Frames made movable by a general amount.
    pub amount_frames: u64,
    /// What the operator should know.
    pub warning: Option<Warning>,
}

/// What was done otherwise than asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warning {
    /// The general amount is more than may be movable.
    AmountClamped {
        /// Frames asked for, blocks included.
        asked: u64,
        /// Frames that became movable, blocks included.
        given: u64,
        /// Frames of NORMAL that must stay.
        floor: u64,
    },
    /// The blocks alone are more than the general amount.
    AmountBelowBlocks {
        /// Frames asked for.
        asked: u64,
        /// Frames in blocks.
        blocks: u64,
    },
    /// The blocks leave less for NORMAL than `kernelcore=` asks for.
    KernelcoreNotMet {
        /// Frames asked for.
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
                "movable memory: {} asked for, {} given: NORMAL keeps {} for Ballast and its tables",
                Bytes(asked * FRAME_SIZE),
                Bytes(given * FRAME_SIZE),
                Bytes(floor * FRAME_SIZE)
            ),
            Self::AmountBelowBlocks { asked, blocks } => write!(
                f,
                "movablecore=: the general amount of {} is less than the designated blocks' {}, which stand",
                Bytes(asked * FRAME_SIZE),
                Bytes(blocks * FRAME_SIZE)
            ),
            Self::KernelcoreNotMet { asked, left } => write!(
                f,
                "kernelcore=: {} asked for, but the designated blocks, which come first, leave {}",
                Bytes(asked * FRAME_SIZE),
                Bytes(left * FRAME_SIZE)
            ),
        }
    }
}

/// What was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// An item of a command-line option.
    Option {
        /// Which option.
        option: CoreOption,
        /// Which item, from 1 on, over all its values.
        number: usize,
        /// As it was written.
        text: Name,
    },
    /// A node of the host tree or of the configuration.
    Node {
        /// The path of the node that it is in.
        container: &'static str,
        /// Its name.
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

/// Which edge of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edge {
    /// Its first byte.
    Base,
    /// Its length.
    Size,
}

/// The rule that was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Nothing between two commas, or nothing at all.
    EmptyItem,
    /// A text that is no number.
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
    /// A base where none is taken.
    BaseNotAllowed,
    /// A second general amount.
    SecondAmount {
        /// The first.
        first: Name,
    },
    /// Nothing at all is asked for.
    NoSize,
    /// The end lies past the 48-bit address limit.
    BeyondAddresses {
        /// The address of the first byte.
        base: u64,
        /// The length.
        size: u64,
    },
    /// Base or size is no multiple of a pageblock.
    Misaligned {
        /// Which.
        edge: Edge,
        /// Its value.
        value: u64,
    },
    /// The first byte is no RAM.
    NotRam {
        /// The block.
        range: FrameRange,
    },
    /// The block reaches past its RAM range, over a hole.
    CrossesHole {
        /// The block.
        range: FrameRange,
        /// The RAM range in which it begins.
        ram: FrameRange,
    },
    /// The block reaches from one controller to another.
    CrossesController {
        /// The block.
        range: FrameRange,
        /// Where it begins.
        first: ControllerId,
        /// Where it goes on.
        second: ControllerId,
    },
    /// Something else is there.
    Overlaps {
        /// The block.
        range: FrameRange,
        /// What is there.
        name: Name,
        /// Where.
        other: FrameRange,
    },
    /// More blocks than there is room for.
    TooManyBlocks,
    /// More pools than there is room for.
    TooManyPools,
    /// More separate movable ranges than the map holds.
    TooManyRanges,
    /// `reusable` is missing.
    NotReusable,
    /// `no-map` is there.
    NoMap,
    /// `linux,cma-default` is there.
    CmaDefault,
    /// `reg` has more than one entry.
    SeveralRanges,
    /// An alignment that is no power of two.
    BadAlignment {
        /// Its value.
        alignment: u64,
    },
    /// There is no free place for a dynamic block.
    NoRoom {
        /// Its size.
        size: u64,
        /// Its alignment.
        alignment: u64,
        /// The longest free stretch, alignment aside.
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
    /// Too little would be left for what cannot move.
    LeavesTooLittle {
        /// Bytes of NORMAL that would stay free.
        left: u64,
        /// Bytes that must.
        floor: u64,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::EmptyItem => f.write_str("is empty"),
            Self::NotANumber { text } => write!(
                f,
                "\"{text}\" is no size: decimal, 0x hexadecimal or 0 octal digits, then at most one of K M G T P E"
            ),
            Self::NumberTooLarge { text } => write!(f, "\"{text}\" does not fit in 64 bits"),
            Self::PercentAbove100 => f.write_str("a percentage must be at most 100"),
            Self::PercentWithBase => f.write_str("a percentage takes no base"),
            Self::BaseNotAllowed => f.write_str("only movablecore= takes a base"),
            Self::SecondAmount { first } => {
                write!(f, "a second general amount beside \"{first}\"; only one is taken")
            }
            Self::NoSize => f.write_str("has no size"),
            Self::BeyondAddresses { base, size } => {
                write!(f, "{size:#x} bytes at {base:#x} run past the 48-bit address limit")
            }
            Self::Misaligned { edge, value } => {
                let edge = match edge {
                    Edge::Base => "base",
                    Edge::Size => "size",
                };
                write!(f, "{edge} {value:#x} is no multiple of {}", Bytes(PAGEBLOCK_SIZE))
            }
            Self::NotRam { range } => write!(f, "{range} does not begin in RAM"),
            Self::CrossesHole { range, ram } => write!(f, "{range} reaches out of the RAM range {ram}"),
            Self::CrossesController { range, first, second } => {
                write!(f, "{range} reaches from {first} to {second}")
            }
            Self::Overlaps { range, name, other } => write!(f, "{range} overlaps {name} at {other}"),
            Self::TooManyBlocks => write!(f, "there can be at most {MAX_BLOCKS} designated blocks"),
            Self::TooManyPools => write!(f, "there can be at most {MAX_POOLS} pools"),
            Self::TooManyRanges => write!(f, "there can be at most {MAX_MARKS} separate movable ranges"),
            Self::NotReusable => f.write_str("needs the property reusable"),
            Self::NoMap => f.write_str("must not have the property no-map"),
            Self::CmaDefault => f.write_str("must not have the property linux,cma-default"),
            Self::SeveralRanges => f.write_str("reg has more than one entry; a block has one"),
            Self::BadAlignment { alignment } => {
                write!(f, "alignment {alignment:#x} is no power of two")
            }
            Self::NoRoom { size, alignment, longest } => write!(
                f,
                "no free place for {} aligned to {} (longest free stretch {})",
                Bytes(size),
                Bytes(alignment),
                Size(longest)
            ),
            Self::PartlyInBlock { range, name, block } => {
                write!(
                    f,
                    "{range} lies partly in block {name} at {block}: a pool lies in one block or outside all"
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

/// A designation that was refused: what, and the rule that it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesignationError {
    /// What was refused.
    pub item: Item,
    /// Why.
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
