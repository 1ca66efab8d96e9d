//! Behaviour of a guest's platform, checked by a bare-metal guest on every CPU and with every number of vCPUs, and counted
//! interrupts under load.

use system_tests::{Guest, Setup};

/// Runs `probe`, which checks the platform from inside. No check may fail.
fn probe_passes(setup: Setup, vcpus: u32, least_checks: u32) {
    let mut system = setup.set(&[Guest::payload("probe", "probe").ram_mib(32).vcpus(vcpus)], "").boot();
    system.to_guest("probe");
    let said = system.expect(r"probe done \d+ ok \d+ failed\r\n");
    let failed: Vec<&str> = said.lines().filter(|line| line.contains(" FAIL ")).collect();
    assert_eq!(failed, [""; 0]);
    let sums: Vec<u32> =
        said.lines().last().unwrap().split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(sums[0] >= least_checks, "only {} checks", sums[0]);
    assert_eq!(sums[1], 0);
    // The guest has powered itself off, and Ballast still runs.
    system.expect("probe: powered off");
    assert_eq!(system.json("guests")["guests"][0]["state"], "off");
}

#[test]
fn all_checks_hold_on_cortex_a53_with_1_vcpu() {
    probe_passes(Setup::new().cpu("cortex-a53"), 1, 300);
}

#[test]
fn all_checks_hold_on_cortex_a72_with_2_vcpus() {
    probe_passes(Setup::new().cpu("cortex-a72"), 2, 400);
}

#[test]
fn all_checks_hold_on_neoverse_n1_with_4_vcpus() {
    probe_passes(Setup::new().cpu("neoverse-n1"), 4, 400);
}

#[test]
fn all_checks_hold_on_max_with_4_vcpus() {
    probe_passes(Setup::new().cpu("max"), 4, 400);
}

#[test]
fn all_checks_hold_on_max_without_pointer_authentication_and_sve() {
    probe_passes(Setup::new().cpu("max,pauth=off,sve=off,sme=off,lpa2=off"), 2, 400);
}

/// Counts interrupts under load. None may be lost or arrive twice.
fn no_interrupt_is_lost(setup: Setup, rounds: u32, guests: &[(&str, u32)]) {
    let arguments = format!("rounds={rounds}");
    let guest = |&(name, vcpus): &(_, _)| {
        Guest::payload(name, "irqload").bootargs(&arguments).ram_mib(32).vcpus(vcpus)
    };
    let mut system = setup.set(&guests.iter().map(guest).collect::<Vec<_>>(), "").boot();
    for &(name, vcpus) in guests {
        system.to_guest(name);
        let said =
            system.expect(r"irqload done cpus \d+ rounds \d+ ipis \d+ self \d+ spis \d+ timers \d+ lost \d+");
        let (ipis, spis) = (2 * rounds * vcpus * (vcpus - 1), rounds * vcpus);
        let sums = said.lines().last().unwrap();
        let exact =
            format!("irqload done cpus {vcpus} rounds {rounds} ipis {ipis} self {spis} spis {spis} timers ");
        assert!(sums.starts_with(&exact) && sums.ends_with(" lost 0"), "{sums}, not {exact}… lost 0");
    }
}

#[test]
fn no_interrupt_is_lost_on_1_vcpu() {
    no_interrupt_is_lost(Setup::new(), 2000, &[("alone", 1)]);
}

#[test]
fn no_interrupt_is_lost_between_4_vcpus() {
    no_interrupt_is_lost(Setup::new().cpu("max"), 800, &[("alone", 4)]);
}

#[test]
fn no_interrupt_is_lost_between_7_vcpus() {
    no_interrupt_is_lost(Setup::new().controllers(8, &[1 << 30]), 50, &[("alone", 7)]);
}

#[test]
fn no_interrupt_is_lost_in_two_guests_at_once() {
    no_interrupt_is_lost(Setup::new().cpu("cortex-a53"), 2000, &[("one", 2), ("other", 2)]);
}

/// Returns the number of rounds, for each way of waiting, of the test of SGIs to a vCPU that is being turned on. The default takes
/// seconds, 100,000 rounds (`BALLAST_TEST_WAKEUPS=100000`) take minutes.
fn wakeups() -> u32 {
    std::env::var("BALLAST_TEST_WAKEUPS").ok().and_then(|text| text.parse().ok()).unwrap_or(3_000)
}

#[test]
fn no_sgi_is_lost_while_its_vcpu_is_turned_on() {
    let rounds = wakeups();
    let guest = Guest::payload("pair", "wakeup").bootargs(&format!("rounds={rounds}")).ram_mib(32).vcpus(2);
    let mut system = Setup::new().controllers(2, &[1 << 30]).counting_instructions().set(&[guest], "").boot();
    system.to_guest("pair");
    let said = system.expect(r"wakeup (done|FAIL)[^\n]*\r\n");
    for way in ["affinity", "memory", "none"] {
        let exact = format!("wakeup {way} rounds {rounds} lost 0 wrong 0");
        assert!(said.lines().any(|line| line == exact), "{said}, without `{exact}`");
    }
}

#[test]
fn all_memory_can_be_used_in_every_way() {
    let guest = Guest::payload("stress", "stress").vcpus(4).bootargs("rounds=12").ram_mib(96);
    let mut system = Setup::new().cpu("max").set(&[guest], "").boot();
    system.to_guest("stress");
    let said = system.expect(r"stress done rounds \d+ errors \d+\r\n");
    assert!(said.trim_end().ends_with("rounds 12 errors 0"), "{said}");
}
