//! The guest's OS Lock and OS Double Lock, which trap together with DBGPRCR_EL1 (MDCR_EL2.TDOSA).

use super::sysreg::{read, write};

/// Writes OSLAR_EL1.
pub(crate) fn write(value: u64) {
    write!(guest "oslar_el1", value);
}

/// Reads OSLSR_EL1.
pub(crate) fn read_status() -> u64 {
    read!("oslsr_el1")
}

/// Reads OSDLR_EL1.
pub(crate) fn read_double_lock() -> u64 {
    read!("osdlr_el1")
}

/// Writes OSDLR_EL1.
pub(crate) fn write_double_lock(value: u64) {
    write!(guest "osdlr_el1", value);
}
