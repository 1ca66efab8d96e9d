//! Registers of an SMMU: offsets and fields (Arm System Memory Management Unit Architecture Specification, IHI 0070,
//! "Register formats").

use bitfield_struct::bitfield;

pub(super) const IDR0: usize = 0x00;
pub(super) const IDR1: usize = 0x04;
pub(super) const IDR5: usize = 0x14;
pub(super) const CR0: usize = 0x20;
pub(super) const CR0ACK: usize = 0x24;
pub(super) const CR1: usize = 0x28;
pub(super) const CR2: usize = 0x2c;
pub(super) const GBPA: usize = 0x44;
pub(super) const IRQ_CTRL: usize = 0x50;
pub(super) const IRQ_CTRLACK: usize = 0x54;
pub(super) const GERROR: usize = 0x60;
pub(super) const GERRORN: usize = 0x64;
pub(super) const GERROR_IRQ_CFG0: usize = 0x68;
pub(super) const STRTAB_BASE: usize = 0x80;
pub(super) const STRTAB_BASE_CFG: usize = 0x88;
pub(super) const CMDQ_BASE: usize = 0x90;
pub(super) const CMDQ_PROD: usize = 0x98;
pub(super) const CMDQ_CONS: usize = 0x9c;
pub(super) const EVENTQ_BASE: usize = 0xa0;
pub(super) const EVENTQ_IRQ_CFG0: usize = 0xb0;
/// EVENTQ_PROD, in page 1.
pub(super) const EVENTQ_PROD: usize = 0x1_00a8;
/// EVENTQ_CONS, in page 1.
pub(super) const EVENTQ_CONS: usize = 0x1_00ac;

/// CR0.SMMUEN.
pub(super) const CR0_SMMUEN: u32 = 1 << 0;
/// CR0.EVENTQEN.
pub(super) const CR0_EVENTQEN: u32 = 1 << 2;
/// CR0.CMDQEN.
pub(super) const CR0_CMDQEN: u32 = 1 << 3;
/// CR0.ATSCHK: transactions that a device marks as translated are checked against STE.EATS instead of passing.
pub(super) const CR0_ATSCHK: u32 = 1 << 4;

/// CR1 for tables and queues that the SMMU accesses through the caches: Write-Back, Inner Shareable. 0 is Non-cacheable.
pub(super) const CR1_COHERENT: u32 = 0b11_01_01 << 6 | 0b11_01_01;
/// CR2.RECINVSID: records events of streams beyond the table.
pub(super) const CR2_RECINVSID: u32 = 1 << 1;
/// CR2.PTM: ignores broadcast TLB maintenance, which names VMIDs and ASIDs of the CPUs' own.
pub(super) const CR2_PTM: u32 = 1 << 2;

/// GBPA.ABORT.
pub(super) const GBPA_ABORT: u32 = 1 << 20;
/// GBPA.Update: set by the write that changes the register, cleared by the SMMU.
pub(super) const GBPA_UPDATE: u32 = 1 << 31;

/// IRQ_CTRL.GERROR_IRQEN.
pub(super) const IRQ_GERROR: u32 = 1 << 0;
/// IRQ_CTRL.EVENTQ_IRQEN.
pub(super) const IRQ_EVENTQ: u32 = 1 << 2;

/// GERROR.CMDQ_ERR.
pub(super) const GERROR_CMDQ: u32 = 1 << 0;
/// GERROR.EVENTQ_ABT_ERR.
pub(super) const GERROR_EVENTQ_ABORT: u32 = 1 << 2;
/// GERROR.SFM_ERR: service failure mode.
pub(super) const GERROR_SFM: u32 = 1 << 8;
/// All errors that GERROR may show.
pub(super) const GERROR_ALL: u32 = 0x7fd;

/// RA and WA of the tables' and queues' base registers: allocation hints.
pub(super) const BASE_ALLOCATE: u64 = 1 << 62;
/// Overflow flags of EVENTQ_PROD (OVFLG) and EVENTQ_CONS (OVACKFLG).
pub(super) const OVERFLOW: u32 = 1 << 31;

/// IDR0, as far as Ballast uses it.
#[bitfield(u32)]
pub(super) struct Idr0 {
    /// S2P: stage 2.
    pub(super) has_stage_2: bool,
    /// S1P: stage 1.
    pub(super) has_stage_1: bool,
    /// TTF: bit 0 for AArch32 tables, bit 1 for AArch64 tables.
    #[bits(2)]
    pub(super) table_formats: u8,
    /// COHACC: tables and queues are accessed coherently.
    pub(super) is_coherent: bool,
    #[bits(4)]
    __: u8,
    /// HYP: EL2 contexts.
    pub(super) has_hyp: bool,
    /// ATS.
    pub(super) has_ats: bool,
    #[bits(10)]
    __: u16,
    /// TTENDIAN: 0b11 for big-endian tables only.
    #[bits(2)]
    pub(super) endianness: u8,
    __: bool,
    /// STALL_MODEL: 0b00 for stall and terminate, 0b01 for terminate only, 0b10 for stall only.
    #[bits(2)]
    pub(super) stall_model: u8,
    __: bool,
    /// ST_LEVEL: 0b01 if stream tables may have two levels.
    #[bits(2)]
    pub(super) stream_levels: u8,
    #[bits(3)]
    __: u8,
}

/// IDR1, as far as Ballast uses it.
#[bitfield(u32)]
pub(super) struct Idr1 {
    /// SIDSIZE: bits of a StreamID.
    #[bits(6)]
    pub(super) stream_bits: u8,
    #[bits(10)]
    __: u16,
    /// EVENTQS: log2 of the most events in the queue.
    #[bits(5)]
    pub(super) event_bits: u8,
    /// CMDQS: log2 of the most commands in the queue.
    #[bits(5)]
    pub(super) command_bits: u8,
    __: bool,
    /// ATTR_TYPES_OVR: STEs override memory types and shareability of incoming transactions.
    pub(super) overrides_types: bool,
    __: bool,
    /// QUEUES_PRESET: the queues' addresses are fixed.
    pub(super) has_preset_queues: bool,
    /// TABLES_PRESET: the stream table's address is fixed.
    pub(super) has_preset_tables: bool,
    __: bool,
}

/// IDR5, as far as Ballast uses it.
#[bitfield(u32)]
pub(super) struct Idr5 {
    /// OAS: code of the output address size.
    #[bits(3)]
    pub(super) output_size: u8,
    __: bool,
    /// GRAN4K.
    pub(super) has_4k_granule: bool,
    #[bits(27)]
    __: u32,
}
