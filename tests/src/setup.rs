//! The setup that a test boots.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ballast_qemu::boot::{Boot, Module};
use ballast_qemu::devices::{Disk, Forward, Network, Smmu};
use ballast_qemu::machine::Machine;
use ballast_qemu::{Result, configuration, place, store};

use crate::artifacts;
use crate::guest::{self, Guest};
use crate::system::System;

/// The setup that a test boots; by default machine `two` with the guests `alpha-beta` on Linux 6.12.
#[derive(Clone, Debug)]
pub struct Setup {
    machine: Machine,
    guests: Guests,
    kernel: String,
    names: Vec<String>,
    boot: Boot,
}

/// The source of the guests.
#[derive(Clone, Debug)]
enum Guests {
    /// A set of guest-dts.
    Set(String),
    /// Source of a configuration.
    Source(String),
    /// A compiled configuration.
    Blob(PathBuf),
    /// Boot modules, or no guests.
    None,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// Describes Ballast with two guests.
    pub fn new() -> Self {
        Self::of(artifacts::image())
    }

    /// Describes `image` without Ballast: a kernel, or another hypervisor.
    pub fn of(image: &Path) -> Self {
        let machine = Machine::load("two").unwrap_or_else(|error| panic!("{error}"));
        Self {
            boot: Boot::new(machine.clone(), image),
            machine,
            guests: Guests::Set("alpha-beta".into()),
            kernel: "6.12".into(),
            names: vec!["alpha".into(), "beta".into()],
        }
    }

    /// Describes Linux without a hypervisor; its name is `bare`.
    pub fn bare_linux(kernel: &str) -> Self {
        let image = store::get(kernel).unwrap_or_else(|error| panic!("{error}")).file;
        let ramdisk = ballast_qemu::ramdisk::get().unwrap_or_else(|error| panic!("{error}"));
        let mut setup = Self::of(&image).no_guests().names(&["bare"]).append("console=ttyAMA0 hostname=bare");
        setup.boot.ramdisk = Some(ramdisk);
        setup
    }

    /// Describes Linux without a hypervisor, with the drivers of the machine's devices, a network and fio; its name is
    /// `bare`.
    pub fn bare_linux_with_devices(kernel: &str) -> Self {
        let mut setup = Self::bare_linux(kernel);
        let ramdisk = ballast_qemu::ramdisk::with_fio(kernel).unwrap_or_else(|error| panic!("{error}"));
        setup.boot.ramdisk = Some(ramdisk);
        setup
    }

    /// Selects a machine of qemu/machines, without its forwarded ports, which tests that run at the same time cannot share.
    pub fn machine(mut self, name: &str) -> Self {
        self.machine = Machine::load(name).unwrap_or_else(|error| panic!("{error}"));
        self.machine.forwards.clear();
        self
    }

    /// Sets the number of CPUs, and controllers with these sizes in bytes.
    pub fn controllers(mut self, cpus: u32, sizes: &[u64]) -> Self {
        self.machine = Machine::with_controllers(cpus, sizes);
        self
    }

    /// Adds an SMMU in front of the PCI bus, or removes it. Call this after the machine has been selected.
    pub fn smmu(mut self, smmu: impl Into<Option<Smmu>>) -> Self {
        self.machine.smmu = smmu.into();
        self
    }

    /// Adds a disk. Its file is discarded at the end.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.machine.disks.push(disk);
        self
    }

    /// Adds a network interface.
    pub fn network(mut self, network: Network) -> Self {
        self.machine.networks.push(network);
        self
    }

    /// Forwards `port` of the PC ([`free_port`](crate::free_port)) to port 80 of the guest whose interface is on `hub`, alone.
    pub fn forward(mut self, port: u16, hub: u32) -> Self {
        self.machine.forwards.push(Forward { hub, port, to: Ipv4Addr::new(10, 0, 2, 15), to_port: 80 });
        self
    }

    /// Selects a set of guest-dts; `names` are its guests in their order.
    pub fn guests(mut self, set: &str, names: &[&str]) -> Self {
        self.guests = Guests::Set(set.into());
        self.names(names)
    }

    /// Sets the source of the configuration. In it, `/incbin/` finds `kernel`, `ramdisk`, `6.1/kernel`, and bare-metal guests as
    /// `guests/NAME.img` and `guests/NAME.bin`, once [`payload`](crate::payload) has built them.
    pub fn source(mut self, source: &str, names: &[&str]) -> Self {
        self.guests = Guests::Source(source.into());
        self.names(names)
    }

    /// Sets the guests, and `more` at the root of the configuration.
    pub fn set(self, guests: &[Guest], more: &str) -> Self {
        let names: Vec<&str> = guests.iter().map(Guest::name).collect();
        self.source(&guest::source(guests, more), &names)
    }

    /// Sets a compiled configuration, which may be invalid.
    pub fn blob(mut self, path: &Path, names: &[&str]) -> Self {
        self.guests = Guests::Blob(path.into());
        self.names(names)
    }

    /// Removes the configuration.
    pub fn no_guests(mut self) -> Self {
        self.guests = Guests::None;
        self.names(&[])
    }

    /// Replaces the configuration by boot modules, as QEMU's guest-loader provides them: a kernel and a ramdisk.
    pub fn modules(mut self, kernel: &Path, arguments: &str, ramdisk: Option<&Path>, name: &str) -> Self {
        self.boot.modules = vec![Module::Kernel(kernel.into(), arguments.into())];
        self.boot.modules.extend(ramdisk.map(|path| Module::Ramdisk(path.into())));
        self.guests = Guests::None;
        self.names(&[name])
    }

    /// Sets the guests' names, in their order on the console.
    pub fn names(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|&name| name.into()).collect();
        self
    }

    /// Sets the guests' kernel.
    pub fn kernel(mut self, name: &str) -> Self {
        self.kernel = name.into();
        self
    }

    /// Sets the CPU, in QEMU's syntax.
    pub fn cpu(mut self, name: &str) -> Self {
        self.boot.cpu = Some(name.into());
        self
    }

    /// Sets the options of the board, in QEMU's syntax.
    pub fn board(mut self, options: &str) -> Self {
        self.boot.board = options.into();
        self
    }

    /// Adds arguments to Ballast's command line.
    pub fn append(mut self, arguments: &str) -> Self {
        if !self.boot.append.is_empty() {
            self.boot.append.push(' ');
        }
        self.boot.append.push_str(arguments);
        self
    }

    /// Adds an overlay to the host's device tree, as source.
    pub fn tree(mut self, overlay: &str) -> Self {
        self.boot.tree_overlay.push_str(overlay);
        self
    }

    /// Makes QEMU count time in instructions.
    pub fn counting_instructions(mut self) -> Self {
        self.boot.counts_instructions = true;
        self
    }

    /// Adds an option for QEMU.
    pub fn option(mut self, option: &str) -> Self {
        self.boot.options.push(option.into());
        self
    }

    /// Builds the configuration. Returns its path.
    ///
    /// # Panics
    /// There is no configuration, or it cannot be built.
    pub fn configuration(&self) -> PathBuf {
        let boot = self.clone().complete().unwrap_or_else(|error| panic!("{error}"));
        boot.ramdisk.unwrap_or_else(|| panic!("no configuration"))
    }

    /// Returns the device tree of the host.
    ///
    /// # Panics
    /// A file cannot be built, or QEMU does not write the tree.
    pub fn host_tree(&self) -> Vec<u8> {
        let boot = self.clone().complete().unwrap_or_else(|error| panic!("{error}"));
        boot.host_tree().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Adds a second serial line, which writes to a file.
    pub fn second_serial(mut self, file: &Path) -> Self {
        self.boot.second_serial = Some(format!("file:{}", file.display()).into());
        self
    }

    /// Adds firmware at EL3. It reports calls of mitigations on the second serial line, which writes to `log`.
    pub fn firmware(mut self, log: &Path) -> Self {
        self.boot.use_firmware(artifacts::raw_payload("firmware"));
        self.second_serial(log)
    }

    /// Boots the setup.
    ///
    /// # Panics
    /// A file cannot be built or downloaded, or QEMU does not start.
    pub fn boot(self) -> System {
        let names = self.names.clone();
        let boot = self.complete().unwrap_or_else(|error| panic!("{error}"));
        System::start(&boot, names)
    }

    fn complete(mut self) -> Result<Boot> {
        self.boot.machine = self.machine;
        match &self.guests {
            Guests::Set(name) => self.boot.ramdisk = Some(configuration::build(name, &self.kernel)?),
            Guests::Source(source) => self.boot.ramdisk = Some(compile(source, &self.kernel)?),
            Guests::Blob(path) => self.boot.ramdisk = Some(path.clone()),
            Guests::None => {}
        }
        Ok(self.boot)
    }
}

/// Compiles `source`. The file name is a hash of the source, so that the next run can reuse it.
fn compile(source: &str, kernel: &str) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (source, kernel).hash(&mut hasher);
    let folder = place::target().join("test-guests");
    let file = folder.join(format!("{:016x}.dts", hasher.finish()));
    let at = |source| ballast_qemu::Error::File { path: file.clone(), source };
    std::fs::create_dir_all(&folder).map_err(at)?;
    if !std::fs::read_to_string(&file).is_ok_and(|old| old == source) {
        std::fs::write(&file, source).map_err(at)?;
    }
    let out = file.with_extension("dtb");
    configuration::compile(&file, kernel, &out)?;
    Ok(out)
}
