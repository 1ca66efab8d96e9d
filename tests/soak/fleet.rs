//! The guests of a soak test: their programs, their states, and the checks that they have lost nothing.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System, patience};

/// Number of CPUs: one for each vCPU.
const CPUS: u32 = 11;
/// Sizes of the controllers.
const CONTROLLERS: [u64; 4] = [768 << 20, 384 << 20, 384 << 20, 256 << 20];
/// Names of the controllers.
pub(crate) const CONTROLLER_NAMES: [&str; 4] = ["mc0", "mc1", "mc2", "mc3"];
/// The operator's pools, with their sizes in MiB.
pub(crate) const POOLS: [(&str, u64); 2] = [("video", 64), ("edge", 32)];

/// The program of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Linux with loads on files in memory: compared copies, and checksums by short-lived processes.
    Linux,
    /// `stress`: uses all of its memory in every way, and checks every bit.
    Stress,
    /// `irqload`: counts interrupts between its vCPUs.
    Interrupts,
    /// `pattern`: checks its memory when a byte is typed.
    Pattern,
    /// `tenant`: has memory, and may write to it.
    Tenant,
    /// `owner`: claims and releases memory of its pool by hypercall, and checks it.
    Owner,
}

/// A guest, and its expected state.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Region for `migrate` and `pin`, besides `all`.
    pub(crate) region: &'static str,
    /// True if the operator has started it and not stopped it.
    pub(crate) is_on: bool,
    /// Number of its starts and resets.
    pub(crate) start_count: u64,
    /// True if its load runs.
    pub(crate) is_ready: bool,
    /// Time of its last start.
    pub(crate) since: Instant,
}

impl Member {
    fn new(name: &'static str, kind: Kind, region: &'static str) -> Self {
        Self { name, kind, region, is_on: false, start_count: 0, is_ready: false, since: Instant::now() }
    }

    /// Records a completed start or reset by the operator.
    pub(crate) fn has_started(&mut self) {
        self.is_on = true;
        self.start_count += 1;
        self.is_ready = false;
        self.since = Instant::now();
    }
}

/// Returns the guests, which are off.
pub(crate) fn members() -> Vec<Member> {
    vec![
        Member::new("alpha", Kind::Linux, "dmb0"),
        Member::new("beta", Kind::Linux, "ram0"),
        Member::new("stress", Kind::Stress, "ram1"),
        Member::new("irq", Kind::Interrupts, "ram0"),
        Member::new("pattern", Kind::Pattern, "dmbs"),
        Member::new("writer", Kind::Tenant, "dmb0"),
        Member::new("tiny", Kind::Tenant, "ram0"),
        Member::new("owner", Kind::Owner, "ram0"),
    ]
}

/// Returns the machine and the guests, none of which starts at boot.
pub(crate) fn setup() -> Setup {
    let block = |size_mib: u64, controllers: &str| {
        format!("dmb-0 {{ size = <0 {:#x}>; controllers = <{controllers}>; preferred; }};", size_mib << 20)
    };
    let small = "memory@60000000 { reg = <0x0 0x60000000 0x400000>; unit-size = <0x1000>; };";
    let first = "controllers = <0>; preferred;";
    // Properties come before nodes.
    let linux = |guest: Guest, ram_mib| guest.ram_mib(ram_mib).with("start-manually;");
    let bare =
        |name, program, ram_mib| Guest::payload(name, program).ram_mib(ram_mib).with("start-manually;");
    let guests = [
        linux(Guest::linux("alpha"), 128).vcpus(2).memory(first).with(&block(64, "1")),
        linux(Guest::linux_of("beta", "7.3"), 192),
        bare("stress", "stress", 16).bootargs("window=4").vcpus(2).with(small),
        bare("irq", "irqload", 16).bootargs("forever=1 rounds=200").vcpus(2),
        bare("pattern", "pattern", 16).with(&block(48, "1 2")),
        bare("writer", "tenant", 16).bootargs("write=1").with(&block(32, "2")),
        bare("tiny", "tenant", 8),
        bare("owner", "owner", 32).bootargs("forever=1 lenient=1 pause=20 most=4").memory(first),
    ];
    let pool = |name: &str, kind: &str, mib: u64, more: &str| {
        format!("{name} {{ compatible = \"{kind}\"; reusable; size = <0 {:#x}>; {more} }};", mib << 20)
    };
    let [(video, video_mib), (edge, edge_mib)] = POOLS;
    let pools = format!(
        "pools {{ {} {} {} }};",
        pool(video, "shared-dmb-pool", video_mib, "controllers = <1>;"),
        pool(edge, "shared-dma-pool", edge_mib, "controllers = <2>;"),
        pool("owned", "shared-dmb-pool", 32, "controllers = <2>; owner = <&{/guests/owner}>;"),
    );
    Setup::new().controllers(CPUS, &CONTROLLERS).set(&guests, &pools)
}

/// A load that records errors in a file: compared copies, and checksums by short-lived processes.
const LINUX_LOAD: &str = "head -c 12M /dev/urandom > /tmp/data; sha256sum /tmp/data > /tmp/sum; \
     (while :; do cp /tmp/data /tmp/copy; cmp /tmp/data /tmp/copy || echo bad >> /tmp/bad; echo >> /tmp/count; done) \
     > /dev/null 2>&1 & \
     (want=$(head -c 300000 /tmp/data | md5sum); while :; do got=$(head -c 300000 /tmp/data | md5sum); \
     [ \"$got\" = \"$want\" ] || echo bad >> /tmp/bad; echo >> /tmp/count; done) > /dev/null 2>&1 & true";

/// Checks that load and kernel have recorded no error, and that the file that the load reads is unchanged.
const LINUX_CHECK: &str = "test ! -e /tmp/bad && sha256sum -c -s /tmp/sum && \
     ! dmesg | grep -E 'Oops|BUG:|Bad page|segfault|unhandled' && wc -l < /tmp/count";

/// Checks `member`, which is on. Returns false if it is not ready yet.
///
/// # Panics
/// It has lost something, or does not become ready.
pub(crate) fn is_well(system: &mut System, member: &mut Member) -> bool {
    let name = member.name;
    let line = |system: &mut System, pattern: &str| {
        system.to_guest(name);
        system.session().skip_to_now();
        system.expect(pattern)
    };
    match member.kind {
        Kind::Linux if !member.is_ready => {
            member.is_ready = has_shell(system, name);
            assert!(member.is_ready || member.since.elapsed() < patience(), "{name} has no shell");
            if member.is_ready {
                system.run(name, LINUX_LOAD);
            }
            return member.is_ready;
        }
        Kind::Linux => {
            let said = system.run(name, LINUX_CHECK);
            assert!(said.trim().parse::<u64>().is_ok(), "{name}: {said}");
        }
        Kind::Stress => {
            let said = line(system, r"stress round \d+ errors \d+");
            assert!(said.ends_with("errors 0") && !said.contains("ERROR"), "{name}: {said}");
        }
        Kind::Interrupts => {
            let said = line(system, r"irqload done [^\n]* lost \d+");
            assert!(said.ends_with(" lost 0") && !said.contains("LOST"), "{name}: {said}");
        }
        Kind::Pattern => {
            system.to_guest(name);
            if !member.is_ready {
                // A key starts a check. Noise may have hidden the line which says that the guest is ready for keys.
                system.send("c");
                let ready = r"pattern (ready|checked \d+ errors 0\D)";
                if system.expect_within(ready, Duration::from_secs(2)).is_none() {
                    assert!(member.since.elapsed() < patience(), "{name} does not fill its memory");
                    return false;
                }
            }
            system.session().skip_to_now();
            system.send("c");
            let said = system.expect(r"pattern checked \d+ errors \d+");
            assert!(said.ends_with("errors 0"), "{name}: {said}");
        }
        // It only needs to run.
        Kind::Tenant => {}
        Kind::Owner => {
            let said = line(system, r"owner round \d+ granted \d+ released \d+|owner failed[^\n]*");
            assert!(!said.contains("failed"), "{name}: {said}");
        }
    }
    member.is_ready = true;
    true
}

/// Returns true if a shell answers.
fn has_shell(system: &mut System, name: &str) -> bool {
    system.to_guest(name);
    system.send("\r");
    if system.expect_within(r":[^\n]*# ", Duration::from_secs(3)).is_none() {
        return false;
    }
    system.send(&format!("echo shell of \"\"{name}\r"));
    system.expect_within(&format!("shell of {name}"), Duration::from_secs(20)).is_some()
}

/// Compares the states of all guests with the expected ones: none may stop or start by itself.
///
/// # Panics
/// A guest is in an unexpected state.
pub(crate) fn compare(system: &mut System, members: &[Member]) {
    let report = system.json("guests");
    for member in members {
        let guest = find(&report, member.name);
        let wanted: &[&str] = if member.is_on { &["running"] } else { &["off", "failed"] };
        let state = guest["state"].as_str().unwrap_or_default();
        assert!(wanted.contains(&state), "{} is {state}, by itself: {}", member.name, guest["reason"]);
        assert_eq!(guest["start_count"], member.start_count, "{} started by itself: {guest}", member.name);
    }
}

/// Returns the entry of guest `name` in the report `guests`.
///
/// # Panics
/// There is no guest of that name.
pub(crate) fn find<'a>(report: &'a Value, name: &str) -> &'a Value {
    let guests = report["guests"].as_array().into_iter().flatten();
    guests.into_iter().find(|guest| guest["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"))
}

/// Waits until a guest is in one of `states`. Returns its entry in `guests`.
///
/// # Panics
/// The guest does not reach one of the states.
pub(crate) fn wait_for_state(system: &mut System, name: &str, states: &[&str]) -> Value {
    let until = Instant::now() + patience();
    loop {
        let report = system.json("guests");
        let guest = find(&report, name);
        if guest["state"].as_str().is_some_and(|state| states.contains(&state)) {
            return guest.clone();
        }
        assert!(Instant::now() < until, "{name} does not come to {states:?}: {guest}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
