//! Virtio devices: the registers of their common configuration that Ballast uses (VIRTIO 1.2, "Common configuration
//! structure layout").

use stage2::addr::{FRAME_SIZE, Pa};

use super::bar::Bar;
use super::capability::{List, VENDOR};
use super::config::{RegisterSpace, Rid};
use super::error::{Error, Fault};

/// The vendor ID of virtio.
const VENDOR_ID: u16 = 0x1af4;
/// Device IDs of virtio, transitional ones included.
const DEVICE_IDS: core::ops::RangeInclusive<u16> = 0x1000..=0x107f;

/// `cfg_type`: byte 3 of a virtio capability.
pub(super) const CONFIG_TYPE: u16 = 3;
/// `cfg_type` of the common configuration.
const COMMON: u8 = 1;
/// `cfg_type` of the window into BARs.
pub(super) const WINDOW: u8 = 5;
/// The common configuration's size up to and with `queue_device`.
const COMMON_SIZE: u64 = 56;

/// `device_feature_select` and `device_feature`: 32 feature bits at a time.
const FEATURE_SELECT: u16 = 0x00;
const FEATURE: u16 = 0x04;
/// `device_status`; writing 0 resets the device.
const STATUS: u16 = 0x14;
/// VIRTIO_F_ACCESS_PLATFORM is bit 33: bit 1 of the second 32 bits.
const ACCESS_PLATFORM: u32 = 1 << 1;

/// The place of a common configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// The index of its BAR.
    bar: u8,
    /// The offset in the BAR.
    offset: u32,
}

/// The physical place of a virtio function's common configuration, for the caller to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommonConfig {
    /// The CPU's address of the frame that it starts in.
    pub(crate) frame: Pa,
    /// The offset in that frame.
    pub(crate) offset: u16,
    /// Bytes from `frame` on that must be mapped, whole frames.
    pub(crate) mapped_size: u64,
}

impl Location {
    /// Returns the physical place in `bars`, which have addresses.
    pub(super) fn common_config(self, bars: &[Bar]) -> Option<CommonConfig> {
        let bar = bars.iter().find(|bar| bar.index == self.bar)?;
        let at = bar.cpu.get() + u64::from(self.offset);
        let (frame, offset) = (at & !(FRAME_SIZE - 1), at & (FRAME_SIZE - 1));
        Some(CommonConfig {
            frame: Pa::try_new(frame)?,
            offset: offset as u16,
            mapped_size: (offset + COMMON_SIZE).next_multiple_of(FRAME_SIZE),
        })
    }

    /// Finds the common configuration of the function `rid` with `id`; `None` if this is no virtio function, or a legacy one.
    pub(super) fn find(
        rid: Rid,
        space: &impl RegisterSpace,
        id: (u16, u16),
        capabilities: &List,
        bars: &[Bar],
    ) -> Result<Option<Self>, Error> {
        if !is_virtio(id) {
            return Ok(None);
        }
        for found in capabilities.iter().filter(|found| found.id == VENDOR) {
            let at = found.offset;
            if space.read8(at + CONFIG_TYPE) != COMMON {
                continue;
            }
            let (bar, offset) = (space.read8(at + 4), space.read32(at + 8));
            let size = bars.iter().find(|candidate| candidate.index == bar).map_or(0, |bar| bar.size);
            if !offset.is_multiple_of(4) || u64::from(offset) + COMMON_SIZE > size {
                return Err(Fault::VirtioStructure { at, bar, offset }.of(rid));
            }
            return Ok(Some(Self { bar, offset }));
        }
        Ok(None)
    }
}

/// Returns whether IDs are those of a virtio device.
pub(super) fn is_virtio((vendor, device): (u16, u16)) -> bool {
    vendor == VENDOR_ID && DEVICE_IDS.contains(&device)
}

/// Returns whether the device offers VIRTIO_F_ACCESS_PLATFORM.
pub(super) fn offers_access_platform(common: &impl RegisterSpace) -> bool {
    common.write32(FEATURE_SELECT, 1);
    let features = common.read32(FEATURE);
    // A device that does not answer offers nothing.
    features != u32::MAX && features & ACCESS_PLATFORM != 0
}

/// Starts a reset of the device.
pub(super) fn reset(common: &impl RegisterSpace) {
    common.write8(STATUS, 0);
}

/// Returns `device_status`: 0 once a reset is complete, by when the device has stopped all use of its queues (VIRTIO 1.2,
/// "Device Reset").
pub(super) fn status(common: &impl RegisterSpace) -> u8 {
    common.read8(STATUS)
}
