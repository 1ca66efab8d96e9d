//! Guests that misbehave, each beside one that must not be affected.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System};

/// Boots a guest that misbehaves as `mode` says, and a witness that counts interrupts between its vCPUs without end.
fn beside_a_witness(mode: &str) -> System {
    let rogue = Guest::payload("rogue", "rogue").bootargs(&format!("rogue={mode}")).ram_mib(32).vcpus(2);
    let witness = Guest::payload("witness", "irqload").bootargs("forever=1 rounds=200").ram_mib(32).vcpus(2);
    Setup::new().set(&[rogue, witness], "").boot()
}

/// Checks that the witness runs, and has lost nothing.
fn witness_is_well(system: &mut System) {
    system.to_guest("witness");
    system.session().skip_to_now();
    for _ in 0..3 {
        let said = system.expect(r"irqload done [^\n]* lost \d+");
        assert!(said.ends_with(" lost 0"), "{said}");
        assert!(!said.contains("LOST"), "{said}");
    }
}

/// Runs a guest that survives all its attempts.
fn comes_back(mode: &str) {
    let mut system = beside_a_witness(mode);
    system.to_guest("rogue");
    system.expect(&format!("rogue survived {mode}"));
    system.expect("rogue: powered off");
    witness_is_well(&mut system);
    assert_eq!(system.json("guests")["guests"][0]["state"], "off");
}

/// Runs a guest that never ends by itself: the operator stops it, or Ballast does and reports the reason.
fn goes_on(mode: &str) {
    let mut system = beside_a_witness(mode);
    misbehaves_until_stopped(&mut system, mode);
    let left = system.json("controllers");
    // After another start, it does the same.
    system.monitor("start rogue");
    misbehaves_until_stopped(&mut system, mode);
    assert_eq!(left, system.json("controllers"), "all of its memory comes back");
}

fn misbehaves_until_stopped(system: &mut System, mode: &str) {
    system.to_guest("rogue");
    system.expect(&format!("rogue start {mode}"));
    witness_is_well(system);
    if !is_stopped(system) {
        assert_eq!(system.monitor("stop rogue"), "rogue is stopping.");
    }
    let until = Instant::now() + system_tests::patience();
    while !is_stopped(system) {
        assert!(Instant::now() < until, "it does not stop: {}", rogue(system));
        std::thread::sleep(Duration::from_millis(50));
    }
    let reason = rogue(system)["reason"].clone();
    assert!(reason.as_str().is_some_and(|reason| !reason.is_empty()), "no reason, but {reason}");
}

fn is_stopped(system: &mut System) -> bool {
    ["off", "failed"].contains(&rogue(system)["state"].as_str().unwrap())
}

/// Returns the guest's entry in `guests`.
fn rogue(system: &mut System) -> Value {
    system.json("guests")["guests"][0].clone()
}

macro_rules! rogues {
    ($how:ident: $($name:ident $mode:literal),* $(,)?) => {$(
        #[test]
        fn $name() {
            $how($mode);
        }
    )*};
}

rogues! { comes_back:
    holes_in_the_address_space_abort "holes",
    random_accesses_to_the_interrupt_controller_do_no_harm "gic",
    random_accesses_to_the_uart_do_no_harm "uart",
    odd_accesses_to_devices_do_no_harm "odd-accesses",
    vcpus_go_on_and_off_all_the_time "cpu-storm",
    random_hypercalls_are_answered_or_refused "hypercalls",
    psci_calls_that_are_almost_right_are_refused "psci",
    every_system_register_is_given_or_undefined "registers",
    all_maintenance_stays_within_the_guest "maintenance",
    debug_registers_do_no_harm "debug",
    addresses_beyond_all_ram_abort "far-addresses",
    translation_tables_in_a_hole_abort "table-in-hole",
    translation_tables_in_a_device_abort "table-in-device",
    instructions_from_a_device_abort "fetch-device",
    random_translation_tables_stay_within_the_guest "random-tables",
}

rogues! { goes_on:
    a_jump_into_nothing_harms_nobody "jump",
    a_stack_in_nothing_harms_nobody "stack",
    vectors_of_zeroes_harm_nobody "undefined",
    endless_aborts_harm_nobody "aborts",
    endless_sleep_is_stopped_from_outside "sleep",
    endless_spinning_is_stopped_from_outside "spin",
    a_storm_of_timer_interrupts_harms_nobody "timer-storm",
    a_storm_of_interrupts_between_vcpus_harms_nobody "sgi-storm",
    endless_printing_harms_nobody "print",
    a_translation_root_in_nothing_harms_nobody "root-in-hole",
    all_vcpus_off_is_an_end "all-cpus-off",
    endless_resets_harm_nobody "reset",
    endless_suspends_are_stopped_from_outside "suspend",
}

#[test]
fn linux_does_not_notice_a_guest_that_misbehaves_in_every_way() {
    let rogue = Guest::payload("rogue", "rogue").bootargs("rogue=all").vcpus(2).ram_mib(64);
    let mut system = Setup::new().set(&[rogue, Guest::linux("linux").vcpus(2)], "").boot();
    system.wait_for_shell("linux");
    system.to_guest("rogue");
    system.expect("rogue off");
    assert_eq!(system.run("linux", "dmesg | grep -cE 'BUG|Oops|stall|lockup' || true"), "0");
}
