//! Reports: what a command has to say, as text for people or as JSON for programs, from one description.
//!
//! A report has a name and consists of tables and of single fields, each with a key. As text, a table is
//! aligned and fits 80 columns where names allow it; as JSON, a report is one object on one line:
//! `{"report":"guests","guests":[{"name":"alpha",…},…]}`. Keys are part of Ballast's interface: they are
//! written `like_this`, end in the unit of what they hold (`_bytes`, `_ns`, `_count`), and stay.
//! `hyp/schema/reports.json` describes them.

use core::fmt::{self, Write};

use super::units::{Compact, Size, Time};

/// Columns of a screen.
pub const SCREEN_WIDTH: usize = 80;
/// Most columns that a table has.
const COLUMNS: usize = 12;
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

/// A column of a table, or a field.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its key in JSON; empty for what only text shows.
    pub key: &'static str,
    /// Its head in text; empty for what only JSON shows.
    pub head: &'static str,
}

/// A column.
pub const fn column(key: &'static str, head: &'static str) -> Column {
    Column { key, head }
}

/// What puts rows into a table: called with a function that takes one row. It is called twice for a table
/// as text, first to find the columns' widths.
pub type Rows<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&[Value<'_>]) -> fmt::Result) -> fmt::Result;

/// A report under way.
pub struct Report<'a> {
    out: &'a mut dyn Write,
    style: Style,
    has_part: bool,
}

impl<'a> Report<'a> {
    /// Begins the report `name`.
    ///
    /// # Errors
    /// Those of `out`, here and below.
    pub fn begin(out: &'a mut dyn Write, style: Style, name: &str) -> Result<Self, fmt::Error> {
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
        if self.style.is_json { self.out.write_str("}\n") } else { Ok(()) }
    }

    /// Adds fields: keys of the report itself in JSON, a list of names and values in text.
    ///
    /// # Errors
    /// As above.
    pub fn fields(&mut self, fields: &[(Column, Value<'_>)]) -> fmt::Result {
        if self.style.is_json {
            for (column, value) in fields.iter().filter(|(column, _)| !column.key.is_empty()) {
                write!(self.out, ",\"{}\":", column.key)?;
                value.write_json(self.out)?;
            }
            return Ok(());
        }
        if fields.iter().all(|(column, _)| column.head.is_empty()) {
            return Ok(());
        }
        self.separate()?;
        let shown = || fields.iter().filter(|(column, _)| !column.head.is_empty());
        let width = shown().map(|(column, _)| column.head.len()).max().unwrap_or(0);
        for (column, value) in shown() {
            write!(self.out, "{:width$}  ", column.head)?;
            let mut wrapped = Wrapped::new(self.out, width + GAP, SCREEN_WIDTH);
            value.write_text(&mut wrapped, self.style.is_exact)?;
            wrapped.finish()?;
            self.out.write_str("\n")?;
        }
        Ok(())
    }

    /// Adds a table under `key`; `none` is what text says where there is no row. Text that stands left in
    /// the last column is wrapped, on lines of its own where the column is narrow.
    ///
    /// # Errors
    /// As above.
    pub fn table(&mut self, key: &str, columns: &[Column], none: &str, rows: Rows<'_>) -> fmt::Result {
        if self.style.is_json {
            return self.json_table(key, columns, rows);
        }
        self.separate()?;
        let mut widths = [0; COLUMNS];
        for (width, column) in widths.iter_mut().zip(columns) {
            *width = column.head.len();
        }
        let mut is_right = [false; COLUMNS];
        let mut is_empty = true;
        let is_exact = self.style.is_exact;
        rows(&mut |row| {
            is_empty = false;
            for (at, value) in row.iter().enumerate() {
                let mut counter = Counter(0);
                value.write_text(&mut counter, is_exact)?;
                if let (Some(width), Some(is_right)) = (widths.get_mut(at), is_right.get_mut(at)) {
                    *width = counter.0.max(*width);
                    *is_right |= value.is_right();
                }
            }
            Ok(())
        })?;
        if is_empty {
            return writeln!(self.out, "{none}");
        }
        let layout = Layout { columns, widths, is_right, is_exact };
        let out = &mut *self.out;
        layout.write_heads(out)?;
        rows(&mut |row| layout.write_row(out, row))
    }

    fn json_table(&mut self, key: &str, columns: &[Column], rows: Rows<'_>) -> fmt::Result {
        let out = &mut *self.out;
        write!(out, ",\"{key}\":[")?;
        let mut is_first = true;
        rows(&mut |row| {
            out.write_str(if is_first { "{" } else { ",{" })?;
            is_first = false;
            let shown = columns.iter().zip(row).filter(|(column, _)| !column.key.is_empty());
            for (at, (column, value)) in shown.enumerate() {
                write!(out, "{}\"{}\":", if at == 0 { "" } else { "," }, column.key)?;
                value.write_json(out)?;
            }
            out.write_str("}")
        })?;
        out.write_str("]")
    }

    /// An empty line between two parts.
    fn separate(&mut self) -> fmt::Result {
        if core::mem::replace(&mut self.has_part, true) { self.out.write_str("\n") } else { Ok(()) }
    }
}

/// Where a table's columns stand.
struct Layout<'a> {
    columns: &'a [Column],
    widths: [usize; COLUMNS],
    is_right: [bool; COLUMNS],
    is_exact: bool,
}

impl Layout<'_> {
    /// The columns that text shows: index, width, alignment, and whether it is the last.
    fn shown(&self) -> impl Iterator<Item = (usize, usize, bool, bool)> {
        let last = self.columns.iter().rposition(|column| !column.head.is_empty()).unwrap_or(0);
        let columns = self.columns.iter().zip(&self.widths).zip(&self.is_right).enumerate();
        columns
            .filter(|(_, ((column, _), _))| !column.head.is_empty())
            .map(move |(at, ((_, width), is_right))| (at, *width, *is_right, at == last))
    }

    fn write_heads(&self, out: &mut dyn Write) -> fmt::Result {
        for (at, width, is_right, is_last) in self.shown() {
            let head = self.columns.get(at).map_or("", |column| column.head);
            match (is_right, is_last) {
                (true, _) => write!(out, "{head:>width$}")?,
                (false, true) => out.write_str(head)?,
                (false, false) => write!(out, "{head:width$}")?,
            }
            out.write_str(if is_last { "\n" } else { "  " })?;
        }
        Ok(())
    }

    fn write_row(&self, out: &mut dyn Write, row: &[Value<'_>]) -> fmt::Result {
        let mut start = 0;
        for (at, width, is_right, is_last) in self.shown() {
            let Some(value) = row.get(at) else { continue };
            let mut counter = Counter(0);
            value.write_text(&mut counter, self.is_exact)?;
            let pad = width.saturating_sub(counter.0);
            if is_right {
                spaces(out, pad)?;
            }
            if is_last && !is_right {
                let room = SCREEN_WIDTH.saturating_sub(start);
                let has_own_lines = counter.0 > room && room < NARROW;
                if has_own_lines {
                    write!(out, "\n{:INDENT$}", "")?;
                }
                let mut wrapped = Wrapped::new(out, if has_own_lines { INDENT } else { start }, SCREEN_WIDTH);
                value.write_text(&mut wrapped, self.is_exact)?;
                wrapped.finish()?;
            } else {
                value.write_text(out, self.is_exact)?;
            }
            if !is_right && !is_last {
                spaces(out, pad)?;
            }
            out.write_str(if is_last { "\n" } else { "  " })?;
            start += width + GAP;
        }
        Ok(())
    }
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
