//! The platform that every guest sees on any host.

/// Base of RAM.
pub const RAM_BASE: u64 = 0x4000_0000;
/// End of a guest's address space: Ballast's stage 2 has at most 40 bits.
pub const IPA_LIMIT: u64 = 1 << 40;
/// Offset in RAM of an image without header.
pub(crate) const RAW_TEXT_OFFSET: u64 = 0x8_0000;
/// Room for a guest's tree in bytes: the most that the arm64 boot protocol allows.
pub(crate) const TREE_SLOT_SIZE: u64 = 2 << 20;

/// Base of the GICv3 distributor.
pub const GICD_BASE: u64 = 0x0800_0000;
/// Size of the distributor in bytes.
pub const GICD_SIZE: u64 = 0x1_0000;
/// Base of the first vCPU's redistributor. The others follow.
pub const GICR_BASE: u64 = 0x080a_0000;
/// Size of one redistributor in bytes.
pub(crate) const GICR_STRIDE: u64 = 0x2_0000;

/// Base of the window for memory of PCI functions.
pub const PCI_MEMORY_BASE: u64 = 0x1000_0000;
/// Size of that window in bytes.
pub const PCI_MEMORY_SIZE: u64 = 0x2000_0000;
/// Base of the PCI configuration space (ECAM).
pub const PCI_ECAM_BASE: u64 = 0x3000_0000;
/// Size of the configuration space in bytes: bus 0.
pub const PCI_ECAM_SIZE: u64 = 0x10_0000;
/// Base of the registers of platform devices.
pub const DEVICE_BASE: u64 = 0x3800_0000;
/// Size of the room for these registers in bytes.
pub const DEVICE_SIZE: u64 = 0x0800_0000;
/// First SPI of assigned devices: INTID 64.
pub const ASSIGNED_SPI_BASE: u32 = 32;
/// Number of SPIs of assigned devices.
pub const ASSIGNED_SPI_COUNT: u32 = 32;

/// Base of the PL011.
pub const UART_BASE: u64 = 0x0900_0000;
/// Size of the PL011 in bytes.
pub const UART_SIZE: u64 = 0x1000;
/// SPI of the PL011: INTID 33.
pub const UART_SPI: u32 = 1;
/// SPI that signals the end of an operation on a pool: INTID 34.
pub const POOL_SPI: u32 = 2;
/// Frequency of the PL011's clock in Hz.
pub(crate) const UART_CLOCK_HZ: u32 = 24_000_000;

/// PPIs of the timers: secure EL1 physical, EL1 physical, virtual, EL2 physical (INTID - 16).
pub(crate) const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// Returns the affinity fields of MPIDR_EL1 of vCPU `index`: 16 vCPUs in a cluster, the most that one SGI reaches.
pub const fn mpidr(index: u32) -> u64 {
    ((index & 0xf) | (index >> 4) << 8) as u64
}
