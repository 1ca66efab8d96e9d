//! Display of a tree as source for `dtc`.

use core::fmt;

use super::Tree;
use super::node::Node;

/// Displays a tree as source: reservations and all nodes.
#[derive(Clone, Copy, Debug)]
pub struct TreeSource<'t>(pub Tree<'t>);

impl fmt::Display for TreeSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/dts-v1/;\n")?;
        for entry in self.0.reservations() {
            writeln!(f, "/memreserve/ {:#x} {:#x};", entry.base, entry.size)?;
        }
        write!(f, "\n{}", NodeSource { node: self.0.root(), limit: usize::MAX })
    }
}

/// Displays a node and its descendants as source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeSource<'t> {
    /// The node.
    pub node: Node<'t>,
    /// Most bytes of a value that are displayed; `usize::MAX` for source that `dtc` accepts.
    pub limit: usize,
}

impl fmt::Display for NodeSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nodes = self.node.subtree();
        let mut open = 0;
        while let Some(node) = nodes.next() {
            let depth = nodes.depth();
            close(f, open, depth)?;
            if depth > 0 {
                f.write_str("\n")?;
            }
            indent(f, depth)?;
            writeln!(f, "{} {{", if node.is_root() { "/" } else { node.name() })?;
            open = depth + 1;
            for property in node.properties() {
                indent(f, open)?;
                f.write_str(property.name())?;
                if !property.bytes().is_empty() {
                    write!(f, " = {}", SourceValue { bytes: property.bytes(), limit: self.limit })?;
                }
                f.write_str(";\n")?;
            }
        }
        close(f, open, 0)
    }
}

/// Writes the ends of the nodes from level `open` to level `depth`.
fn close(f: &mut fmt::Formatter<'_>, open: usize, depth: usize) -> fmt::Result {
    for level in (depth..open).rev() {
        indent(f, level)?;
        f.write_str("};\n")?;
    }
    Ok(())
}

fn indent(f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
    for _ in 0..depth {
        f.write_str("\t")?;
    }
    Ok(())
}

/// Displays a property's value as source: strings, cells or bytes, cut after `limit` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceValue<'t> {
    /// The value.
    pub bytes: &'t [u8],
    /// Most bytes that are displayed.
    pub limit: usize,
}

impl fmt::Display for SourceValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.bytes.get(..self.limit).unwrap_or(self.bytes);
        let is_cut = shown.len() < self.bytes.len();
        if is_text(shown, is_cut) {
            let text = if is_cut { shown } else { shown.strip_suffix(&[0]).unwrap_or(shown) };
            for (index, string) in text.split(|&byte| byte == 0).enumerate() {
                f.write_str(if index == 0 { "\"" } else { ", \"" })?;
                write_escaped(f, string)?;
                f.write_str("\"")?;
            }
        } else if self.bytes.len().is_multiple_of(4) {
            f.write_str("<")?;
            for (index, cell) in shown.chunks_exact(4).enumerate() {
                let cell = cell.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
                write!(f, "{}{cell:#x}", if index == 0 { "" } else { " " })?;
            }
            f.write_str(">")?;
        } else {
            f.write_str("[")?;
            for (index, byte) in shown.iter().enumerate() {
                write!(f, "{}{byte:02x}", if index == 0 { "" } else { " " })?;
            }
            f.write_str("]")?;
        }
        if is_cut {
            write!(f, " /* {} bytes */", self.bytes.len())?;
        }
        Ok(())
    }
}

/// Tests whether `bytes` are printable strings of at least one character each.
fn is_text(bytes: &[u8], is_cut: bool) -> bool {
    let Some((&last, _)) = bytes.split_last() else { return true };
    if last != 0 && !is_cut {
        return false;
    }
    let printable = |&byte: &u8| byte == b'\t' || byte == b'\n' || (b' '..=b'~').contains(&byte);
    let text = if last == 0 { bytes.strip_suffix(&[0]).unwrap_or(bytes) } else { bytes };
    text.split(|&byte| byte == 0).all(|string| !string.is_empty() && string.iter().all(printable))
}

fn write_escaped(f: &mut fmt::Formatter<'_>, string: &[u8]) -> fmt::Result {
    for &byte in string {
        match byte {
            b'"' => f.write_str("\\\"")?,
            b'\\' => f.write_str("\\\\")?,
            b'\n' => f.write_str("\\n")?,
            b'\t' => f.write_str("\\t")?,
            _ => write!(f, "{}", char::from(byte))?,
        }
    }
    Ok(())
}
