//! The actions of an operator, one step at a time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Random, System, patience};

use crate::fleet::{self, CONTROLLER_NAMES, Member, POOLS};
use crate::tally::Tally;
use crate::{Progress, books, noise};

/// Maximum number of frames to retire in an hour. Retired frames never come back, and the test needs memory.
const RETIRED_PER_HOUR: f64 = 24.0;
/// Maximum number of frames to retire.
const RETIRED_MOST: u64 = 200;

/// States of an open job.
const OPEN_JOB: [&str; 5] = ["queued", "running", "pausing", "paused", "cancelling"];
/// States of a claim that has ended.
const CLAIM_OVER: [&str; 4] = ["granted", "released", "failed", "cancelled"];

/// A running soak test.
pub(crate) struct Soak<'a> {
    pub(crate) system: &'a mut System,
    pub(crate) progress: &'a mut Progress,
    pub(crate) random: Random,
    pub(crate) members: Vec<Member>,
    pub(crate) tally: Tally,
    /// Open jobs.
    open_jobs: BTreeSet<u64>,
    /// Granted claims of the operator.
    claims: Vec<u64>,
    closed: BTreeSet<&'static str>,
    /// True if a region is placed strictly.
    is_pinned: bool,
    may_retire: u64,
}

type Action = fn(&mut Soak<'_>);

/// The actions, with their relative frequencies.
const ACTIONS: [(usize, Action); 18] = [
    (18, |soak| soak.migrate()),
    (6, |soak| soak.pin()),
    (4, |soak| soak.unpin()),
    (5, |soak| soak.evacuate()),
    (5, |soak| soak.restore()),
    (1, |soak| soak.retire()),
    (3, |soak| soak.balance()),
    (1, |soak| soak.heat()),
    (10, |soak| soak.claim()),
    (8, |soak| soak.release()),
    (2, |soak| soak.cancel_claim()),
    (4, |soak| soak.steer_job()),
    (3, |soak| soak.rate()),
    (6, |soak| soak.start_or_stop()),
    (6, |soak| soak.reset_small()),
    (3, |soak| soak.reset_any()),
    (6, |soak| soak.make_noise()),
    (5, |soak| soak.report()),
];

impl<'a> Soak<'a> {
    /// Creates a soak test that will last for `time`.
    pub(crate) fn new(
        system: &'a mut System,
        progress: &'a mut Progress,
        random: Random,
        time: Duration,
    ) -> Self {
        let retired = (time.as_secs_f64() / 3600.0 * RETIRED_PER_HOUR).ceil() as u64;
        Self {
            system,
            progress,
            random,
            members: fleet::members(),
            tally: Tally::default(),
            open_jobs: BTreeSet::new(),
            claims: Vec::new(),
            closed: BTreeSet::new(),
            is_pinned: false,
            may_retire: retired.min(RETIRED_MOST),
        }
    }

    /// Performs one random action.
    pub(crate) fn step(&mut self) {
        self.progress.step += 1;
        let total: usize = ACTIONS.iter().map(|(weight, _)| weight).sum();
        let mut at = self.random.below(total);
        for (weight, action) in ACTIONS {
            if at < weight {
                return action(self);
            }
            at -= weight;
        }
    }

    /// Follows the effects of earlier steps: jobs that end, and guests, none of which may stop or start by itself.
    pub(crate) fn follow(&mut self) {
        fleet::compare(self.system, &self.members);
        let report = self.system.json("jobs");
        let mut remembered = BTreeSet::new();
        for job in report["jobs"].as_array().into_iter().flatten() {
            let number = job["job"].as_u64().unwrap_or(0);
            let state = job["state"].as_str().unwrap_or_default();
            remembered.insert(number);
            if self.open_jobs.contains(&number) && !OPEN_JOB.contains(&state) {
                self.open_jobs.remove(&number);
                *self.tally.jobs.entry(state.to_owned()).or_default() += 1;
                self.tally.moved_bytes += job["moved_bytes"].as_u64().unwrap_or(0);
                self.tally.unmoved_bytes += job["unmoved_bytes"].as_u64().unwrap_or(0);
            }
        }
        // Ballast remembers the last few jobs that ended.
        let forgotten: Vec<u64> = self.open_jobs.difference(&remembered).copied().collect();
        for number in forgotten {
            self.open_jobs.remove(&number);
            *self.tally.jobs.entry("forgotten".into()).or_default() += 1;
        }
    }

    /// Checks a guest, if it is on.
    pub(crate) fn look(&mut self, index: usize) {
        let member = &mut self.members[index];
        if member.is_on {
            self.progress.note(format!("look at {}", member.name));
            if fleet::is_well(self.system, member) {
                self.tally.well_count += 1;
            }
        }
    }

    /// Runs `check`.
    pub(crate) fn check(&mut self) {
        self.progress.note("check".into());
        books::check(self.system);
        self.tally.check_count += 1;
    }

    /// Runs a command that may be refused. Returns its report if it was accepted.
    fn give(&mut self, action: &'static str, command: &str) -> Option<Value> {
        let report = self.system.json(command);
        let is_refused = report["report"] == "error";
        let answer = if is_refused { &report["error"] } else { &Value::Null };
        self.progress.note(format!(
            "{command}{}{}",
            if is_refused { ": " } else { "" },
            answer.as_str().unwrap_or("")
        ));
        if is_refused {
            self.tally.was_refused(action, answer.as_str().unwrap_or_default());
            return None;
        }
        self.tally.did(action);
        self.open_jobs.extend(report["job"].as_u64());
        Some(report)
    }

    fn any_member(&mut self) -> (usize, &'static str, &'static str) {
        let index = self.random.below(self.members.len());
        (index, self.members[index].name, self.members[index].region)
    }

    /// Returns a guest, usually one that is on: commands for the others are refused.
    fn any_that_is_on(&mut self) -> (usize, &'static str, &'static str) {
        let (mut index, mut tries) = (self.random.below(self.members.len()), 8);
        while !self.members[index].is_on && tries > 0 {
            (index, tries) = (self.random.below(self.members.len()), tries - 1);
        }
        (index, self.members[index].name, self.members[index].region)
    }

    fn migrate(&mut self) {
        let (_, name, region) = self.any_that_is_on();
        let controller = self.random.pick(&CONTROLLER_NAMES);
        let region = match self.random.below(4) {
            0 => region.to_owned(),
            1 => {
                let (size, at) = (2 << self.random.below(5), self.random.below(16));
                format!("{size}M@{:#x}", 0x4000_0000 + at * (1 << 20))
            }
            _ => "all".into(),
        };
        self.give("migrate", &format!("migrate {name} {region} {controller}"));
    }

    fn pin(&mut self) {
        let (_, name, region) = self.any_that_is_on();
        let region = if self.random.below(2) == 0 { region } else { "all" };
        let (one, other) =
            (self.random.below(CONTROLLER_NAMES.len()), self.random.below(CONTROLLER_NAMES.len()));
        let mode = *self.random.pick(&["strict", "preferred", "preferred", "interleave"]);
        let controllers = if one == other {
            CONTROLLER_NAMES[one].to_owned()
        } else {
            format!("{},{}", CONTROLLER_NAMES[one], CONTROLLER_NAMES[other])
        };
        if self.give("pin", &format!("pin {name} {region} {controllers} {mode}")).is_some() {
            self.is_pinned |= mode != "preferred";
        }
    }

    fn unpin(&mut self) {
        let (_, name, _) = self.any_member();
        self.give("unpin", &format!("unpin {name} all"));
    }

    fn evacuate(&mut self) {
        let controller = *self.random.pick(&CONTROLLER_NAMES);
        // Half of the controllers stay open, for the guests.
        if self.closed.len() < 2 && self.give("evacuate", &format!("evacuate {controller}")).is_some() {
            self.closed.insert(controller);
        }
    }

    fn restore(&mut self) {
        let closed: Vec<&str> = self.closed.iter().copied().collect();
        if let Some(&controller) = closed.get(self.random.below(closed.len().max(1))) {
            self.give("restore", &format!("restore {controller}"));
            self.closed.remove(controller);
        }
    }

    fn retire(&mut self) {
        if self.may_retire == 0 {
            return;
        }
        self.may_retire -= 1;
        let report = self.system.json("controllers");
        // Ballast itself is behind the first controller.
        let controller = &report["controllers"][1 + self.random.below(CONTROLLER_NAMES.len() - 1)];
        let range = &controller["ranges"][0];
        let base = range["base"].as_str().unwrap_or_default();
        let base = u64::from_str_radix(base.trim_start_matches("0x"), 16).unwrap_or(0);
        let frames = range["size_bytes"].as_u64().unwrap_or(0) / 4096;
        let at = base + self.random.below(frames.max(1) as usize) as u64 * 4096;
        self.give("retire", &format!("retire {at:#x} 4K"));
    }

    fn balance(&mut self) {
        let by = *self.random.pick(&["free", "bytes", "heat"]);
        if let Some(report) = self.give("balance", &format!("balance {by}")) {
            let shifts = report["shifts"].as_array().into_iter().flatten();
            self.open_jobs.extend(shifts.filter_map(|shift| shift["job"].as_u64()));
        }
    }

    fn heat(&mut self) {
        self.give("heat", "heat 1");
    }

    fn claim(&mut self) {
        let (pool, mib) = *self.random.pick(&POOLS);
        let size = ((mib << 10) >> self.random.below(12)).max(4);
        let size = size - self.random.below(2) as u64 * ((size / 4) & !3);
        let align = *self.random.pick(&["", "", " 64K", " 2M"]);
        if let Some(report) = self.give("claim", &format!("claim {pool} {size}K{align}")) {
            self.claims.extend(report["claim"].as_u64());
        }
    }

    fn release(&mut self) {
        match (self.random.below(6), self.claims.is_empty()) {
            (0, _) | (_, true) => {
                let (pool, _) = *self.random.pick(&POOLS);
                self.give("release", &format!("release {pool}"));
            }
            _ => {
                let at = self.random.below(self.claims.len());
                let claim = self.claims.swap_remove(at);
                self.give("release", &format!("release {claim}"));
            }
        }
    }

    fn cancel_claim(&mut self) {
        if let Some(&claim) = self.claims.last() {
            self.give("claim cancel", &format!("claim cancel {claim}"));
        }
    }

    fn steer_job(&mut self) {
        let jobs: Vec<u64> = self.open_jobs.iter().copied().collect();
        if let Some(&job) = jobs.get(self.random.below(jobs.len().max(1))) {
            let verb = *self.random.pick(&["pause", "resume", "resume", "cancel"]);
            self.give(verb, &format!("{verb} {job}"));
        }
    }

    fn rate(&mut self) {
        let command = *self.random.pick(&[
            "rate limit off",
            "rate limit off",
            "rate limit 100M",
            "rate limit 10M",
            "rate share 10",
            "rate share 90",
            "rate slice 50",
            "rate slice 200",
            "rate stall 64K",
            "rate stall 2M",
        ]);
        self.give("rate", command);
    }

    fn start_or_stop(&mut self) {
        let off: Vec<usize> = (0..self.members.len()).filter(|&at| !self.members[at].is_on).collect();
        // About two guests are off at a time.
        if self.random.below(4) < off.len() {
            let index = *self.random.pick(&off);
            return self.start(index);
        }
        let (index, ..) = self.any_that_is_on();
        self.stop(index);
    }

    /// Resets one of the guests that start quickly.
    fn reset_small(&mut self) {
        let small = ["tiny", "tiny", "irq", "stress", "writer"];
        let name = *self.random.pick(&small);
        if let Some(index) = self.members.iter().position(|member| member.name == name) {
            self.reset(index);
        }
    }

    fn reset_any(&mut self) {
        let (index, ..) = self.any_that_is_on();
        self.reset(index);
    }

    fn make_noise(&mut self) {
        self.progress.note("noise".into());
        self.tally.noise_bytes += noise::make(self.system, &mut self.random, &self.members);
        self.tally.did("noise");
    }

    /// Runs a command that reports, and checks that the report is complete.
    fn report(&mut self) {
        let (_, name, _) = self.any_member();
        let pool = self.random.pick(&POOLS).0;
        let commands = [
            format!("guest {name}"),
            format!("guest {name} map"),
            format!("stats {name}"),
            format!("pool {pool}"),
            "top".into(),
            "map".into(),
            "zones".into(),
            "buddyinfo".into(),
            "pagetypeinfo".into(),
            "dmb".into(),
            "pools".into(),
            "claims".into(),
            "cpus".into(),
            "trace on".into(),
            "trace 200".into(),
            "trace off".into(),
            "cost".into(),
            "console".into(),
        ];
        let command = self.random.pick(&commands).clone();
        if command == "top" {
            // A full-screen command, which any key ends.
            self.progress.note("top".into());
            self.system.bring_to_front(system_tests::Console::Monitor);
            self.system.send("top 1\r");
            std::thread::sleep(Duration::from_millis(1500));
            self.system.send("q");
            self.system.monitor("console front");
            self.tally.did("report");
            return;
        }
        self.give("report", &command);
    }

    /// Starts a guest that is off. It may stay off because of earlier actions.
    pub(crate) fn start(&mut self, index: usize) {
        let name = self.members[index].name;
        if self.give("start", &format!("start {name}")).is_some() {
            self.await_start("start", index);
        }
    }

    fn reset(&mut self, index: usize) {
        let (name, is_on) = (self.members[index].name, self.members[index].is_on);
        if !is_on {
            return;
        }
        // It reports once more that it is well.
        if self.random.below(4) == 0 {
            self.look(index);
        }
        if self.give("reset", &format!("reset {name}")).is_some() {
            self.await_start("reset", index);
        }
    }

    fn await_start(&mut self, action: &'static str, index: usize) {
        let name = self.members[index].name;
        let guest = fleet::wait_for_state(self.system, name, &["running", "failed", "off"]);
        if guest["state"] == "running" {
            self.members[index].has_started();
            return;
        }
        let reason = guest["reason"].as_str().unwrap_or_default().to_owned();
        let is_restricted = !self.closed.is_empty() || self.is_pinned || !self.claims.is_empty();
        assert!(is_restricted, "{name} does not {action}, though nothing is in its way: {guest}");
        self.tally.was_refused(action, &reason);
        self.progress.note(format!("{name} does not {action}: {reason}"));
        self.members[index].is_on = false;
    }

    /// Stops a guest that is on.
    pub(crate) fn stop(&mut self, index: usize) {
        let name = self.members[index].name;
        if self.random.below(2) == 0 {
            self.look(index);
        }
        if self.give("stop", &format!("stop {name}")).is_some() {
            fleet::wait_for_state(self.system, name, &["off"]);
            self.members[index].is_on = false;
            self.members[index].is_ready = false;
        }
    }

    /// Undoes rates, jobs, claims, pins, and closed controllers.
    ///
    /// # Panics
    /// A job or a claim does not end.
    pub(crate) fn settle(&mut self) {
        for command in ["rate limit off", "rate share 90", "trace off"] {
            self.give("settle", command);
        }
        for job in self.open_jobs.clone() {
            self.give("cancel", &format!("cancel {job}"));
        }
        let until = Instant::now() + patience();
        while !self.open_jobs.is_empty() {
            self.follow();
            assert!(Instant::now() < until, "jobs {:?} do not end", self.open_jobs);
            std::thread::sleep(Duration::from_millis(50));
        }
        for (pool, _) in POOLS {
            self.await_claims(until);
            self.give("release", &format!("release {pool}"));
        }
        self.await_claims(until);
        loop {
            let pools = self.system.json("pools");
            let is_operators = |pool: &&Value| POOLS.iter().any(|(name, _)| pool["pool"] == *name);
            let mut operators = pools["pools"].as_array().into_iter().flatten().filter(is_operators);
            if operators.all(|pool| pool["claimed_bytes"] == 0) {
                break;
            }
            assert!(Instant::now() < until, "what is claimed does not come back: {pools}");
            std::thread::sleep(Duration::from_millis(50));
        }
        for controller in std::mem::take(&mut self.closed) {
            self.give("restore", &format!("restore {controller}"));
        }
        for index in 0..self.members.len() {
            let name = self.members[index].name;
            self.give("unpin", &format!("unpin {name} all"));
        }
        self.claims.clear();
        self.is_pinned = false;
    }

    /// Waits until no claim and no release of the operator is pending.
    fn await_claims(&mut self, until: Instant) {
        loop {
            let report = self.system.json("claims");
            let is_open = |claim: &&Value| {
                let is_operators = POOLS.iter().any(|(name, _)| claim["pool"] == *name);
                is_operators && claim["state"].as_str().is_some_and(|state| !CLAIM_OVER.contains(&state))
            };
            if report["claims"].as_array().into_iter().flatten().find(is_open).is_none() {
                return;
            }
            assert!(Instant::now() < until, "claims do not end: {report}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
