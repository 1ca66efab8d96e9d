//! The platform that every guest sees, whatever the host is.

/// Where RAM begins.
pub const RAM_BASE: u64 = 0x4000_0000;
/// One past the last address that a guest can have: Ballast's stage 2 has 40 bits.
pub const IPA_LIMIT: u64 = 1 << 40;
/// Where an image without header is loaded, above the start of RAM.
pub const RAW_TEXT_OFFSET: u64 = 0x8_0000;
/// Room for a guest's tree, in bytes: what the arm64 boot protocol allows.
pub const TREE_SLOT_SIZE: u64 = 2 << 20;

/// The GICv3 distributor.
pub const GICD_BASE: u64 = 0x0800_0000;
/// Its size in bytes.
pub const GICD_SIZE: u64 = 0x1_0000;
/// The redistributor of the first vCPU; the others follow.
pub const GICR_BASE: u64 = 0x080a_0000;
/// Size of one redistributor in bytes.
pub const GICR_STRIDE: u64 = 0x2_0000;

/// The PL011.
pub const UART_BASE: u64 = 0x0900_0000;
/// Its size in bytes.
pub const UART_SIZE: u64 = 0x1000;
/// Its shared peripheral interrupt: INTID 33.
pub const UART_SPI: u32 = 1;
/// The shared peripheral interrupt that says that an operation on a pool is over: INTID 34.
pub const POOL_SPI: u32 = 2;
/// The frequency of the PL011's clock in Hz.
pub const UART_CLOCK_HZ: u32 = 24_000_000;

/// Private peripheral interrupts of the timers: secure and EL1 physical, virtual, EL2 physical (INTID - 16).
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// The affinity fields of MPIDR_EL1 of vCPU `index`: 16 in a cluster, the most that one SGI reaches.
pub const fn mpidr(index: u32) -> u64 {
    ((index & 0xf) | (index >> 4) << 8) as u64
}
