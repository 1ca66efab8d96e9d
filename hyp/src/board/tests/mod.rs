//! Boards from trees that QEMU wrote, from trees like those of real hosts, and from broken trees.

mod devices;

use std::format;
use std::string::String;
use std::vec::Vec;

use guest_dts::range::PaRange;
use guest_dts::testing::compile;
use guest_dts::tree::Tree;
use proptest::prelude::*;

use super::*;

/// QEMU's `virt` with virtualization, GICv3, 4 CPUs and two controllers of 1 GiB.
const QEMU_VIRT: &str = include_str!("qemu_virt.dts");

/// Calls `read` with the board of `source`.
fn with_board<T>(source: &str, read: impl FnOnce(&Board<'_>) -> T) -> T {
    let blob = compile(source);
    let tree = Tree::new(blob.as_slice()).unwrap();
    read(&Board::read(&tree).unwrap_or_else(|error| panic!("{error}")))
}

/// Returns the error for `source`, or its warnings.
fn message(source: &str) -> String {
    let blob = compile(source);
    let tree = Tree::new(blob.as_slice()).unwrap();
    match Board::read(&tree) {
        Ok(board) => board.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect(),
        Err(error) => format!("{error}\n"),
    }
}

/// Returns `QEMU_VIRT` with `from`, which must be there, replaced by `to`.
fn changed(from: &str, to: &str) -> String {
    assert!(QEMU_VIRT.contains(from), "{from}");
    QEMU_VIRT.replace(from, to)
}

fn range(base: u64, size: u64) -> PaRange {
    PaRange::from_numbers(base, size).unwrap()
}

#[test]
fn qemu_virt_is_read() {
    with_board(QEMU_VIRT, |board| {
        assert_eq!(board.ram.controllers.len(), 2);
        assert_eq!(board.ram.ranges[1].range, range(0x8000_0000, 1 << 30));
        assert_eq!(board.ram.ranges[1].controller, 1);
        assert_eq!((board.ram.size(), board.ram.controller_size(1)), (2 << 30, 1 << 30));
        assert_eq!(board.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(board.psci, Psci { conduit: Conduit::Smc, version: PsciVersion::V1_0 });
        assert_eq!(board.gic.distributor, range(0x800_0000, 0x1_0000));
        assert_eq!(board.gic.redistributors[..], [range(0x80a_0000, 0xf6_0000)]);
        assert_eq!(board.gic.maintenance.intid, 25);
        let timer = board.timer;
        assert_eq!(
            [timer.physical, timer.virtual_timer, timer.hypervisor].map(|ppi| ppi.intid),
            [30, 27, 26]
        );
        assert_eq!([0, 62_500_000].map(|register| timer.frequency(register)), [None, Some(62_500_000)]);
        assert_eq!(board.console.registers.base().get(), 0x900_0000);
        assert_eq!(board.console.interrupt, Interrupt { intid: 33, trigger: Trigger::Level });
        assert_eq!((board.console.clock_hz, board.console.baud), (Some(24_000_000), None));
        assert_eq!(board.chosen.bootargs, "hello");
        assert_eq!(board.chosen.initrd, PaRange::between(0x4800_0000, 0x4800_1000));
        assert_eq!(board.warnings.iter().count(), 0);
    });
}

/// A host of another vendor: UART behind two buses and an alias, interrupts by phandle, names for the timer's,
/// redistributors in two regions with a stride, CPUs of two clusters.
const OTHER: &str = include_str!("other.dts");

/// Returns `QEMU_VIRT` with `address` and `size` cells at its root, and a reserved range.
fn with_root_cells(address: usize, size: usize) -> String {
    let narrow = |line: &str| {
        let cells = line.strip_prefix("\t\treg = <").and_then(|rest| rest.strip_suffix(">;"));
        let Some(cells) = cells else { return String::from(line) };
        let cells: Vec<&str> = cells.split(' ').collect();
        let entries =
            cells.chunks(4).flat_map(|entry| entry[2 - address..2].iter().chain(&entry[4 - size..]));
        format!("\t\treg = <{}>;", entries.copied().collect::<Vec<_>>().join(" "))
    };
    let text = QEMU_VIRT
        .replacen("\t#size-cells = <0x02>;", &format!("\t#size-cells = <{size}>;"), 1)
        .replacen("\t#address-cells = <0x02>;", &format!("\t#address-cells = <{address}>;"), 1);
    let text: Vec<String> = text.lines().map(narrow).collect();
    let entry = format!("{} 0x44000000 {} 0x100000", ["", "0"][address - 1], ["", "0"][size - 1]);
    let reserved = format!(
        "reserved-memory {{ #address-cells = <{address}>; #size-cells = <{size}>; ranges; a {{ reg = <{entry}>; }}; \
         b {{ compatible = \"shared-dmb-pool\"; reusable; size = <{} 0x400000>; alloc-ranges = <{entry}>; }}; }};",
        ["", "0"][size - 1]
    );
    text.join("\n").replace("\tpsci {", &format!("{reserved}\n\tpsci {{"))
}

#[test]
fn roots_of_one_or_two_cells_are_read_alike() {
    let read = |address, size| {
        with_board(&with_root_cells(address, size), |board| {
            let extents: Vec<_> =
                board.reservations.iter().map(|reservation| reservation.extent.clone()).collect();
            assert_eq!(board.warnings.iter().count(), 0, "{address}/{size}");
            (board.ram.clone(), board.gic.clone(), board.console, board.chosen.initrd, extents)
        })
    };
    let expected = read(2, 2);
    assert_eq!(expected.0.ranges[1].range, range(0x8000_0000, 1 << 30));
    assert_eq!(expected.4[0], Extent::Static(range(0x4400_0000, 0x10_0000)));
    for (address, size) in [(1, 1), (2, 1), (1, 2)] {
        assert_eq!(read(address, size), expected, "{address}/{size}");
    }
}

#[test]
fn memory_that_is_disabled_is_not_used() {
    let disabled = changed("\t\tnuma-node-id = <0x01>;", "\t\tnuma-node-id = <0x01>; status = \"disabled\";");
    with_board(&disabled, |board| {
        let ranges: Vec<_> = board.ram.ranges.iter().map(|ram| ram.range).collect();
        assert_eq!(ranges, [range(0x4000_0000, 1 << 30)]);
        assert_eq!(board.ram.controllers.len(), 1);
    });
}

#[test]
fn a_console_with_a_private_or_an_extended_interrupt_is_told_of() {
    for specifier in ["1 5 4", "2 5 4", "3 5 4"] {
        let said = message(&changed(
            "interrupts = <0x00 0x01 0x04>;\n\t\treg = <0x00 0x9000000",
            &format!("interrupts = <{specifier}>; reg = <0x00 0x9000000"),
        ));
        assert!(
            said.starts_with("/pl011@9000000: interrupts")
                && said.contains("must be a shared interrupt of type 0 (SPI)"),
            "{said}"
        );
    }
}

#[test]
fn another_host_is_read() {
    with_board(OTHER, |board| {
        assert_eq!(board.console.registers, range(0x2_1010_0000, 0x1000));
        assert_eq!(board.console.interrupt, Interrupt { intid: 32 + 40, trigger: Trigger::Level });
        assert_eq!((board.console.clock_hz, board.console.baud), (Some(48_000_000), Some(115_200)));
        assert_eq!(
            board.gic.redistributors[..],
            [range(0x2_2004_0000, 0x4_0000), range(0x2_2010_0000, 0x4_0000)]
        );
        assert_eq!(board.gic.redistributor_stride, Some(0x4_0000));
        assert_eq!(board.gic.maintenance, Interrupt { intid: 25, trigger: Trigger::Level });
        assert_eq!(board.timer.secure_physical, None);
        assert_eq!([board.timer.physical, board.timer.hypervisor].map(|ppi| ppi.intid), [30, 26]);
        assert_eq!(board.timer.hypervisor_virtual.map(|ppi| ppi.intid), Some(28));
        assert_eq!([0, 1_000_000].map(|register| board.timer.frequency(register)), [Some(25_000_000); 2]);
        assert_eq!(
            board.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(),
            [0x1_0000_0000, 0x1_0000_0100]
        );
        assert_eq!(board.psci, Psci { conduit: Conduit::Hvc, version: PsciVersion::V0_2 });
        // Without numa-node-id, each range is a controller, by rising address.
        let expected = [(range(0x8000_0000, 0x4000_0000), 0), (range(0x8_8000_0000, 0x8000_0000), 1)];
        let ranges: Vec<_> = board.ram.ranges.iter().map(|ram| (ram.range, ram.controller)).collect();
        assert_eq!(ranges, expected);
        assert_eq!(board.reservations[0].extent, Extent::Static(range(0x8000_0000, 0x1_0000)));
        let kinds: Vec<_> = board.reservations.iter().map(|reservation| reservation.kind).collect();
        use ReservationKind::{
            DesignatedMovableBlock, Plain, RestrictedDmaPool, SharedDmaPool, SharedDmbPool,
        };
        assert_eq!(
            kinds,
            [
                Plain,
                Plain,
                DesignatedMovableBlock,
                DesignatedMovableBlock,
                SharedDmbPool,
                SharedDmaPool,
                RestrictedDmaPool
            ]
        );
        assert!(board.reservations[1].is_no_map && !board.reservations[1].is_reusable);
        assert!(board.reservations[2].is_reusable && board.reservations[3].entry == 1);
        let Extent::Dynamic { size, alignment, within } = &board.reservations[4].extent else { panic!() };
        assert_eq!(
            (*size, *alignment, within[..] == [range(0x8000_0000, 0x4000_0000)]),
            (0x80_0000, Some(0x40_0000), true)
        );
        assert!(board.reservations[5].is_cma_default);
        let modules: Vec<_> = board.chosen.modules.iter().map(|module| (module.kind, module.range)).collect();
        let expected = [
            (ModuleKind::Kernel, range(0x8800_0000, 0x10_0000)),
            (ModuleKind::Ramdisk, range(0x8900_0000, 0x1000)),
        ];
        assert_eq!(modules, expected);
        assert_eq!(board.chosen.modules[0].bootargs, Some("console=ttyAMA0"));
    });
}

#[test]
fn qemu_guest_loader_modules_are_read() {
    let modules = r#"
        module@0x50000000 { bootargs = "quiet"; compatible = "multiboot,module", "multiboot,kernel"; reg = <0 0x50000000 0 0x1000>; };
        module@0x51000000 { compatible = "multiboot,module", "multiboot,ramdisk"; reg = <0 0x51000000 0 0x2000>; };
        stdout-path"#;
    let at_end = modules.replace("stdout-path", "};");
    let source =
        changed("\t\tstdout-path = \"/pl011@9000000\";", "\t\tstdout-path = \"/pl011@9000000\"; @HERE@");
    let (head, tail) = source.split_once("@HERE@").unwrap();
    let end = tail.find("};").unwrap();
    let source = format!("{head}{}{}{}", &tail[..end], at_end, &tail[end + 2..]);
    with_board(&source, |board| {
        assert_eq!(board.chosen.modules.len(), 2);
        assert_eq!(board.chosen.modules[1].range, range(0x5100_0000, 0x2000));
    });
}

#[test]
fn sixty_four_controllers_are_taken_and_no_more() {
    let list = |count: u64| {
        let size = ((2u64 << 30) / 65) & !0xfff;
        let part = |at: u64| {
            let bytes = if at + 1 == count { (2 << 30) - at * size } else { size };
            format!("{bytes:#x}@{:#x}", 0x4000_0000 + at * size)
        };
        let list: Vec<String> = (0..count).map(part).collect();
        changed("bootargs = \"hello\"", &format!("bootargs = \"controllers={}\"", list.join(",")))
    };
    let blob = compile(&list(64));
    let board = Board::read(&Tree::new(blob.as_slice()).unwrap()).unwrap();
    let names: Vec<_> = board.ram.controllers.iter().map(|controller| controller.name()).collect();
    assert_eq!((names.len(), names[0], names[9], names[10], names[63]), (64, "mc0", "mc9", "mc10", "mc63"));
    assert_eq!(Controller { id: 255 }.name(), "mc255");
    let blob = compile(&list(65));
    let tree = Tree::new(blob.as_slice()).unwrap();
    let error = Board::read(&tree).unwrap_err().to_string();
    assert!(error.contains("64 controllers"), "{error}");
}

#[test]
fn controllers_are_cut_anew_by_the_command_line() {
    let source = |list: &str| changed("bootargs = \"hello\"", &format!("bootargs = \"controllers={list}\""));
    let ranges = |list: &str| {
        with_board(&source(list), |board| {
            board.ram.ranges.iter().map(|ram| (ram.range, ram.controller)).collect::<Vec<_>>()
        })
    };
    assert_eq!(ranges("2G@1G"), [(range(0x4000_0000, 2 << 30), 0)]);
    let expected = [
        (range(0x4000_0000, 512 << 20), 1),
        (range(0x6000_0000, 512 << 20), 0),
        (range(0x8000_0000, 512 << 20), 1),
        (range(0xa000_0000, 512 << 20), 0),
    ];
    assert_eq!(ranges("512M@0x60000000+512M@0xa0000000,512M@1G+512M@2G"), expected);
    let wrong = ["", "1G", "1G@", "2G@1G,", "1G@0", "1G@1G", "2G@1G,1G@2G", "100@1G", "0@1G", "1G@16E"];
    let messages: String = wrong.iter().map(|list| message(&source(list))).collect();
    insta::assert_snapshot!(messages);
}

/// Returns `source` with `line` inserted at the beginning of the node that begins with `node`.
fn inside(node: &str, line: &str) -> String {
    changed(node, &format!("{node} {line}"))
}

#[test]
fn missing_or_wrong_properties_are_named() {
    let without = |line: &str| changed(line, "");
    let cases = [
        without("stdout-path = \"/pl011@9000000\";"),
        changed("\"/pl011@9000000\"", "\"/nothing\""),
        changed("\"/pl011@9000000\"", "\"serial0:115200\""),
        changed("\"/pl011@9000000\"", "\"/psci\""),
        changed("\"/pl011@9000000\"", "<1>"),
        inside("pl011@9000000 {", "status = \"disabled\";"),
        changed("reg = <0x00 0x9000000 0x00 0x1000>", "reg = <0x00 0x9000000 0x00 0x10>"),
        changed("reg = <0x00 0x9000000 0x00 0x1000>", "reg = <0x00 0x9000000>"),
        changed("interrupts = <0x00 0x01 0x04>;\n\t\treg = <0x00 0x9000000", "reg = <0x00 0x9000000"),
        changed(
            "interrupts = <0x00 0x01 0x04>;\n\t\treg = <0x00 0x9000000",
            "interrupts = <0 1>; reg = <0x00 0x9000000",
        ),
        changed(
            "interrupts = <0x00 0x01 0x04>;\n\t\treg = <0x00 0x9000000",
            "interrupts = <7 1 4>; reg = <0x00 0x9000000",
        ),
        changed(
            "interrupts = <0x00 0x01 0x04>;\n\t\treg = <0x00 0x9000000",
            "interrupts = <1 16 4>; reg = <0x00 0x9000000",
        ),
        changed("\tinterrupt-parent = <0x8005>;\n\tmodel", "\tmodel"),
        changed("\tinterrupt-parent = <0x8005>;\n\tmodel", "\tinterrupt-parent = <0x8000>; model"),
        changed("#interrupt-cells = <0x03>;", "#interrupt-cells = <1>;"),
        changed("linux,initrd-end = <0x48001000>;", ""),
        changed("linux,initrd-end = <0x48001000>;", "linux,initrd-end = <0x47001000>;"),
        changed("linux,initrd-end = <0x48001000>;", "linux,initrd-end = <1 2 3>;"),
        changed("bootargs = \"hello\"", "bootargs = <1>"),
        changed("device_type = \"memory\";", ""),
        changed("numa-node-id = <0x01>;", "numa-node-id = \"one\";"),
        changed("reg = <0x00 0x80000000 0x00 0x40000000>;", "reg = <0x00 0x7fff0000 0x00 0x40000000>;"),
        changed("reg = <0x00 0x80000000 0x00 0x40000000>;", "reg = <0x00 0x80000000 0xffffffff 0x80000000>;"),
        changed("reg = <0x00 0x80000000 0x00 0x40000000>;", "reg = <0x00 0x80000800 0x00 0x3ffff900>;"),
        changed("reg = <0x00 0x80000000 0x00 0x40000000>;", "reg = <0x00 0x80000800 0x00 0x900>;"),
        changed("reg = <0x00 0x80000000 0x00 0x40000000>;", "reg = <0x00 0x80000000>;"),
        changed("compatible = \"arm,psci-1.0\", \"arm,psci-0.2\", \"arm,psci\";", "compatible = \"psci\";"),
        changed("method = \"smc\";", ""),
        changed("method = \"smc\";", "method = \"svc\";"),
        changed("cpus {", "cpu {"),
        changed("\t\t\treg = <0x03>;", "\t\t\treg = <0x02>;"),
        changed("\t\t\treg = <0x03>;", "\t\t\treg = <0x80000003>;"),
        changed("\t\t\treg = <0x03>;", "\t\t\treg = <0 3 4>;")
            .replace("#address-cells = <0x01>;", "#address-cells = <0x02>;"),
        changed("enable-method = \"psci\";", ""),
        changed("enable-method = \"psci\";", "enable-method = \"spin-table\";"),
        changed("compatible = \"arm,gic-v3\";", "compatible = \"arm,cortex-a15-gic\";"),
        changed("#redistributor-regions = <0x01>;", "#redistributor-regions = <0>;"),
        changed("#redistributor-regions = <0x01>;", "#redistributor-regions = <2>;"),
        changed("0x80a0000 0x00 0xf60000", "0x80a1000 0x00 0xf60000"),
        inside("intc@8000000 {", "redistributor-stride = <0x1000>;"),
        changed("compatible = \"arm,armv8-timer\", \"arm,armv7-timer\";", ""),
        changed("0x01 0x0b 0x04 0x01 0x0a 0x04>", "0x01 0x0b 0x04>"),
        changed("0x01 0x0d 0x04 0x01 0x0e 0x04", "0x01 0x0d 0x04 0x00 0x0e 0x04"),
    ];
    let messages: String = cases.iter().map(|source| message(source)).collect();
    insta::assert_snapshot!(messages);
}

#[test]
fn odd_reserved_memory_is_read_and_told_of() {
    let reserved =
        |container: &str| inside("/ {", "").replace("\tpsci {", &format!("{container}\n\tpsci {{"));
    let cells = "#address-cells = <2>; #size-cells = <2>; ranges;";
    let cases = [
        "reserved-memory { #address-cells = <1>; #size-cells = <1>; ranges; a@1000 { reg = <0x1000 0x1000>; }; };",
        "reserved-memory { #address-cells = <2>; #size-cells = <2>; a@1000 { reg = <0 0x1000 0 0x1000>; }; };",
        &format!("reserved-memory {{ {cells} a@1000 {{ reg = <0 0x1000>; }}; }};"),
        &format!("reserved-memory {{ {cells} a@1000 {{ reg = <0xffff0000 0x1000 0 0x1000>; }}; }};"),
        &format!("reserved-memory {{ {cells} a {{ no-map; }}; }};"),
        &format!("reserved-memory {{ {cells} a {{ size = <1>; }}; }};"),
        &format!("reserved-memory {{ {cells} a {{ size = <0 0x1000>; alignment = <0 3>; }}; }};"),
        &format!("reserved-memory {{ {cells} a {{ size = <0 0x1000>; no-map; reusable; }}; }};"),
        &format!(
            "reserved-memory {{ {cells} a {{ reg = <{}>; }}; }};",
            (1..=70).map(|index| format!("0 {:#x} 0 0x1000 ", index << 12)).collect::<String>()
        ),
    ];
    let messages: String = cases.iter().map(|container| message(&reserved(container))).collect();
    insta::assert_snapshot!(messages);
    // A disabled reservation is ordinary RAM.
    let disabled = format!(
        "reserved-memory {{ {cells} a@1000 {{ status = \"disabled\"; reg = <0 0x1000 0 0x1000>; }}; }};"
    );
    with_board(&reserved(&disabled), |board| assert!(board.reservations.is_empty()));
}

#[test]
fn a_console_is_found_for_the_message_that_there_is_none() {
    let blob = compile(&changed("stdout-path = \"/pl011@9000000\";", ""));
    let tree = Tree::new(blob.as_slice()).unwrap();
    assert!(Console::read(&tree).is_err());
    assert_eq!(Console::any(&tree), Some(range(0x900_0000, 0x1000)));
}

#[test]
fn old_psci_needs_its_function_numbers() {
    let old = changed(
        "compatible = \"arm,psci-1.0\", \"arm,psci-0.2\", \"arm,psci\";",
        "compatible = \"arm,psci\";",
    );
    with_board(&old, |board| {
        let PsciVersion::V0_1 { cpu_on, cpu_off, .. } = board.psci.version else { panic!() };
        assert_eq!((cpu_on, cpu_off), (0xc400_0003, Some(0x8400_0002)));
    });
    assert!(message(&old.replace("cpu_on = <0xc4000003>;", "")).contains("cpu_on is missing"));
}

/// The blob of `QEMU_VIRT`, compiled once.
fn qemu_virt() -> &'static [u8] {
    static BLOB: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BLOB.get_or_init(|| compile(QEMU_VIRT).as_slice().to_vec())
}

proptest! {
    /// Reading any tree ends with a board or an error.
    #[test]
    fn changed_boards_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = qemu_virt().to_vec();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let blob = guest_dts::tree::AlignedBlob::new(&bytes);
        if let Ok(tree) = Tree::new(blob.as_slice()) {
            match Board::read(&tree) {
                Ok(board) => {
                    let mut end = 0;
                    for ram in &board.ram.ranges {
                        prop_assert!(ram.range.base().get() >= end);
                        prop_assert!(usize::from(ram.controller) < board.ram.controllers.len());
                        end = ram.range.end();
                    }
                }
                Err(error) => {
                    let message = format!("{error}");
                    prop_assert!(message.len() > 10);
                }
            }
        }
    }
}

/// Runs the tree fuzzer of guest-dts, with its corpus, over boards.
#[test]
fn hostile_boards_do_no_harm() {
    use guest_dts::testing::fuzz;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-dts/corpus/host");
    let run = fuzz::run(&fuzz::corpus(&folder), 10_000, |bytes| {
        let blob = guest_dts::tree::AlignedBlob::new(bytes);
        match Tree::new(blob.as_slice()).as_ref().map(Board::read) {
            Ok(Ok(board)) => board.warnings.iter().map(|warning| format!("{}\n", warning.rule())).collect(),
            Ok(Err(error)) => format!("{error}"),
            Err(_) => String::new(),
        }
    });
    fuzz::save(&run);
    assert!(run.answer_count > 40, "{} answers", run.answer_count);
}
