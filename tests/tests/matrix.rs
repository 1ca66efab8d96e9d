//! Debian's kernels on every kind of CPU: one guest and two guests, with 1, 2 and 4 vCPUs.

use system_tests::{Guest, Setup, System};

const KERNELS: [&str; 3] = ["6.1", "6.12", "7.3"];
/// Numbers of vCPUs; rotated by CPU and kernel, so that each of these runs with each number.
const VCPUS: [u32; 3] = [1, 2, 4];

/// Checks that the guest answers, has its memory and vCPUs, and that its programs work with all features that the kernel shows.
#[track_caller]
fn answers(system: &mut System, name: &str, kernel: &str, vcpus: u32) {
    system.wait_for_shell(name);
    assert_eq!(system.run(name, "nproc; hostname"), format!("{vcpus}\n{name}"));
    let release = system.run(name, "uname -r");
    assert!(release.starts_with(&format!("{kernel}.")), "{release}");
    // busybox's string routines and checksums.
    let sum = system.run(name, "dd if=/dev/zero bs=1M count=4 2>/dev/null | sha256sum");
    assert_eq!(sum, "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8  -");
    // Floating point in several programs at once, each with its own registers.
    let add = "awk 'BEGIN { for (i = 0; i < 20000; i++) s += 1 / 2; print s }'";
    assert_eq!(system.run(name, &format!("{add} & {add} & {add}; wait")), "10000\n10000\n10000");
    let trouble =
        "dmesg | grep -ciE 'undefined instruction|Oops|kernel BUG|Internal error|Unable to handle' || true";
    assert_eq!(system.run(name, trouble), "0");
}

#[track_caller]
fn every_kernel_boots_on(cpu: &str, turn: usize) {
    for (number, kernel) in KERNELS.into_iter().enumerate() {
        let vcpus = |step: usize| VCPUS[(number + turn + step) % VCPUS.len()];
        let machine = || Setup::new().cpu(cpu).kernel(kernel);

        let alone = vcpus(0);
        let mut system = machine().set(&[Guest::linux("alone").vcpus(alone)], "").boot();
        answers(&mut system, "alone", kernel, alone);
        drop(system);

        let two = [("alpha", vcpus(1)), ("beta", vcpus(2))];
        let guests = two.map(|(name, vcpus)| Guest::linux(name).vcpus(vcpus));
        let mut system = machine().controllers(6, &[1 << 30, 1 << 30]).set(&guests, "").boot();
        for (name, vcpus) in two {
            answers(&mut system, name, kernel, vcpus);
        }
        for guest in system.json("guests")["guests"].as_array().unwrap() {
            assert_eq!((&guest["state"], &guest["vcpu_on_count"]), (&"running".into(), &guest["vcpu_count"]));
        }
    }
}

#[test]
fn kernels_on_cortex_a53() {
    every_kernel_boots_on("cortex-a53", 0);
}

#[test]
fn kernels_on_cortex_a72() {
    every_kernel_boots_on("cortex-a72", 1);
}

#[test]
fn kernels_on_neoverse_n1() {
    every_kernel_boots_on("neoverse-n1", 2);
}

#[test]
fn kernels_on_max() {
    every_kernel_boots_on("max", 0);
}
