//! The state that a boot loader leaves, and Ballast's early tables.

use std::path::PathBuf;

use object::{Object, ObjectSection, ObjectSymbol};
use system_tests::{Guest, Setup, elf, image, payload};

/// Address at which QEMU loads an image with an alignment of 2 MiB.
const LOADED: u64 = 0x4020_0000;
/// Start of controller 0.
const RAM: u64 = 0x4000_0000;
/// Link address of the image.
const LINKED: u64 = 0x8000_0000_0000;
const PAGE: u64 = 4096;

/// Returns the path of the loader of tests/guests, with Ballast 2 MiB after it.
fn loader(name: &str) -> PathBuf {
    let mut file = std::fs::read(payload("loader")).unwrap();
    file.resize(2 << 20, 0);
    file.extend(std::fs::read(image()).unwrap());
    let path = std::env::temp_dir().join(format!("loader-{name}-{}", std::process::id()));
    std::fs::write(&path, file).unwrap();
    path
}

/// Boots behind the loader, which also sets CNTFRQ_EL0 to 0; the host's tree has `frequency`.
fn boots_behind_the_loader(cpu: &str, frequency: u64) {
    let file = loader(cpu);
    let guests = [
        Guest::linux("alpha").vcpus(2),
        Guest::payload("p", "probe").bootargs("probe=psci,ids").ram_mib(32).vcpus(2),
    ];
    let overlay = format!("&{{/timer}} {{ clock-frequency = <{frequency}>; }};");
    let mut system = Setup::of(&file).cpu(cpu).tree(&overlay).set(&guests, "").boot();
    system.to_guest("p");
    let said = system.expect(r"probe done \d+ ok \d+ failed\r\n");
    // On the CPU that the loader ran on, CNTFRQ_EL0 is 0, and EL2 cannot hide that from a guest.
    let failed: Vec<&str> =
        said.lines().filter(|line| line.contains(" FAIL ") && !line.contains("counter_frequency")).collect();
    assert_eq!(failed, [""; 0]);
    system.wait_for_shell("alpha");
    assert_eq!(system.run("alpha", "nproc"), "2");
    let rate = format!("{}.{:02}MHz", frequency / 1_000_000, frequency % 1_000_000 / 10_000);
    let kernel = system.run("alpha", "dmesg | grep arch_timer: | head -n 1");
    assert!(kernel.contains(&rate), "{kernel}");
    let up = system.json("guests")["guests"][0]["uptime_ns"].as_u64();
    assert!(up.is_none_or(|up| up < 3_600_000_000_000), "{up:?} ns");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_loader_may_leave_el2_in_any_state() {
    boots_behind_the_loader("cortex-a72", 62_500_000);
}

#[test]
fn a_loader_may_leave_the_hosts_translation_regime_on() {
    boots_behind_the_loader("max", 1_000_000_000);
}

#[test]
fn a_counter_without_a_frequency_is_refused() {
    let file = loader("frequency");
    let mut system = Setup::of(&file).no_guests().boot();
    system.expect("Ballast cannot start: the counter's frequency is not known: CNTFRQ_EL0 is 0, and the timer's node has no");
    std::fs::remove_file(file).unwrap();
}

/// A page that tables map: virtual and physical address, and its descriptor's attributes.
type Mapping = (u64, u64, u64);

/// Finds the pages that the table at `table` and the tables below it map.
///
/// # Panics
/// A table maps a block.
fn walk(read: &dyn Fn(u64) -> Vec<u64>, table: u64, level: u32, base: u64, found: &mut Vec<Mapping>) {
    const ADDRESS: u64 = 0xffff_ffff_f000;
    for (index, descriptor) in (0..).zip(read(table)) {
        let address = base | index << (39 - 9 * level);
        match descriptor & 3 {
            3 if level < 3 => walk(read, descriptor & ADDRESS, level + 1, address, found),
            3 => found.push((address, descriptor & ADDRESS, descriptor & !ADDRESS)),
            1 => panic!("level {level} maps a block at {address:#x}: {descriptor:#x}"),
            _ => {}
        }
    }
}

#[test]
fn the_early_tables_map_the_image_and_nothing_else() {
    // It stops before the memory of the tables is used for anything else.
    let mut system = Setup::new().no_guests().tree("/delete-node/ &{/timer};").boot();
    system.expect("Ballast cannot start: ");
    let file = std::fs::read(elf()).unwrap();
    let file = object::File::parse(&*file).unwrap();
    let symbol = |name: &str| {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
        (symbol.address(), symbol.size())
    };
    let (root, size) = symbol("EARLY_TABLES");
    let (text_end, end) = (symbol("__text_end").0, symbol("__image_end").0);
    let pool = LOADED + root - LINKED..LOADED + root - LINKED + size;
    let read = |table: u64| {
        assert!(pool.contains(&table), "a table at {table:#x}");
        let mut bytes = vec![0; PAGE as usize];
        system.read_controller(0, table - RAM, &mut bytes);
        bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    };
    let mut found = Vec::new();
    walk(&read, pool.start, 0, 0, &mut found);

    // Attribute 0, inner shareable, accessed; AP[2], read-only, and XN (Arm ARM, "VMSAv8-64 descriptor formats").
    let (text, data) = (3 | 1 << 6 | 1 << 7 | 3 << 8 | 1 << 10, 3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 54);
    let mut expected = vec![(LOADED, LOADED, text)];
    for address in (LINKED..end).step_by(PAGE as usize) {
        let attributes = if address < text_end { text } else { data };
        expected.push((address, LOADED + address - LINKED, attributes));
    }
    assert_eq!(found, expected);
}

#[test]
fn the_image_may_lie_between_regions_that_are_not_to_be_mapped() {
    let overlay = "/ { reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges;
                       secure@40000000 { reg = <0x0 0x40000000 0x0 0x200000>; no-map; };
                       secure@40400000 { reg = <0x0 0x40400000 0x0 0x200000>; no-map; }; }; };";
    let guest = Guest::payload("p", "probe").bootargs("probe=psci").ram_mib(32);
    let mut system = Setup::new().tree(overlay).set(&[guest], "").boot();
    system.to_guest("p");
    system.expect(r"probe done \d+ ok 0 failed\r\n");
    for address in ["0x40000000", "0x401ff000", "0x40400000", "0x405ff000"] {
        assert_eq!(system.json(&format!("frame {address}"))["state"], "reserved", "{address}");
    }
}

#[test]
fn the_image_sets_every_register_that_controls_traps() {
    // op0, op1, CRn, CRm and op2 of registers that are UNKNOWN after a reset. QEMU lacks some of them.
    let registers = [
        ("HCR_EL2", [3, 4, 1, 1, 0]),
        ("HCRX_EL2", [3, 4, 1, 2, 2]),
        ("CPTR_EL2", [3, 4, 1, 1, 2]),
        ("MDCR_EL2", [3, 4, 1, 1, 1]),
        ("HSTR_EL2", [3, 4, 1, 1, 3]),
        ("CNTHCTL_EL2", [3, 4, 14, 1, 0]),
        ("CNTVOFF_EL2", [3, 4, 14, 0, 3]),
        ("VPIDR_EL2", [3, 4, 0, 0, 0]),
        ("VMPIDR_EL2", [3, 4, 0, 0, 5]),
        ("VTTBR_EL2", [3, 4, 2, 1, 0]),
        ("VTCR_EL2", [3, 4, 2, 1, 2]),
        ("TCR2_EL2", [3, 4, 2, 0, 3]),
        ("ZCR_EL2", [3, 4, 1, 2, 0]),
        ("ICC_SRE_EL2", [3, 4, 12, 9, 5]),
        ("HFGRTR_EL2", [3, 4, 1, 1, 4]),
        ("HFGWTR_EL2", [3, 4, 1, 1, 5]),
        ("HFGITR_EL2", [3, 4, 1, 1, 6]),
        ("HDFGRTR_EL2", [3, 4, 3, 1, 4]),
        ("HDFGWTR_EL2", [3, 4, 3, 1, 5]),
        ("HAFGRTR_EL2", [3, 4, 3, 1, 6]),
        ("HFGRTR2_EL2", [3, 4, 3, 1, 2]),
        ("HFGWTR2_EL2", [3, 4, 3, 1, 3]),
        ("HFGITR2_EL2", [3, 4, 3, 1, 7]),
        ("HDFGRTR2_EL2", [3, 4, 3, 1, 0]),
        ("HDFGWTR2_EL2", [3, 4, 3, 1, 1]),
        ("MPAM2_EL2", [3, 4, 10, 5, 0]),
        ("MPAMHCR_EL2", [3, 4, 10, 4, 0]),
        ("MPAM1_EL1", [3, 0, 10, 5, 0]),
        ("MPAM0_EL1", [3, 0, 10, 5, 1]),
    ];
    let file = std::fs::read(elf()).unwrap();
    let file = object::File::parse(&*file).unwrap();
    let text = file.section_by_name(".text").unwrap().data().unwrap();
    let words: Vec<u32> =
        text.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    for (name, [op0, op1, n, m, op2]) in registers {
        // MSR of any general-purpose register.
        let instruction: u32 = 0xd500_0000 | op0 << 19 | op1 << 16 | n << 12 | m << 8 | op2 << 5;
        assert!(words.iter().any(|word| word & !0x1f == instruction), "{name} is never written");
    }
}
