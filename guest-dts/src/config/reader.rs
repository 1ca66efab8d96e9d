//! Reads properties, checks their rules and reports each property that breaks one.

use heapless::Vec;

use super::{CONTROLLER_LIMIT, FINDING_LIMIT};
use crate::finding::{Finding, Note, Rule, Value};
use crate::tree::{Node, Property, RegIter};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The guest, block or pool is refused.
    Error,
    /// Suspicious, but accepted.
    Warning,
    /// A choice that Ballast made for the operator.
    Note,
}

/// A receiver of findings.
pub trait Sink<'t> {
    /// Takes one finding.
    fn take(&mut self, severity: Severity, finding: Finding<'t>);
}

impl<'t, F: FnMut(Severity, Finding<'t>)> Sink<'t> for F {
    fn take(&mut self, severity: Severity, finding: Finding<'t>) {
        self(severity, finding);
    }
}

/// Rule for unknown names in Ballast's own nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownNames {
    /// Unknown names are errors: a guest with a mistyped `no-migration` must not start and migrate.
    #[default]
    Refused,
    /// Unknown names are warnings, for a configuration that was written for a later Ballast.
    Allowed,
}

/// Names for which `check_compatible` has a message of its own.
const REFUSED_NAMES: [&str; 2] = ["no-map", "linux,cma-default"];

/// A reader that reports to a sink and keeps the first error since [`Reader::begin`].
pub(super) struct Reader<'s, 't> {
    sink: &'s mut dyn Sink<'t>,
    unknown_names: UnknownNames,
    first_error: Option<Finding<'t>>,
    reported_count: usize,
}

impl<'s, 't> Reader<'s, 't> {
    pub(super) fn new(sink: &'s mut dyn Sink<'t>) -> Self {
        Self { sink, unknown_names: UnknownNames::Refused, first_error: None, reported_count: 0 }
    }

    /// Turns errors about unknown names into warnings from now on.
    pub(super) fn allow_unknown_names(&mut self) {
        self.unknown_names = UnknownNames::Allowed;
    }

    /// Forgets earlier errors.
    pub(super) fn begin(&mut self) {
        self.first_error = None;
    }

    /// Tests whether there was an error since [`Reader::begin`].
    pub(super) fn has_error(&self) -> bool {
        self.first_error.is_some()
    }

    /// Takes the first error since [`Reader::begin`].
    pub(super) fn take_error(&mut self) -> Option<Finding<'t>> {
        self.first_error.take()
    }

    #[inline(never)]
    pub(super) fn error(&mut self, finding: Finding<'t>) {
        self.first_error.get_or_insert_with(|| finding.clone());
        self.report(Severity::Error, finding);
    }

    pub(super) fn warning(&mut self, finding: Finding<'t>) {
        self.report(Severity::Warning, finding);
    }

    pub(super) fn note(&mut self, finding: Finding<'t>) {
        self.report(Severity::Note, finding);
    }

    /// Gives `finding` to the sink, up to [`FINDING_LIMIT`] findings.
    #[inline(never)]
    fn report(&mut self, severity: Severity, finding: Finding<'t>) {
        self.reported_count += 1;
        if self.reported_count <= FINDING_LIMIT {
            self.sink.take(severity, finding);
        } else if self.reported_count == FINDING_LIMIT + 1 {
            self.sink.take(Severity::Warning, Finding::no_node("configuration", Rule::Note(Note::More)));
        }
    }

    /// Reports a property that breaks a rule.
    #[inline(never)]
    pub(super) fn broken(&mut self, node: Node<'t>, property: Property<'t>, rule: Rule) {
        self.error(Finding::property(node, property, rule));
    }

    /// Returns the value in `result`, or reports its error.
    pub(super) fn ok<T>(&mut self, result: Result<T, Finding<'t>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(finding) => {
                self.error(finding);
                None
            }
        }
    }

    /// Reports properties and children of `node` with unknown names. The name of a child counts without its unit
    /// address and without a number at its end.
    pub(super) fn check_names(
        &mut self,
        node: Node<'t>,
        properties: &'static [&'static str],
        children: &'static [&'static str],
    ) {
        let dtc = ["phandle", "linux,phandle", "name"];
        for property in node.properties() {
            let name = property.name();
            if !properties.contains(&name) && !dtc.contains(&name) && !REFUSED_NAMES.contains(&name) {
                let rule = Rule::Unknown { nearest: nearest(name, properties) };
                self.unknown(Finding::new(node, Some(name), Value::Bytes(property.bytes()), rule));
            }
        }
        if children.contains(&"*") {
            return;
        }
        for child in node.children() {
            let kind = kind(child);
            if !children.contains(&kind) {
                self.unknown(Finding::node(child, Rule::Unknown { nearest: nearest(kind, children) }));
            }
        }
    }

    fn unknown(&mut self, finding: Finding<'t>) {
        match self.unknown_names {
            UnknownNames::Refused => self.error(finding),
            UnknownNames::Allowed => self.warning(finding),
        }
    }

    /// Returns the entries of `reg` of `node`. The parent must set one or two cells for addresses and for sizes.
    pub(super) fn reg(&mut self, node: Node<'t>) -> Option<RegIter<'t>> {
        let cells = self.ok(node.own_cells())?;
        for (name, count) in [("#address-cells", cells.address), ("#size-cells", cells.size)] {
            if count == 0 {
                self.error(Finding::named(node.parent()?, name, Rule::Must("be 1 or 2")));
                return None;
            }
        }
        self.ok(node.pairs("reg", cells))
    }

    /// Reads a number of one cell from `low` to `high`.
    pub(super) fn number(&mut self, node: Node<'t>, name: &str, low: u32, high: u32) -> Option<u32> {
        let property = node.property(name)?;
        match property.u32() {
            Some(number) if (low..=high).contains(&number) => Some(number),
            Some(1..) if property.is_strings() => {
                self.broken(node, property, Rule::Must("be a number (one cell), not a string"));
                None
            }
            Some(number) => {
                let rule = Rule::Between(low.into(), high.into());
                self.error(Finding::new(node, Some(property.name()), Value::Number(number.into()), rule));
                None
            }
            None => {
                self.broken(node, property, Rule::Must("be a number (one cell)"));
                None
            }
        }
    }

    /// Reads a size in bytes of one or two cells, more than 0.
    #[inline(never)]
    pub(super) fn size(&mut self, node: Node<'t>, name: &str) -> Option<u64> {
        let property = node.property(name)?;
        match property.number() {
            Some(0) => self.broken(node, property, Rule::Must("be more than 0")),
            Some(size) => return Some(size),
            None => self.broken(node, property, Rule::Must("be a size in bytes (one or two cells)")),
        }
        None
    }

    /// Reads one string.
    #[inline(never)]
    pub(super) fn string(&mut self, node: Node<'t>, name: &str) -> Option<&'t str> {
        let property = node.property(name)?;
        let text = property.str();
        if text.is_none() {
            self.broken(node, property, Rule::Must("be one string"));
        }
        text
    }

    /// Tests whether the property is present. Reports a value as an error.
    #[inline(never)]
    pub(super) fn flag(&mut self, node: Node<'t>, name: &str) -> bool {
        let Some(property) = node.property(name) else { return false };
        if !property.bytes().is_empty() {
            self.broken(node, property, Rule::Must("have no value: it counts as set when present"));
        }
        true
    }

    /// Reads the controller numbers in `controllers`.
    pub(super) fn controllers(&mut self, node: Node<'t>) -> Vec<u8, CONTROLLER_LIMIT> {
        let mut found = Vec::new();
        let Some(property) = node.property("controllers") else { return found };
        let cells = property.cells().filter(|_| !property.bytes().is_empty());
        let Some(cells) = cells else {
            self.broken(node, property, Rule::Must("be a list of controller numbers, one cell each"));
            return found;
        };
        // One more than the limit, to report that there are too many; no more, since the property may be long.
        for (index, number) in cells.take(CONTROLLER_LIMIT + 1).enumerate() {
            let value = Value::Number(number.into());
            let rule = match u8::try_from(number) {
                _ if index == CONTROLLER_LIMIT => {
                    Rule::TooMany { index, limit: CONTROLLER_LIMIT, what: "controllers" }
                }
                Err(_) => Rule::Between(0, 255),
                Ok(number) if found.contains(&number) => Rule::Must("be listed once"),
                Ok(number) => {
                    // At most CONTROLLER_LIMIT turns come here.
                    let _ = found.push(number);
                    continue;
                }
            };
            self.error(Finding::new(node, Some(property.name()), value, rule));
        }
        found
    }

    /// Returns the node whose phandle is in property `name`.
    #[inline(never)]
    pub(super) fn target(&mut self, node: Node<'t>, name: &str, rule: Rule) -> Option<Node<'t>> {
        let property = node.property(name)?;
        let target = property
            .u32()
            .and_then(|phandle| node.tree_root().descendants().find(|node| node.phandle() == Some(phandle)));
        if target.is_none() {
            self.broken(node, property, rule);
        }
        target
    }
}

/// Returns the name of `node` without unit address and without a number at its end (`memory` for `memory-1`).
pub(super) fn kind<'t>(node: Node<'t>) -> &'t str {
    let name = node.base_name();
    match name.rsplit_once('-') {
        Some((kind, number)) if !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()) => {
            kind
        }
        _ => name,
    }
}

/// Returns the closest of `names`, if at most a third of the characters of `name` differ.
fn nearest(name: &str, names: &'static [&'static str]) -> Option<&'static str> {
    let edits = |known: &str| match has_neighbours_swapped(name.as_bytes(), known.as_bytes()) {
        true => 1,
        false => distance(name.as_bytes(), known.as_bytes()),
    };
    let distances = names.iter().map(|known| (edits(known), *known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= name.len().div_ceil(3)).then_some(known)
}

/// Tests whether `one` and `other` differ only in the order of two adjacent characters, like `dbm` and `dmb`.
fn has_neighbours_swapped(one: &[u8], other: &[u8]) -> bool {
    let Some(at) = one.iter().zip(other).position(|(first, second)| first != second) else { return false };
    match (one.get(at..), other.get(at..)) {
        (Some([a, b, rest @ ..]), Some([c, d, others @ ..])) => (a, b, rest) == (d, c, others),
        _ => false,
    }
}

/// Returns the Levenshtein distance of `one` and `other`, or a large number if one is longer than any known name.
fn distance(one: &[u8], other: &[u8]) -> usize {
    const LONGEST: usize = 40;
    if one.len() > LONGEST || other.len() > LONGEST {
        return usize::MAX;
    }
    let mut row = [0usize; LONGEST + 1];
    for (index, cost) in row.iter_mut().enumerate() {
        *cost = index;
    }
    for (line, first) in one.iter().enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        if let Some(cost) = row.first_mut() {
            *cost = left;
        }
        for (cost, second) in row.iter_mut().skip(1).zip(other) {
            let above = *cost;
            left = (diagonal + usize::from(first != second)).min(above + 1).min(left + 1);
            diagonal = above;
            *cost = left;
        }
    }
    row.get(other.len()).copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        assert_eq!(distance(b"vcpu", b"vcpus"), 1);
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(nearest("bootarg", &["vcpus", "bootargs"]), Some("bootargs"));
        assert_eq!(nearest("frobnicate", &["vcpus", "bootargs"]), None);
        assert_eq!(nearest("dbm", &["memory", "dmb"]), Some("dmb"));
        for (one, other, is_swap) in [
            ("onwer", "owner", true),
            ("owner", "owner", false),
            ("ownre", "owner", true),
            ("owne", "owner", false),
            ("", "owner", false),
            ("ab", "ba", true),
            ("abc", "bax", false),
        ] {
            assert_eq!(has_neighbours_swapped(one.as_bytes(), other.as_bytes()), is_swap, "{one}");
        }
    }
}
