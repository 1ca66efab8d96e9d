//! Mapping of devices' registers at EL2.

use crate::arch::mmio::Registers;
use crate::hyp_mem::mmu;
use crate::hyp_mem::smmu::Frames;
use crate::smmu::{Error, Setup, Smmu};
use alloc::format;
use alloc::string::String;
use guest_dts::range::PaRange;

/// An SMMU of the host.
pub(super) type HostSmmu = Smmu<Registers, Frames>;

/// Returns true if RAM of the host lies in `range`. A device mapping of RAM beside a cacheable one loses coherency (Arm ARM,
/// "Mismatched memory attributes"), and a guest must not reach it.
pub(super) fn has_ram(range: PaRange) -> bool {
    crate::host::board().is_none_or(|board| board.ram.ranges.iter().any(|ram| ram.range.overlaps(&range)))
}

/// Maps the registers at `range`, whole frames, forever.
///
/// # Errors
///
/// RAM lies there, or there is no memory for tables.
pub(super) fn map(range: PaRange) -> Result<Registers, String> {
    if has_ram(range) {
        return Err(format!("registers at {range}: RAM lies there"));
    }
    let base = mmu::map_device(range.base(), range.size())
        .map_err(|error| format!("registers at {range}: {error}"))?;
    // SAFETY: the host's tree or a BAR that Ballast placed says that these are registers, and no RAM; mapped forever.
    Ok(unsafe { Registers::new(base, range.size() as usize) })
}

/// Takes over the SMMU whose registers are mapped.
///
/// # Errors
///
/// As [`Smmu::new`].
pub(super) fn take_over(registers: Registers, setup: Setup) -> Result<HostSmmu, Error> {
    // SAFETY: the driver uses the frames that it allocates, until it frees them.
    Smmu::new(registers, unsafe { Frames::new() }, setup)
}
