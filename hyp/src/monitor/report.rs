//! Reports: what a command has to say, as text for people or as JSON for programs, from one description.
//!
//! A report has a name and consists of tables and of single fields, each with a key. As text, a table is
//! aligned and fits 80 columns where names allow it; as JSON, a report is one object on one line:
//! `{"report":"guests","guests":[{"name":"alpha",…},…]}`. Keys are part of Ballast's interface: they are
//! written `like_this`, end in the unit of what they hold (`_bytes`, `_ns`, `_count`), and stay.
//! `hyp/schema/reports.json` describes them. The last one, `crc32`, is the checksum of all that stands before its comma
//! ([`is_intact`]): a serial line loses or changes a character now and then, and a digit that is missing makes another
//! number.

use core::fmt::{self, Write};

use crc::{CRC_32_ISO_HDLC, Crc, Digest, NoTable};

use super::units::{Compact, Size, Time};

/// CRC-32 as Ethernet and zlib have it; without a table, since reports are few and the image is small.
static CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);
/// What stands between a report and its checksum, and behind that.
const BEFORE_SUM: &str = ",\"crc32\":\"";
const AFTER_SUM: &str = "\"}";

/// Whether `report`, a report as JSON, is as it was written: it ends with its checksum.
pub fn is_intact(report: &str) -> bool {
    let sum = report.strip_suffix(AFTER_SUM).and_then(|report| report.rsplit_once(BEFORE_SUM));
    sum.is_some_and(|(report, sum)| sum.len() == 8 && u32::from_str_radix(sum, 16) == Ok(checksum(report)))
}

/// The checksum of a report up to the comma before it.
pub fn checksum(report: &str) -> u32 {
    CRC.checksum(report.as_bytes())
}

/// Columns of a screen.
pub const SCREEN_WIDTH: usize = 80;
/// Most columns that a table has.
const COLUMNS: usize = 20;
/// Columns between two columns of a table.
const GAP: usize = 2;
/// A last column narrower than this gets lines of its own where its text does not fit.
const NARROW: usize = 30;
/// Where they begin.
const INDENT: usize = 5;

/// How a report is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// One JSON object on one line instead of text.
    pub is_json: bool,
    /// Sizes in bytes and times in nanoseconds instead of human units (in text; JSON always has them).
    pub is_exact: bool,
}

/// A value in a report.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// Unknown or not there: `-`, `null`.
    None,
    /// Text.
    Text(&'a str),
    /// Text that is put together when it is shown.
    Show(&'a dyn fmt::Display),
    /// A number of things.
    Count(u64),
    /// A number of bytes.
    Bytes(u64),
    /// A time in nanoseconds.
    Nanoseconds(u64),
    /// An address: hexadecimal, in JSON as text.
    Address(u64),
    /// A share in thousandths, shown as per cent.
    Permille(u64),
    /// Yes or no.
    Flag(bool),
    /// Several numbers, shown with commas.
    Numbers(&'a [u64]),
    /// Several words, shown with commas.
    Words(&'a [&'a str]),
    /// Ranges of addresses: first address and size, shown as `1G@0x40000000`.
    Ranges(&'a [(u64, u64)]),
}

impl Value<'_> {
    /// Numbers stand right, text left.
    fn is_right(&self) -> bool {
        matches!(
            self,
            Self::Count(_) | Self::Bytes(_) | Self::Nanoseconds(_) | Self::Permille(_) | Self::Address(_)
        )
    }

    fn write_text(&self, out: &mut dyn Write, is_exact: bool) -> fmt::Result {
        match *self {
            Self::None => out.write_str("-"),
            Self::Text("") => out.write_str("-"),
            Self::Text(text) => out.write_str(text),
            Self::Show(value) => write!(out, "{value}"),
            Self::Bytes(value) if !is_exact => write!(out, "{}", Size(value)),
            Self::Nanoseconds(value) if !is_exact => write!(out, "{}", Time(value)),
            Self::Count(value) | Self::Bytes(value) | Self::Nanoseconds(value) => write!(out, "{value}"),
            Self::Address(value) => write!(out, "{value:#x}"),
            Self::Permille(value) => write!(out, "{}.{} %", value / 10, value % 10),
            Self::Flag(value) => out.write_str(if value { "yes" } else { "no" }),
            Self::Numbers([]) | Self::Words([]) => out.write_str("-"),
            Self::Numbers(values) => separated(out, values, |out, value| write!(out, "{value}")),
            Self::Words(values) => separated(out, values, |out, value| out.write_str(value)),
            Self::Ranges([]) => out.write_str("-"),
            Self::Ranges(values) => {
                separated(out, values, |out, (base, size)| write!(out, "{}@{base:#x}", Compact(*size)))
            }
        }
    }

    fn write_json(&self, out: &mut dyn Write) -> fmt::Result {
        match *self {
            Self::None => out.write_str("null"),
            Self::Text(text) => write!(out, "\"{}\"", Escaped(&text)),
            Self::Show(value) => write!(out, "\"{}\"", Escaped(&value)),
            Self::Count(value) | Self::Bytes(value) | Self::Nanoseconds(value) | Self::Permille(value) => {
                write!(out, "{value}")
            }
            Self::Address(value) => write!(out, "\"{value:#x}\""),
            Self::Flag(value) => write!(out, "{value}"),
            Self::Numbers(values) => {
                out.write_str("[")?;
                separated(out, values, |out, value| write!(out, "{value}"))?;
                out.write_str("]")
            }
            Self::Words(values) => {
                out.write_str("[")?;
                separated(out, values, |out, value| write!(out, "\"{}\"", Escaped(value)))?;
                out.write_str("]")
            }
            Self::Ranges(values) => {
                out.write_str("[")?;
                separated(out, values, |out, (base, size)| {
                    write!(out, "{{\"base\":\"{base:#x}\",\"size_bytes\":{size}}}")
                })?;
                out.write_str("]")
            }
        }
    }
}

fn separated<T>(
    out: &mut dyn Write,
    values: &[T],
    write: impl Fn(&mut dyn Write, &T) -> fmt::Result,
) -> fmt::Result {
    for (index, value) in values.iter().enumerate() {
        if index != 0 {
            out.write_str(",")?;
        }
        write(out, value)?;
    }
    Ok(())
}

/// A column of a table, or a field: its key in JSON and its head in text, `key=Head`. Without a key, it is
/// for text alone; without a head, for JSON.
#[derive(Clone, Copy, Debug)]
struct Column<'a> {
    key: &'a str,
    head: &'a str,
}

/// The columns that a list like `name=NAME|memory_bytes=MEMORY|start_count=` names. As one text, they cost
/// the image least.
fn columns(list: &str) -> impl Iterator<Item = Column<'_>> + Clone {
    list.split('|').filter_map(|column| {
        let (key, head) = column.split_once('=')?;
        Some(Column { key, head })
    })
}

/// What puts rows into a table ([`Table::row`]). It is called twice for a table as text, first to find the
/// columns' widths.
pub type Rows<'a> = &'a mut dyn FnMut(&mut Table<'_>) -> fmt::Result;

/// Where a report goes; adds up what of it is JSON.
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

/// A report under way.
pub struct Report<'a> {
    out: Out<'a>,
    style: Style,
    has_part: bool,
}

impl<'a> Report<'a> {
    /// Begins the report `name`.
    ///
    /// # Errors
    /// Those of `out`, here and below.
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
    /// As above.
    pub fn end(self) -> fmt::Result {
        match self.out.sum {
            Some(sum) => writeln!(self.out.out, "{BEFORE_SUM}{:08x}{AFTER_SUM}", sum.finalize()),
            None => Ok(()),
        }
    }

    /// Adds fields (`key=Head|…`, a value for each): keys of the report itself in JSON, a list of heads and
    /// values in text.
    ///
    /// # Errors
    /// As above.
    pub fn fields(&mut self, list: &str, values: &[Value<'_>]) -> fmt::Result {
        if self.style.is_json {
            for (column, value) in columns(list).zip(values).filter(|(column, _)| !column.key.is_empty()) {
                write!(self.out, ",\"{}\":", column.key)?;
                value.write_json(&mut self.out)?;
            }
            return Ok(());
        }
        let width = columns(list).map(|column| column.head.len()).max().unwrap_or(0);
        if width == 0 {
            return Ok(());
        }
        self.separate()?;
        for (column, value) in columns(list).zip(values).filter(|(column, _)| !column.head.is_empty()) {
            write!(self.out, "{:width$}  ", column.head)?;
            let mut wrapped = Wrapped::new(&mut self.out, width + GAP, SCREEN_WIDTH);
            value.write_text(&mut wrapped, self.style.is_exact)?;
            wrapped.finish()?;
            self.out.write_str("\n")?;
        }
        Ok(())
    }

    /// Adds a table under `key` with the columns of `list` (`key=HEAD|…`); `none` is what text says where
    /// there is no row. Text that stands left in the last column is wrapped, on lines of its own where the
    /// column is narrow.
    ///
    /// # Errors
    /// As above.
    pub fn table(&mut self, key: &str, list: &str, none: &str, rows: Rows<'_>) -> fmt::Result {
        let mut table = Table {
            out: &mut self.out,
            list,
            pass: Pass::Json,
            is_exact: self.style.is_exact,
            is_empty: true,
            widths: [0; COLUMNS],
            is_right: [false; COLUMNS],
        };
        if self.style.is_json {
            write!(table.out, ",\"{key}\":[")?;
            rows(&mut table)?;
            return table.out.write_str("]");
        }
        if core::mem::replace(&mut self.has_part, true) {
            table.out.write_str("\n")?;
        }
        table.pass = Pass::Measure;
        for (width, column) in table.widths.iter_mut().zip(columns(list)) {
            *width = column.head.len();
        }
        rows(&mut table)?;
        if table.is_empty {
            return writeln!(table.out, "{none}");
        }
        table.write_heads()?;
        table.pass = Pass::Text;
        rows(&mut table)
    }

    /// An empty line between two parts.
    fn separate(&mut self) -> fmt::Result {
        if core::mem::replace(&mut self.has_part, true) { self.out.write_str("\n") } else { Ok(()) }
    }
}

/// What a table does with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Json,
    Measure,
    Text,
}

/// A table under way.
pub struct Table<'a> {
    out: &'a mut dyn Write,
    list: &'a str,
    pass: Pass,
    is_exact: bool,
    is_empty: bool,
    widths: [usize; COLUMNS],
    is_right: [bool; COLUMNS],
}

impl Table<'_> {
    /// Adds a row: a value for each column.
    ///
    /// # Errors
    /// Those of the report's `out`.
    pub fn row(&mut self, values: &[Value<'_>]) -> fmt::Result {
        let is_first = core::mem::replace(&mut self.is_empty, false);
        match self.pass {
            Pass::Json => self.write_object(values, is_first),
            Pass::Measure => self.measure(values),
            Pass::Text => self.write_row(values),
        }
    }

    fn write_object(&mut self, values: &[Value<'_>], is_first: bool) -> fmt::Result {
        self.out.write_str(if is_first { "{" } else { ",{" })?;
        let mut comma = "";
        for (column, value) in columns(self.list).zip(values).filter(|(column, _)| !column.key.is_empty()) {
            write!(self.out, "{comma}\"{}\":", column.key)?;
            value.write_json(self.out)?;
            comma = ",";
        }
        self.out.write_str("}")
    }

    fn measure(&mut self, values: &[Value<'_>]) -> fmt::Result {
        for ((value, width), is_right) in values.iter().zip(&mut self.widths).zip(&mut self.is_right) {
            let mut counter = Counter(0);
            value.write_text(&mut counter, self.is_exact)?;
            *width = counter.0.max(*width);
            *is_right |= value.is_right();
        }
        Ok(())
    }

    /// The index of the last column that text shows.
    fn last(&self) -> usize {
        let shown = columns(self.list).enumerate().filter(|(_, column)| !column.head.is_empty());
        shown.map(|(at, _)| at).last().unwrap_or(0)
    }

    fn write_heads(&mut self) -> fmt::Result {
        let last = self.last();
        let layout = self.widths.iter().zip(&self.is_right);
        for ((at, column), (&width, &is_right)) in columns(self.list).enumerate().zip(layout) {
            let head = column.head;
            if head.is_empty() {
                continue;
            }
            let pad = if is_right || at != last { width - head.len() } else { 0 };
            write_padded(self.out, &Value::Text(head), is_right, pad, self.is_exact)?;
            self.out.write_str(if at == last { "\n" } else { "  " })?;
        }
        Ok(())
    }

    fn write_row(&mut self, values: &[Value<'_>]) -> fmt::Result {
        let last = self.last();
        let mut start = 0;
        let layout = self.widths.iter().zip(&self.is_right);
        for (((at, column), value), (&width, &is_right)) in
            columns(self.list).enumerate().zip(values).zip(layout)
        {
            if column.head.is_empty() {
                continue;
            }
            let mut counter = Counter(0);
            value.write_text(&mut counter, self.is_exact)?;
            if at == last && !is_right {
                let room = SCREEN_WIDTH.saturating_sub(start);
                let has_own_lines = counter.0 > room && room < NARROW;
                if has_own_lines {
                    write!(self.out, "\n{:INDENT$}", "")?;
                }
                let indent = if has_own_lines { INDENT } else { start };
                let mut wrapped = Wrapped::new(self.out, indent, SCREEN_WIDTH);
                value.write_text(&mut wrapped, self.is_exact)?;
                wrapped.finish()?;
            } else {
                let pad = width.saturating_sub(counter.0);
                write_padded(self.out, value, is_right, pad, self.is_exact)?;
            }
            self.out.write_str(if at == last { "\n" } else { "  " })?;
            start += width + GAP;
        }
        Ok(())
    }
}

/// Writes a value with `pad` spaces before or behind it.
fn write_padded(
    out: &mut dyn Write,
    value: &Value<'_>,
    is_right: bool,
    pad: usize,
    is_exact: bool,
) -> fmt::Result {
    if is_right {
        spaces(out, pad)?;
    }
    value.write_text(out, is_exact)?;
    if is_right { Ok(()) } else { spaces(out, pad) }
}

fn spaces(out: &mut dyn Write, count: usize) -> fmt::Result {
    write!(out, "{:count$}", "")
}

/// Counts characters.
struct Counter(usize);

impl Write for Counter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.chars().count();
        Ok(())
    }
}

/// Breaks text between words at the screen's edge, the next line beginning at `indent`.
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
            spaces(self.out, self.indent)?;
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

/// Writes wrapped text, from a line's start.
///
/// # Errors
/// Those of `out`.
pub fn write_wrapped(out: &mut dyn Write, indent: usize, text: &str) -> fmt::Result {
    let mut wrapped = Wrapped::new(out, indent, SCREEN_WIDTH);
    wrapped.write_str(text)?;
    wrapped.finish()?;
    out.write_str("\n")
}

/// Text as the inside of a JSON string (RFC 8259, 7).
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
