//! Machines as data: CPUs, memory controllers and devices.
//!
//! QEMU's `virt` board places NUMA nodes contiguously from [`RAM_BASE`]. A controller at a higher address needs a
//! *gap* below it: a node whose memory is never touched and which is removed from the device tree (see `tree`).

use std::path::Path;

use serde::Deserialize;

use crate::devices::{self, Disk, Forward, Network, Smmu};
use crate::error::{AtPath, Error, Result};
use crate::place;
use crate::size::{Bytes, MIB};

/// Base of RAM on QEMU's `virt` board.
pub(crate) const RAM_BASE: u64 = 0x4000_0000;

/// Least size of the first controller, which holds kernel, ramdisk and device tree.
const FIRST_CONTROLLER_AT_LEAST: u64 = 256 * MIB;

/// A machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The machine's name, which is the name of its file.
    #[serde(skip)]
    pub name: String,
    /// Short description.
    pub description: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// QEMU's name of the CPU model.
    #[serde(default = "usual_cpu")]
    pub(crate) cpu: String,
    /// NUMA distance between two controllers in the device tree, at least 11. The distance of a node to itself is 10.
    #[serde(default = "usual_distance")]
    pub(crate) distance: u8,
    /// The memory controllers, by ascending address.
    #[serde(rename = "controller")]
    pub(crate) controllers: Vec<Controller>,
    /// The SMMU in front of the PCI bus, if there is one.
    #[serde(rename = "iommu")]
    pub smmu: Option<Smmu>,
    /// The disks.
    #[serde(default, rename = "disk")]
    pub disks: Vec<Disk>,
    /// The network interfaces.
    #[serde(default, rename = "network")]
    pub networks: Vec<Network>,
    /// The PC's ports that are forwarded to guests.
    #[serde(default, rename = "forward")]
    pub forwards: Vec<Forward>,
}

/// A memory controller.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Controller {
    /// Size of the controller's RAM.
    pub(crate) size: Bytes,
    /// Base of the RAM; by default, the end of the previous controller's RAM.
    pub(crate) base: Option<Bytes>,
    /// CPUs in the controller's NUMA node, like `0-3`.
    pub(crate) cpus: Option<String>,
}

/// The contents of a range of the physical map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filling {
    /// RAM of the controller with this index.
    Controller(usize),
    /// No memory.
    Gap,
}

/// A range of the physical map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// First address.
    pub(crate) base: u64,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Contents.
    pub(crate) filling: Filling,
}

impl Machine {
    /// Reads the machine called `name` from `qemu/machines/`.
    ///
    /// # Errors
    /// There is no machine of that name, or its file is invalid.
    pub fn load(name: &str) -> Result<Self> {
        let folder = place::machines();
        let path = folder.join(format!("{name}.toml"));
        if name.contains('/') || !path.exists() {
            let known = place::names(&folder, "toml");
            return Err(Error::Unknown { kind: "machine", name: name.into(), known });
        }
        Self::read(&path)
    }

    /// Reads the machine for the set of guests `set`: the machine of the same name, or `two` if there is none.
    ///
    /// # Errors
    /// The machine's file is invalid.
    pub fn for_guests(set: &str) -> Result<Self> {
        let has_own = place::names(&place::machines(), "toml").iter().any(|name| name == set);
        Self::load(if has_own { set } else { "two" })
    }

    /// Reads a machine from any file.
    ///
    /// # Errors
    /// The file cannot be read or is invalid.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).at(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).map_err(|reason| Error::Data { path: path.into(), reason })
    }

    /// Creates a machine with contiguous controllers of these sizes and `cpus` CPUs in the first one's node.
    pub fn with_controllers(cpus: u32, sizes: &[u64]) -> Self {
        let controller = |(index, &size): (usize, &u64)| Controller {
            size: Bytes(size),
            base: None,
            cpus: (index == 0).then(|| format!("0-{}", cpus.saturating_sub(1))),
        };
        Self {
            name: "made".into(),
            description: String::new(),
            cpus,
            cpu: usual_cpu(),
            distance: usual_distance(),
            controllers: sizes.iter().enumerate().map(controller).collect(),
            smmu: None,
            disks: Vec::new(),
            networks: Vec::new(),
            forwards: Vec::new(),
        }
    }

    pub(crate) fn parse(name: &str, text: &str) -> std::result::Result<Self, String> {
        let mut machine: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        machine.name = name.into();
        machine.check()?;
        Ok(machine)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let first = self.controllers.first().ok_or("a machine must have at least one controller")?;
        if first.size.0 < FIRST_CONTROLLER_AT_LEAST {
            return Err(format!(
                "the first controller has {}; the kernel and the ramdisk need {}",
                first.size,
                Bytes(FIRST_CONTROLLER_AT_LEAST)
            ));
        }
        if self.cpus == 0 {
            return Err("a machine must have at least one CPU".into());
        }
        let mut end = RAM_BASE;
        for (index, controller) in self.controllers.iter().enumerate() {
            let base = controller.base.map_or(end, |base| base.0);
            let size = controller.size.0;
            if index == 0 && base != RAM_BASE {
                return Err(format!(
                    "the first controller begins at {base:#x}; it must begin at {RAM_BASE:#x}, like the board's RAM"
                ));
            }
            if base < end {
                return Err(format!(
                    "controller {index} begins at {base:#x}; it must not begin below the end of the previous one"
                ));
            }
            if size == 0 || !size.is_multiple_of(2 * MIB) || !base.is_multiple_of(2 * MIB) {
                return Err(format!(
                    "controller {index} ({size:#x}@{base:#x}) must consist of whole 2 MiB blocks"
                ));
            }
            end = base.checked_add(size).ok_or("the last controller must end below 2^64")?;
        }
        devices::check(self)
    }

    /// Returns the physical map from [`RAM_BASE`] up, including gaps between controllers.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        let mut ranges = Vec::new();
        let mut end = RAM_BASE;
        for (index, controller) in self.controllers.iter().enumerate() {
            let base = controller.base.map_or(end, |base| base.0);
            if base > end {
                ranges.push(Range { base: end, size: base - end, filling: Filling::Gap });
            }
            ranges.push(Range { base, size: controller.size.0, filling: Filling::Controller(index) });
            end = base + controller.size.0;
        }
        ranges
    }

    /// Tests whether there is a gap between two controllers.
    pub(crate) fn has_gap(&self) -> bool {
        self.ranges().iter().any(|range| range.filling == Filling::Gap)
    }

    /// Returns the size of all RAM.
    pub(crate) fn ram(&self) -> Bytes {
        Bytes(self.controllers.iter().map(|controller| controller.size.0).sum())
    }
}

fn usual_cpu() -> String {
    "cortex-a72".into()
}

fn usual_distance() -> u8 {
    20
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::GIB;

    #[test]
    fn all_shipped_machines_are_valid() {
        let names = place::names(&place::machines(), "toml");
        for needed in ["two", "four", "unequal", "far", "devices"] {
            assert!(names.iter().any(|name| name == needed), "{needed}");
        }
        for name in names {
            Machine::load(&name).unwrap();
        }
    }

    #[test]
    fn a_far_controller_leaves_a_gap() {
        let far = Machine::load("far").unwrap();
        let ranges = far.ranges();
        assert_eq!(ranges[1], Range { base: 2 * GIB, size: 62 * GIB, filling: Filling::Gap });
        assert_eq!((ranges[2].base, ranges[2].filling), (64 * GIB, Filling::Controller(1)));
        assert!(far.has_gap());
        assert_eq!(far.ram(), Bytes(2 * GIB));
    }

    #[test]
    fn invalid_machines_are_refused() {
        let wrong = |text: &str| Machine::parse("m", text).unwrap_err();
        let head = "description = \"\"\ncpus = 1\n";
        let one = "[[controller]]\nsize = \"1G\"\n";
        assert!(wrong("description = \"\"\ncpus = 1\ncontroller = []").contains("at least one controller"));
        assert!(wrong(&format!("{head}[[controller]]\nsize = \"64M\"")).contains("64 MiB"));
        assert!(wrong(&format!("{head}{one}base = \"4G\"")).contains("0x100000000"));
        assert!(
            wrong(&format!("{head}{one}{one}base = \"1G\"")).contains("controller 1 begins at 0x40000000")
        );
        assert!(wrong(&format!("{head}{one}[[controller]]\nsize = \"1M\"")).contains("whole 2 MiB"));
        assert!(wrong(&format!("{head}{one}colour = 1")).contains("colour"));
    }

    #[test]
    fn a_set_can_have_a_machine_of_its_own() {
        assert_eq!(Machine::for_guests("devices").unwrap().name, "devices");
        assert_eq!(Machine::for_guests("alpha-beta").unwrap().name, "two");
    }

    #[test]
    fn the_error_about_an_unknown_machine_lists_all_machines() {
        let said = Machine::load("three").unwrap_err().to_string();
        assert!(said.contains("`three`") && said.contains("unequal"), "{said}");
    }
}
