//! Resets of small guests, by the operator and by the guest itself, many times.

use std::time::Duration;

use system_tests::{Guest, Setup, System};

use crate::fleet::{find, wait_for_state};
use crate::{Progress, books};

/// Number of resets for each one by the operator. The guest that resets itself does the others in about the same time.
const OPERATORS: u64 = 10;

/// Resets two guests `resets` times in total.
///
/// # Panics
/// A guest does not start again, or frames are lost.
pub(crate) fn run(progress: &mut Progress, place: &mut Option<System>, resets: u64) {
    let guests = [
        Guest::payload("itself", "rogue").bootargs("rogue=reset").ram_mib(4).with("start-manually;"),
        Guest::payload("told", "tenant").ram_mib(4).with("start-manually;"),
    ];
    let system = place.insert(Setup::new().controllers(3, &[256 << 20, 64 << 20]).set(&guests, "").boot());
    system.wait_for_monitor();
    let before = books::read(system);
    for name in ["itself", "told"] {
        system.monitor(&format!("start {name}"));
    }
    let mut told = 1;
    wait_for_state(system, "told", &["running"]);
    let mut itself = 0;
    while told + itself < resets + 2 || told < resets / OPERATORS {
        progress.step += 1;
        progress.note("reset told".into());
        system.monitor("reset told");
        let guest = wait_for_state(system, "told", &["running"]);
        told += 1;
        assert_eq!(guest["start_count"], told, "{guest}");
        let report = system.json("guests");
        let guest = find(&report, "itself");
        let count = guest["start_count"].as_u64().unwrap_or(0);
        assert!(count >= itself && guest["state"] != "off" && guest["state"] != "failed", "{guest}");
        itself = count;
        progress.tell(|| format!("{told} resets by the operator, {itself} by the guest itself"));
    }
    for name in ["itself", "told"] {
        // A guest that is being reset can be stopped, too.
        let said = system.monitor(&format!("stop {name}"));
        assert!(said.contains("is stopping"), "{said}");
        wait_for_state(system, name, &["off"]);
    }
    std::thread::sleep(Duration::from_millis(200));
    books::check(system);
    books::compare(&before, &books::read(system), 0);
    println!("{} resets by the operator, {} by the guest itself: no frame was lost", told - 1, itself - 1);
}
