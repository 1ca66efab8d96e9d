//! Sets of guests that a test describes.

use std::fmt::Write;

/// The program of a guest.
#[derive(Clone, Debug)]
enum Program {
    /// The kernel of the [`Setup`](crate::Setup), with the ramdisk.
    Linux,
    /// Another kernel, with the ramdisk.
    OtherLinux(String),
    /// A bare-metal guest: a file for `/incbin/`.
    Payload(String),
}

/// One guest of a set; by default it has one vCPU, 256 MiB and the kernel of the set.
#[derive(Clone, Debug)]
pub struct Guest {
    name: String,
    program: Program,
    ramdisk: &'static str,
    vcpus: u32,
    ram: u64,
    bootargs: String,
    lines: String,
    memory: String,
    window: String,
}

impl Guest {
    /// Describes a Linux guest.
    pub fn linux(name: &str) -> Self {
        Self {
            name: name.into(),
            program: Program::Linux,
            ramdisk: "ramdisk",
            vcpus: 1,
            ram: 256 << 20,
            bootargs: format!("console=ttyAMA0 hostname={name}"),
            lines: String::new(),
            memory: String::new(),
            window: String::new(),
        }
    }

    /// Describes a Linux guest with its own kernel.
    pub fn linux_of(name: &str, kernel: &str) -> Self {
        Self { program: Program::OtherLinux(kernel.into()), ..Self::linux(name) }
    }

    /// Describes a bare-metal guest of tests/guests with the arm64 Image header.
    pub fn payload(name: &str, program: &str) -> Self {
        crate::payload(program);
        let program = Program::Payload(format!("guests/{program}.img"));
        Self { program, bootargs: String::new(), ..Self::linux(name) }
    }

    /// Describes a bare-metal guest of tests/guests without the header: raw code.
    pub fn raw_payload(name: &str, program: &str) -> Self {
        crate::raw_payload(program);
        let program = Program::Payload(format!("guests/{program}.bin"));
        Self { program, bootargs: String::new(), ..Self::linux(name) }
    }

    /// Gives a Linux guest the ramdisk with the drivers of its devices, a network and fio: an interface with the
    /// MAC address 52:54:00:00:00:N has the address 192.168.0.(10 + N), any other one 10.0.2.15.
    pub fn with_device_drivers(mut self) -> Self {
        self.ramdisk = "fio.cpio";
        self
    }

    /// Sets the number of vCPUs.
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// Sets the size of RAM in MiB.
    pub fn ram_mib(mut self, mib: u64) -> Self {
        self.ram = mib << 20;
        self
    }

    /// Adds boot arguments.
    pub fn bootargs(mut self, more: &str) -> Self {
        let separator = if self.bootargs.is_empty() { "" } else { " " };
        let _ = write!(self.bootargs, "{separator}{more}");
        self
    }

    /// Adds source to the guest's node: properties first, then nodes.
    pub fn with(mut self, source: &str) -> Self {
        self.lines.push_str(source);
        self
    }

    /// Adds properties to the guest's node.
    pub fn property(mut self, source: &str) -> Self {
        self.lines.insert_str(0, source);
        self
    }

    /// Adds source to the guest's region of RAM.
    pub fn memory(mut self, source: &str) -> Self {
        self.memory.push_str(source);
        self
    }

    /// Assigns the functions in these slots of the PCI bus to the guest.
    pub fn slots(self, slots: &[u16]) -> Self {
        let functions: Vec<String> = slots.iter().map(|slot| format!("{:#x}", slot << 3)).collect();
        self.property(&format!("pci-functions = <{}>; ", functions.join(" ")))
    }

    /// Adds a DMA window with these properties.
    pub fn window(mut self, properties: &str) -> Self {
        self.window = format!("memory-0 {{ dma-window; {properties} }};");
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn images(&self) -> (String, Option<String>) {
        match &self.program {
            Program::Linux => ("kernel".into(), Some(self.ramdisk.into())),
            Program::OtherLinux(kernel) if self.ramdisk == "ramdisk" => {
                (format!("{kernel}/kernel"), Some("ramdisk".into()))
            }
            Program::OtherLinux(kernel) => {
                (format!("{kernel}/kernel"), Some(format!("{kernel}/{}", self.ramdisk)))
            }
            Program::Payload(file) => (file.clone(), None),
        }
    }
}

/// Returns the source of a configuration with `guests`, and with `more` at its root.
pub(crate) fn source(guests: &[Guest], more: &str) -> String {
    let mut files: Vec<String> = Vec::new();
    let mut nodes = String::new();
    let mut label = |file: String| {
        let at = files.iter().position(|known| *known == file).unwrap_or_else(|| {
            files.push(file);
            files.len() - 1
        });
        format!("image{at}")
    };
    for guest in guests {
        let (kernel, ramdisk) = guest.images();
        // Writing to a String cannot fail.
        let _ = write!(nodes, "{} {{ vcpus = <{}>; kernel = <&{}>; ", guest.name, guest.vcpus, label(kernel));
        if let Some(ramdisk) = ramdisk {
            let _ = write!(nodes, "ramdisk = <&{}>; ", label(ramdisk));
        }
        if !guest.bootargs.is_empty() {
            let _ = write!(nodes, "bootargs = \"{}\"; ", guest.bootargs);
        }
        let (high, low) = (guest.ram >> 32, guest.ram & 0xffff_ffff);
        let _ = writeln!(
            nodes,
            "{} {} memory {{ size = <{high:#x} {low:#x}>; {} }}; }};",
            guest.lines, guest.window, guest.memory
        );
    }
    let mut images = String::new();
    for (at, file) in files.iter().enumerate() {
        let _ = writeln!(images, "image{at}: image-{at} {{ data = /incbin/(\"{file}\"); }};");
    }
    format!(
        "/dts-v1/;\n/ {{\ncompatible = \"ballast,configuration\";\n#address-cells = <2>;\n#size-cells = <2>;\n{more}\n\
         images {{\n{images}}};\nguests {{\n{nodes}}};\n}};\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_is_included_once() {
        let guests =
            [Guest::linux("a"), Guest::linux("b").vcpus(2), Guest::linux_of("c", "6.1").with("cpus = <3>;")];
        let source = source(&guests, "");
        assert_eq!(source.matches("/incbin/").count(), 3);
        assert!(
            source.contains("b { vcpus = <2>; kernel = <&image0>; ramdisk = <&image1>; bootargs = "),
            "{source}"
        );
        assert!(source.contains("c { vcpus = <1>; kernel = <&image2>; ramdisk = <&image1>; "), "{source}");
    }

    #[test]
    fn drivers_are_those_of_the_guests_kernel() {
        let guests =
            [Guest::linux("a").with_device_drivers(), Guest::linux_of("b", "6.1").with_device_drivers()];
        let source = source(&guests, "");
        assert!(source.contains("/incbin/(\"fio.cpio\")"), "{source}");
        assert!(source.contains("/incbin/(\"6.1/fio.cpio\")"), "{source}");
    }
}
