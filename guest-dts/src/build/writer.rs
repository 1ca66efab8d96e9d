//! vm-fdt behind names that say what is written.

use alloc::vec::Vec;
use core::fmt::Write;

use vm_fdt::{FdtWriter, FdtWriterNode};

use super::BuildError;

/// Writes a tree from its root down.
pub(super) struct Writer(FdtWriter);

/// An address of two cells and a size of two.
pub(super) fn reg(base: u64, size: u64) -> [u32; 4] {
    [(base >> 32) as u32, base as u32, (size >> 32) as u32, size as u32]
}

impl Writer {
    pub(super) fn new() -> Result<Self, BuildError<'static>> {
        Ok(Self(FdtWriter::new()?))
    }

    /// Begins a node.
    pub(super) fn begin(&mut self, name: &str) -> Result<FdtWriterNode, BuildError<'static>> {
        Ok(self.0.begin_node(name)?)
    }

    /// Begins a node named `name@unit`.
    pub(super) fn begin_at(&mut self, name: &str, unit: u64) -> Result<FdtWriterNode, BuildError<'static>> {
        let mut full = heapless::String::<48>::new();
        match write!(full, "{name}@{unit:x}") {
            Ok(()) => self.begin(&full),
            Err(_) => Err(BuildError::Writer(vm_fdt::Error::InvalidNodeName)),
        }
    }

    pub(super) fn end(&mut self, node: FdtWriterNode) -> Result<(), BuildError<'static>> {
        Ok(self.0.end_node(node)?)
    }

    pub(super) fn string(&mut self, name: &str, value: &str) -> Result<(), BuildError<'static>> {
        Ok(self.0.property_string(name, value)?)
    }

    pub(super) fn strings(&mut self, name: &str, values: &[&str]) -> Result<(), BuildError<'static>> {
        let mut bytes = Vec::new();
        for value in values {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        self.bytes(name, &bytes)
    }

    pub(super) fn cells(&mut self, name: &str, cells: &[u32]) -> Result<(), BuildError<'static>> {
        Ok(self.0.property_array_u32(name, cells)?)
    }

    /// A number of two cells.
    pub(super) fn number(&mut self, name: &str, number: u64) -> Result<(), BuildError<'static>> {
        Ok(self.0.property_u64(name, number)?)
    }

    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), BuildError<'static>> {
        Ok(self.0.property(name, bytes)?)
    }

    /// A property without a value.
    pub(super) fn flag(&mut self, name: &str) -> Result<(), BuildError<'static>> {
        Ok(self.0.property_null(name)?)
    }

    pub(super) fn phandle(&mut self, phandle: u32) -> Result<(), BuildError<'static>> {
        Ok(self.0.property_phandle(phandle)?)
    }

    pub(super) fn finish(self) -> Result<Vec<u8>, BuildError<'static>> {
        Ok(self.0.finish()?)
    }
}
