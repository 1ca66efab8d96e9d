//! The grammar of `movablecore=` and `kernelcore=`.
//!
//! ```text
//! movablecore = item *( "," item )
//! item        = size                  the general amount
//!             | number "%"            the general amount, of all RAM
//!             | size "@" base         one block
//! size, base  = number [K|M|G|T|P|E]  decimal, 0x hexadecimal or 0 octal; either case
//! kernelcore  = size | number "%"
//! ```
//! The option may be given several times; its items add up. At most one general amount in all. Nothing is skipped or
//! guessed: an empty item, trailing characters and a number that does not fit are errors.

use super::error::{DesignationError, Item, Rule};
use super::number::{self, NumberError};
use super::{MAX_BLOCKS, Wishes};
use crate::name::Name;

/// One of the two options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoreOption {
    /// `movablecore=`
    Movable,
    /// `kernelcore=`
    Kernel,
}

impl CoreOption {
    /// Returns the option's name, without the `=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Movable => "movablecore",
            Self::Kernel => "kernelcore",
        }
    }
}

/// A general amount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// A number of bytes.
    Bytes(u64),
    /// A percentage of all RAM, at most 100.
    Percent(u8),
}

/// A block on the command line.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockItem {
    pub(super) size: u64,
    pub(super) base: u64,
    pub(super) item: Item,
    pub(super) name: Name,
}

/// The parsed values of one option.
#[derive(Clone, Debug)]
pub struct Core {
    amount: Option<(Amount, Item)>,
    blocks: heapless::Vec<BlockItem, MAX_BLOCKS>,
}

impl Core {
    /// Parses all values of `option`. Returns `None` if there are none.
    ///
    /// # Errors
    /// Returns the first item that is invalid.
    pub fn parse<'v>(
        option: CoreOption,
        values: impl IntoIterator<Item = &'v str>,
    ) -> Result<Option<Self>, DesignationError> {
        let mut core = Self { amount: None, blocks: heapless::Vec::new() };
        let mut number = 0;
        for text in values.into_iter().flat_map(|value| value.split(',')) {
            number += 1;
            let item = Item::Option { option, number, text: Name::new(text) };
            core.add(option, text, item).map_err(|rule| DesignationError { item, rule })?;
        }
        Ok((number > 0).then_some(core))
    }

    fn add(&mut self, option: CoreOption, text: &str, item: Item) -> Result<(), Rule> {
        if text.is_empty() {
            return Err(Rule::EmptyItem);
        }
        let amount = match (text.split_once('@'), text.strip_suffix('%')) {
            (Some(_), _) if option == CoreOption::Kernel => return Err(Rule::BaseNotAllowed),
            (Some((size, _)), _) if size.ends_with('%') => return Err(Rule::PercentWithBase),
            (Some((size, base)), _) => {
                let (size, base) = (read(size, number::size)?, read(base, number::size)?);
                let block = BlockItem { size, base, item, name: Name::new(text) };
                return self.blocks.push(block).map_err(|_| Rule::TooManyBlocks);
            }
            (None, Some(percent)) => match read(percent, number::integer)? {
                percent @ 0..=100 => Amount::Percent(percent as u8),
                _ => return Err(Rule::PercentAbove100),
            },
            (None, None) => Amount::Bytes(read(text, number::size)?),
        };
        if matches!(amount, Amount::Bytes(0) | Amount::Percent(0)) {
            return Err(Rule::NoSize);
        }
        if let Some((_, Item::Option { text: first, .. })) = self.amount {
            return Err(Rule::SecondAmount { first });
        }
        self.amount = Some((amount, item));
        Ok(())
    }

    /// Returns the general amount.
    pub fn amount(&self) -> Option<Amount> {
        self.amount.map(|(amount, _)| amount)
    }

    pub(super) fn blocks(&self) -> &[BlockItem] {
        &self.blocks
    }
}

fn read(text: &str, how: fn(&str) -> Result<u64, NumberError>) -> Result<u64, Rule> {
    how(text).map_err(|error| match error {
        NumberError::Syntax => Rule::NotANumber { text: Name::new(text) },
        NumberError::Overflow => Rule::NumberTooLarge { text: Name::new(text) },
    })
}

impl Wishes<'_> {
    pub(super) fn amounts(&self) -> (Option<Amount>, Option<Amount>) {
        (self.movablecore.and_then(Core::amount), self.kernelcore.and_then(Core::amount))
    }
}

/// Returns the values of every `name=value` on `command_line`, in order.
pub fn option_values(command_line: &str, option: CoreOption) -> impl Iterator<Item = &str> {
    command_line
        .split_ascii_whitespace()
        .filter_map(move |argument| argument.strip_prefix(option.name())?.strip_prefix('='))
}
