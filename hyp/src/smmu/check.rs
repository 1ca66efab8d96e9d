//! Verification of an SMMU's registers and tables against what the driver set.

use super::access::{Memory, Registers};
use super::registers::{CR0, STRTAB_BASE_CFG};
use super::{Failure, Smmu, StreamState, start};
use core::fmt;

/// Difference between what an SMMU holds and what it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// The SMMU failed.
    Failed(Failure),
    /// A register.
    Register {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The value that was set.
        expected: u32,
    },
    /// The word of the stream table at this physical address.
    StreamTable(u64),
    /// The word of a window's table at this physical address.
    Window(u64),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failure) => write!(f, "the SMMU failed: {failure}"),
            Self::Register { name, value, expected } => {
                write!(f, "SMMU register {name} is {value:#x}, not {expected:#x}")
            }
            Self::StreamTable(pa) => write!(f, "the SMMU's stream table is wrong at {pa:#x}"),
            Self::Window(pa) => write!(f, "an SMMU window's table is wrong at {pa:#x}"),
        }
    }
}

impl<R: Registers, M: Memory> Smmu<R, M> {
    /// Compares registers, stream table and windows with what they must hold. Returns the first difference.
    pub(crate) fn check(&self) -> Result<(), Mismatch> {
        if let Some(failure) = self.failure {
            return Err(Mismatch::Failed(failure));
        }
        for (name, at, expected) in [
            ("CR0", CR0, start::enabled(&self.features)),
            ("STRTAB_BASE_CFG", STRTAB_BASE_CFG, self.table.configuration()),
        ] {
            let value = self.port.registers.read32(at);
            if value != expected {
                return Err(Mismatch::Register { name, value, expected });
            }
        }
        let expected = |id| {
            let stream = self.streams.iter().find(|stream| stream.id == id)?;
            if stream.state == StreamState::Translating { self.translating(stream) } else { None }
        };
        if let Some(pa) = self.table.wrong_word(&self.port, &expected) {
            return Err(Mismatch::StreamTable(pa));
        }
        let wrong = |table: &super::WindowTable| table.wrong_word(&self.port, &self.features);
        match self.windows.iter().flatten().find_map(wrong) {
            Some(pa) => Err(Mismatch::Window(pa)),
            None => Ok(()),
        }
    }
}
