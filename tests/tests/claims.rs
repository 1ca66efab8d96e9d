//! Claims of contiguous memory from lent blocks, while the guests that use it run.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Returns the source of a pool of 256 MiB on controller 1, with more source in its node.
fn pool(more: &str) -> String {
    format!(
        "pools {{ video {{ compatible = \"shared-dmb-pool\"; reusable; size = <0 0x10000000>; \
         controllers = <1>; {more} }}; }};"
    )
}

/// Returns a Linux guest with 128 MiB in designated blocks on controller 1, which fit into the pool.
fn tenant(name: &str) -> Guest {
    Guest::linux(name)
        .ram_mib(192)
        .memory("controllers = <0>;")
        .with("dmb-0 { size = <0 0x8000000>; controllers = <1>; };")
}

/// Waits for the end of claim `number`. Returns its report.
#[track_caller]
fn wait_for_claim(system: &mut System, number: u64) -> Value {
    let until = Instant::now() + system_tests::patience();
    loop {
        let claim = system.json(&format!("claim {number}"));
        if ["granted", "released", "failed", "cancelled"]
            .contains(&claim["state"].as_str().unwrap_or_default())
        {
            return claim;
        }
        assert!(Instant::now() < until, "{claim}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command that starts an operation, and waits for its end.
#[track_caller]
fn operation(system: &mut System, command: &str) -> Value {
    let number = system.json(command)["claim"].as_u64().unwrap_or_else(|| panic!("no claim of `{command}`"));
    wait_for_claim(system, number)
}

/// Starts a load in a Linux guest which records errors.
fn start_load(system: &mut System, name: &str) {
    system.run(
        name,
        "head -c 96M /dev/urandom > /tmp/data; sha256sum /tmp/data > /tmp/sum; echo 0 > /tmp/count; \
         (while :; do sha256sum -c /tmp/sum > /dev/null 2>&1 || echo bad >> /tmp/bad; cp /tmp/sum /tmp/s2; \
         echo $(($(cat /tmp/count) + 1)) > /tmp/count; done) & true",
    );
}

/// Checks the accounts of the whole machine, including each guest's tables.
#[track_caller]
fn check_books(system: &mut System) {
    let check = system.json("check");
    assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
}

/// Checks that nothing was lost and that the load has always run.
fn check_load(system: &mut System, name: &str) {
    system.run(name, "test ! -e /tmp/bad; test $(cat /tmp/count) -gt 0; sha256sum -c /tmp/sum");
}

#[test]
fn the_operator_claims_memory_of_guests_and_releases_it() {
    let mut system = Setup::new().set(&[tenant("alpha"), tenant("beta")], &pool("")).boot();
    for guest in ["alpha", "beta"] {
        system.wait_for_shell(guest);
        start_load(&mut system, guest);
    }
    let pools = system.json("pools");
    let video = &pools["pools"][0];
    assert_eq!((&video["pool"], &video["lent_bytes"]), (&"video".into(), &(256 * MIB).into()), "{pools}");
    assert_eq!(video["claimable_bytes"], 256 * MIB, "an idle pool is lent whole, and can be claimed whole");

    for (size, align) in [("4K", ""), ("2M", ""), ("64M", " 2M"), ("12340K", " 64K")] {
        let claim = operation(&mut system, &format!("claim video {size}{align}"));
        assert_eq!(claim["state"], "granted", "{claim}");
        let (moved, size) = (claim["moved_bytes"].as_u64(), claim["size_bytes"].as_u64());
        // The part of a unit that was copied before the guest wrote to it does not count as moved.
        assert!(moved > size.map(|size| size / 2), "{claim}");
    }
    let number = system.json("claims")["claims"][3]["claim"].as_u64().unwrap_or(0);
    assert_eq!(operation(&mut system, &format!("release {number}"))["state"], "released");
    let shown = system.monitor("pool video");
    assert!(shown.contains("operator") && shown.contains("already claimed"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    system.monitor("release video");
    // Claim the whole pool in one piece, and release it.
    let until = Instant::now() + system_tests::patience();
    while system.json("pools")["pools"][0]["claimed_bytes"] != 0 {
        assert!(Instant::now() < until);
    }
    let claim = operation(&mut system, "claim video 256M");
    assert_eq!((&claim["state"], &claim["size_bytes"]), (&"granted".into(), &(256 * MIB).into()), "{claim}");
    let stats = system.json("claims stats");
    assert_eq!((&stats["tried_count"], &stats["granted_count"]), (&5.into(), &5.into()), "{stats}");
    assert_eq!(stats["released_count"], 2, "one claim, and all the rest at once: {stats}");
    let refused = operation(&mut system, "claim video 4K");
    assert_eq!(refused["state"], "failed", "{refused}");
    assert!(system.monitor("claim video 257M").contains("the pool has"));
    check_books(&mut system);
    for guest in ["alpha", "beta"] {
        check_load(&mut system, guest);
    }
}

#[test]
fn a_claim_waits_for_tenants_that_are_reset_or_start() {
    let guest = Guest::payload("a", "pattern")
        .vcpus(1)
        .ram_mib(256)
        .memory("controllers = <0>;")
        .bootargs("limit=32")
        .with("dmb-0 { size = <0 0x8000000>; controllers = <1>; };");
    let mut system = Setup::new().set(&[guest], &pool("")).boot();
    system.to_guest("a");
    system.expect("pattern ready");
    for begin in ["reset a", "start a", "reset a"] {
        if begin == "start a" {
            system.monitor("stop a");
            wait_until(&mut system, "guests", |report| report["guests"][0]["state"] == "off");
        }
        system.monitor(begin);
        let claim = operation(&mut system, "claim video 224M");
        assert_eq!(claim["state"], "granted", "{begin}: {claim}");
        check_books(&mut system);
        system.monitor("release video");
        wait_until(&mut system, "pools", |report| report["pools"][0]["claimed_bytes"] == 0);
        wait_until(&mut system, "guests", |report| report["guests"][0]["state"] == "running");
    }
    system.to_guest("a");
    system.send("c");
    let said = system.expect(r"pattern checked \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}

#[test]
fn a_claim_overtakes_a_job_that_is_under_way() {
    let big = Guest::linux("big").ram_mib(384).memory("controllers = <0>;");
    let mut system = Setup::new().set(&[tenant("alpha"), tenant("beta"), big], &pool("")).boot();
    for guest in ["alpha", "beta", "big"] {
        system.wait_for_shell(guest);
    }
    start_load(&mut system, "alpha");
    let job = system.json("migrate big mc1 --force")["job"].as_u64().unwrap();
    let progress = |system: &mut System| {
        let report = system.json(&format!("job {job}"));
        (report["state"].as_str().unwrap_or_default().to_owned(), report["moved_bytes"].as_u64().unwrap_or(0))
    };
    let until = Instant::now() + system_tests::patience();
    while progress(&mut system).1 == 0 {
        assert!(Instant::now() < until, "{:?}", progress(&mut system));
    }
    // The whole pool is lent: its tenants must move, while the operator moves hundreds of MiB.
    let claim = operation(&mut system, "claim video 8M");
    assert_eq!(claim["state"], "granted", "{claim}");
    assert!(claim["moved_bytes"].as_u64() >= Some(4 * MIB), "{claim}");
    let (state, moved) = progress(&mut system);
    assert!(
        ["running", "queued"].contains(&state.as_str()) && moved < 384 * MIB,
        "{state} after {moved} bytes"
    );
    // The job that was overtaken continues until its end.
    while progress(&mut system).0 != "finished" {
        assert!(Instant::now() < until, "{:?}", progress(&mut system));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(progress(&mut system).1, 384 * MIB);
    system.run("big", "true");
    check_books(&mut system);
    check_load(&mut system, "alpha");
}

#[test]
fn a_guest_owns_a_pool_that_two_others_work_in() {
    let claims = 1000;
    let owner = Guest::payload("owner", "owner")
        .ram_mib(64)
        .memory("controllers = <0>;")
        .bootargs(&format!("claims={claims} most=16"))
        .with("start-manually;");
    let guests = [tenant("alpha"), tenant("beta"), owner];
    let mut system = Setup::new().set(&guests, &pool("owner = <&{/guests/owner}>;")).boot();
    for guest in ["alpha", "beta"] {
        system.wait_for_shell(guest);
        start_load(&mut system, guest);
    }
    let refused = system.monitor("claim video 2M");
    assert!(refused.contains("the pool belongs to"), "{refused}");
    system.monitor("start owner");
    system.to_guest("owner");
    system.expect("owner hostile ok");
    let said = system.expect(r"owner done [^\r\n]*bytes \d+|owner failed[^\r\n]*\]|fatal[^\r\n]*");
    assert!(said.contains("owner done") && !said.contains("failed"), "{said}");
    for guest in ["alpha", "beta"] {
        check_load(&mut system, guest);
    }
    let stats = system.json("claims stats");
    assert_eq!(stats["failures"].as_array().map_or(0, Vec::len), 0, "{stats}");
    assert!(stats["granted_count"].as_u64() >= Some(claims), "{stats}");
    assert!(stats["moved_bytes"].as_u64() > Some(64 * MIB), "{stats}");
    assert_eq!(system.json("pools")["pools"][0]["claimed_bytes"], 0);
    check_books(&mut system);
}

#[test]
fn a_flood_of_hypercalls_harms_nobody() {
    let flood = Guest::payload("flood", "poolflood")
        .ram_mib(64)
        .memory("controllers = <0>;")
        .bootargs("calls=100000")
        .with("start-manually;");
    let guests = [tenant("alpha"), flood];
    let mut system = Setup::new().set(&guests, &pool("owner = <&{/guests/flood}>;")).boot();
    system.wait_for_shell("alpha");
    start_load(&mut system, "alpha");
    for _ in 0..2 {
        system.monitor("start flood");
        system.to_guest("flood");
        let said =
            system.expect(r"poolflood done [^\r\n]*refused \d+|poolflood failed[^\r\n]*\]|fatal[^\r\n]*");
        assert!(said.contains("poolflood done calls 100000"), "{said}");
        system.expect("flood: powered off");
        wait_until(&mut system, "pools", |report| report["pools"][0]["claimed_bytes"] == 0);
        check_books(&mut system);
    }
    // How many claims get that far is a matter of time.
    let stats = system.json("claims stats");
    let count = |key: &str| stats[key].as_u64().unwrap_or_else(|| panic!("no {key}: {stats}"));
    assert!(count("tried_count") > 0, "{stats}");
    assert!(count("granted_count") + count("failed_count") + count("cancelled_count") > 5, "{stats}");
    check_load(&mut system, "alpha");
}

/// Returns a guest that writes to 1 GiB in units of 2 MiB, and others that request one unit of 1 GiB; all behind controller 1.
fn huge_guests(others: &[&str]) -> Vec<Guest> {
    let block =
        |unit: &str| format!("dmb-0 {{ size = <0 0x40000000>; controllers = <1>; unit-size = <{unit}>; }};");
    let guest = |name: &str| Guest::payload(name, "tenant").ram_mib(64).memory("controllers = <0>;");
    let small = guest("small").bootargs("write=1").with(&block("0x200000"));
    let others =
        others.iter().map(|name| guest(name).with(&format!("start-manually; {}", block("0x40000000"))));
    std::iter::once(small).chain(others).collect()
}

/// Returns the source of a pool of one unit of 1 GiB behind controller 1, with more source in its node.
fn huge_pool(more: &str) -> String {
    format!(
        "pools {{ huge {{ compatible = \"shared-dmb-pool\"; reusable; size = <0 0x40000000>; controllers = <1>; \
         unit-size = <0x40000000>; {more} }}; }};"
    )
}

/// Repeats `command` until its report is as expected. Returns the report.
#[track_caller]
fn wait_until(system: &mut System, command: &str, is_done: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + system_tests::patience();
    loop {
        let report = system.json(command);
        if is_done(&report) {
            return report;
        }
        assert!(Instant::now() < until, "{report}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_unit_of_a_gigabyte_is_won_back_for_a_guest_that_asks_for_one() {
    // Behind mc1 there are two aligned gigabytes: the pool's, and one for `first`. The other memory lies around them.
    let mut system = Setup::new()
        .controllers(4, &[3 * GIB / 2, 13 * GIB / 4])
        .set(&huge_guests(&["first", "big"]), &huge_pool(""))
        .boot();
    system.to_guest("small");
    system.expect("tenant ready");
    let lent = system.json("pools")["pools"][0]["lent_bytes"].clone();
    assert_eq!(lent, GIB, "lent in smaller units while nobody asks");
    for name in ["first", "big"] {
        system.monitor(&format!("start {name}"));
        system.to_guest(name);
        system.expect("tenant ready");
    }
    let claims = system.json("claims");
    let last = claims["claims"].as_array().and_then(|claims| claims.last()).cloned().unwrap_or_default();
    assert_eq!((&last["state"], &last["size_bytes"]), (&"granted".into(), &GIB.into()), "{claims}");
    let pools = system.json("pools");
    assert_eq!(pools["pools"][0]["claimed_bytes"], 0, "it is the guest's RAM now: {pools}");
    let base = pools["pools"][0]["base"].as_str().unwrap_or_default().to_owned();
    let frame = system.monitor(&format!("frame {base}"));
    assert!(frame.contains("big"), "{frame}");
    check_books(&mut system);

    // The unit blocks another claim: it is split, and only the necessary part moves.
    let claim = operation(&mut system, &format!("claim huge 4M@{base}"));
    assert_eq!((&claim["state"], &claim["moved_bytes"]), (&"granted".into(), &(4 * MIB).into()), "{claim}");
    let pool = system.json("pool huge");
    assert_eq!((&pool["lent_bytes"], &pool["claimed_bytes"]), (&(GIB - 4 * MIB).into(), &(4 * MIB).into()));
    check_books(&mut system);
    system.monitor("release huge");
    wait_until(&mut system, "pools", |report| report["pools"][0]["claimed_bytes"] == 0);

    // A failing frame prevents it permanently: the log names the frame, and the guest gets smaller units.
    system.monitor("stop big");
    wait_until(&mut system, "guests", |report| report["guests"][2]["state"] == "off");
    system.monitor(&format!("retire {base}"));
    wait_until(&mut system, "pools", |report| report["pools"][0]["fixed_bytes"] == 4096);
    system.monitor("start big");
    system.expect(&format!("no huge unit for [^\r\n]*{base} is retired"));
    system.to_guest("big");
    system.expect("tenant ready");
    check_books(&mut system);
}

#[test]
fn a_guest_that_waits_for_its_unit_can_be_stopped_and_gets_smaller_ones_after_a_while() {
    // The pool's gigabyte is the only aligned one behind mc1. Migration is too slow to empty it.
    let more = huge_pool("unit-wait-ms = <8000>;") + " migration { limit-kBps = <1000>; };";
    let mut system =
        Setup::new().controllers(4, &[3 * GIB / 2, 9 * GIB / 4]).set(&huge_guests(&["big"]), &more).boot();
    system.to_guest("small");
    system.expect("tenant ready");
    system.monitor("start big");
    wait_until(&mut system, "claims", |report| report["claims"][0]["state"] == "moving");
    let guests = system.json("guests");
    let (state, why) =
        (&guests["guests"][1]["state"], guests["guests"][1]["reason"].as_str().unwrap_or_default());
    assert_eq!(state, "starting");
    assert!(why.starts_with("waits for 1 GiB of pool huge: claim 1, moving, "), "{guests}");
    assert!(system.transcript().contains("big: waits for huge units of pool huge, 8 s for each"));
    system.monitor("stop big");
    let guests = wait_until(&mut system, "guests", |report| report["guests"][1]["state"] == "off");
    assert!(guests["guests"][1]["reason"].as_str().is_some_and(|why| why.contains("operator")), "{guests}");
    let claim = wait_for_claim(&mut system, 1);
    assert_eq!(claim["state"], "cancelled", "{claim}");
    let pools = system.json("pools");
    assert_eq!(
        (&pools["pools"][0]["claimed_bytes"], &pools["pools"][0]["owner"]),
        (&0.into(), &"huge units".into())
    );
    check_books(&mut system);

    system.monitor("start big");
    system.expect("no huge unit for [^\r\n]*huge: no unit after 8000 ms");
    system.to_guest("big");
    system.expect("tenant ready");
    assert_eq!(wait_for_claim(&mut system, 2)["state"], "cancelled");
    assert_eq!(system.json("guests")["guests"][1]["state"], "running");
    check_books(&mut system);
}

#[test]
fn claims_and_their_migrations_are_traced() {
    let mut system = Setup::new().set(&[tenant("alpha")], &pool("")).boot();
    system.wait_for_shell("alpha");
    // The ring is small and the guest causes many events, so stop it as soon as the claim ends.
    assert_eq!(system.monitor("trace on"), "Recording.");
    let claim = operation(&mut system, "claim video 256M");
    assert_eq!(claim["state"], "granted", "{claim}");
    assert_eq!(operation(&mut system, "claim video 4K")["state"], "failed");
    assert_eq!(system.monitor("trace off"), "Not recording.");
    let report = system.json("trace claim 4096");
    let said: Vec<&str> =
        report["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    let granted = format!("claim 1 granted, {}", claim["base"].as_str().unwrap());
    // The guest's exits may have overwritten the first events.
    assert!(said.contains(&&*granted) && said.contains(&"claim 2 failed"), "{report}");
    assert!(report["events"].as_array().unwrap().iter().all(|event| event["guest"].is_null()), "{report}");
    let report = system.json("trace migrate 4096");
    let moved = report["events"].as_array().unwrap();
    assert!(!moved.is_empty() && moved.iter().all(|event| event["guest"] == "alpha"), "{report}");
}
