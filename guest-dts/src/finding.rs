//! Findings: errors, warnings and notes about a device tree or a command line, as data.
//!
//! A finding has a location, a property, a value and the rule that the value breaks. It borrows from the tree. Its
//! `Display` is the message that the console and the PC tool print.

use alloc::boxed::Box;
use core::fmt::{self, Write};

use crate::guest_tree::Choice;
use crate::tree::{Node, NodeId, Property, SourceValue};

/// One finding. It is one word long, since most functions here can return one as their error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<'t>(Box<Details<'t>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Details<'t> {
    location: Location<'t>,
    property: Option<&'t str>,
    value: Value<'t>,
    rule: Rule,
}

/// The location of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Location<'t> {
    /// A node.
    Node(Node<'t>),
    /// A missing node: its path or a description.
    Expected(&'static str),
    /// Ballast's own command line.
    CommandLine,
    /// The memory reservation block.
    Reservations,
}

/// The value in a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'t> {
    /// No value: the finding concerns the node, or the property whatever its value.
    None,
    /// The property is missing.
    Missing,
    /// The property's bytes, displayed as source.
    Bytes(&'t [u8]),
    /// A number.
    Number(u64),
    /// An address.
    Address(u64),
    /// A size in bytes.
    Size(u64),
    /// A range of addresses.
    Range {
        /// First address.
        base: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Text.
    Text(&'t str),
}

/// Most characters of a text that are displayed, since it may be as long as the blob.
const TEXT_LIMIT: usize = 64;

/// The rule that a finding breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The node or property is required for this.
    Required(&'static str),
    /// The operator must add this to the configuration.
    Add(&'static str),
    /// Any other rule: the text after "must".
    Must(&'static str),
    /// Entries must consist of this many cells.
    Cells {
        /// Cells of an address.
        address: u32,
        /// Cells of a size.
        size: u32,
    },
    /// There are more items than the limit.
    TooMany {
        /// Index of the first item beyond the limit.
        index: usize,
        /// The limit.
        limit: usize,
        /// Plural noun for the items.
        what: &'static str,
    },
    /// A number must lie between two numbers, both included.
    Between(u64, u64),
    /// A base or size must be a multiple of this size in bytes.
    MultipleOf(u64),
    /// A range must not overlap with the range of another node of the same tree.
    Overlaps(NodeId),
    /// A range must not overlap with this.
    OverlapsWith(&'static str),
    /// The value must differ from the one in another node of the same tree.
    SameAs(NodeId),
    /// A base or size must be a multiple of this size because of the guest's page size.
    MultipleOfForPages {
        /// The alignment in bytes.
        size: u64,
        /// The guest's page size in bytes.
        page: u64,
    },
    /// There are not enough CPUs on the host, or not enough free ones.
    OnlyCpus {
        /// Number of CPUs of the host.
        total: u32,
        /// Number of CPUs that no guest owns.
        free: u32,
    },
    /// The host does not have this controller.
    NoController {
        /// Number of controllers of the host.
        count: usize,
    },
    /// No contiguous range of this size is free on the allowed controllers.
    NoRange {
        /// Bytes of the longest free range there.
        longest: u64,
    },
    /// There is not enough free memory.
    Shortage(Shortage),
    /// Kernel, ramdisk and tree do not fit into any region of RAM. Movable blocks do not count.
    ImagesDoNotFit {
        /// Bytes that they need.
        needed: u64,
        /// Bytes of the largest region.
        largest: u64,
    },
    /// No rule is broken; the finding is a note.
    Note(Note),
    /// Ballast does not know a property or child of this name here.
    Unknown {
        /// The closest known name, if one is close.
        nearest: Option<&'static str>,
    },
}

/// A note on how Ballast treats part of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The node does not go into the guest's tree, because `status` disables it.
    Disabled,
    /// The node does not go into the guest's tree, because a kernel without support for it would lose the memory.
    WouldBeLost,
    /// The node becomes a `shared-dma-pool`, which every kernel supports.
    BecomesDmaPool,
    /// The method by which the guest learns of its movable memory.
    MovableMemory(Choice),
    /// Further findings are not reported.
    More,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MovableMemory(choice) => return write!(f, "{choice}"),
            Self::More => "too many messages; the rest are not shown",
            Self::Disabled => "left out: `status` disables it",
            Self::WouldBeLost => "left out: a kernel without support for it would lose the memory",
            Self::BecomesDmaPool => "becomes a \"shared-dma-pool\", which every kernel supports",
        })
    }
}

/// An amount of missing memory, and a controller that has room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Free bytes on the allowed controllers.
    pub free: u64,
    /// Missing bytes on the allowed controllers.
    pub missing: u64,
    /// The allowed controller, if there is exactly one.
    pub controller: Option<u8>,
    /// A controller that has room for all of the memory.
    pub(crate) fits_on: Option<u8>,
    /// Free bytes on all controllers together.
    pub(crate) free_in_all: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.controller {
            Some(id) => write!(f, "controller {id} has {} free", Size(self.free))?,
            None => write!(f, "the allowed controllers have {} free", Size(self.free))?,
        }
        write!(f, ", {} missing; ", Size(self.missing))?;
        match self.fits_on {
            Some(id) => write!(f, "it would fit on controller {id}"),
            None => {
                write!(
                    f,
                    "no single controller has room ({} free on all of them together)",
                    Size(self.free_in_all)
                )
            }
        }
    }
}

impl<'t> Finding<'t> {
    #[inline(never)]
    fn at(location: Location<'t>, property: Option<&'t str>, value: Value<'t>, rule: Rule) -> Self {
        Self(Box::new(Details { location, property, value, rule }))
    }

    /// Creates a finding at `node`.
    #[cold]
    #[inline(never)]
    pub fn new(node: Node<'t>, property: Option<&'t str>, value: Value<'t>, rule: Rule) -> Self {
        Self::at(Location::Node(node), property, value, rule)
    }

    /// Creates a finding about the value of `property`.
    #[cold]
    #[inline(never)]
    pub fn property(node: Node<'t>, property: Property<'t>, rule: Rule) -> Self {
        Self::new(node, Some(property.name()), Value::Bytes(property.bytes()), rule)
    }

    /// Creates a finding about a missing property.
    #[cold]
    #[inline(never)]
    pub fn missing(node: Node<'t>, property: &'static str, rule: Rule) -> Self {
        Self::new(node, Some(property), Value::Missing, rule)
    }

    /// Creates a finding about a property whatever its value.
    #[cold]
    #[inline(never)]
    pub fn named(node: Node<'t>, property: &'static str, rule: Rule) -> Self {
        Self::new(node, Some(property), Value::None, rule)
    }

    /// Creates a finding about a node.
    #[cold]
    #[inline(never)]
    pub fn node(node: Node<'t>, rule: Rule) -> Self {
        Self::new(node, None, Value::None, rule)
    }

    /// Creates a finding about a missing node; `what` is its path or a description.
    #[cold]
    #[inline(never)]
    pub fn no_node(what: &'static str, rule: Rule) -> Self {
        Self::at(Location::Expected(what), None, Value::Missing, rule)
    }

    /// Creates a finding about the argument `name` on Ballast's own command line.
    #[cold]
    #[inline(never)]
    pub fn argument(name: &'static str, value: Value<'t>, rule: Rule) -> Self {
        Self::at(Location::CommandLine, Some(name), value, rule)
    }

    /// Creates a finding about the memory reservation block.
    #[cold]
    #[inline(never)]
    pub fn reservation(value: Value<'t>, rule: Rule) -> Self {
        Self::at(Location::Reservations, None, value, rule)
    }

    /// Replaces the value.
    pub(crate) fn with_value(mut self, value: Value<'t>) -> Self {
        self.0.value = value;
        self
    }

    /// Returns the rule that is broken.
    pub fn rule(&self) -> Rule {
        self.0.rule
    }
}

impl core::error::Error for Finding<'_> {}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.0.location)?;
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
        match (self.0.rule, self.0.location) {
            (Rule::Overlaps(id), Location::Node(node)) => write_other(f, "overlaps with", node, id),
            (Rule::SameAs(id), Location::Node(node)) => write_other(f, "already used by", node, id),
            (rule, _) => write!(f, "{rule}"),
        }
    }
}

/// Writes `what` and the path of node `id` in the tree of `node`.
fn write_other(f: &mut fmt::Formatter<'_>, what: &str, node: Node<'_>, id: NodeId) -> fmt::Result {
    match node.same_tree(id) {
        Some(other) => write!(f, "{what} {}", other.path()),
        None => write!(f, "{what} another node"),
    }
}

impl fmt::Display for Location<'_> {
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

/// Displays text in quotes, with escapes for characters that a terminal would act on or hide. core's `escape_debug`
/// covers all of Unicode, and its tables would enlarge the image.
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
                // Control characters, zero-width characters, directional formatting, byte order marks.
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
            Self::Add(what) => write!(f, "add {what}"),
            Self::Must(what) => write!(f, "must {what}"),
            Self::Cells { address, size } => {
                write!(f, "must have entries of {address} address and {size} size cells")
            }
            Self::TooMany { index, limit, what } => {
                write!(f, "number {} of at most {limit} {what}", index + 1)
            }
            Self::Between(low, high) => write!(f, "must lie between {low} and {high}"),
            Self::MultipleOf(size) => write!(f, "must be a multiple of {}", Size(size)),
            Self::MultipleOfForPages { size, page } => {
                write!(f, "must be a multiple of {} for a guest with pages of {}", Size(size), Size(page))
            }
            Self::OnlyCpus { total, free } => {
                write!(f, "the host has {total} CPUs, of which {free} are free; each vCPU owns one")
            }
            Self::NoController { count } => {
                write!(f, "no such controller: the host has {count}, numbered from 0")
            }
            Self::ImagesDoNotFit { needed, largest } => {
                write!(
                    f,
                    "must have a region of {} or more for kernel, ramdisk and device tree;",
                    Size(needed)
                )?;
                write!(f, " the largest has {}", Size(largest))
            }
            Self::NoRange { longest } => {
                write!(f, "must be free in one range outside blocks and pools on an allowed controller;")?;
                write!(f, " the longest free range has {}", Size(longest))
            }
            Self::Note(note) => write!(f, "{note}"),
            Self::Shortage(shortage) => write!(f, "{shortage}"),
            Self::Overlaps(_) => f.write_str("overlaps with another node"),
            Self::OverlapsWith(what) => write!(f, "overlaps with {what}"),
            Self::SameAs(_) => f.write_str("already used by another node"),
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
