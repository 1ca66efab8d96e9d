//! The monitor's reports as data. Fields that an older Ballast lacks are empty or zero.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `version --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Version {
    /// Ballast's version.
    pub(crate) version: String,
    /// The commit that Ballast was built from.
    pub(crate) commit: String,
    /// The host's name in its device tree.
    pub(crate) host: String,
    /// Time since boot.
    pub(crate) uptime_ns: u64,
    /// Size of the image.
    pub(crate) image_bytes: u64,
    /// Ballast's other memory, without the frame table.
    pub(crate) own_bytes: u64,
    /// Size of the frame table.
    pub(crate) frame_table_bytes: u64,
}

/// A guest in `guests --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Guest {
    /// Number of the guest's console.
    pub(crate) console: u64,
    /// The guest's name.
    pub(crate) name: String,
    /// Name of the guest's state.
    pub(crate) state: String,
    /// Number of vCPUs.
    pub(crate) vcpu_count: u64,
    /// Number of vCPUs that are on.
    pub(crate) vcpu_on_count: u64,
    /// The CPUs of the vCPUs.
    pub(crate) cpus: Vec<u64>,
    /// Configured RAM.
    pub(crate) memory_bytes: u64,
    /// RAM that is backed now.
    pub(crate) resident_bytes: u64,
    /// Number of starts.
    pub(crate) start_count: u64,
    /// Time since the last start.
    pub(crate) uptime_ns: u64,
    /// Reason why the guest is off or failed.
    pub(crate) reason: Option<String>,
}

/// A controller in `controllers --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Controller {
    /// The controller's name.
    pub(crate) name: String,
    /// `in use`; `closed`: no new allocations; `evacuated`: closed, and no memory in use.
    pub(crate) state: String,
    /// RAM of the controller.
    pub(crate) total_bytes: u64,
    /// Free RAM.
    pub(crate) free_bytes: u64,
    /// RAM of guests.
    pub(crate) guest_bytes: u64,
    /// RAM of Ballast.
    pub(crate) own_bytes: u64,
    /// Reserved RAM.
    pub(crate) reserved_bytes: u64,
    /// RAM in designated movable blocks.
    pub(crate) dmb_bytes: u64,
}

impl Controller {
    /// Returns the remaining RAM, which is claimed or retired.
    pub(crate) fn other_bytes(&self) -> u64 {
        let known = [self.free_bytes, self.guest_bytes, self.own_bytes, self.reserved_bytes];
        known.iter().fold(self.total_bytes, |rest, part| rest.saturating_sub(*part))
    }
}

/// A guest in `stats --json`: counters since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct GuestStats {
    /// The guest's name.
    pub(crate) name: String,
    /// Number of interrupts injected.
    pub(crate) injected_count: u64,
    /// Number of those that came from assigned devices.
    pub(crate) device_interrupt_count: u64,
    /// Time at EL2.
    pub(crate) el2_ns: u64,
    /// All other counters, such as `exit_REASON_count`.
    #[serde(flatten)]
    pub(crate) counters: BTreeMap<String, Value>,
}

impl GuestStats {
    /// Iterates over the numbers of exits by reason.
    pub(crate) fn exits(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().filter_map(|(key, value)| {
            let reason = key.strip_prefix("exit_")?.strip_suffix("_count")?;
            Some((reason, value.as_u64()?))
        })
    }

    /// Returns the number of all exits.
    pub(crate) fn exit_count(&self) -> u64 {
        self.exits().map(|(_, count)| count).sum()
    }
}

/// A device in `devices --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Device {
    /// The guest that it is assigned to.
    pub(crate) guest: String,
    /// Its name in the guest.
    pub(crate) device: String,
    /// Its name on the host.
    pub(crate) host: String,
    /// The kind of device.
    pub(crate) kind: String,
    /// `off`, `attached` or `failed`.
    pub(crate) state: String,
    /// Reason why it failed.
    pub(crate) reason: Option<String>,
    /// False if no SMMU isolates it.
    pub(crate) is_isolated: bool,
    /// Number of its interrupts since boot.
    pub(crate) interrupt_count: u64,
    /// Number of its accesses that an SMMU denied since boot.
    pub(crate) fault_count: u64,
}

impl Device {
    /// Returns the state, the reason for it, and a note if the device is not isolated.
    pub(crate) fn status(&self) -> String {
        let reason = self.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        let note = if self.is_isolated { "" } else { "; no SMMU: not isolated" };
        format!("{}{reason}{note}", self.state)
    }
}

/// An SMMU in `devices --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Smmu {
    /// Its number.
    pub(crate) smmu: u64,
    /// `working` or `failed`.
    pub(crate) state: String,
    /// Size of its tables and queues.
    pub(crate) memory_bytes: u64,
    /// Number of events since boot.
    pub(crate) event_count: u64,
    /// Number of global errors since boot.
    pub(crate) error_count: u64,
}

/// A range in `map --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MapRange {
    /// The controller's name.
    pub(crate) controller: String,
    /// The first address, in hexadecimal.
    pub(crate) base: String,
    /// Memory that one cell represents.
    pub(crate) unit_bytes: u64,
    /// A character for each cell.
    pub(crate) cells: String,
}

/// A console in `console --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Console {
    /// The console's name.
    pub(crate) name: String,
    /// Output lost since boot.
    pub(crate) lost_bytes: u64,
    /// Input lost since boot.
    pub(crate) input_lost_bytes: u64,
}

/// A guest in `stats migration --json`: counters since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Moved {
    /// The guest's name.
    pub(crate) name: String,
    /// Memory moved.
    pub(crate) moved_bytes: u64,
    /// Time spent copying.
    pub(crate) copy_ns: u64,
    /// Number of leaves split because the guest wrote to them.
    pub(crate) split_count: u64,
    /// Number of units that were rolled back and tried again.
    pub(crate) retry_count: u64,
    /// Number of faults on units in flight.
    pub(crate) fault_count: u64,
    /// Number of waits for units in flight.
    pub(crate) stall_count: u64,
}

/// Statistics on the waits of a guest in `stats migration --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Stalls {
    /// The guest's name.
    pub(crate) guest: String,
    /// Number of waits.
    pub(crate) count: u64,
    /// Mean.
    pub(crate) mean_ns: u64,
    /// Median.
    pub(crate) p50_ns: u64,
    /// 99th percentile.
    pub(crate) p99_ns: u64,
    /// Maximum.
    pub(crate) max_ns: u64,
}

/// A bucket of the histogram of waits in `stats migration --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StallStep {
    /// The guest's name.
    pub(crate) guest: String,
    /// Upper bound of the bucket, exclusive. The lower bound is half of it.
    pub(crate) below_ns: u64,
    /// Number of waits in the bucket.
    pub(crate) count: u64,
}

/// Memory moved between two controllers, in `stats migration --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pair {
    /// Source controller.
    pub(crate) from: String,
    /// Target controller.
    pub(crate) to: String,
    /// Memory moved.
    pub(crate) moved_bytes: u64,
}

/// A job in `jobs --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Job {
    /// The job's number.
    pub(crate) job: u64,
    /// Name of the job's state.
    pub(crate) state: String,
    /// Progress.
    pub(crate) done_permille: u64,
    /// Memory moved.
    pub(crate) moved_bytes: u64,
    /// Memory that could not be moved.
    pub(crate) unmoved_bytes: u64,
    /// Rate.
    pub(crate) moved_bytes_per_s: u64,
    /// Time since the start of the job.
    pub(crate) elapsed_ns: Option<u64>,
    /// Description of the job.
    pub(crate) what: String,
    /// Reason why the job was cancelled.
    pub(crate) reason: Option<String>,
}

/// A pool in `pools --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pool {
    /// The pool's name.
    pub(crate) pool: String,
    /// The pool's controller.
    pub(crate) controller: String,
    /// The guest that owns the pool.
    pub(crate) owner: Option<String>,
    /// Size of the pool: the sum of free, lent, claimed and fixed memory.
    pub(crate) size_bytes: u64,
    /// Free memory.
    pub(crate) free_bytes: u64,
    /// Memory that guests borrow until it is claimed.
    pub(crate) lent_bytes: u64,
    /// Claimed memory.
    pub(crate) claimed_bytes: u64,
    /// Memory that can be neither lent nor claimed.
    pub(crate) fixed_bytes: u64,
    /// Memory that can be claimed now.
    pub(crate) claimable_bytes: u64,
}

/// A claim or a release in `claims --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Claim {
    /// The claim's number.
    pub(crate) claim: u64,
    /// `claim` or `release`.
    pub(crate) kind: String,
    /// The pool's name.
    pub(crate) pool: String,
    /// The guest, or the operator, that made the claim.
    pub(crate) claimant: String,
    /// Name of the claim's state.
    pub(crate) state: String,
    /// Progress.
    pub(crate) done_permille: u64,
    /// Claimed or released size.
    pub(crate) size_bytes: u64,
    /// Memory that was moved to empty the range.
    pub(crate) moved_bytes: u64,
    /// Time since the start of the claim.
    pub(crate) elapsed_ns: u64,
    /// Obstacle that made the claim fail.
    pub(crate) blocker: Option<String>,
}

impl Claim {
    /// Tests whether the claim is queued or in progress.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state.as_str(), "granted" | "released" | "failed" | "cancelled")
    }
}

/// `stats claims --json`: counters since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ClaimStats {
    /// Number of claims begun.
    pub(crate) tried_count: u64,
    /// Number of claims granted.
    pub(crate) granted_count: u64,
    /// Memory of granted claims.
    pub(crate) granted_bytes: u64,
    /// Number of claims that failed.
    pub(crate) failed_count: u64,
    /// Number of claims cancelled.
    pub(crate) cancelled_count: u64,
    /// Number of ranges released.
    pub(crate) released_count: u64,
    /// Memory that was moved to empty ranges.
    pub(crate) moved_bytes: u64,
    /// Failures by cause.
    pub(crate) failures: Vec<ClaimFailures>,
    /// Latencies of granted claims.
    pub(crate) latency: Vec<ClaimLatency>,
}

/// Number of claims that failed for one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ClaimFailures {
    /// Name of the cause.
    pub(crate) cause: String,
    /// Number of failures.
    pub(crate) count: u64,
}

/// Latencies of claims of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ClaimLatency {
    /// Range of sizes.
    pub(crate) size: String,
    /// Range of the pool's share that was lent at the start.
    pub(crate) lent: String,
    /// Number of claims.
    pub(crate) count: u64,
    /// Mean.
    pub(crate) mean_ns: u64,
    /// Median.
    pub(crate) p50_ns: u64,
    /// 99th percentile.
    pub(crate) p99_ns: u64,
    /// Maximum.
    pub(crate) max_ns: u64,
}

/// Memory of a guest on one controller that was touched, in `heat --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Heat {
    /// The guest's name.
    pub(crate) guest: String,
    /// The controller's name.
    pub(crate) controller: String,
    /// The guest's memory on the controller.
    pub(crate) resident_bytes: u64,
    /// The part of it that was touched.
    pub(crate) touched_bytes: u64,
}

/// The state of the machine at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Snapshot {
    /// Seconds since the first snapshot, by the PC's clock.
    pub(crate) seconds: f64,
    /// The version.
    pub(crate) version: Version,
    /// The guests.
    pub(crate) guests: Vec<Guest>,
    /// The controllers.
    pub(crate) controllers: Vec<Controller>,
    /// The guests' counters.
    pub(crate) stats: Vec<GuestStats>,
    /// The assigned devices.
    pub(crate) devices: Vec<Device>,
    /// The SMMUs.
    pub(crate) smmus: Vec<Smmu>,
    /// The map of physical memory.
    pub(crate) map: Vec<MapRange>,
    /// The consoles.
    pub(crate) consoles: Vec<Console>,
    /// Migration counters of the guests.
    pub(crate) moved: Vec<Moved>,
    /// Statistics on the guests' waits.
    pub(crate) stalls: Vec<Stalls>,
    /// Histogram of the guests' waits.
    pub(crate) stall_steps: Vec<StallStep>,
    /// Memory moved between controllers.
    pub(crate) pairs: Vec<Pair>,
    /// The migration jobs.
    pub(crate) jobs: Vec<Job>,
    /// The pools.
    pub(crate) pools: Vec<Pool>,
    /// The claims and releases.
    pub(crate) claims: Vec<Claim>,
    /// The claims' counters.
    pub(crate) claim_stats: ClaimStats,
    /// Memory that guests touched, if it was measured.
    pub(crate) heat: Vec<Heat>,
    /// Time for which it was measured.
    pub(crate) heat_window_ns: u64,
}

impl Snapshot {
    /// Stores one report. Returns `false` if snapshots do not contain this kind of report.
    pub(crate) fn take(&mut self, report: &Value) -> bool {
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
            Some("devices") => {
                list(report, "smmus", &mut self.smmus);
                list(report, "devices", &mut self.devices)
            }
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
            r#"{"report":"devices","devices":[{"guest":"alpha","device":"00:01.0","state":"off"}],"smmus":[{"smmu":0}]}"#,
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
        assert_eq!(snapshot.devices[0].status(), "off; no SMMU: not isolated");
        assert_eq!(snapshot.smmus.len(), 1);
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
