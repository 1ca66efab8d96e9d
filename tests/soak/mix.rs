//! All actions at random for a while, then the final check.

use std::time::{Duration, Instant};

use system_tests::{Random, System, patience};

use crate::Progress;
use crate::actions::Soak;
use crate::books::{self, Books};
use crate::fleet::{self, wait_for_state};

/// Number of steps between two checks of the effects of earlier ones.
const FOLLOW: u64 = 3;
/// Number of steps between two checks of a guest.
const LOOK: u64 = 4;
/// Number of steps between two runs of `check`.
const CHECK: u64 = 25;

/// Maximum growth of EL2's heap in bytes: eight starts of guests, jobs and claims in flight at once. A leak of each step
/// exceeds it within the hour.
const HEAP_GROWTH: u64 = 160 << 10;

/// Runs the mix for `time`, which begins when all guests are busy.
///
/// # Panics
/// Something was lost, or an operation does not end.
pub(crate) fn run(progress: &mut Progress, place: &mut Option<System>, seed: u64, time: Duration) {
    let system = place.insert(fleet::setup().boot());
    system.wait_for_monitor();
    // The first trace allocates its memory permanently.
    for command in ["trace on", "trace off"] {
        system.json(command);
    }
    let before = books::read(system);
    let mut soak = Soak::new(system, progress, Random::new(seed), time);
    for index in 0..soak.members.len() {
        soak.start(index);
    }
    wait_until_ready(&mut soak);
    println!("{:7.1} min  all guests are busy", soak.progress.elapsed().as_secs_f32() / 60.0);
    let until = Instant::now() + time;
    while Instant::now() < until {
        soak.step();
        if soak.progress.step.is_multiple_of(FOLLOW) {
            soak.follow();
        }
        if soak.progress.step.is_multiple_of(LOOK) {
            let index = soak.random.below(soak.members.len());
            soak.look(index);
        }
        if soak.progress.step.is_multiple_of(CHECK) {
            soak.check();
        }
        let pause = soak.random.below(100) as u64;
        std::thread::sleep(Duration::from_millis(pause));
        let tally = &soak.tally;
        soak.progress.tell(|| tally.summary());
    }
    reckon(&mut soak, &before);
}

/// Undoes all actions, checks and stops all guests, and compares the accounts.
fn reckon(soak: &mut Soak<'_>, before: &Books) {
    soak.settle();
    for index in 0..soak.members.len() {
        if !soak.members[index].is_on {
            soak.start(index);
            let name = soak.members[index].name;
            assert!(soak.members[index].is_on, "{name} does not start, though nothing is in its way");
        }
    }
    wait_until_ready(soak);
    for index in 0..soak.members.len() {
        soak.look(index);
    }
    soak.check();
    let claims = soak.system.json("claims stats");
    let stalls = soak.system.json("stats migration");
    for index in 0..soak.members.len() {
        soak.stop(index);
    }
    for member in &soak.members {
        wait_for_state(soak.system, member.name, &["off"]);
    }
    soak.check();
    books::compare(before, &books::read(soak.system), HEAP_GROWTH);
    println!("{}", soak.tally);
    let of = |key: &str| claims[key].as_u64().unwrap_or(0);
    println!(
        "claims, owners' too: {} tried, {} granted with {} MiB, {} failed, {} cancelled, {} released; {} MiB moved",
        of("tried_count"),
        of("granted_count"),
        of("granted_bytes") >> 20,
        of("failed_count"),
        of("cancelled_count"),
        of("released_count"),
        of("moved_bytes") >> 20,
    );
    for guest in stalls["guests"].as_array().into_iter().flatten() {
        println!("{}: {} MiB moved", guest["name"], guest["moved_bytes"].as_u64().unwrap_or(0) >> 20);
    }
}

fn wait_until_ready(soak: &mut Soak<'_>) {
    let until = Instant::now() + patience();
    for index in 0..soak.members.len() {
        while !soak.members[index].is_ready {
            soak.look(index);
            assert!(Instant::now() < until, "{} is not ready", soak.members[index].name);
        }
    }
}
