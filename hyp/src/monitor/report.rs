//! Reports: each is described once and written as text for people or as JSON for programs.
//!
//! A report has a name and consists of sentences, fields and tables. A field, and a column of a table, is a [`Cell`]: its
//! key in JSON, its heading in text, and a [`Value`], whose variant is the unit. As text, a table is aligned and fits 80
//! columns if names allow; as JSON, a report is one object on one line:
//! `{"report":"guests","guests":[{"name":"alpha",…},…]}`.
//!
//! Keys are part of Ballast's interface and stay. They are written `like_this` and end in the unit of their value (`_bytes`,
//! `_ns`, `_count`); `hyp/schema/reports.json` describes them. The last key, `crc32`, is the checksum of the text before
//! its comma ([`is_intact`]): a serial line now and then loses or changes a character, and a lost digit still leaves a
//! number.

use core::fmt::{self, Write};

use crc::{CRC_32_ISO_HDLC, Crc, Digest, NoTable};
use stage2::addr::FRAME_SIZE;

use super::units::{Compact, Size, Time};

/// CRC-32 as Ethernet and zlib define it; without a table, because reports are rare and the image is small.
static CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);
/// Text between a report and its checksum, and behind the checksum.
const BEFORE_SUM: &str = ",\"crc32\":\"";
const AFTER_SUM: &str = "\"}";

/// Tests if `report`, a report as JSON, ends with its checksum.
pub fn is_intact(report: &str) -> bool {
    let sum = report.strip_suffix(AFTER_SUM).and_then(|report| report.rsplit_once(BEFORE_SUM));
    sum.is_some_and(|(report, sum)| sum.len() == 8 && u32::from_str_radix(sum, 16) == Ok(checksum(report)))
}

/// Computes the checksum of a report up to the comma before the checksum.
pub fn checksum(report: &str) -> u32 {
    CRC.checksum(report.as_bytes())
}

/// Columns of a screen.
pub const SCREEN_WIDTH: usize = 80;
/// Most columns of a table.
const COLUMNS: usize = 20;
/// Spaces between two columns of a table.
const GAP: usize = 2;
/// Width below which a last column puts text that does not fit on lines of its own.
const NARROW: usize = 30;
/// Indentation of those lines.
const INDENT: usize = 5;

/// The form of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// True for one JSON object on one line, false for text.
    pub is_json: bool,
    /// True for sizes in bytes and times in nanoseconds, false for human units. Concerns text: JSON is always exact.
    pub is_exact: bool,
}

/// A value in a report, with its unit.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// Unknown or absent: `-`, `null`.
    Nothing,
    /// Text.
    Text(&'a str),
    /// Text that is formatted when it is written.
    Show(&'a dyn fmt::Display),
    /// A number of things.
    Count(u64),
    /// A number of bytes.
    Bytes(u64),
    /// A number of frames of 4 KiB, written in bytes.
    Frames(u64),
    /// A time in nanoseconds.
    Nanoseconds(u64),
    /// An address: hexadecimal, a string in JSON.
    Address(u64),
    /// A share in thousandths, written as a percentage in text.
    Permille(u64),
    /// Yes or no.
    Flag(bool),
    /// Several numbers, separated by commas.
    Numbers(&'a [u64]),
    /// Several words, separated by commas.
    Words(&'a [&'a str]),
    /// Ranges of addresses: first address and size, written as `1G@0x40000000` in text.
    Ranges(&'a [(u64, u64)]),
}

use Value::{
    Address, Bytes, Count, Flag, Frames, Nanoseconds, Nothing, Numbers, Permille, Ranges, Show, Text, Words,
};

impl Value<'_> {
    /// Returns `Nothing` in place of zero or of an empty text.
    #[must_use]
    pub fn or_nothing(self) -> Self {
        match self {
            Count(0) | Bytes(0) | Frames(0) | Nanoseconds(0) | Address(0) | Text("") => Nothing,
            value => value,
        }
    }

    /// Tests if the value is aligned to the right, as numbers are.
    fn is_right(&self) -> bool {
        matches!(self, Count(_) | Bytes(_) | Frames(_) | Nanoseconds(_) | Permille(_) | Address(_))
    }

    fn write_text(&self, out: &mut dyn Write, is_exact: bool) -> fmt::Result {
        match *self {
            Nothing | Text("") | Numbers([]) | Words([]) | Ranges([]) => out.write_str("-"),
            Text(text) => out.write_str(text),
            Show(value) => write!(out, "{value}"),
            Frames(frames) => Bytes(frames * FRAME_SIZE).write_text(out, is_exact),
            Bytes(value) if !is_exact => write!(out, "{}", Size(value)),
            Nanoseconds(value) if !is_exact => write!(out, "{}", Time(value)),
            Count(value) | Bytes(value) | Nanoseconds(value) => write!(out, "{value}"),
            Address(value) => write!(out, "{value:#x}"),
            Permille(value) => write!(out, "{}.{} %", value / 10, value % 10),
            Flag(value) => out.write_str(if value { "yes" } else { "no" }),
            Numbers(values) => separated(out, values, |out, value| write!(out, "{value}")),
            Words(values) => separated(out, values, |out, value| out.write_str(value)),
            Ranges(values) => {
                separated(out, values, |out, (base, size)| write!(out, "{}@{base:#x}", Compact(*size)))
            }
        }
    }

    fn write_json(&self, out: &mut dyn Write) -> fmt::Result {
        match *self {
            Nothing => out.write_str("null"),
            Text(text) => write!(out, "\"{}\"", Escaped(&text)),
            Show(value) => write!(out, "\"{}\"", Escaped(&value)),
            Count(value) | Bytes(value) | Nanoseconds(value) | Permille(value) => write!(out, "{value}"),
            Frames(frames) => write!(out, "{}", frames * FRAME_SIZE),
            Address(value) => write!(out, "\"{value:#x}\""),
            Flag(value) => write!(out, "{value}"),
            Numbers(values) => list(out, values, |out, value| write!(out, "{value}")),
            Words(values) => list(out, values, |out, value| write!(out, "\"{}\"", Escaped(value))),
            Ranges(values) => list(out, values, |out, (base, size)| {
                write!(out, "{{\"base\":\"{base:#x}\",\"size_bytes\":{size}}}")
            }),
        }
    }
}

/// Writes a JSON array.
fn list<T>(out: &mut dyn Write, values: &[T], write: fn(&mut dyn Write, &T) -> fmt::Result) -> fmt::Result {
    out.write_str("[")?;
    separated(out, values, write)?;
    out.write_str("]")
}

fn separated<T>(
    out: &mut dyn Write,
    values: &[T],
    write: fn(&mut dyn Write, &T) -> fmt::Result,
) -> fmt::Result {
    for (index, value) in values.iter().enumerate() {
        if index != 0 {
            out.write_str(",")?;
        }
        write(out, value)?;
    }
    Ok(())
}

/// A field, or a row's value in a column, described as `key=HEADING`: the key in JSON and the heading in text. `key` alone
/// is left out of text, `=HEADING` of JSON.
pub type Cell<'a> = (&'a str, Value<'a>);

/// Splits a cell's description into its key and its heading.
fn split(description: &str) -> (&str, &str) {
    description.split_once('=').unwrap_or((description, ""))
}

/// Writes the cells that have a key as members of a JSON object, the first one behind `comma`.
fn write_members(out: &mut dyn Write, cells: &[Cell<'_>], mut comma: &str) -> fmt::Result {
    for (description, value) in cells {
        let (key, _) = split(description);
        if !key.is_empty() {
            write!(out, "{comma}\"{key}\":")?;
            value.write_json(out)?;
            comma = ",";
        }
    }
    Ok(())
}

/// Destination of a report; computes the checksum of JSON.
struct Out<'a> {
    out: &'a mut dyn Write,
    sum: Option<Digest<'static, u32, NoTable>>,
}

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(sum) = &mut self.sum {
            sum.update(text.as_bytes());
        }
        self.out.write_str(text)
    }
}

/// A report under construction. Each method returns the errors of the `out` that it was begun with.
pub struct Report<'a> {
    out: Out<'a>,
    style: Style,
    has_part: bool,
}

impl<'a> Report<'a> {
    /// Begins the report `name`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn begin(out: &'a mut dyn Write, style: Style, name: &str) -> Result<Self, fmt::Error> {
        let mut out = Out { out, sum: style.is_json.then(|| CRC.digest()) };
        if style.is_json {
            write!(out, "{{\"report\":\"{}\"", Escaped(&name))?;
        }
        Ok(Self { out, style, has_part: false })
    }

    /// Ends the report.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn end(self) -> fmt::Result {
        match self.out.sum {
            Some(sum) => writeln!(self.out.out, "{BEFORE_SUM}{:08x}{AFTER_SUM}", sum.finalize()),
            None => Ok(()),
        }
    }

    /// Adds a line that is written in text alone.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn say(&mut self, line: fmt::Arguments<'_>) -> fmt::Result {
        if self.style.is_json {
            return Ok(());
        }
        self.has_part = true;
        writeln!(self.out, "{line}")
    }

    /// Adds fields: members of the report itself in JSON, a list of headings and values in text.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn fields(&mut self, cells: &[Cell<'_>]) -> fmt::Result {
        if self.style.is_json {
            return write_members(&mut self.out, cells, ",");
        }
        let shown =
            || cells.iter().map(|(cell, value)| (split(cell).1, value)).filter(|(head, _)| !head.is_empty());
        let width = shown().map(|(head, _)| head.len()).max().unwrap_or(0);
        if width != 0 {
            self.separate()?;
        }
        for (head, value) in shown() {
            write!(self.out, "{head:width$}  ")?;
            let mut wrapped = Wrapped::new(&mut self.out, width + GAP, SCREEN_WIDTH);
            value.write_text(&mut wrapped, self.style.is_exact)?;
            wrapped.finish()?;
            self.out.write_str("\n")?;
        }
        Ok(())
    }

    /// Adds a table under `key` with a row for each item, as [`Self::table`] does.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn list<T>(
        &mut self,
        key: &str,
        none: &str,
        items: impl Iterator<Item = T> + Clone,
        mut row: impl FnMut(&mut Table<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        self.table(key, none, &mut |table| items.clone().try_for_each(|item| row(table, item)))
    }

    /// Adds a table under `key`, whose rows `rows` adds. It is called twice for text, first to find the columns' widths.
    /// Without a row, text says `none`, or nothing if that is empty. The last column is wrapped if it holds text, on lines of
    /// its own if it is narrow.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn table(
        &mut self,
        key: &str,
        none: &str,
        rows: &mut dyn FnMut(&mut Table<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let (is_exact, is_json) = (self.style.is_exact, self.style.is_json);
        let pass = if is_json { Pass::Json } else { Pass::Measure };
        if is_json {
            write!(self.out, ",\"{key}\":[")?;
        }
        let (widths, is_right) = ([0; COLUMNS], [false; COLUMNS]);
        let mut table = Table { out: &mut self.out, pass, is_exact, is_empty: true, widths, is_right };
        rows(&mut table)?;
        if is_json {
            return table.out.write_str("]");
        }
        let Table { is_empty, widths, is_right, .. } = table;
        if is_empty && none.is_empty() {
            return Ok(());
        }
        self.separate()?;
        if is_empty {
            return writeln!(self.out, "{none}");
        }
        rows(&mut Table { out: &mut self.out, pass: Pass::Text, is_exact, is_empty: true, widths, is_right })
    }

    /// Writes an empty line between two parts.
    fn separate(&mut self) -> fmt::Result {
        if core::mem::replace(&mut self.has_part, true) { self.out.write_str("\n") } else { Ok(()) }
    }
}

/// The use that a table makes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Json,
    Measure,
    Text,
}

/// A table under construction.
pub struct Table<'a> {
    out: &'a mut dyn Write,
    pass: Pass,
    is_exact: bool,
    is_empty: bool,
    widths: [usize; COLUMNS],
    is_right: [bool; COLUMNS],
}

impl Table<'_> {
    /// Adds a row. All rows of a table have the same keys and headings, in the same order.
    ///
    /// # Errors
    /// Those of the report's `out`.
    pub fn row(&mut self, cells: &[Cell<'_>]) -> fmt::Result {
        let is_first = core::mem::replace(&mut self.is_empty, false);
        match self.pass {
            Pass::Json => {
                self.out.write_str(if is_first { "{" } else { ",{" })?;
                write_members(self.out, cells, "")?;
                self.out.write_str("}")
            }
            Pass::Measure => self.measure(cells),
            Pass::Text => {
                if is_first {
                    self.write_row(cells, |head, _| Text(head))?;
                }
                self.write_row(cells, |_, value| value)
            }
        }
    }

    fn measure(&mut self, cells: &[Cell<'_>]) -> fmt::Result {
        for (((description, value), width), is_right) in
            cells.iter().zip(&mut self.widths).zip(&mut self.is_right)
        {
            let mut counter = Counter(0);
            value.write_text(&mut counter, self.is_exact)?;
            *width = counter.0.max(split(description).1.len()).max(*width);
            *is_right |= value.is_right();
        }
        Ok(())
    }

    /// Writes the headings of a row, or its values: whatever `choose` takes of each.
    fn write_row(
        &mut self,
        cells: &[Cell<'_>],
        choose: for<'v> fn(&'v str, Value<'v>) -> Value<'v>,
    ) -> fmt::Result {
        let last = cells.iter().rposition(|(description, _)| !split(description).1.is_empty());
        let mut start = 0;
        let layout = self.widths.into_iter().zip(self.is_right);
        for ((at, (description, value)), (width, is_right)) in cells.iter().enumerate().zip(layout) {
            let head = split(description).1;
            if head.is_empty() {
                continue;
            }
            let value = choose(head, *value);
            let (mut counter, is_last) = (Counter(0), last == Some(at));
            value.write_text(&mut counter, self.is_exact)?;
            let room = SCREEN_WIDTH.saturating_sub(start);
            let has_own_lines = is_last && !is_right && counter.0 > room && room < NARROW;
            match start {
                _ if has_own_lines => write!(self.out, "\n{:INDENT$}", "")?,
                0 => {}
                _ => write!(self.out, "{:GAP$}", "")?,
            }
            if is_last && !is_right {
                let indent = if has_own_lines { INDENT } else { start };
                let mut wrapped = Wrapped::new(self.out, indent, SCREEN_WIDTH);
                value.write_text(&mut wrapped, self.is_exact)?;
                wrapped.finish()?;
            } else {
                let pad = width.saturating_sub(counter.0);
                write!(self.out, "{:1$}", "", if is_right { pad } else { 0 })?;
                value.write_text(self.out, self.is_exact)?;
                write!(self.out, "{:1$}", "", if is_right { 0 } else { pad })?;
            }
            start += width + GAP;
        }
        self.out.write_str("\n")
    }
}

/// Counts characters.
struct Counter(usize);

impl Write for Counter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.chars().count();
        Ok(())
    }
}

/// Breaks text between words at the screen's edge and indents the lines that follow.
struct Wrapped<'a> {
    out: &'a mut dyn Write,
    indent: usize,
    width: usize,
    column: usize,
    word: heapless::String<SCREEN_WIDTH>,
}

impl<'a> Wrapped<'a> {
    fn new(out: &'a mut dyn Write, indent: usize, width: usize) -> Self {
        Self { out, indent, width, column: indent, word: heapless::String::new() }
    }

    fn finish(&mut self) -> fmt::Result {
        let length = self.word.chars().count();
        let is_start = self.column == self.indent;
        // A space before each word but a line's first; a word that would stand alone too is not moved.
        if !is_start && self.column + 1 + length > self.width && self.indent + length < self.width {
            self.out.write_str("\n")?;
            write!(self.out, "{:1$}", "", self.indent)?;
            self.column = self.indent;
        } else if !is_start && length != 0 {
            self.out.write_str(" ")?;
            self.column += 1;
        }
        self.out.write_str(&self.word)?;
        self.column += length;
        self.word.clear();
        Ok(())
    }
}

impl Write for Wrapped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character == ' ' {
                self.finish()?;
            } else if self.word.push(character).is_err() {
                self.finish()?;
                let _ = self.word.push(character);
            }
        }
        Ok(())
    }
}

/// Writes `text`, which starts at column `indent`, wrapped at the screen's edge.
///
/// # Errors
/// Those of `out`.
pub fn write_wrapped(out: &mut dyn Write, indent: usize, text: &str) -> fmt::Result {
    let mut wrapped = Wrapped::new(out, indent, SCREEN_WIDTH);
    wrapped.write_str(text)?;
    wrapped.finish()?;
    out.write_str("\n")
}

/// Text that is written as the inside of a JSON string (RFC 8259, 7).
pub struct Escaped<'a, T: fmt::Display + ?Sized>(pub &'a T);

impl<T: fmt::Display + ?Sized> fmt::Display for Escaped<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaper<'f, 'g>(&'f mut fmt::Formatter<'g>);
        impl Write for Escaper<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for character in text.chars() {
                    match character {
                        '"' => self.0.write_str("\\\"")?,
                        '\\' => self.0.write_str("\\\\")?,
                        '\n' => self.0.write_str("\\n")?,
                        '\0'..' ' | '\x7f' => write!(self.0, "\\u{:04x}", u32::from(character))?,
                        _ => self.0.write_char(character)?,
                    }
                }
                Ok(())
            }
        }
        write!(Escaper(f), "{}", self.0)
    }
}

#[cfg(test)]
mod tests;
