//! The guests of a soak: what they run, whether they are on, and how each shows that it lost nothing.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System, patience};

/// CPUs of the machine: one for each vCPU.
const CPUS: u32 = 11;
/// Sizes of the controllers.
const CONTROLLERS: [u64; 4] = [768 << 20, 384 << 20, 384 << 20, 256 << 20];
/// Names of the controllers.
pub(crate) const CONTROLLER_NAMES: [&str; 4] = ["mc0", "mc1", "mc2", "mc3"];
/// The operator's pools, and the size of each in MiB.
pub(crate) const POOLS: [(&str, u64); 2] = [("video", 64), ("edge", 32)];

/// What a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Linux with loads on files in memory: copies that are compared, and checksums by processes that come and go.
    Linux,
    /// `stress`: all of its memory in every way, every bit checked.
    Stress,
    /// `irqload`: interrupts between its vCPUs, counted.
    Interrupts,
    /// `pattern`: memory that is checked when a byte is typed.
    Pattern,
    /// `tenant`: memory that is there, or written to.
    Tenant,
    /// `owner`: claims and releases by hypercall what it has a pool of, and checks what it gets.
    Owner,
}

/// A guest, and what is expected of it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// A region that `migrate` and `pin` may name, beside `all`.
    pub(crate) region: &'static str,
    /// The operator has started it and not stopped it.
    pub(crate) is_on: bool,
    /// Starts and resets that it has behind it.
    pub(crate) start_count: u64,
    /// Its load runs.
    pub(crate) is_ready: bool,
    /// Its last start.
    pub(crate) since: Instant,
}

impl Member {
    fn new(name: &'static str, kind: Kind, region: &'static str) -> Self {
        Self { name, kind, region, is_on: false, start_count: 0, is_ready: false, since: Instant::now() }
    }

    /// Notes a start or a reset by the operator that has come to its end.
    pub(crate) fn has_started(&mut self) {
        self.is_on = true;
        self.start_count += 1;
        self.is_ready = false;
        self.since = Instant::now();
    }
}

/// Returns the guests, all of them off.
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

/// A load that notes every error in a file: copies that are compared, and checksums by processes that come and go.
const LINUX_LOAD: &str = "head -c 12M /dev/urandom > /tmp/data; sha256sum /tmp/data > /tmp/sum; \
     (while :; do cp /tmp/data /tmp/copy; cmp /tmp/data /tmp/copy || echo bad >> /tmp/bad; echo >> /tmp/count; done) \
     > /dev/null 2>&1 & \
     (want=$(head -c 300000 /tmp/data | md5sum); while :; do got=$(head -c 300000 /tmp/data | md5sum); \
     [ \"$got\" = \"$want\" ] || echo bad >> /tmp/bad; echo >> /tmp/count; done) > /dev/null 2>&1 & true";

/// Nothing that the load or the kernel noted may be an error, and the file that it reads is what it was.
const LINUX_CHECK: &str = "test ! -e /tmp/bad && sha256sum -c -s /tmp/sum && \
     ! dmesg | grep -E 'Oops|BUG:|Bad page|segfault|unhandled' && wc -l < /tmp/count";

/// Lets `member`, which is on, show that it is well. `false`: it is still on its way there.
///
/// # Panics
/// It has lost something, or does not come to where it can show it.
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
                // A key is a check; noise may have skipped the line that says that the guest is ready for keys.
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
        // That it runs is all there is to it.
        Kind::Tenant => {}
        Kind::Owner => {
            let said = line(system, r"owner round \d+ granted \d+ released \d+|owner failed[^\n]*");
            assert!(!said.contains("failed"), "{name}: {said}");
        }
    }
    member.is_ready = true;
    true
}

/// Whether a shell answers now.
fn has_shell(system: &mut System, name: &str) -> bool {
    system.to_guest(name);
    system.send("\r");
    if system.expect_within(r":[^\n]*# ", Duration::from_secs(3)).is_none() {
        return false;
    }
    system.send(&format!("echo shell of \"\"{name}\r"));
    system.expect_within(&format!("shell of {name}"), Duration::from_secs(20)).is_some()
}

/// Compares what Ballast says of its guests with what is expected: none stopped or started by itself.
///
/// # Panics
/// One did.
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

/// Returns what the report `guests` says of the guest `name`.
///
/// # Panics
/// There is none of that name.
pub(crate) fn find<'a>(report: &'a Value, name: &str) -> &'a Value {
    let guests = report["guests"].as_array().into_iter().flatten();
    guests.into_iter().find(|guest| guest["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"))
}

/// Waits until a guest that was told to is in one of `states`, and returns what it is said of it.
///
/// # Panics
/// It does not come there.
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
