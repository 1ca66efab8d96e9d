//! CPU errata (hyp/ERRATA.md).

use system_tests::{Guest, Setup};

/// The log lists the errata of this machine's CPUs that have workarounds.
#[test]
fn the_log_names_the_errata_of_the_cpus() {
    let close = "no stage 1 walks while stage 2 changes";
    let repeat = "each TLB invalidation is completed twice";
    let check = "stage 1 is checked before a stage 2 fault is handled";
    // Revisions in QEMU: A53 r0p4, A55 r2p0, A57 r1p0, A72 r0p3, A76 and N1 r4p1, N2 r0p3.
    for (cpu, expected) in [
        ("cortex-a53", vec![("1530924", close)]),
        ("cortex-a55", vec![("2441007", repeat), ("1530923", close)]),
        (
            "cortex-a57",
            vec![("1319537", close), ("834220", check), ("832075", "a guest without the workaround")],
        ),
        ("cortex-a72", vec![("1319367", close)]),
        ("cortex-a76", vec![("4193800", repeat)]),
        ("neoverse-n1", vec![("4193800", repeat)]),
        ("neoverse-n2", vec![("4193789", repeat)]),
        ("max", vec![]),
    ] {
        let guest = Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32);
        let mut system = Setup::new().cpu(cpu).set(&[guest], "").boot();
        let log = system.json("log").to_string();
        let count = log.matches("CPU errata ").count();
        assert_eq!(count, expected.len(), "{cpu}: {log}");
        for (numbers, what) in expected {
            assert!(log.contains(&format!("CPU errata {numbers}: {what}")), "{cpu}: {log}");
        }
    }
}
