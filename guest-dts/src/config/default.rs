//! The default guest of a boot without a configuration: one kernel and at most one ramdisk, loaded as boot modules.

use heapless::Vec;

use stage2::addr::PAGEBLOCK_SIZE;

use super::{Configuration, Guest, GuestMigration, MovableMemory, Placement, RamRegion, Unit, VCPU_LIMIT};
use crate::argument;
use crate::finding::{Finding, Rule, Value};
use crate::image::Image;

/// Name of the default guest.
const DEFAULT_NAME: &str = "guest";
/// RAM in bytes without `memory=`.
const DEFAULT_MEMORY: u64 = 512 << 20;

impl<'t> Configuration<'t> {
    /// Returns a configuration of one guest with the RAM of `memory=` (default 512M) and the vCPUs of `cpus=`
    /// (default 1) on Ballast's own `command_line`.
    ///
    /// # Errors
    /// Where one of the two arguments is malformed, or the kernel is none.
    pub fn default_guest(
        kernel: &'t [u8],
        ramdisk: Option<&'t [u8]>,
        bootargs: &'t str,
        command_line: &'t str,
    ) -> Result<Self, Finding<'t>> {
        let image = Image::parse(kernel).map_err(|error| {
            let start = kernel.get(..kernel.len().min(8)).unwrap_or_default();
            Finding::no_node("boot module \"multiboot,kernel\"", error.rule()).with_value(Value::Bytes(start))
        })?;
        let size = match argument::value(command_line, "memory") {
            None => DEFAULT_MEMORY,
            Some(text) => argument::size(text)
                .filter(|&size| size != 0 && size.is_multiple_of(PAGEBLOCK_SIZE))
                .ok_or_else(|| {
                    let rule = Rule::Must("be a size such as 512M, a multiple of 2 MiB");
                    Finding::argument("memory", Value::Text(text), rule)
                })?,
        };
        let vcpu_count = match argument::value(command_line, "cpus") {
            None => 1,
            Some(text) => argument::number(text)
                .filter(|count| (1..=VCPU_LIMIT as u64).contains(count))
                .ok_or_else(|| {
                    let rule = Rule::Between(1, VCPU_LIMIT as u64);
                    Finding::argument("cpus", Value::Text(text), rule)
                })?,
        };
        let region = RamRegion {
            node: None,
            size,
            ipa: None,
            is_pinned_in_place: false,
            is_dma_window: false,
            backing: None,
            placement: Placement::default(),
            unit: Unit::Any,
        };
        let guest = Guest {
            node: None,
            name: DEFAULT_NAME,
            vcpu_count: vcpu_count as u32,
            cpus: Vec::new(),
            bootargs,
            kernel,
            ramdisk,
            starts_at_boot: true,
            page_size: image.page_size().unwrap_or_default(),
            movable_memory: MovableMemory::Auto,
            regions: core::iter::once(region).collect(),
            dmbs: alloc::vec::Vec::new(),
            migration: GuestMigration::default(),
            template: None,
            host_nodes: Vec::new(),
            pci_functions: Vec::new(),
            devices: alloc::vec::Vec::new(),
            assigns_without_smmu: false,
        };
        Ok(Self { guests: core::iter::once(guest).collect(), ..Self::default() })
    }
}
