//! The monitor's reports as data. What an older Ballast does not say is empty or zero here.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `version --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    /// Ballast's version.
    pub version: String,
    /// The commit that it was built from.
    pub commit: String,
    /// The host, as its device tree names it.
    pub host: String,
    /// Time since boot.
    pub uptime_ns: u64,
    /// What the image takes.
    pub image_bytes: u64,
    /// What Ballast takes besides.
    pub own_bytes: u64,
    /// What the frame table takes.
    pub frame_table_bytes: u64,
}

/// A guest in `guests --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guest {
    /// The number of its console.
    pub console: u64,
    /// Its name.
    pub name: String,
    /// Its state's name.
    pub state: String,
    /// How many vCPUs it has.
    pub vcpu_count: u64,
    /// How many are on.
    pub vcpu_on_count: u64,
    /// The CPUs of its vCPUs.
    pub cpus: Vec<u64>,
    /// The RAM that it is configured with.
    pub memory_bytes: u64,
    /// The RAM that it has now.
    pub resident_bytes: u64,
    /// How often it was started.
    pub start_count: u64,
    /// For how long it has been running.
    pub uptime_ns: u64,
    /// Why it is off or failed.
    pub reason: Option<String>,
}

/// A controller in `controllers --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Controller {
    /// Its name.
    pub name: String,
    /// `in use`; `closed`: takes no allocations; `evacuated`: closed, and nothing behind it is in use.
    pub state: String,
    /// What lies behind it.
    pub total_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// What guests have.
    pub guest_bytes: u64,
    /// What Ballast has.
    pub own_bytes: u64,
    /// What is reserved.
    pub reserved_bytes: u64,
    /// What lies in DMBs.
    pub dmb_bytes: u64,
}

impl Controller {
    /// What is none of these: claimed, or retired.
    pub fn other_bytes(&self) -> u64 {
        let known = [self.free_bytes, self.guest_bytes, self.own_bytes, self.reserved_bytes];
        known.iter().fold(self.total_bytes, |rest, part| rest.saturating_sub(*part))
    }
}

/// A guest in `stats --json`: counters since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestStats {
    /// Its name.
    pub name: String,
    /// Interrupts given to it.
    pub injected_count: u64,
    /// Time at EL2.
    pub el2_ns: u64,
    /// Everything else: `exit_REASON_count` among it.
    #[serde(flatten)]
    pub counters: BTreeMap<String, Value>,
}

impl GuestStats {
    /// Its exits by reason.
    pub fn exits(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().filter_map(|(key, value)| {
            let reason = key.strip_prefix("exit_")?.strip_suffix("_count")?;
            Some((reason, value.as_u64()?))
        })
    }

    /// All its exits.
    pub fn exit_count(&self) -> u64 {
        self.exits().map(|(_, count)| count).sum()
    }
}

/// A range in `map --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapRange {
    /// The controller's name.
    pub controller: String,
    /// The first address, in hexadecimal.
    pub base: String,
    /// What a cell stands for.
    pub unit_bytes: u64,
    /// A character for each cell.
    pub cells: String,
}

/// A console in `console --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Console {
    /// Its name.
    pub name: String,
    /// Output lost since boot.
    pub lost_bytes: u64,
    /// Input lost since boot.
    pub input_lost_bytes: u64,
}

/// A guest in `stats migration --json`: counters since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moved {
    /// The guest's name.
    pub name: String,
    /// What was moved.
    pub moved_bytes: u64,
    /// Time spent copying.
    pub copy_ns: u64,
    /// Leaves split because the guest wrote to them.
    pub split_count: u64,
    /// Units given up and tried again.
    pub retry_count: u64,
    /// Faults on units in flight.
    pub fault_count: u64,
    /// How often it had to wait.
    pub stall_count: u64,
}

/// The waits of a guest in `stats migration --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stalls {
    /// The guest's name.
    pub guest: String,
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean_ns: u64,
    /// Half of them are no longer.
    pub p50_ns: u64,
    /// 99 of 100 are no longer.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// A step of the histogram of waits in `stats migration --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StallStep {
    /// The guest's name.
    pub guest: String,
    /// They were shorter than this, and no shorter than half of it.
    pub below_ns: u64,
    /// How many.
    pub count: u64,
}

/// What moved between two controllers, in `stats migration --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pair {
    /// From here.
    pub from: String,
    /// To here.
    pub to: String,
    /// What was moved.
    pub moved_bytes: u64,
}

/// A job in `jobs --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Its number.
    pub job: u64,
    /// Its state's name.
    pub state: String,
    /// How much of it is done.
    pub done_permille: u64,
    /// What it moved.
    pub moved_bytes: u64,
    /// What it left where it was.
    pub unmoved_bytes: u64,
    /// How fast.
    pub moved_bytes_per_s: u64,
    /// For how long it has been under way.
    pub elapsed_ns: Option<u64>,
    /// What it does.
    pub what: String,
    /// Why it was cancelled.
    pub reason: Option<String>,
}

/// A pool in `pools --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Its name.
    pub pool: String,
    /// The controller that it lies behind.
    pub controller: String,
    /// The guest that owns it.
    pub owner: Option<String>,
    /// Its size: what is free, lent, claimed and fixed together.
    pub size_bytes: u64,
    /// What nobody has.
    pub free_bytes: u64,
    /// What guests have until it is claimed.
    pub lent_bytes: u64,
    /// What is claimed.
    pub claimed_bytes: u64,
    /// What can be neither lent nor claimed.
    pub fixed_bytes: u64,
    /// What could be claimed now.
    pub claimable_bytes: u64,
}

/// A claim or a release in `claims --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// Its number.
    pub claim: u64,
    /// `claim` or `release`.
    pub kind: String,
    /// The pool's name.
    pub pool: String,
    /// Who asked.
    pub claimant: String,
    /// Its state's name.
    pub state: String,
    /// How much of it is done.
    pub done_permille: u64,
    /// What was asked for.
    pub size_bytes: u64,
    /// What was moved out of the way.
    pub moved_bytes: u64,
    /// For how long it has been under way.
    pub elapsed_ns: u64,
    /// What stood in the way.
    pub blocker: Option<String>,
}

impl Claim {
    /// Whether it waits or is worked on.
    pub fn is_open(&self) -> bool {
        !matches!(self.state.as_str(), "granted" | "released" | "failed" | "cancelled")
    }
}

/// `stats claims --json`: counters since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClaimStats {
    /// Claims that were begun.
    pub tried_count: u64,
    /// Claims that were granted.
    pub granted_count: u64,
    /// What they were granted.
    pub granted_bytes: u64,
    /// Claims that failed.
    pub failed_count: u64,
    /// Claims that were cancelled.
    pub cancelled_count: u64,
    /// Ranges that were given back.
    pub released_count: u64,
    /// What was moved out of the way.
    pub moved_bytes: u64,
    /// The failed ones by cause.
    pub failures: Vec<ClaimFailures>,
    /// How long granted ones took.
    pub latency: Vec<ClaimLatency>,
}

/// Claims that failed for one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClaimFailures {
    /// The cause's name.
    pub cause: String,
    /// How many.
    pub count: u64,
}

/// How long claims of a class took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClaimLatency {
    /// Their sizes.
    pub size: String,
    /// How much of the pool was lent at first.
    pub lent: String,
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean_ns: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// What a guest touched behind a controller, in `heat --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heat {
    /// The guest's name.
    pub guest: String,
    /// The controller's name.
    pub controller: String,
    /// What of the guest lies there.
    pub resident_bytes: u64,
    /// What of it was touched.
    pub touched_bytes: u64,
}

/// The machine at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Seconds since the first snapshot, by the PC's clock.
    pub seconds: f64,
    /// What is running.
    pub version: Version,
    /// The guests.
    pub guests: Vec<Guest>,
    /// The controllers.
    pub controllers: Vec<Controller>,
    /// The guests' counters.
    pub stats: Vec<GuestStats>,
    /// What lies where.
    pub map: Vec<MapRange>,
    /// The consoles.
    pub consoles: Vec<Console>,
    /// What was moved of each guest.
    pub moved: Vec<Moved>,
    /// How long guests that were moved had to wait.
    pub stalls: Vec<Stalls>,
    /// The same as a histogram.
    pub stall_steps: Vec<StallStep>,
    /// What moved from where to where.
    pub pairs: Vec<Pair>,
    /// The migrations.
    pub jobs: Vec<Job>,
    /// The pools.
    pub pools: Vec<Pool>,
    /// The claims and releases.
    pub claims: Vec<Claim>,
    /// The claims' counters.
    pub claim_stats: ClaimStats,
    /// What guests touched, if that was asked.
    pub heat: Vec<Heat>,
    /// For how long that was watched.
    pub heat_window_ns: u64,
}

impl Snapshot {
    /// Takes in one report; `false` if it is of no kind that snapshots have.
    pub fn take(&mut self, report: &Value) -> bool {
        fn list<T: DeserializeOwned>(report: &Value, key: &str, into: &mut Vec<T>) -> bool {
            let list = report.get(key).and_then(|list| Vec::deserialize(list).ok());
            let is_there = list.is_some();
            *into = list.unwrap_or_else(|| std::mem::take(into));
            is_there
        }
        match report.get("report").and_then(Value::as_str) {
            Some("version") => match Version::deserialize(report) {
                Ok(version) => {
                    self.version = version;
                    true
                }
                Err(_) => false,
            },
            Some("guests") => list(report, "guests", &mut self.guests),
            Some("controllers") => list(report, "controllers", &mut self.controllers),
            Some("stats") => list(report, "guests", &mut self.stats),
            Some("map") => list(report, "ranges", &mut self.map),
            Some("console") => list(report, "consoles", &mut self.consoles),
            Some("migration") => {
                list(report, "stalls", &mut self.stalls);
                list(report, "stall_histogram", &mut self.stall_steps);
                list(report, "pairs", &mut self.pairs);
                list(report, "guests", &mut self.moved)
            }
            Some("jobs") => list(report, "jobs", &mut self.jobs),
            Some("heat") => {
                self.heat_window_ns = report.get("window_ns").and_then(Value::as_u64).unwrap_or(0);
                list(report, "heat", &mut self.heat)
            }
            Some("pools") => list(report, "pools", &mut self.pools),
            Some("claims") => list(report, "claims", &mut self.claims),
            Some("claim_stats") => match ClaimStats::deserialize(report) {
                Ok(stats) => {
                    self.claim_stats = stats;
                    true
                }
                Err(_) => false,
            },
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_understood() {
        let mut snapshot = Snapshot::default();
        for report in [
            r#"{"report":"version","version":"0.1.0","commit":"abc","uptime_ns":5}"#,
            r#"{"report":"guests","guests":[{"console":1,"name":"alpha","state":"running","cpus":[0,1],"reason":null,"new":1}]}"#,
            r#"{"report":"controllers","controllers":[{"name":"mc0","total_bytes":1024}]}"#,
            r#"{"report":"stats","guests":[{"name":"alpha","exit_count":5,"exit_uart_count":3,"exit_wait_count":2}]}"#,
            r#"{"report":"map","ranges":[{"controller":"mc0","base":"0x40000000","unit_bytes":2097152,"cells":"R1."}]}"#,
            r#"{"report":"console","consoles":[{"name":"alpha","lost_bytes":7}]}"#,
            r#"{"report":"migration","guests":[{"name":"alpha","moved_bytes":5}],"stalls":[],"pairs":[]}"#,
            r#"{"report":"jobs","jobs":[{"job":1,"state":"running","elapsed_ns":null}]}"#,
            r#"{"report":"heat","window_ns":9,"heat":[{"guest":"alpha","controller":"mc1","touched_bytes":7}]}"#,
            r#"{"report":"pools","pools":[{"pool":"video","lent_bytes":5,"owner":null}]}"#,
            r#"{"report":"claims","claims":[{"claim":1,"state":"granted"},{"claim":2,"state":"queued"}]}"#,
            r#"{"report":"claim_stats","granted_count":3,"failures":[],"latency":[{"size":"to 64 MiB","count":3}]}"#,
        ] {
            assert!(snapshot.take(&serde_json::from_str(report).unwrap()), "{report}");
        }
        assert_eq!(snapshot.guests[0].cpus, [0, 1]);
        assert_eq!(snapshot.stats[0].exit_count(), 5);
        assert_eq!(snapshot.map[0].cells, "R1.");
        assert_eq!(snapshot.pools[0].lent_bytes, 5);
        assert_eq!((snapshot.heat_window_ns, snapshot.heat[0].touched_bytes), (9, 7));
        assert_eq!([0, 1].map(|at| snapshot.claims[at].is_open()), [false, true]);
        assert_eq!((snapshot.claim_stats.granted_count, snapshot.claim_stats.latency[0].count), (3, 3));
        for report in [
            r#"{"report":"error","error":"x"}"#,
            r#"{"report":"guests"}"#,
            "[]",
            r#"{"report":"guests","guests":5}"#,
        ] {
            assert!(!snapshot.take(&serde_json::from_str(report).unwrap()), "{report}");
        }
    }
}
