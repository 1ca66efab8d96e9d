//! Statistics of a soak test.

use std::collections::BTreeMap;
use std::fmt;

/// Counts of all actions.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
    reasons: BTreeMap<String, u64>,
    /// Jobs by outcome.
    pub(crate) jobs: BTreeMap<String, u64>,
    /// Bytes moved by jobs.
    pub(crate) moved_bytes: u64,
    /// Bytes that jobs could not move.
    pub(crate) unmoved_bytes: u64,
    /// Bytes of noise.
    pub(crate) noise_bytes: u64,
    /// Number of successful checks of guests.
    pub(crate) well_count: u64,
    /// Number of runs of `check` without problems.
    pub(crate) check_count: u64,
}

impl Tally {
    /// Counts an action that was done.
    pub(crate) fn did(&mut self, action: &'static str) {
        *self.done.entry(action).or_default() += 1;
    }

    /// Counts an action that was refused.
    pub(crate) fn was_refused(&mut self, action: &'static str, reason: &str) {
        *self.refused.entry(action).or_default() += 1;
        // Reasons that differ only in numbers count as the same.
        let words = reason
            .split(' ')
            .map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "…" } else { word });
        let reason = words.collect::<Vec<_>>().join(" ");
        *self.reasons.entry(format!("{action}: {reason}")).or_default() += 1;
    }

    /// Returns the number of times that `action` was done.
    pub(crate) fn count(&self, action: &str) -> u64 {
        self.done.get(action).copied().unwrap_or(0)
    }

    /// Returns the statistics as one line.
    pub(crate) fn summary(&self) -> String {
        let actions: u64 = self.done.values().sum();
        let refused: u64 = self.refused.values().sum();
        let jobs: u64 = self.jobs.values().sum();
        format!(
            "{actions} actions, {refused} refused, {jobs} jobs moved {} MiB, {} claims, {} resets, {} starts, \
             {} KiB of noise, {} looks at guests, {} checks",
            self.moved_bytes >> 20,
            self.count("claim"),
            self.count("reset"),
            self.count("start"),
            self.noise_bytes >> 10,
            self.well_count,
            self.check_count,
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:18} {:>8} {:>8}", "ACTION", "DONE", "REFUSED")?;
        let names: std::collections::BTreeSet<_> = self.done.keys().chain(self.refused.keys()).collect();
        for name in names {
            let refused = self.refused.get(name).copied().unwrap_or(0);
            writeln!(f, "{name:18} {:>8} {refused:>8}", self.count(name))?;
        }
        for (reason, count) in &self.reasons {
            writeln!(f, "refused {count} times: {reason}")?;
        }
        let jobs: Vec<String> = self.jobs.iter().map(|(state, count)| format!("{count} {state}")).collect();
        writeln!(
            f,
            "jobs: {}; moved {} MiB, left {} MiB where it was",
            jobs.join(", "),
            self.moved_bytes >> 20,
            self.unmoved_bytes >> 20
        )?;
        write!(
            f,
            "console: {} bytes of noise; guests were well {} times, the books right {} times",
            self.noise_bytes, self.well_count, self.check_count
        )
    }
}
