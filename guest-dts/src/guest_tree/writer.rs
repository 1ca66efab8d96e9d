//! A wrapper around vm-fdt that keeps the first error until the end, since the many small steps that write a tree
//! cannot handle it.

use alloc::vec::Vec;
use core::fmt::Write;

use vm_fdt::{Error, FdtWriter, FdtWriterNode};

use crate::tree::DEPTH_LIMIT;

/// Writes a tree from its root down.
pub(super) struct Writer {
    /// The writer, or the first error.
    writer: Result<FdtWriter, Error>,
    open: heapless::Vec<FdtWriterNode, DEPTH_LIMIT>,
}

/// Returns a `reg` entry: an address and a size of two cells each.
pub(super) fn reg(base: u64, size: u64) -> [u32; 4] {
    [(base >> 32) as u32, base as u32, (size >> 32) as u32, size as u32]
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { writer: FdtWriter::new(), open: heapless::Vec::new() }
    }

    /// Begins a node.
    #[inline(never)]
    pub(super) fn begin(&mut self, name: &str) {
        let open = &mut self.open;
        run(&mut self.writer, |writer| {
            let node = writer.begin_node(name)?;
            open.push(node).map_err(|_| Error::NodeDepthTooLarge)
        });
    }

    /// Begins a node named `name@unit`.
    #[inline(never)]
    pub(super) fn begin_at(&mut self, name: &str, unit: u64) {
        let mut full = heapless::String::<48>::new();
        match write!(full, "{name}@{unit:x}") {
            Ok(()) => self.begin(&full),
            Err(_) => self.writer = Err(Error::InvalidNodeName),
        }
    }

    /// Ends the node that was begun last.
    #[inline(never)]
    pub(super) fn end(&mut self) {
        let node = self.open.pop();
        run(&mut self.writer, |writer| match node {
            Some(node) => writer.end_node(node),
            None => Err(Error::OutOfOrderEndNode),
        });
    }

    #[inline(never)]
    pub(super) fn string(&mut self, name: &str, value: &str) {
        self.strings(name, &[value]);
    }

    #[inline(never)]
    pub(super) fn strings(&mut self, name: &str, values: &[&str]) {
        let mut bytes = Vec::new();
        for value in values {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        self.bytes(name, &bytes);
    }

    #[inline(never)]
    pub(super) fn cells(&mut self, name: &str, cells: &[u32]) {
        let mut bytes = Vec::with_capacity(cells.len() * 4);
        for cell in cells {
            bytes.extend_from_slice(&cell.to_be_bytes());
        }
        self.bytes(name, &bytes);
    }

    /// Writes a number of two cells.
    #[inline(never)]
    pub(super) fn number(&mut self, name: &str, number: u64) {
        self.bytes(name, &number.to_be_bytes());
    }

    #[inline(never)]
    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) {
        run(&mut self.writer, |writer| writer.property(name, bytes));
    }

    /// Writes a property without a value.
    #[inline(never)]
    pub(super) fn flag(&mut self, name: &str) {
        self.bytes(name, &[]);
    }

    #[inline(never)]
    pub(super) fn phandle(&mut self, phandle: u32) {
        run(&mut self.writer, |writer| writer.property_phandle(phandle));
    }

    /// Returns the tree.
    ///
    /// # Errors
    /// The first error of any step.
    #[inline(never)]
    pub(super) fn finish(self) -> Result<Vec<u8>, Error> {
        self.writer?.finish()
    }
}

/// Runs `step` unless there was an error before, and keeps its error.
fn run(writer: &mut Result<FdtWriter, Error>, step: impl FnOnce(&mut FdtWriter) -> Result<(), Error>) {
    if let Ok(good) = writer
        && let Err(error) = step(good)
    {
        *writer = Err(error);
    }
}
