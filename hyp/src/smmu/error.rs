//! Errors of the driver.

use core::fmt;

/// Reason for which an SMMU cannot be controlled any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// CMD_SYNC did not complete in time.
    SyncTimeout,
    /// The command queue stayed full.
    QueueFull,
    /// The SMMU rejected the command with this opcode twice (CERROR_ILL).
    Illegal(u8),
    /// The SMMU could not read its command queue (CERROR_ABT), or reported an unknown error, with its code.
    Queue(u8),
    /// The SMMU entered service failure mode (GERROR.SFM_ERR).
    Service,
    /// The SMMU did not acknowledge a write of this register.
    Unacknowledged(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SyncTimeout => f.write_str("CMD_SYNC did not complete in time"),
            Self::QueueFull => f.write_str("the command queue stays full"),
            Self::Illegal(opcode) => write!(f, "CERROR_ILL: the SMMU rejects command {opcode:#04x}"),
            Self::Queue(2) => f.write_str("CERROR_ABT: the SMMU cannot read its command queue"),
            Self::Queue(code) => write!(f, "the command queue reports error {code}"),
            Self::Service => f.write_str("SFM_ERR: the SMMU is in service failure mode"),
            Self::Unacknowledged(register) => write!(f, "the SMMU does not acknowledge {register}"),
        }
    }
}

/// Error of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// Neither stage 1 nor stage 2 (IDR0.S1P, IDR0.S2P).
    NoTranslation,
    /// No AArch64 tables (IDR0.TTF).
    NoAarch64Tables,
    /// Big-endian tables only (IDR0.TTENDIAN).
    BigEndian,
    /// No 4 KiB granule (IDR5.GRAN4K).
    No4kGranule,
    /// Faults always stall the device (IDR0.STALL_MODEL).
    StallsForced,
    /// Tables or queues at fixed addresses (IDR1.TABLES_PRESET, IDR1.QUEUES_PRESET).
    Preset,
    /// A stream table for StreamIDs of this many bits is too large.
    StreamTable(u8),
    /// No memory for tables or queues.
    Memory {
        /// Size of the failed allocation.
        bytes: u64,
    },
    /// An address range that cannot be a window.
    Window {
        /// Start as the device sees it.
        ipa: u64,
        /// Start in physical memory.
        pa: u64,
        /// Size in bytes.
        size: u64,
        /// The rule that the range breaks.
        rule: &'static str,
    },
    /// All windows are in use.
    WindowLimit,
    /// Streams are still attached to the window.
    WindowInUse,
    /// No window has this identity.
    NoWindow,
    /// All places for streams are in use.
    StreamLimit,
    /// A StreamID that the stream table does not reach.
    Stream {
        /// The StreamID.
        id: u32,
        /// Bits of a StreamID in the table.
        bits: u8,
    },
    /// The stream is attached already.
    Attached(u32),
    /// The stream is not attached.
    NotAttached(u32),
    /// The SMMU failed, now or earlier. [`is_closed`](super::Smmu::is_closed) tells if its streams abort.
    Failed(Failure),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoTranslation => f.write_str("the SMMU has neither stage 1 nor stage 2 (IDR0.S1P, S2P)"),
            Self::NoAarch64Tables => f.write_str("the SMMU has no AArch64 translation tables (IDR0.TTF)"),
            Self::BigEndian => f.write_str("the SMMU reads big-endian tables only (IDR0.TTENDIAN)"),
            Self::No4kGranule => f.write_str("the SMMU has no 4 KiB granule (IDR5.GRAN4K)"),
            Self::StallsForced => f.write_str("the SMMU stalls every faulting device (IDR0.STALL_MODEL = 2)"),
            Self::Preset => {
                f.write_str("the SMMU's tables or queues are at fixed addresses (IDR1.TABLES_PRESET)")
            }
            Self::StreamTable(bits) => write!(f, "a stream table for StreamIDs of {bits} bits is too large"),
            Self::Memory { bytes } => write!(f, "no memory for {bytes} bytes of the SMMU's tables"),
            Self::Window { ipa, pa, size, rule } => {
                write!(f, "window at IPA {ipa:#x}, PA {pa:#x}, size {size:#x}: {rule}")
            }
            Self::WindowLimit => f.write_str("the SMMU's windows are all in use"),
            Self::WindowInUse => f.write_str("streams are still attached to the window"),
            Self::NoWindow => f.write_str("no such window"),
            Self::StreamLimit => f.write_str("too many streams are attached to the SMMU"),
            Self::Stream { id, bits } => {
                write!(f, "stream {id:#x} is beyond the stream table, which has {bits} bits")
            }
            Self::Attached(id) => write!(f, "stream {id:#x} is already attached"),
            Self::NotAttached(id) => write!(f, "stream {id:#x} is not attached"),
            Self::Failed(failure) => write!(f, "the SMMU failed: {failure}"),
        }
    }
}
