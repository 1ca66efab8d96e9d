//! Assignments of devices that break a rule: the guest is refused, and the message names node, property, value and rule.

use ballast_qemu::devices::{Content, Disk, Place, Smmu};
use system_tests::{Guest, Setup, System};

const MIB: u64 = 1 << 20;

fn disk(name: &str, slot: u8) -> Disk {
    Disk { name: name.into(), place: Place::Slot(slot), content: Content::Blank(MIB) }
}

fn guest(name: &str, slots: &[u16], window: &str) -> Guest {
    Guest::payload(name, "probe").bootargs("probe=echo").ram_mib(8).slots(slots).window(window)
}

/// Returns the reason why guest `name` is refused, which names node, property, value and rule.
#[track_caller]
fn refusal(system: &mut System, name: &str) -> String {
    let guest = system.wait_for_state(name, "refused");
    guest["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn devices_that_cannot_be_assigned_are_refused() {
    const WINDOW: &str = "size = <0 0x1000000>;";
    let guests = [
        guest("fine", &[1], WINDOW),
        guest("same", &[1], WINDOW),
        guest("line", &[5], WINDOW),
        guest("absent", &[9], WINDOW),
        guest("large", &[2], "size = <0 0x20000000>;"),
        guest("bypass", &[3], WINDOW),
    ];
    let setup = Setup::new().controllers(8, &[256 * MIB, 256 * MIB]).smmu(Smmu::Usual);
    let setup = setup.disk(disk("one", 1)).disk(disk("two", 2)).disk(disk("five", 5));
    // QEMU's default: the device uses physical addresses, whatever the SMMU says.
    let options = ["-drive", "if=none,id=off,format=raw,file=null-co://", "-device"];
    let setup = options.into_iter().fold(setup, Setup::option);
    let setup = setup.option("virtio-blk-pci,drive=off,addr=3,disable-legacy=on,iommu_platform=off");
    let mut system = setup.set(&guests, "").boot();
    system.wait_for_state("fine", "running");
    for (name, value, rule) in [
        ("same", "pci-functions", "/guests/fine"),
        ("line", "0x28", "INTx line that no other guest has"),
        ("absent", "0x48", "be the RID of a function that answers"),
        ("large", "512 MiB", "memory-0"),
        ("bypass", "00:03.0", "VIRTIO_F_ACCESS_PLATFORM"),
    ] {
        let said = refusal(&mut system, name);
        assert!(said.contains(value) && said.contains(rule), "{name}: {said}");
    }
    let report = system.json("guests");
    let running = report["guests"].as_array().unwrap().iter().filter(|guest| guest["state"] == "running");
    assert_eq!(running.count(), 1, "{report}");
    let devices = system.json("devices");
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1, "{devices}");
    system.check_devices();
    system.check_books();
}

#[test]
fn without_an_smmu_devices_need_a_permission_and_a_window_in_place() {
    let permitted = |guest: Guest| guest.property("assign-without-smmu;");
    let guests = [
        guest("forbidden", &[1], "size = <0 0x1000000>;"),
        permitted(guest("unplaced", &[2], "size = <0 0x1000000>;")),
        permitted(guest("fine", &[3], "pinned-in-place; reg = <0 0x4c000000 0x1000000>;")),
    ];
    let setup = Setup::new().controllers(4, &[256 * MIB]);
    let setup = setup.disk(disk("one", 1)).disk(disk("two", 2)).disk(disk("three", 3));
    let mut system = setup.set(&guests, "").boot();
    system.wait_for_state("fine", "running");
    let said = refusal(&mut system, "forbidden");
    assert!(said.contains("be behind an SMMUv3") && said.contains("0x8"), "{said}");
    let said = refusal(&mut system, "unplaced");
    assert!(said.contains("pinned-in-place"), "{said}");
    assert_eq!(system.devices_of("fine")[0]["is_isolated"], false);
}
