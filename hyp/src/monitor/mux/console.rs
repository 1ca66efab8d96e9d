//! Consoles, and reports about them.

use core::fmt;

use super::GUESTS;

/// The monitor's console or a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console(pub(super) u8);

impl Console {
    /// The monitor's console.
    pub const MONITOR: Self = Self(0);

    /// Iterates over all consoles that there can be.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        (0..=GUESTS as u8).map(Self)
    }

    /// Returns the console of the guest with this index (0 to 7).
    pub const fn guest(index: usize) -> Option<Self> {
        if index < GUESTS { Some(Self(index as u8 + 1)) } else { None }
    }

    /// Returns the index of the console's guest; `None` for the monitor's.
    pub const fn guest_index(self) -> Option<usize> {
        (self.0 as usize).checked_sub(1)
    }

    pub(super) fn bit(self) -> u16 {
        1 << (self.0 & 15)
    }
}

/// The consoles that the line shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The front console.
    Front,
    /// The front console, and the lines of all others behind their names.
    All,
}

impl View {
    /// Returns its name in commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::All => "all",
        }
    }
}

/// The work to do after a byte was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Wake this console, which has input.
    Received(Console),
    /// Give the guest with this index a break condition.
    Break(usize),
    /// Wake this console: the console in front or the view has changed, and it may have input.
    Front(Console),
}

/// A set of consoles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consoles(pub(super) u16);

impl Consoles {
    /// Iterates over the indices of the guests in it.
    pub fn guests(self) -> impl Iterator<Item = usize> {
        (0..GUESTS).filter(move |index| self.0 & 2 << index != 0)
    }

    /// Tests if the monitor is in it.
    pub fn has_monitor(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Storage for the multiplexer's own output.
#[derive(Debug)]
pub struct Storage<'a> {
    /// Bytes ready to be sent; [`QUEUE_SIZE`].
    pub out: &'a mut [u8],
    /// Messages waiting for a line's start; [`QUEUE_SIZE`].
    pub messages: &'a mut [u8],
}

/// The status of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status<'a> {
    /// Its name.
    pub name: &'a str,
    /// True if it is in front.
    pub is_front: bool,
    /// Kept output that was not shown yet, in bytes.
    pub kept: usize,
    /// The limit of kept output, in bytes.
    pub limit: usize,
    /// Output lost since boot because the console was not in front, in bytes.
    pub lost_count: u64,
    /// Input lost since boot because the guest did not read it, in bytes.
    pub input_lost_count: u64,
}

/// The key behind the prefix that brings a console to the front.
pub(super) struct Key(pub(super) Console);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.guest_index() {
            None => f.write_str("m"),
            Some(index) => write!(f, "{}", index + 1),
        }
    }
}
