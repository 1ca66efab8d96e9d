//! Devices of guests, as the monitor reports them, and the state of guests and jobs.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::patience;
use crate::system::System;

impl System {
    /// Repeats `command` until `is_it` returns true for its report. Returns the report.
    ///
    /// # Panics
    /// It does not become true.
    #[track_caller]
    pub fn wait_for(&mut self, command: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + patience();
        loop {
            let report = self.json(command);
            if is_it(&report) {
                return report;
            }
            assert!(Instant::now() < until, "{command}: {report}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until guest `name` is in `state`. Returns its entry in `guests`.
    ///
    /// # Panics
    /// The guest does not get there.
    #[track_caller]
    pub fn wait_for_state(&mut self, name: &str, state: &str) -> Value {
        let row = |report: &Value| {
            report["guests"].as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name)).cloned()
        };
        let is_it = |report: &Value| row(report).is_some_and(|row| row["state"] == state);
        row(&self.wait_for("guests", is_it)).unwrap_or_default()
    }

    /// Waits for the end of migration job `number`. Returns its report.
    ///
    /// # Panics
    /// The job does not end.
    #[track_caller]
    pub fn end_of_job(&mut self, number: u64) -> Value {
        self.wait_for(&format!("job {number}"), |job| {
            ["finished", "incomplete", "cancelled"].contains(&job["state"].as_str().unwrap_or_default())
        })
    }

    /// Checks the accounts of the whole machine, each guest's tables, and the SMMU's tables.
    ///
    /// # Panics
    /// There is a problem.
    #[track_caller]
    pub fn check_books(&mut self) {
        let check = self.json("check");
        assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
    }

    /// Checks that all devices are attached, and that no SMMU has reported an event or an error.
    ///
    /// # Panics
    /// One did.
    #[track_caller]
    pub fn check_devices(&mut self) {
        let report = self.json("devices");
        let rows = |name: &str| report[name].as_array().cloned().unwrap_or_default();
        assert!(rows("devices").iter().all(|device| device["state"] == "attached"), "{report}");
        assert!(rows("devices").iter().all(|device| device["fault_count"] == 0), "{report}");
        assert!(rows("smmus").iter().all(|smmu| smmu["event_count"] == 0), "{report}");
        assert!(rows("smmus").iter().all(|smmu| smmu["error_count"] == 0), "{report}");
    }

    /// Returns the devices of guest `name`.
    ///
    /// # Panics
    /// There is no such guest.
    #[track_caller]
    pub fn devices_of(&mut self, name: &str) -> Vec<Value> {
        let report = self.json(&format!("devices {name}"));
        report["devices"].as_array().unwrap_or_else(|| panic!("{report}")).clone()
    }

    /// Returns the physical address of guest `name`'s DMA window.
    ///
    /// # Panics
    /// It has none.
    #[track_caller]
    pub fn window_of(&mut self, name: &str) -> u64 {
        let report = self.json("devices");
        let row = report["windows"].as_array().and_then(|rows| rows.iter().find(|row| row["guest"] == name));
        let base = row.and_then(|row| row["base"].as_str()?.strip_prefix("0x"));
        base.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_else(|| panic!("{report}"))
    }

    /// Returns the free bytes on all controllers, and the reports `controllers` and `mem` without their checksums.
    pub fn accounts(&mut self) -> [Value; 2] {
        ["controllers", "mem"].map(|command| {
            let mut report = self.json(command);
            report["crc32"] = Value::Null;
            report
        })
    }
}
