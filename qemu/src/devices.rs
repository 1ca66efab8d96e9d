//! Devices of a machine as data: an SMMU, virtio disks and network interfaces.
//!
//! A device is behind PCI (`slot`) or is a platform device (`mmio`). All devices offer VIRTIO_F_ACCESS_PLATFORM, so
//! that a guest's driver uses the DMA API, and an SMMU, if the machine has one, translates their accesses. An interface
//! is attached to a hub. A hub with a [`Forward`] also has QEMU's user-mode network, 10.0.2.0/24 with gateway 10.0.2.2, and
//! one interface alone: a hub repeats each frame to all, and the user-mode network answers frames for any MAC address,
//! so that it would reset the connections between two guests.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::{AtPath, Result};
use crate::machine::Machine;
use crate::place;
use crate::size::Bytes;

/// Number of virtio-mmio transports of QEMU's `virt` board.
const MMIO_COUNT: u8 = 32;
/// Slots of the PCI bus; slot 0 is the host bridge.
const SLOTS: std::ops::Range<u8> = 1..32;
/// Unit of a disk's size.
const SECTOR: u64 = 512;

/// An SMMU in front of the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Smmu {
    /// SMMUv3 with the stages that this QEMU and its machine type have: stage 1 alone before QEMU 8.1, both since 10.0.
    #[serde(rename = "smmuv3")]
    Usual,
    /// SMMUv3 with stage 1 alone. Needs QEMU 8.1.
    #[serde(rename = "smmuv3-stage-1")]
    Stage1,
    /// SMMUv3 with stage 2 alone. Needs QEMU 8.1.
    #[serde(rename = "smmuv3-stage-2")]
    Stage2,
}

/// The place of a device: `slot` or `mmio`, exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Slot on the PCI bus: function 0 there has the RID `slot << 3`.
    Slot(u8),
    /// Number of a virtio-mmio transport. Eight of them share a page.
    Mmio(u8),
}

/// A virtio disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "DiskEntry")]
pub struct Disk {
    /// Name and serial number of the disk.
    pub name: String,
    /// The disk's place.
    pub place: Place,
    /// The disk's initial content.
    pub content: Content,
}

/// The initial content of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros, of this size in bytes.
    Blank(u64),
    /// A copy of a file in raw format. A relative path is relative to `target/guests`.
    Image(PathBuf),
}

/// A virtio network interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NetworkEntry")]
pub struct Network {
    /// Number of the hub that the interface is attached to.
    pub hub: u32,
    /// MAC address, like `52:54:00:00:00:01`.
    pub mac: String,
    /// The interface's place.
    pub place: Place,
}

/// A TCP port of the PC's loopback interface that QEMU forwards to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// Number of the hub that the guest is attached to.
    pub hub: u32,
    /// Port on the PC.
    pub port: u16,
    /// The guest's address, in 10.0.2.0/24.
    pub to: Ipv4Addr,
    /// The guest's port.
    pub to_port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskEntry {
    name: String,
    slot: Option<u8>,
    mmio: Option<u8>,
    size: Option<Bytes>,
    image: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkEntry {
    hub: u32,
    mac: String,
    slot: Option<u8>,
    mmio: Option<u8>,
}

impl TryFrom<DiskEntry> for Disk {
    type Error = String;

    fn try_from(entry: DiskEntry) -> std::result::Result<Self, String> {
        let what = format!("disk `{}`", entry.name);
        let content = match (entry.size, entry.image) {
            (Some(size), None) => Content::Blank(size.0),
            (None, Some(image)) => Content::Image(image),
            _ => return Err(format!("{what} must have either `size` or `image`")),
        };
        Ok(Self { place: place_of(&what, entry.slot, entry.mmio)?, name: entry.name, content })
    }
}

impl TryFrom<NetworkEntry> for Network {
    type Error = String;

    fn try_from(entry: NetworkEntry) -> std::result::Result<Self, String> {
        let place = place_of(&format!("network `{}`", entry.mac), entry.slot, entry.mmio)?;
        Ok(Self { hub: entry.hub, mac: entry.mac, place })
    }
}

fn place_of(what: &str, slot: Option<u8>, mmio: Option<u8>) -> std::result::Result<Place, String> {
    match (slot, mmio) {
        (Some(slot), None) => Ok(Place::Slot(slot)),
        (None, Some(number)) => Ok(Place::Mmio(number)),
        _ => Err(format!("{what} must have either `slot` or `mmio`")),
    }
}

/// Checks the devices of `machine`.
pub(crate) fn check(machine: &Machine) -> std::result::Result<(), String> {
    let mut places = BTreeSet::new();
    let mut names = BTreeSet::new();
    let disks = machine.disks.iter().map(|disk| (&disk.name, disk.place));
    let networks = machine.networks.iter().map(|network| (&network.mac, network.place));
    for (name, place) in disks.chain(networks) {
        let is_there = match place {
            Place::Slot(slot) => SLOTS.contains(&slot),
            Place::Mmio(number) => number < MMIO_COUNT,
        };
        if !is_there {
            return Err(format!("`{name}`: there is no {place}; slots are 1 to 31, transports 0 to 31"));
        }
        if !places.insert(place) {
            return Err(format!("`{name}`: another device has {place}"));
        }
        if !names.insert(name) {
            return Err(format!("two devices are called `{name}`; names and MAC addresses must differ"));
        }
    }
    for disk in &machine.disks {
        // The name is part of a file name and of an option.
        if disk.name.is_empty() || !disk.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(format!("disk `{}`: a name consists of letters, digits and `-`", disk.name));
        }
        if let Content::Blank(size) = disk.content
            && (size == 0 || !size.is_multiple_of(SECTOR))
        {
            return Err(format!("disk `{}`: its size, {size}, must be a multiple of {SECTOR}", disk.name));
        }
    }
    for network in &machine.networks {
        let parts: Vec<&str> = network.mac.split(':').collect();
        let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if parts.len() != 6 || !parts.iter().all(is_byte) {
            return Err(format!("`{}` is not a MAC address like 52:54:00:00:00:01", network.mac));
        }
    }
    for Forward { hub, port, to, .. } in &machine.forwards {
        let count = machine.networks.iter().filter(|network| network.hub == *hub).count();
        if count != 1 {
            return Err(format!(
                "port {port} is forwarded to hub {hub}, which has {count} networks; it must have one"
            ));
        }
        if to.octets()[..3] != [10, 0, 2] {
            return Err(format!("port {port} is forwarded to {to}; the address must be in 10.0.2.0/24"));
        }
    }
    Ok(())
}

/// Returns the options of QEMU's `-M`: those of `board`, and those that devices add.
pub(crate) fn board_options(machine: &Machine, board: &str) -> String {
    match machine.smmu {
        None => board.into(),
        Some(Smmu::Usual) => format!("{board},iommu=smmuv3"),
        // Since 9.2, `virt` has an SMMU with both stages, whatever the option says.
        Some(Smmu::Stage1 | Smmu::Stage2) => {
            format!("{},iommu=smmuv3", board.replacen("virt,", "virt-8.1,", 1))
        }
    }
}

/// Adds the devices of `machine` to QEMU's command line, and creates files of blank disks: in `kept` if guests' writes
/// are kept there, otherwise in `folder`.
///
/// # Errors
/// A file cannot be created or copied.
pub(crate) fn add(
    command: &mut Command,
    machine: &Machine,
    folder: &Path,
    kept: Option<&Path>,
) -> Result<()> {
    match machine.smmu {
        None | Some(Smmu::Usual) => {}
        Some(Smmu::Stage1) => drop(command.args(["-global", "arm-smmuv3.stage=1"])),
        Some(Smmu::Stage2) => drop(command.args(["-global", "arm-smmuv3.stage=2"])),
    }
    let places = machine.disks.iter().map(|disk| disk.place);
    if places
        .chain(machine.networks.iter().map(|network| network.place))
        .any(|place| matches!(place, Place::Mmio(_)))
    {
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
    }
    for disk in &machine.disks {
        let (file, is_snapshot) = disk.file(folder, kept)?;
        let mut drive = OsString::from(format!("if=none,id=disk-{},format=raw,file=", disk.name));
        drive.push(file.to_string_lossy().replace(',', ",,"));
        drive.push(if is_snapshot { ",snapshot=on" } else { "" });
        command.arg("-drive").arg(drive);
        let options = format!("drive=disk-{0},serial={0}", disk.name);
        command.arg("-device").arg(disk.place.device("virtio-blk", &options, ""));
    }
    for (index, network) in machine.networks.iter().enumerate() {
        command.arg("-netdev").arg(format!("hubport,id=net{index},hubid={}", network.hub));
        let options = format!("netdev=net{index},mac={}", network.mac);
        // Without `romfile=`, QEMU needs the boot ROMs of another package.
        command.arg("-device").arg(network.place.device("virtio-net", &options, ",romfile="));
    }
    let hubs: BTreeSet<u32> = machine.forwards.iter().map(|forward| forward.hub).collect();
    for hub in hubs {
        let mut user = format!("user,id=user{hub}");
        for forward in machine.forwards.iter().filter(|forward| forward.hub == hub) {
            let Forward { port, to, to_port, .. } = forward;
            user.push_str(&format!(",hostfwd=tcp:127.0.0.1:{port}-{to}:{to_port}"));
        }
        command.arg("-netdev").arg(user);
        command.arg("-netdev").arg(format!("hubport,id=userport{hub},hubid={hub},netdev=user{hub}"));
    }
    Ok(())
}

impl Disk {
    /// Returns the disk's file, and true if QEMU must not write to it. Creates the file if it is missing.
    fn file(&self, folder: &Path, kept: Option<&Path>) -> Result<(PathBuf, bool)> {
        if let (Content::Image(image), None) = (&self.content, kept) {
            return Ok((place::guests().join(image), true));
        }
        let folder = kept.unwrap_or(folder);
        let file = folder.join(format!("{}.raw", self.name));
        if file.exists() {
            return Ok((file, false));
        }
        fs::create_dir_all(folder).at(folder)?;
        match &self.content {
            Content::Blank(size) => File::create(&file).and_then(|file| file.set_len(*size)).at(&file)?,
            Content::Image(image) => {
                // A copy that was interrupted must not be taken for the disk.
                let (image, unfinished) = (place::guests().join(image), file.with_extension("new"));
                fs::copy(&image, &unfinished).at(&image)?;
                fs::rename(&unfinished, &file).at(&file)?;
            }
        }
        Ok((file, false))
    }

    /// Returns the size in bytes that the disk's file can grow to in the machine's folder.
    pub(crate) fn room(&self) -> u64 {
        match self.content {
            Content::Blank(size) => size,
            Content::Image(_) => 0,
        }
    }
}

impl Place {
    /// Returns QEMU's option for the virtio device `kind` at this place. `pci_options` are for PCI alone.
    fn device(self, kind: &str, options: &str, pci_options: &str) -> String {
        match self {
            Self::Slot(slot) => {
                format!("{kind}-pci,{options},addr={slot:x}{pci_options},iommu_platform=on,disable-legacy=on")
            }
            Self::Mmio(number) => {
                format!("{kind}-device,{options},bus=virtio-mmio-bus.{number},iommu_platform=on")
            }
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slot(slot) => write!(f, "PCI slot {slot}"),
            Self::Mmio(number) => write!(f, "virtio-mmio transport {number}"),
        }
    }
}

/// Returns the folder that keeps the disks of the machine called `machine`: `target/disks/`.
pub fn kept_folder(machine: &str) -> PathBuf {
    place::target().join("disks").join(machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::describe;

    const HEAD: &str =
        "description = \"\"\ncpus = 1\niommu = \"smmuv3-stage-2\"\n[[controller]]\nsize = \"1G\"\n";
    const DEVICES: &str = "
[[disk]]
name = \"a\"
size = \"1M\"
slot = 17

[[disk]]
name = \"b\"
image = \"b.img\"
mmio = 8

[[network]]
hub = 3
mac = \"52:54:00:00:00:01\"
slot = 2

[[forward]]
hub = 3
port = 8080
to = \"10.0.2.11\"
to_port = 80
";

    #[test]
    fn devices_are_options_of_qemu() {
        let machine = Machine::parse("m", &format!("{HEAD}{DEVICES}")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("qemu");
        add(&mut command, &machine, folder.path(), None).unwrap();
        let line = describe(&command).replace(&*folder.path().to_string_lossy(), "DIR");
        let line = line.replace(&*place::guests().to_string_lossy(), "GUESTS");
        assert_eq!(
            line,
            "qemu -global arm-smmuv3.stage=2 -global virtio-mmio.force-legacy=false \
             -drive if=none,id=disk-a,format=raw,file=DIR/a.raw \
             -device virtio-blk-pci,drive=disk-a,serial=a,addr=11,iommu_platform=on,disable-legacy=on \
             -drive if=none,id=disk-b,format=raw,file=GUESTS/b.img,snapshot=on \
             -device virtio-blk-device,drive=disk-b,serial=b,bus=virtio-mmio-bus.8,iommu_platform=on \
             -netdev hubport,id=net0,hubid=3 -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,addr=2,romfile=,\
             iommu_platform=on,disable-legacy=on \
             -netdev user,id=user3,hostfwd=tcp:127.0.0.1:8080-10.0.2.11:80 \
             -netdev hubport,id=userport3,hubid=3,netdev=user3"
        );
        assert_eq!(fs::metadata(folder.path().join("a.raw")).unwrap().len(), 1 << 20);
        assert_eq!(board_options(&machine, "virt,secure=on"), "virt-8.1,secure=on,iommu=smmuv3");
    }

    #[test]
    fn kept_disks_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, "root").unwrap();
        let kept = folder.path().join("kept");
        let disk = Disk { name: "d".into(), place: Place::Slot(1), content: Content::Image(image.clone()) };
        assert_eq!(disk.file(folder.path(), None).unwrap(), (image, true));
        let (file, is_snapshot) = disk.file(folder.path(), Some(&kept)).unwrap();
        assert!(!is_snapshot && fs::read_to_string(&file).unwrap() == "root");
        fs::write(&file, "written").unwrap();
        disk.file(folder.path(), Some(&kept)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "written");
    }

    #[test]
    fn invalid_devices_are_refused() {
        let refused = |from: &str, to: &str| {
            assert!(DEVICES.contains(from), "{from}");
            Machine::parse("m", &format!("{HEAD}{}", DEVICES.replacen(from, to, 1))).unwrap_err()
        };
        assert!(refused("slot = 17", "").contains("disk `a` must have either `slot` or `mmio`"));
        assert!(refused("slot = 17", "slot = 2").contains("another device has PCI slot 2"));
        assert!(refused("slot = 17", "slot = 0").contains("there is no PCI slot 0"));
        assert!(refused("mmio = 8", "mmio = 32").contains("no virtio-mmio transport 32"));
        assert!(refused("size = \"1M\"", "size = \"1\"").contains("multiple of 512"));
        assert!(refused("size = \"1M\"", "").contains("either `size` or `image`"));
        assert!(refused("\"b\"", "\"a\"").contains("called `a`"));
        assert!(refused("\"b\"", "\"../b\"").contains("letters, digits"));
        assert!(refused("00:01", "00").contains("not a MAC address"));
        assert!(refused("hub = 3\nport", "hub = 4\nport").contains("hub 4"));
        assert!(refused("10.0.2.11", "10.0.3.11").contains("10.0.2.0/24"));
        let text = HEAD.replace("smmuv3-stage-2", "smmuv4");
        assert!(Machine::parse("m", &text).unwrap_err().contains("smmuv3-stage-1"));
    }
}
