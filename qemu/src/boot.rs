//! One boot of a machine: the loaded files and QEMU's command line.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::devices::Disk;
use crate::error::{AtPath, Error, Result};
use crate::machine::{Filling, Machine, RAM_BASE};
use crate::size::MIB;
use crate::workdir::WorkDir;
use crate::{devices, process, tree};

/// Name of the QEMU program.
pub(crate) const QEMU: &str = "qemu-system-aarch64";

/// Offset above [`RAM_BASE`] at which QEMU loads a ramdisk. The device tree follows it.
const RAMDISK_OFFSET: u64 = 128 * MIB;

/// Offset above [`RAM_BASE`] of the first boot module, unless the ramdisk extends further.
const MODULES_OFFSET: u64 = 192 * MIB;

/// Room for the device tree after the ramdisk.
const TREE_ROOM: u64 = 2 * MIB;

/// The connection of the machine's serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serial {
    /// This program's terminal, shared with QEMU's own monitor (Ctrl-A C, Ctrl-A X).
    Terminal,
    /// QEMU's standard input and output, without QEMU's monitor.
    Pipe,
}

/// A boot module, which QEMU's guest-loader loads and describes in `/chosen`.
#[derive(Clone, Debug)]
pub enum Module {
    /// A kernel and its command line.
    Kernel(PathBuf, String),
    /// A ramdisk.
    Ramdisk(PathBuf),
}

/// A boot: the machine and everything that is loaded.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The machine.
    pub machine: Machine,
    /// The program that QEMU starts at the highest exception level: Ballast, or a kernel without Ballast.
    pub kernel: PathBuf,
    /// The program's command line.
    pub append: String,
    /// The program's ramdisk; for Ballast, the configuration.
    pub ramdisk: Option<PathBuf>,
    /// The program's boot modules.
    pub modules: Vec<Module>,
    /// Device tree source that is applied to QEMU's tree, for hosts that QEMU has no option for.
    pub tree_overlay: String,
    /// Device tree that replaces QEMU's. It states the address of the ramdisk.
    pub(crate) tree: Option<PathBuf>,
    /// QEMU's name of a CPU model that replaces the machine's.
    pub cpu: Option<String>,
    /// Value of QEMU's `-M`; by default, `virt` with GICv3 and EL2.
    pub board: String,
    /// True if time counts instructions (`-icount shift=0`), which is slow and reproducible.
    pub counts_instructions: bool,
    /// Additional options for QEMU.
    pub options: Vec<OsString>,
    /// Value of QEMU's `-serial` for a second serial line.
    pub second_serial: Option<OsString>,
    /// Firmware at EL3 that replaces QEMU's own PSCI ([`use_firmware`](Self::use_firmware)).
    firmware: Option<PathBuf>,
    /// Unix socket for the serial line, instead of the terminal.
    pub socket: Option<PathBuf>,
    /// Folder that keeps the disks ([`kept_folder`](crate::devices::kept_folder)); without one, all that guests write
    /// is discarded at the end.
    pub disks: Option<PathBuf>,
}

impl Boot {
    /// Creates a boot of `kernel` on `machine` without any other files.
    pub fn new(machine: Machine, kernel: impl Into<PathBuf>) -> Self {
        Self {
            machine,
            kernel: kernel.into(),
            append: String::new(),
            ramdisk: None,
            modules: Vec::new(),
            tree_overlay: String::new(),
            tree: None,
            cpu: None,
            board: "virt,gic-version=3,virtualization=on".into(),
            counts_instructions: false,
            options: Vec::new(),
            second_serial: None,
            firmware: None,
            socket: None,
            disks: None,
        }
    }

    /// Uses `firmware` at EL3 (tests/guests/bare/src/bin/firmware.rs), on a board with that exception level.
    pub fn use_firmware(&mut self, firmware: PathBuf) {
        self.firmware = Some(firmware);
        self.board = "virt,gic-version=3,virtualization=on,secure=on".into();
    }

    /// Returns the command that starts QEMU in `folder`, after creating the controllers' files there.
    ///
    /// # Errors
    /// A file cannot be read or created, or the device tree cannot be made.
    pub(crate) fn command(&self, folder: &WorkDir, serial: Serial) -> Result<Command> {
        for range in self.machine.ranges() {
            if let Filling::Controller(index) = range.filling {
                let path = controller_file(folder, index);
                File::create(&path).and_then(|file| file.set_len(range.size)).at(path)?;
            }
        }
        let mut command = if self.needs_own_tree() { self.staged(folder)? } else { self.direct(folder, "")? };
        // Not for the device tree, which does not describe devices behind PCI: their ports and disks may be in use.
        devices::add(&mut command, &self.machine, folder.path(), self.disks.as_deref())?;
        match serial {
            Serial::Terminal if self.socket.is_some() => {
                let mut line = OsString::from("unix:");
                line.push(option_path(self.socket.as_deref().unwrap_or(Path::new(""))));
                line.push(",server=on,wait=off");
                command.args(["-display", "none", "-monitor", "none", "-serial"]).arg(line)
            }
            // Otherwise QEMU would take the second `-serial` for the first line.
            Serial::Terminal if self.second_serial.is_some() => {
                command.args(["-nographic", "-serial", "mon:stdio"])
            }
            Serial::Terminal => command.arg("-nographic"),
            Serial::Pipe => {
                command.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"])
            }
        };
        if let Some(second) = &self.second_serial {
            command.arg("-serial").arg(second);
        }
        Ok(command)
    }

    /// Returns the size in bytes that the files of controllers and disks can grow to.
    pub(crate) fn room(&self) -> u64 {
        self.machine.ram().0 + self.machine.disks.iter().map(Disk::room).sum::<u64>()
    }

    /// Tests whether the machine's device tree differs from QEMU's.
    fn needs_own_tree(&self) -> bool {
        self.machine.has_gap()
            || !self.tree_overlay.is_empty()
            || self.tree.is_some()
            || self.firmware.is_some()
    }

    /// Returns the command for the board, without loaded files.
    fn board(&self, folder: &WorkDir, board_option: &str) -> Command {
        let machine = &self.machine;
        let ranges = machine.ranges();
        let total: u64 = ranges.iter().map(|range| range.size).sum();
        // The kernel kills QEMU when this program ends for any reason.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]);
        let options = devices::board_options(machine, &self.board);
        command.arg("-M").arg(format!("{options}{board_option}"));
        command.arg("-cpu").arg(self.cpu.as_deref().unwrap_or(&machine.cpu));
        // A socket for each node with CPUs, since QEMU warns if CPUs of one socket belong to several nodes.
        let nodes = machine.controllers.iter().filter(|controller| controller.cpus.is_some()).count().max(1);
        let sockets = if (machine.cpus as usize).is_multiple_of(nodes) { nodes } else { 1 };
        command.arg("-smp").arg(format!("{},sockets={sockets}", machine.cpus));
        command.arg("-m").arg(format!("{}M", total / MIB));
        command.args(["-net", "none"]);
        if self.counts_instructions {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        let has_cpus = machine.controllers.iter().any(|controller| controller.cpus.is_some());
        for (node, range) in ranges.iter().enumerate() {
            let size = format!("size={}M", range.size / MIB);
            let cpus = match range.filling {
                Filling::Controller(index) => {
                    let mut backend =
                        OsString::from(format!("memory-backend-file,id=ram{node},share=on,{size},"));
                    backend.push("mem-path=");
                    backend.push(option_path(&controller_file(folder, index)));
                    command.arg("-object").arg(backend);
                    machine.controllers[index].cpus.clone()
                }
                Filling::Gap => {
                    command.arg("-object").arg(format!("memory-backend-ram,id=ram{node},reserve=off,{size}"));
                    None
                }
            };
            let cpus = cpus.or_else(|| (node == 0 && !has_cpus).then(|| format!("0-{}", machine.cpus - 1)));
            let cpus = cpus.map_or(String::new(), |cpus| cpu_options(&cpus));
            command.arg("-numa").arg(format!("node,nodeid={node},memdev=ram{node}{cpus}"));
        }
        for from in 0..ranges.len() {
            for to in from + 1..ranges.len() {
                command.arg("-numa").arg(format!("dist,src={from},dst={to},val={}", machine.distance));
            }
        }
        let mut address = RAM_BASE + MODULES_OFFSET.max(self.ramdisk_end() + TREE_ROOM);
        for module in &self.modules {
            let (kind, path) = match module {
                Module::Kernel(path, _) => ("kernel", path),
                Module::Ramdisk(path) => ("initrd", path),
            };
            let mut device = OsString::from(format!("guest-loader,addr={address:#x},{kind}="));
            device.push(option_path(path));
            if let Module::Kernel(_, arguments) = module {
                device.push(format!(",bootargs={}", arguments.replace(',', ",,")));
            }
            command.arg("-device").arg(device);
            address += in_blocks(file_size(path));
        }
        command.args(&self.options);
        command
    }

    /// Returns a command with which QEMU loads everything and makes the device tree.
    fn direct(&self, folder: &WorkDir, board_option: &str) -> Result<Command> {
        let mut command = self.board(folder, board_option);
        command.arg("-kernel").arg(&self.kernel);
        if !self.append.is_empty() {
            command.arg("-append").arg(&self.append);
        }
        if let Some(ramdisk) = &self.ramdisk {
            command.arg("-initrd").arg(ramdisk);
        }
        if self.kernel.exists() {
            Ok(command)
        } else {
            Err(Error::Image { path: self.kernel.clone(), reason: "no such image".into() })
        }
    }

    /// Returns a command that loads an edited copy of QEMU's device tree, and everything else at QEMU's usual
    /// addresses. QEMU's option for a tree is of no use, since QEMU overwrites the memory nodes of such a tree.
    fn staged(&self, folder: &WorkDir) -> Result<Command> {
        let file = |name: &str| folder.path().join(name);
        let (tree, ramdisk_at) = self.make_tree(folder)?;

        let kernel_at = RAM_BASE + kernel_offset(&self.kernel)?;
        let tree_at = RAM_BASE + in_blocks(self.ramdisk_end());
        // Without `-kernel`, QEMU puts its own tree into the first MiB.
        let entry_at = RAM_BASE + MIB;
        let entry = file("entry.bin");
        std::fs::write(&entry, entry_code(tree_at, kernel_at)).at(&entry)?;

        let mut command = self.board(folder, "");
        let mut load = |path: &Path, address: u64| {
            let mut device = OsString::from("loader,force-raw=on,file=");
            device.push(option_path(path));
            device.push(format!(",addr={address:#x}"));
            command.arg("-device").arg(device);
        };
        load(&self.kernel, kernel_at);
        if let Some(ramdisk) = &self.ramdisk {
            load(ramdisk, ramdisk_at);
        }
        load(&tree, tree_at);
        load(&entry, entry_at);
        match &self.firmware {
            // The firmware enters the code at `entry_at`.
            Some(firmware) => command.arg("-bios").arg(firmware),
            None => command.arg("-device").arg(format!("loader,addr={entry_at:#x},cpu-num=0")),
        };
        Ok(command)
    }

    /// Returns the machine's device tree as a blob. QEMU writes it and exits.
    ///
    /// # Errors
    /// QEMU is missing or refuses its command line, or the tree cannot be edited or read.
    pub fn host_tree(&self) -> Result<Vec<u8>> {
        let folder = WorkDir::new(0)?;
        let (tree, _) = self.make_tree(&folder)?;
        std::fs::read(&tree).at(&tree)
    }

    /// Writes the device tree into `folder`. Returns its path and the address of the ramdisk.
    fn make_tree(&self, folder: &WorkDir) -> Result<(PathBuf, u64)> {
        let tree = folder.path().join("host.dtb");
        match &self.tree {
            Some(given) => std::fs::copy(given, &tree).map(drop).at(given)?,
            None => {
                let dump = format!(",dumpdtb={}", option_path(&tree).display());
                process::quietly(&mut self.direct(folder, &dump)?)?;
            }
        }
        let ramdisk_at = tree::ramdisk_address(&tree).unwrap_or(RAM_BASE + self.ramdisk_offset());
        if self.needs_own_tree() {
            tree::lay_over(&tree, &format!("{}{}", tree::without_gaps(&self.machine), self.tree_overlay))?;
        }
        Ok((tree, ramdisk_at))
    }

    fn ramdisk_offset(&self) -> u64 {
        let ram: u64 = self.machine.ranges().iter().map(|range| range.size).sum();
        RAMDISK_OFFSET.min(ram / 2)
    }

    fn ramdisk_end(&self) -> u64 {
        self.ramdisk_offset() + self.ramdisk.as_ref().map_or(0, |path| file_size(path))
    }
}

/// Returns the file that holds the RAM of controller `index`.
pub(crate) fn controller_file(folder: &WorkDir, index: usize) -> PathBuf {
    folder.path().join(format!("controller{index}"))
}

/// Returns the offset above [`RAM_BASE`] at which QEMU loads a kernel: as in its arm64 Image header (Linux,
/// Documentation/arch/arm64/booting.rst), or 512 KiB without a header.
fn kernel_offset(kernel: &Path) -> Result<u64> {
    let image = std::fs::read(kernel).at(kernel)?;
    if image.get(56..60) != Some(b"ARM\x64") {
        return Ok(0x8_0000);
    }
    let offset = image.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    // QEMU's own boot code occupies the start of RAM.
    Ok(if offset < 4096 { offset + 2 * MIB } else { offset })
}

/// Returns position-independent code that enters `kernel` with `tree` in X0 and zero in X1 to X3.
fn entry_code(tree: u64, kernel: u64) -> Vec<u8> {
    const CODE: [u32; 6] = [
        0x5800_00c0, // ldr x0, tree
        0xd280_0001, // mov x1, #0
        0xd280_0002, // mov x2, #0
        0xd280_0003, // mov x3, #0
        0x5800_0084, // ldr x4, kernel
        0xd61f_0080, // br x4
    ];
    let mut bytes: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend([tree, kernel].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// Formats a list of CPUs such as `0-1,4` for a QEMU node, with one `cpus=` for each range.
fn cpu_options(cpus: &str) -> String {
    cpus.split(',').map(|range| format!(",cpus={range}")).collect()
}

/// Escapes a path for an option of QEMU, in which a single comma ends the value.
fn option_path(path: &Path) -> PathBuf {
    PathBuf::from(path.to_string_lossy().replace(',', ",,"))
}

fn in_blocks(size: u64) -> u64 {
    size.next_multiple_of(2 * MIB)
}

fn file_size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::describe;

    fn command_line(machine: &str) -> String {
        let folder = WorkDir::new(0).unwrap();
        let boot = Boot::new(Machine::load(machine).unwrap(), "/dev/null");
        let line = describe(&boot.command(&folder, Serial::Pipe).unwrap());
        line.replace(&*folder.path().to_string_lossy(), "DIR")
    }

    #[test]
    fn each_controller_is_a_file_and_a_node() {
        let line = command_line("two");
        assert_eq!(
            line,
            "setpriv --pdeathsig KILL qemu-system-aarch64 -M virt,gic-version=3,virtualization=on -cpu cortex-a72 \
             -smp 4,sockets=2 -m 2048M -net none \
             -object memory-backend-file,id=ram0,share=on,size=1024M,mem-path=DIR/controller0 \
             -numa node,nodeid=0,memdev=ram0,cpus=0-1 \
             -object memory-backend-file,id=ram1,share=on,size=1024M,mem-path=DIR/controller1 \
             -numa node,nodeid=1,memdev=ram1,cpus=2-3 -numa dist,src=0,dst=1,val=20 \
             -kernel /dev/null -display none -monitor none -serial stdio -no-reboot"
        );
    }

    #[test]
    fn all_distances_are_given() {
        assert_eq!(command_line("four").matches("-numa dist").count(), 6);
    }

    #[test]
    fn a_controller_is_a_sparse_file_of_its_size() {
        let folder = WorkDir::new(0).unwrap();
        let boot = Boot::new(Machine::load("unequal").unwrap(), "/dev/null");
        boot.command(&folder, Serial::Pipe).unwrap();
        assert_eq!(file_size(&controller_file(&folder, 1)), 2048 * MIB);
    }

    #[test]
    fn the_entry_code_finds_its_two_addresses() {
        let code = entry_code(0x4a00_0000, 0x4020_0000);
        // `ldr x0` at 0 reads 24 bytes on, `ldr x4` at 16 reads 16 bytes on (Arm ARM, LDR (literal)).
        assert_eq!(code[24..32], 0x4a00_0000_u64.to_le_bytes());
        assert_eq!(code[32..40], 0x4020_0000_u64.to_le_bytes());
        assert_eq!((0x5800_00c0_u32 >> 5) & 0x7ffff, 24 / 4);
        assert_eq!((0x5800_0084_u32 >> 5) & 0x7ffff, (32 - 16) / 4);
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let folder = WorkDir::new(0).unwrap();
        let boot = Boot::new(Machine::load("two").unwrap(), "/no/kernel");
        let error = boot.command(&folder, Serial::Pipe).unwrap_err();
        assert_eq!(error.to_string(), "/no/kernel: no such image");
    }
}
