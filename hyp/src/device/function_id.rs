//! Function identifiers and status codes of the SMC Calling Convention (Arm DEN 0028), for all kinds of calls.

/// NOT_SUPPORTED, also for an unknown function identifier ("Return codes").
pub(crate) const NOT_SUPPORTED: i32 = -1;
/// INVALID_PARAMETER ("Return codes").
pub(crate) const INVALID_PARAMETER: i32 = -3;

/// SMCCC_VERSION.
pub(crate) const SMCCC_VERSION: FunctionId = FunctionId(0x8000_0000);

/// A function identifier from a guest: W0 of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct FunctionId(u32);

/// The owner of a function: the owning entity number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Arm architecture.
    Arch,
    /// Standard secure services, including PSCI.
    StandardSecure,
    /// Vendor of the hypervisor.
    VendorHypervisor,
    /// Any other owner.
    Other,
}

impl FunctionId {
    /// Wraps the identifier `value`.
    #[inline]
    pub(crate) const fn new(value: u32) -> Self {
        Self(value)
    }

    /// Returns the identifier as a number.
    pub(crate) const fn get(self) -> u32 {
        self.0
    }

    /// Returns true for a fast call, which interrupts do not preempt. Ballast has no others.
    pub(crate) const fn is_fast(self) -> bool {
        self.0 >> 31 != 0
    }

    /// Returns true if arguments and results have 64 bits (SMC64, HVC64).
    pub(crate) const fn is_wide(self) -> bool {
        self.0 & 1 << 30 != 0
    }

    /// Returns the owner of the function.
    pub(crate) const fn owner(self) -> Owner {
        match self.0 >> 24 & 0x3f {
            0 => Owner::Arch,
            4 => Owner::StandardSecure,
            6 => Owner::VendorHypervisor,
            _ => Owner::Other,
        }
    }

    /// Returns the number of the function within its owner's range.
    pub(crate) const fn function(self) -> u16 {
        self.0 as u16
    }

    /// Returns `argument` as the call passes it: 64 bits, or the low 32 bits.
    pub(crate) const fn argument(self, argument: u64) -> u64 {
        if self.is_wide() { argument } else { argument & 0xffff_ffff }
    }
}

/// Sign-extends a status for X0 ("Return codes").
pub(crate) const fn status(value: i32) -> u64 {
    value as i64 as u64
}
