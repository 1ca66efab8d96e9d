//! Registers of the configuration space, and how they are reached.

use core::fmt;

use bitfield_struct::bitfield;

/// A requester ID: bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rid(u16);

impl Rid {
    /// Makes the requester ID `bus << 8 | device << 3 | function`.
    pub(crate) const fn new(value: u16) -> Self {
        Self(value)
    }

    /// Makes the requester ID of a function, `number`, of a device.
    pub(super) const fn from_parts(bus: u8, device: u8, number: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 31) << 3 | number as u16 & 7)
    }

    /// Returns the requester ID as a number.
    pub(crate) const fn get(self) -> u16 {
        self.0
    }

    /// Returns the bus.
    pub(crate) const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Returns the device on its bus.
    pub(super) const fn device(self) -> u8 {
        (self.0 >> 3 & 31) as u8
    }
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.0 & 7)
    }
}

/// The width of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
}

impl Width {
    /// Returns the width of an access of `size` bytes, or `None` if a configuration space has none of this size.
    pub(super) const fn try_new(size: u8) -> Option<Self> {
        match size {
            1 => Some(Self::Byte),
            2 => Some(Self::Half),
            4 => Some(Self::Word),
            _ => None,
        }
    }

    /// Returns the size in bytes.
    pub(super) const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }

    /// Returns the bits of a value of this width.
    pub(super) const fn mask(self) -> u32 {
        u32::MAX >> (32 - 8 * self.bytes())
    }
}

/// Registers of a function: the 4 KiB of its configuration space, or a structure in one of its BARs.
///
/// Accesses are naturally aligned. Those of one space take effect in program order: a read returns behind all earlier writes
/// to the space, and before any later access to anything. A register that is absent reads as all ones.
pub(crate) trait RegisterSpace {
    /// Reads the register at `offset`.
    fn read(&self, offset: u16, width: Width) -> u32;
    /// Writes the register at `offset`.
    fn write(&self, offset: u16, width: Width, value: u32);

    /// Reads a register of 8 bits.
    fn read8(&self, offset: u16) -> u8 {
        self.read(offset, Width::Byte) as u8
    }
    /// Reads a register of 16 bits.
    fn read16(&self, offset: u16) -> u16 {
        self.read(offset, Width::Half) as u16
    }
    /// Reads a register of 32 bits.
    #[inline(always)]
    fn read32(&self, offset: u16) -> u32 {
        self.read(offset, Width::Word)
    }
    /// Writes a register of 8 bits.
    fn write8(&self, offset: u16, value: u8) {
        self.write(offset, Width::Byte, value.into());
    }
    /// Writes a register of 16 bits.
    fn write16(&self, offset: u16, value: u16) {
        self.write(offset, Width::Half, value.into());
    }
    /// Writes a register of 32 bits.
    fn write32(&self, offset: u16, value: u32) {
        self.write(offset, Width::Word, value);
    }
}

/// The functions below a host bridge.
pub(crate) trait Bus {
    /// One function's configuration space.
    type Space: RegisterSpace;
    /// Returns the configuration space of `rid`, or `None` if the bridge does not reach its bus.
    fn function(&self, rid: Rid) -> Option<Self::Space>;
}

/// Device ID and vendor ID.
pub(super) const ID: u16 = 0x00;
/// Command register.
pub(super) const COMMAND: u16 = 0x04;
/// Status register.
pub(super) const STATUS: u16 = 0x06;
/// Class code (24 bits) and revision.
pub(super) const CLASS: u16 = 0x08;
/// Header type.
pub(super) const HEADER_TYPE: u16 = 0x0e;
/// The first base address register.
pub(super) const BAR: u16 = 0x10;
/// CardBus CIS pointer.
pub(super) const CARDBUS_CIS: u16 = 0x28;
/// Expansion ROM base address register of a function that is not a bridge.
pub(super) const EXPANSION_ROM: u16 = 0x30;
/// Offset of the first capability.
pub(super) const CAPABILITIES: u16 = 0x34;
/// Interrupt Line (8 bits); Interrupt Pin is the byte behind it.
pub(super) const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt Pin.
pub(super) const INTERRUPT_PIN: u16 = 0x3d;
/// The end of the header: capabilities and registers of the device's own begin here.
pub(super) const HEADER_END: u16 = 0x40;
/// The start of the extended space.
pub(super) const EXTENDED: u16 = 0x100;
/// The size of a function's configuration space.
pub(super) const SPACE_SIZE: u16 = 0x1000;

/// Status.Capabilities List.
pub(super) const STATUS_CAPABILITIES: u16 = 1 << 4;
/// The bit of [`HEADER_TYPE`] for a device of several functions.
pub(super) const MULTI_FUNCTION: u8 = 1 << 7;

/// The command register.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub(super) struct Command {
    /// I/O Space Enable.
    pub(super) io: bool,
    /// Memory Space Enable.
    pub(super) memory: bool,
    /// Bus Master Enable.
    pub(super) bus_master: bool,
    #[bits(7)]
    other: u16,
    /// Interrupt Disable: the function does not assert INTx.
    pub(super) intx_disable: bool,
    #[bits(5)]
    reserved: u16,
}

/// Reads COMMAND.
pub(super) fn command(space: &impl RegisterSpace) -> Command {
    Command::from_bits(space.read16(COMMAND))
}

/// Writes COMMAND, alone: a 32-bit write would also clear bits of STATUS. Returns what COMMAND reads then. By then, the write
/// has taken effect, whatever is accessed next: a BAR, or the SMMU.
pub(super) fn set_command(space: &impl RegisterSpace, value: Command) -> Command {
    space.write16(COMMAND, value.into_bits());
    command(space)
}
