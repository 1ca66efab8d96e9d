//! Stream table entries (STEs) and context descriptors (CDs), as IHI 0070, "Stream Table Entry" and "Context Descriptor", lay
//! them out.

use super::features::{Features, Stage};
use bitfield_struct::bitfield;

/// Words of an STE that Ballast writes; the others are 0.
pub(super) const STE_WORDS: usize = 4;
/// Bytes of an STE.
pub(super) const STE_SIZE: u64 = 64;
/// Words of a CD that Ballast writes; the others are 0.
pub(super) const CD_WORDS: usize = 4;
/// Bytes of a CD.
pub(super) const CD_SIZE: u64 = 64;
/// Word 0 of an STE that aborts without an event: V = 1, Config = 0b000.
pub(super) const ABORT: u64 = 1;

/// Address bits of S1ContextPtr, S2TTB and TTB0.
const ADDRESS: u64 = 0xf_ffff_ffff_fff0;

/// A window's table, as an STE names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Root of the stage 2 table.
    pub(super) root: u64,
    /// VMID of the stage 2 table.
    pub(super) vmid: u16,
    /// The CD of the stage 1 table.
    pub(super) context: u64,
}

/// Word 0.
#[bitfield(u64)]
struct Ste0 {
    is_valid: bool,
    /// Config: 0b000 aborts, 0b101 is stage 1, 0b110 stage 2.
    #[bits(3)]
    config: u8,
    #[bits(60)]
    __: u64,
}

/// Word 1.
#[bitfield(u64)]
struct Ste1 {
    #[bits(2)]
    __: u8,
    /// S1CIR, S1COR: inner and outer cacheability of CD fetches; 0b01 is Write-Back.
    #[bits(4)]
    s1_cacheability: u8,
    /// S1CSH: shareability of CD fetches; 0b11 is Inner Shareable.
    #[bits(2)]
    s1_shareability: u8,
    #[bits(11)]
    __: u16,
    /// MEV: events of the same kind may be merged.
    merges_events: bool,
    #[bits(7)]
    __: u8,
    /// S1STALLD: no transaction of the stream stalls.
    disables_stalls: bool,
    /// EATS: 0 refuses ATS.
    #[bits(2)]
    ats: u8,
    /// STRW: 0 is NS-EL1.
    #[bits(2)]
    world: u8,
    /// MemAttr: the type that replaces the incoming one, if MTCFG is set.
    #[bits(4)]
    memory_type: u8,
    /// MTCFG.
    replaces_type: bool,
    #[bits(7)]
    __: u8,
    /// SHCFG: 0b01 keeps the incoming shareability, 0b11 is Inner Shareable.
    #[bits(2)]
    shareability: u8,
    #[bits(18)]
    __: u32,
}

/// Word 2.
#[bitfield(u64)]
struct Ste2 {
    s2_vmid: u16,
    __: u16,
    #[bits(6)]
    s2_t0sz: u8,
    /// S2SL0: 1 starts at level 1.
    #[bits(2)]
    s2_start_level: u8,
    /// S2IR0, S2OR0: cacheability of walks; 0b01 is Write-Back.
    #[bits(4)]
    s2_cacheability: u8,
    /// S2SH0: shareability of walks.
    #[bits(2)]
    s2_shareability: u8,
    /// S2TG: 0 is 4 KiB.
    #[bits(2)]
    s2_granule: u8,
    /// S2PS: size of a physical address.
    #[bits(3)]
    s2_output_size: u8,
    s2_is_aarch64: bool,
    /// S2ENDI: big-endian tables.
    s2_is_big_endian: bool,
    /// S2AFFD: no faults by the access flag.
    s2_ignores_access_flag: bool,
    #[bits(3)]
    __: u8,
    /// S2S: faults stall.
    s2_stalls: bool,
    /// S2R: faults are recorded.
    s2_records: bool,
    #[bits(5)]
    __: u8,
}

/// Word 0 of a CD.
#[bitfield(u64)]
struct Cd0 {
    #[bits(6)]
    t0sz: u8,
    /// TG0: 0 is 4 KiB.
    #[bits(2)]
    granule: u8,
    /// IR0, OR0: cacheability of walks; 0b01 is Write-Back.
    #[bits(4)]
    cacheability: u8,
    /// SH0: shareability of walks.
    #[bits(2)]
    shareability: u8,
    __: bool,
    /// ENDI: big-endian tables.
    is_big_endian: bool,
    #[bits(14)]
    __: u16,
    /// EPD1: no walks through TTB1.
    disables_ttb1: bool,
    is_valid: bool,
    /// IPS: size of a physical address.
    #[bits(3)]
    output_size: u8,
    /// AFFD: no faults by the access flag.
    ignores_access_flag: bool,
    #[bits(5)]
    __: u8,
    is_aarch64: bool,
    #[bits(2)]
    __: u8,
    /// S: faults stall.
    stalls: bool,
    /// R: faults are recorded.
    records: bool,
    /// A: faults abort the transaction.
    aborts: bool,
    /// ASET: the ASID is not shared with CPUs.
    is_private_asid: bool,
    asid: u16,
}

/// Memory types of a device's accesses: Normal Write-Back for one that snoops caches, else Normal Non-cacheable.
const fn memory_type(is_coherent: bool) -> u8 {
    if is_coherent { 0b1111 } else { 0b0101 }
}

/// Returns the STE of a device that accesses `target`. Faults abort, are recorded and never stall.
pub(super) fn stream(
    features: &Features,
    target: Target,
    walks_are_coherent: bool,
    device_is_coherent: bool,
) -> [u64; STE_WORDS] {
    let (cacheability, shareability) = if walks_are_coherent { (0b0101, 0b11) } else { (0, 0) };
    let word1 = Ste1::new().with_merges_events(true);
    match features.stage {
        Stage::One => [
            Ste0::new().with_is_valid(true).with_config(0b101).into_bits() | target.context & ADDRESS,
            word1
                .with_s1_cacheability(cacheability)
                .with_s1_shareability(shareability)
                .with_disables_stalls(features.has_stalls)
                // The stage 1 descriptors replace the incoming attributes.
                .with_shareability(0b01)
                .into_bits(),
            0,
            0,
        ],
        Stage::Two => {
            // Stage 2 combines its attributes (Write-Back, Inner Shareable) with the incoming ones, the weaker wins.
            let word1 = if features.overrides_types {
                word1
                    .with_replaces_type(true)
                    .with_memory_type(memory_type(device_is_coherent))
                    .with_shareability(0b11)
            } else {
                word1.with_shareability(0b01)
            };
            let word2 = Ste2::new()
                .with_s2_vmid(target.vmid)
                .with_s2_t0sz(64 - features.input_bits)
                .with_s2_start_level(1)
                .with_s2_cacheability(cacheability)
                .with_s2_shareability(shareability)
                .with_s2_output_size(features.output_code())
                .with_s2_is_aarch64(true)
                .with_s2_ignores_access_flag(true)
                .with_s2_records(true);
            [
                Ste0::new().with_is_valid(true).with_config(0b110).into_bits(),
                word1.into_bits(),
                word2.into_bits(),
                target.root & ADDRESS,
            ]
        }
    }
}

/// Returns the CD of devices that access the stage 1 table at `root`.
pub(super) fn context(
    features: &Features,
    root: u64,
    asid: u16,
    walks_are_coherent: bool,
    device_is_coherent: bool,
) -> [u64; CD_WORDS] {
    let (cacheability, shareability) = if walks_are_coherent { (0b0101, 0b11) } else { (0, 0) };
    let word0 = Cd0::new()
        .with_t0sz(64 - features.input_bits)
        .with_cacheability(cacheability)
        .with_shareability(shareability)
        .with_disables_ttb1(true)
        .with_is_valid(true)
        .with_output_size(features.output_code())
        .with_ignores_access_flag(true)
        .with_is_aarch64(true)
        .with_records(true)
        .with_aborts(true)
        .with_is_private_asid(true)
        .with_asid(asid);
    // MAIR: attribute 0 is Write-Back (0xff) or Non-cacheable (0x44).
    [word0.into_bits(), root & ADDRESS, 0, if device_is_coherent { 0xff } else { 0x44 }]
}
