//! What a test boots.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use ballast_qemu::boot::{Boot, Module};
use ballast_qemu::machine::Machine;
use ballast_qemu::{Result, configuration, place, store};

use crate::artifacts;
use crate::guest::{self, Guest};
use crate::system::System;

/// What a test boots: by default machine `two` with the guests `alpha-beta` on Linux 6.12.
#[derive(Clone, Debug)]
pub struct Setup {
    machine: Machine,
    guests: Guests,
    kernel: String,
    names: Vec<String>,
    boot: Boot,
}

/// Where the guests come from.
#[derive(Clone, Debug)]
enum Guests {
    /// A set of guest-dts/.
    Set(String),
    /// Source of a set.
    Source(String),
    /// A configuration as it is.
    Blob(PathBuf),
    /// Boot modules, or none at all.
    None,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// Ballast with two guests.
    pub fn new() -> Self {
        Self::of(artifacts::image())
    }

    /// Something else than Ballast, bare: a kernel, or another hypervisor.
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

    /// Linux without anything below it; its name is `bare`.
    pub fn bare_linux(kernel: &str) -> Self {
        let image = store::get(kernel).unwrap_or_else(|error| panic!("{error}")).file;
        let ramdisk = ballast_qemu::ramdisk::get().unwrap_or_else(|error| panic!("{error}"));
        let mut setup = Self::of(&image).no_guests().names(&["bare"]).append("console=ttyAMA0 hostname=bare");
        setup.boot.ramdisk = Some(ramdisk);
        setup
    }

    /// On a machine of qemu/machines.
    pub fn machine(mut self, name: &str) -> Self {
        self.machine = Machine::load(name).unwrap_or_else(|error| panic!("{error}"));
        self
    }

    /// On a machine of its own: `cpus` CPUs, and controllers of these sizes in bytes.
    pub fn controllers(mut self, cpus: u32, sizes: &[u64]) -> Self {
        self.machine = Machine::with_controllers(cpus, sizes);
        self
    }

    /// With a set of guest-dts; `names` are its guests in their order.
    pub fn guests(mut self, set: &str, names: &[&str]) -> Self {
        self.guests = Guests::Set(set.into());
        self.names(names)
    }

    /// With guests given as source, in which `/incbin/` finds `kernel`, `ramdisk`, `6.1/kernel`, and the
    /// bare-metal guests as `guests/NAME.img` and `guests/NAME.bin`, once [`payload`](crate::payload) has built them.
    pub fn source(mut self, source: &str, names: &[&str]) -> Self {
        self.guests = Guests::Source(source.into());
        self.names(names)
    }

    /// With guests that the test describes, and `more` at the root of the configuration.
    pub fn set(self, guests: &[Guest], more: &str) -> Self {
        let names: Vec<&str> = guests.iter().map(Guest::name).collect();
        self.source(&guest::source(guests, more), &names)
    }

    /// With a configuration as it is, however broken.
    pub fn blob(mut self, path: &Path, names: &[&str]) -> Self {
        self.guests = Guests::Blob(path.into());
        self.names(names)
    }

    /// Without a configuration.
    pub fn no_guests(mut self) -> Self {
        self.guests = Guests::None;
        self.names(&[])
    }

    /// With one kernel, and a ramdisk, as boot modules, as QEMU's guest-loader gives them: no configuration.
    pub fn modules(mut self, kernel: &Path, arguments: &str, ramdisk: Option<&Path>, name: &str) -> Self {
        self.boot.modules = vec![Module::Kernel(kernel.into(), arguments.into())];
        self.boot.modules.extend(ramdisk.map(|path| Module::Ramdisk(path.into())));
        self.guests = Guests::None;
        self.names(&[name])
    }

    /// The guests' names, in their order on the console.
    pub fn names(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|&name| name.into()).collect();
        self
    }

    /// With another kernel than 6.12 in the guests.
    pub fn kernel(mut self, name: &str) -> Self {
        self.kernel = name.into();
        self
    }

    /// On another CPU, in QEMU's words.
    pub fn cpu(mut self, name: &str) -> Self {
        self.boot.cpu = Some(name.into());
        self
    }

    /// On another board, in QEMU's words.
    pub fn board(mut self, options: &str) -> Self {
        self.boot.board = options.into();
        self
    }

    /// With more on Ballast's command line.
    pub fn append(mut self, arguments: &str) -> Self {
        if !self.boot.append.is_empty() {
            self.boot.append.push(' ');
        }
        self.boot.append.push_str(arguments);
        self
    }

    /// With source laid over the host's device tree.
    pub fn tree(mut self, overlay: &str) -> Self {
        self.boot.tree_overlay.push_str(overlay);
        self
    }

    /// With time counted in instructions.
    pub fn counting_instructions(mut self) -> Self {
        self.boot.counts_instructions = true;
        self
    }

    /// With more options for QEMU.
    pub fn option(mut self, option: &str) -> Self {
        self.boot.options.push(option.into());
        self
    }

    /// The configuration that it boots, compiled.
    ///
    /// # Panics
    /// There is none, or it cannot be built.
    pub fn configuration(&self) -> PathBuf {
        let boot = self.clone().complete().unwrap_or_else(|error| panic!("{error}"));
        boot.ramdisk.unwrap_or_else(|| panic!("no configuration"))
    }

    /// The device tree of its host.
    ///
    /// # Panics
    /// Something cannot be built, or QEMU does not write it.
    pub fn host_tree(&self) -> Vec<u8> {
        let boot = self.clone().complete().unwrap_or_else(|error| panic!("{error}"));
        boot.host_tree().unwrap_or_else(|error| panic!("{error}"))
    }

    /// With a second serial line, whose bytes go to a file.
    pub fn second_serial(mut self, file: &Path) -> Self {
        self.boot.second_serial = Some(format!("file:{}", file.display()).into());
        self
    }

    /// With firmware at EL3 that says on the second serial line, which goes to `log`, which mitigations are called.
    pub fn firmware(mut self, log: &Path) -> Self {
        self.boot.use_firmware(artifacts::raw_payload("firmware"));
        self.second_serial(log)
    }

    /// Boots it.
    ///
    /// # Panics
    /// Something cannot be built, fetched or started.
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

/// Compiles `source`, under a name that only this source has: the next run finds it.
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
