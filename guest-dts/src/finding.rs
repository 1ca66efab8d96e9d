//! What is wrong in a tree, as data: where, which property, what value, and the rule that it breaks.
//!
//! A finding borrows from the tree, and it is put into words by `Display`: the same words on the console and on a PC.

use alloc::boxed::Box;
use core::fmt::{self, Write};

use crate::guest_tree::Choice;
use crate::tree::{Node, NodeId, Property, SourceValue};

/// Something wrong at one place. One word, since it is what most functions here may return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<'t>(Box<Details<'t>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Details<'t> {
    place: Place<'t>,
    property: Option<&'t str>,
    value: Value<'t>,
    rule: Rule,
}

/// Where a finding was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'t> {
    /// At a node.
    Node(Node<'t>),
    /// Where a node should be, by its path or by what it is.
    Expected(&'static str),
    /// On Ballast's own command line.
    CommandLine,
    /// In the memory reservation block.
    Reservations,
}

/// The value that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'t> {
    /// None: the finding is about the node.
    None,
    /// The property is missing.
    Missing,
    /// The property's bytes, shown in the form of the source.
    Bytes(&'t [u8]),
    /// A number.
    Number(u64),
    /// An address.
    Address(u64),
    /// A size in bytes.
    Size(u64),
    /// Addresses.
    Range {
        /// First address.
        base: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Text.
    Text(&'t str),
}

/// How many characters of a text are shown: it may be as long as the blob.
const TEXT_LIMIT: usize = 64;

/// The rule that a finding breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It has to be there: what it gives.
    Required(&'static str),
    /// "must …".
    Must(&'static str),
    /// Entries of addresses and sizes with this many cells.
    Cells {
        /// Cells of an address.
        address: u32,
        /// Cells of a size.
        size: u32,
    },
    /// There is room for fewer.
    TooMany {
        /// Which one is too many, from 0.
        index: usize,
        /// How many there may be.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
    /// A number has to lie between two, both included.
    Between(u64, u64),
    /// It has to be a multiple of a size in bytes.
    MultipleOf(u64),
    /// It overlaps with what another node of the same tree says.
    Overlaps(NodeId),
    /// It overlaps with something that is no node.
    OverlapsWith(&'static str),
    /// Another node of the same tree says the same.
    SameAs(NodeId),
    /// It has to be a multiple of a size in bytes, because of the size of the guest's pages.
    MultipleOfForPages {
        /// What it has to be a multiple of.
        size: u64,
        /// The guest's pages.
        page: u64,
    },
    /// The host has fewer CPUs, or fewer that no other guest owns.
    OnlyCpus {
        /// CPUs of the host.
        total: u32,
        /// Those that are free.
        free: u32,
    },
    /// The host has no such controller, only so many.
    NoController {
        /// How many it has.
        count: usize,
    },
    /// There is not enough memory.
    Shortage(Shortage),
    /// Kernel, ramdisk and tree have no room in any region of RAM that is no movable block.
    ImagesDoNotFit {
        /// Bytes that they need.
        needed: u64,
        /// Bytes of the largest region.
        largest: u64,
    },
    /// No rule is broken: this is what becomes of it.
    Note(Note),
    /// Ballast knows no property or child of this name here.
    Unknown {
        /// The known name nearest to it, if one is near.
        nearest: Option<&'static str>,
    },
}

/// What becomes of a node that is to pass into a guest's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It is left out, since its `status` says so.
    Disabled,
    /// It is left out, since the guest's kernel would not know it and lose the memory.
    WouldBeLost,
    /// It is written as a `shared-dma-pool`, which every kernel knows.
    BecomesDmaPool,
    /// How the guest is told of its movable memory.
    MovableMemory(Choice),
    /// There are more findings than are told of.
    More,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MovableMemory(choice) => return write!(f, "{choice}"),
            Self::More => "there is more to be said, which is not told",
            Self::Disabled => "left out: its status says so",
            Self::WouldBeLost => "left out: a guest that does not know it would lose the memory",
            Self::BecomesDmaPool => "becomes a \"shared-dma-pool\", which every kernel knows",
        })
    }
}

/// How much memory is missing, and where it would fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes free where the memory may come from.
    pub free: u64,
    /// Bytes that are missing there.
    pub missing: u64,
    /// The controller that it may come from, where that is one.
    pub controller: Option<u8>,
    /// A controller that has room for all of it.
    pub fits_on: Option<u8>,
    /// Bytes free on all controllers together.
    pub free_in_all: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.controller {
            Some(id) => write!(f, "controller {id} has {} free", Size(self.free))?,
            None => write!(f, "{} free there", Size(self.free))?,
        }
        write!(f, ", {} missing; ", Size(self.missing))?;
        match self.fits_on {
            Some(id) => write!(f, "it would fit on controller {id}"),
            None => {
                write!(f, "it fits on no controller alone ({} free on all together)", Size(self.free_in_all))
            }
        }
    }
}

impl<'t> Finding<'t> {
    #[inline(never)]
    fn at(place: Place<'t>, property: Option<&'t str>, value: Value<'t>, rule: Rule) -> Self {
        Self(Box::new(Details { place, property, value, rule }))
    }

    /// A finding at `node`.
    #[cold]
    #[inline(never)]
    pub fn new(node: Node<'t>, property: Option<&'t str>, value: Value<'t>, rule: Rule) -> Self {
        Self::at(Place::Node(node), property, value, rule)
    }

    /// A finding about the value of `property`.
    #[cold]
    #[inline(never)]
    pub fn property(node: Node<'t>, property: Property<'t>, rule: Rule) -> Self {
        Self::new(node, Some(property.name()), Value::Bytes(property.bytes()), rule)
    }

    /// A finding about a property that is not there.
    #[cold]
    #[inline(never)]
    pub fn missing(node: Node<'t>, property: &'static str, rule: Rule) -> Self {
        Self::new(node, Some(property), Value::Missing, rule)
    }

    /// A finding about a property without regard to its value.
    #[cold]
    #[inline(never)]
    pub fn named(node: Node<'t>, property: &'static str, rule: Rule) -> Self {
        Self::new(node, Some(property), Value::None, rule)
    }

    /// A finding about a node.
    #[cold]
    #[inline(never)]
    pub fn node(node: Node<'t>, rule: Rule) -> Self {
        Self::new(node, None, Value::None, rule)
    }

    /// A finding about a node that is not there: `what` is its path or what it is.
    #[cold]
    #[inline(never)]
    pub fn no_node(what: &'static str, rule: Rule) -> Self {
        Self::at(Place::Expected(what), None, Value::Missing, rule)
    }

    /// A finding about the argument `name` on Ballast's own command line.
    #[cold]
    #[inline(never)]
    pub fn argument(name: &'static str, value: Value<'t>, rule: Rule) -> Self {
        Self::at(Place::CommandLine, Some(name), value, rule)
    }

    /// A finding in the memory reservation block.
    #[cold]
    #[inline(never)]
    pub fn reservation(value: Value<'t>, rule: Rule) -> Self {
        Self::at(Place::Reservations, None, value, rule)
    }

    /// The same finding about `value`.
    pub fn with_value(mut self, value: Value<'t>) -> Self {
        self.0.value = value;
        self
    }

    /// Where it is.
    pub fn place(&self) -> Place<'t> {
        self.0.place
    }

    /// The rule that is broken.
    pub fn rule(&self) -> Rule {
        self.0.rule
    }
}

impl core::error::Error for Finding<'_> {}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.0.place)?;
        if let Some(property) = self.0.property {
            f.write_str(property)?;
        }
        match (self.0.value, self.0.property) {
            (Value::None | Value::Bytes([]), Some(_)) => f.write_str(": ")?,
            (Value::None | Value::Bytes([]), None) => {}
            (Value::Missing, Some(_)) => f.write_str(" is missing: ")?,
            (Value::Missing, None) if matches!(self.0.rule, Rule::Note(_)) => {}
            (Value::Missing, None) => f.write_str("missing: ")?,
            (value, Some(_)) => write!(f, " = {value}: ")?,
            (value, None) => write!(f, "{value}: ")?,
        }
        match (self.0.rule, self.0.place) {
            (Rule::Overlaps(id), Place::Node(node)) => write_other(f, "overlaps with", node, id),
            (Rule::SameAs(id), Place::Node(node)) => write_other(f, "the same as in", node, id),
            (rule, _) => write!(f, "{rule}"),
        }
    }
}

/// Writes `what` and the path of the node `id` of the tree of `node`.
fn write_other(f: &mut fmt::Formatter<'_>, what: &str, node: Node<'_>, id: NodeId) -> fmt::Result {
    match node.same_tree(id) {
        Some(other) => write!(f, "{what} {}", other.path()),
        None => write!(f, "{what} another node"),
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{}", node.path()),
            Self::Expected(what) => f.write_str(what),
            Self::CommandLine => f.write_str("command line"),
            Self::Reservations => f.write_str("memory reservation block"),
        }
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None | Self::Missing => Ok(()),
            Self::Bytes(bytes) => write!(f, "{}", SourceValue { bytes, limit: 48 }),
            Self::Number(number) => write!(f, "{number}"),
            Self::Address(address) => write!(f, "{address:#x}"),
            Self::Size(size) => write!(f, "{}", Size(size)),
            Self::Range { base, size } => write!(f, "{} at {base:#x}", Size(size)),
            Self::Text(text) => match text.char_indices().nth(TEXT_LIMIT) {
                Some((end, _)) => {
                    let shown = text.get(..end).unwrap_or_default();
                    write!(f, "{} /* {} bytes */", Quoted(shown), text.len())
                }
                None => write!(f, "{}", Quoted(text)),
            },
        }
    }
}

/// Displays text in quotes, with what a terminal would act on or not show as numbers. What core has for this knows all
/// of Unicode, which takes much room in an image.
struct Quoted<'t>(&'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                // Controls; blanks that have no width, and what turns the direction of writing; marks of order.
                '\0'..' '
                | '\x7f'..='\u{9f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}' => write!(f, "\\u{{{:x}}}", u32::from(character))?,
                _ => f.write_char(character)?,
            }
        }
        f.write_str("\"")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Required(purpose) => write!(f, "required ({purpose})"),
            Self::Must(what) => write!(f, "must {what}"),
            Self::Cells { address, size } => {
                write!(f, "must have entries of {address} address and {size} size cells")
            }
            Self::TooMany { index, limit, what } => {
                write!(f, "number {} where at most {limit} {what} are taken", index + 1)
            }
            Self::Between(low, high) => write!(f, "must lie between {low} and {high}"),
            Self::MultipleOf(size) => write!(f, "must be a multiple of {}", Size(size)),
            Self::MultipleOfForPages { size, page } => {
                write!(f, "must be a multiple of {} for a guest with pages of {}", Size(size), Size(page))
            }
            Self::OnlyCpus { total, free } => {
                write!(
                    f,
                    "the host has {total} CPUs, {free} of them not owned by a guest; each vCPU owns one"
                )
            }
            Self::NoController { count } => {
                write!(f, "the host has no such controller: it has {count}, numbered from 0")
            }
            Self::ImagesDoNotFit { needed, largest } => {
                write!(f, "must have a region of {} for kernel, ramdisk and device tree;", Size(needed))?;
                write!(f, " the largest has {}", Size(largest))
            }
            Self::Note(note) => write!(f, "{note}"),
            Self::Shortage(shortage) => write!(f, "{shortage}"),
            Self::Overlaps(_) => f.write_str("overlaps with another node"),
            Self::OverlapsWith(what) => write!(f, "overlaps with {what}"),
            Self::SameAs(_) => f.write_str("the same as in another node"),
            Self::Unknown { nearest: Some(name) } => {
                write!(f, "unknown name; did you mean {}?", Quoted(name))
            }
            Self::Unknown { nearest: None } => f.write_str("unknown name"),
        }
    }
}

/// Displays a number of bytes in the largest binary unit that it is a multiple of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
        let mut number = self.0;
        let mut unit = "bytes";
        for next in units.iter().skip(1) {
            if number == 0 || !number.is_multiple_of(1024) {
                break;
            }
            number /= 1024;
            unit = next;
        }
        write!(f, "{number} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    #[test]
    fn quoted_text_shows_what_a_terminal_would_hide() {
        let quoted = |text| format!("{}", Quoted(text));
        assert_eq!(quoted("alpha"), "\"alpha\"");
        assert_eq!(quoted("a\"b\\c\x1b[2J\n\u{7f}"), r#""a\"b\\c\u{1b}[2J\n\u{7f}""#);
        assert_eq!(quoted("Gerät\u{202e}\u{feff}"), r#""Gerät\u{202e}\u{feff}""#);
    }

    proptest! {
        #[test]
        fn ascii_is_quoted_as_rust_does(text in "[\\x01-\\x7f]*") {
            prop_assert_eq!(format!("{}", Quoted(&text)), format!("{text:?}"));
        }
    }
}
