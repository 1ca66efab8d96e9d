//! Finds what a function is: header, BARs, and the capabilities that Ballast uses or hides.

use heapless::Vec;

use super::bar::{self, BAR_LIMIT, Bar};
use super::capability::{self, ADVANCED, ENHANCED_ALLOCATION, EXPRESS, List, MSI, MSI_X, POWER};
use super::capability::{ATS, PASID, PRI, SR_IOV};
use super::config::{
    Bus, CLASS, HEADER_TYPE, ID, INTERRUPT_PIN, MULTI_FUNCTION, RegisterSpace, Rid, SPACE_SIZE,
};
use super::error::{Error, Fault};
use super::virtio::{self, CommonConfig};

/// The vendor ID that no function has: nothing answered.
pub(super) const NO_VENDOR: u16 = 0xffff;

/// Device Capabilities in the PCI Express capability, and its Function Level Reset Capability.
pub(super) const DEVICE_CAPABILITIES: u16 = 0x04;
pub(super) const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
/// Device Control in the PCI Express capability.
pub(super) const DEVICE_CONTROL: u16 = 0x08;
/// Device Control 2, present from capability version 2 on.
pub(super) const DEVICE_CONTROL_2: u16 = 0x28;
/// AF Capabilities: transactions pending, function level reset.
const ADVANCED_CAPABILITIES: u16 = 0x03;
const ADVANCED_BOTH: u8 = 0b11;
/// Power Management Control/Status, and No_Soft_Reset.
pub(super) const POWER_CONTROL: u16 = 0x04;
const NO_SOFT_RESET: u16 = 1 << 3;

/// A PCI Express capability: its offset, and values that a reset loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Express {
    pub(super) offset: u16,
    pub(super) has_reset: bool,
    /// Device Control as firmware left it: sizes of payloads and requests.
    pub(super) control: u16,
    /// Device Control 2, if there is one: timeouts of completions.
    pub(super) control_2: Option<u16>,
}

/// A function that can be assigned.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(super) rid: Rid,
    /// Vendor ID, device ID.
    pub(super) id: (u16, u16),
    /// Class code: base class, sub-class, programming interface.
    class: u32,
    pub(super) bars: Vec<Bar, { BAR_LIMIT as usize }>,
    /// Capabilities of the first 256 bytes.
    pub(super) standard: List,
    /// Capabilities of the extended space.
    pub(super) extended: List,
    pub(super) express: Option<Express>,
    /// The offset of an Advanced Features capability that can reset.
    pub(super) advanced: Option<u16>,
    /// The offset of a power management capability whose change from D3hot to D0 resets.
    pub(super) power: Option<u16>,
    /// 16-bit control registers of capabilities that a guest must not have: 0 turns each of them off.
    pub(super) controls: Vec<u16, 6>,
    pub(super) virtio: Option<virtio::Location>,
}

impl Function {
    /// Probes the function `rid`. Its BARs are written during this, so nothing may use the function meanwhile.
    ///
    /// # Errors
    ///
    /// Absent, a bridge, or a function that breaks a rule of the specification that Ballast relies on.
    pub(crate) fn probe(bus: &impl Bus, rid: Rid) -> Result<Self, Error> {
        let space = bus.function(rid).ok_or(Fault::Absent.of(rid))?;
        let id = (space.read16(ID), space.read16(ID + 2));
        if id.0 == NO_VENDOR {
            return Err(Fault::Absent.of(rid));
        }
        match space.read8(HEADER_TYPE) & !MULTI_FUNCTION {
            0 => {}
            other => return Err(Fault::HeaderType(other).of(rid)),
        }
        let (standard, extended) = (capability::standard(rid, &space)?, capability::extended(rid, &space)?);
        let find = |list: &List, id: u16| list.iter().find(|found| found.id == id).map(|found| found.offset);
        if let Some(at) = find(&standard, ENHANCED_ALLOCATION) {
            return Err(Fault::EnhancedAllocation { at }.of(rid));
        }
        let bars = bar::read(rid, &space, BAR_LIMIT)?;
        // MSI and MSI-X: Message Control. SR-IOV, ATS, PRI and PASID: Control.
        let standard_controls = [(MSI, 2), (MSI_X, 2)];
        let extended_controls = [(SR_IOV, 8), (ATS, 6), (PRI, 4), (PASID, 6)];
        let controls = standard_controls
            .iter()
            .filter_map(|&(id, offset)| Some(find(&standard, id)? + offset))
            .chain(extended_controls.iter().filter_map(|&(id, offset)| Some(find(&extended, id)? + offset)))
            .filter(|&register| register < SPACE_SIZE)
            .collect();
        Ok(Self {
            rid,
            id,
            class: space.read32(CLASS) >> 8,
            virtio: virtio::Location::find(rid, &space, id, &standard, &bars)?,
            express: find(&standard, EXPRESS).and_then(|offset| express(&space, offset)),
            // An offset below 0x100 and a register behind it are inside the space.
            advanced: find(&standard, ADVANCED)
                .filter(|&at| space.read8(at + ADVANCED_CAPABILITIES) & ADVANCED_BOTH == ADVANCED_BOTH),
            power: find(&standard, POWER).filter(|&at| space.read16(at + POWER_CONTROL) & NO_SOFT_RESET == 0),
            bars,
            standard,
            extended,
            controls,
        })
    }

    /// Returns the requester ID.
    pub(crate) fn rid(&self) -> Rid {
        self.rid
    }

    /// Returns vendor ID and device ID.
    pub(crate) fn id(&self) -> (u16, u16) {
        self.id
    }

    /// Returns the class code: base class, sub-class and programming interface, 24 bits.
    pub(crate) fn class(&self) -> u32 {
        self.class
    }

    /// Returns the memory BARs. Each has frames of its own, at the CPU's address and at the guest's.
    pub(crate) fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Returns the place of a virtio function's common configuration, once the function is placed. `None`: there is none.
    pub(crate) fn common_config(&self) -> Option<CommonConfig> {
        self.virtio?.common_config(&self.bars)
    }

    /// Returns whether an SMMU confines the function. A virtio function bypasses it, and uses addresses as they are, unless
    /// it offers VIRTIO_F_ACCESS_PLATFORM; one without a common configuration cannot. All other functions are confined.
    ///
    /// `common` are the registers at [`Self::common_config`].
    pub(crate) fn is_isolated_by_smmu(&self, common: Option<&impl RegisterSpace>) -> bool {
        !virtio::is_virtio(self.id) || common.is_some_and(virtio::offers_access_platform)
    }
}

/// Reads the PCI Express capability at `offset`.
fn express(space: &impl RegisterSpace, offset: u16) -> Option<Express> {
    let version = space.read16(offset + 2) & 0xf;
    Some(Express {
        offset,
        has_reset: space.read32(offset + DEVICE_CAPABILITIES) & FUNCTION_LEVEL_RESET != 0,
        // Bit 15 starts a reset where there is one.
        control: space.read16(offset + DEVICE_CONTROL) & 0x7fff,
        control_2: (version >= 2).then(|| space.read16(offset + DEVICE_CONTROL_2)),
    })
}

/// Returns a function's interrupt pin, 1 (INTA) to 4, or `None` if it has none, an invalid one, or is absent.
pub(crate) fn interrupt_pin(space: &impl RegisterSpace) -> Option<u8> {
    Some(space.read8(INTERRUPT_PIN)).filter(|pin| (1..=4).contains(pin))
}
