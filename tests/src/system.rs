//! A running system, and the means by which a test controls it.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ballast_qemu::boot::Boot;
use ballast_qemu::session::Session;
use ballast_tools::monitor::report_in;
use regex::Regex;
use serde_json::Value;

use crate::patience;
use crate::screen::text;

/// A console on the serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Ballast's monitor.
    Monitor,
    /// The guest with this index.
    Guest(usize),
}

/// Ballast's prefix key: Ctrl-].
const PREFIX: char = '\x1d';

/// A running system. Dropping it ends QEMU, and prints the transcript if the test fails.
#[derive(Debug)]
pub struct System {
    session: Session,
    names: Vec<String>,
    front: Console,
    /// True once the monitor has shown its prompt and takes keys.
    is_ready: bool,
    mark_count: u32,
    started: Instant,
}

impl System {
    /// Starts `boot` with the guests `names`.
    pub(crate) fn start(boot: &Boot, names: Vec<String>) -> Self {
        let session = Session::start(boot).unwrap_or_else(|error| panic!("{error}"));
        Self {
            session,
            names,
            front: Console::Monitor,
            is_ready: false,
            mark_count: 0,
            started: Instant::now(),
        }
    }

    /// Returns the session, for raw bytes, QEMU's error output, and its end.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Returns the whole output of the serial line, as a terminal would show it.
    pub fn transcript(&self) -> String {
        text(&self.session.transcript())
    }

    /// Waits for `pattern` in the output of any console. Returns the output up to it.
    ///
    /// # Panics
    /// The pattern does not appear.
    #[track_caller]
    pub fn expect(&mut self, pattern: &str) -> String {
        match self.session.expect(pattern, patience()) {
            Ok(said) => text(&said),
            Err(error) => panic!("{error}\n{}", self.session.complaints()),
        }
    }

    /// Waits for `pattern` as [`Self::expect`] does. Returns `None` if it does not appear within `time`.
    pub fn expect_within(&mut self, pattern: &str, time: Duration) -> Option<String> {
        self.session.expect(pattern, time).ok().map(|said| text(&said))
    }

    /// Types `keys` at the console in front.
    ///
    /// # Panics
    /// QEMU has ended.
    #[track_caller]
    pub fn send(&mut self, keys: &str) {
        if let Err(error) = self.session.send(keys) {
            panic!("{error}\n{}", self.session.complaints());
        }
    }

    /// Waits until Ballast's monitor takes keys.
    ///
    /// # Panics
    /// The prompt does not appear.
    #[track_caller]
    pub fn wait_for_monitor(&mut self) {
        if !self.is_ready {
            self.expect("ballast> ");
            self.is_ready = true;
        }
    }

    /// Brings a console to the front.
    #[track_caller]
    pub fn bring_to_front(&mut self, console: Console) {
        self.wait_for_monitor();
        if self.front == console {
            return;
        }
        self.front = console;
        let name = match console {
            Console::Monitor => "monitor".to_owned(),
            Console::Guest(index) => self.names[index].clone(),
        };
        let banner = format!(r"--- {} \(Ctrl-\] .\)[^\n]*---\r\n|There is no guest", regex::escape(&name));
        let key = match console {
            Console::Monitor => 'm',
            Console::Guest(index) => char::from_digit(index as u32 + 1, 10).unwrap_or('?'),
        };
        self.send(&format!("{PREFIX}{key}"));
        let said = self.expect(&banner);
        assert!(!said.ends_with("There is no guest"), "no guest `{name}`");
    }

    /// Runs `command` in the monitor. Returns its output without log lines.
    ///
    /// # Panics
    /// The command does not end.
    #[track_caller]
    pub fn monitor(&mut self, command: &str) -> String {
        self.bring_to_front(Console::Monitor);
        // The error for an unknown command, which names it on a line without a prompt, marks the end of the output.
        self.mark_count += 1;
        let mark = format!("mark{}", self.mark_count);
        self.send(&format!("{command}\r{mark}\r"));
        let mut said = String::new();
        let end = loop {
            said.push_str(&self.expect(&mark));
            let shown = without_log(&said);
            let is_answer = |line: &&str| line.contains(&mark) && !line.starts_with("ballast>");
            // A line with only the mark is the terminal's echo of keys that were typed ahead.
            if shown.lines().any(|line| is_answer(&line) && line.trim() != mark) {
                break shown;
            }
        };
        self.expect("ballast> ");
        let typed = format!("ballast> {command}");
        let lines: Vec<&str> = end.lines().collect();
        let first = lines.iter().rposition(|line| line.trim_end() == typed.trim_end()).map_or(0, |at| at + 1);
        let last = lines.iter().rposition(|line| line.starts_with("ballast>")).unwrap_or(lines.len());
        lines.get(first..last.max(first)).unwrap_or_default().join("\n")
    }

    /// Runs `command` with `--json`. Returns its report.
    ///
    /// # Panics
    /// The report is not valid JSON, or its checksum is wrong.
    #[track_caller]
    pub fn json(&mut self, command: &str) -> Value {
        let said = self.monitor(&format!("{command} --json"));
        let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_default();
        report_in(line)
            .and_then(Result::ok)
            .unwrap_or_else(|| panic!("`{command} --json` printed no valid report: `{said}`"))
    }

    /// Waits for the shell of the Linux guest `name`.
    ///
    /// # Panics
    /// The shell does not answer.
    #[track_caller]
    pub fn wait_for_shell(&mut self, name: &str) {
        self.to_guest(name);
        let until = Instant::now() + patience();
        // Keys that are typed before the shell starts are lost: ask again until it answers.
        while Instant::now() < until {
            self.send("\r");
            let asked = format!("echo shell of \"\"{name}\r");
            if self.expect_within(r":[^\n]*# ", Duration::from_secs(3)).is_some() {
                self.send(&asked);
                if self.expect_within(&format!("shell of {name}"), Duration::from_secs(20)).is_some() {
                    return;
                }
            }
        }
        panic!("{name} has no shell after {} s", patience().as_secs());
    }

    /// Runs `command` in the shell of guest `name`. Returns its output.
    ///
    /// # Panics
    /// The command fails or does not end.
    #[track_caller]
    pub fn run(&mut self, name: &str, command: &str) -> String {
        let (said, status) = self.run_with_status(name, command);
        assert_eq!(status, 0, "`{command}` in {name} failed: {said}");
        said
    }

    /// Runs `command` in the shell of guest `name`. Returns its output and exit status.
    ///
    /// # Panics
    /// The command does not end.
    #[track_caller]
    pub fn run_with_status(&mut self, name: &str, command: &str) -> (String, i32) {
        self.to_guest(name);
        self.mark_count += 1;
        let count = self.mark_count;
        // The echo of the typed line has quotes, the output does not.
        self.send(&format!("echo \"<\"{count}\"<\"; {command}; echo \">\"{count}\">\"$?\"|\"\r"));
        self.expect(&format!("<{count}<"));
        let said = self.expect(&format!(r">{count}>\d+\|"));
        let end =
            Regex::new(&format!(r"(?s)^(.*)>{count}>(\d+)\|$")).unwrap_or_else(|error| panic!("{error}"));
        let said = without_log(&said);
        let parts = end.captures(&said).unwrap_or_else(|| panic!("no end in `{said}`"));
        let status = parts[2].parse().unwrap_or_else(|error| panic!("{error}: {}", &parts[2]));
        (parts[1].trim_matches('\n').to_owned(), status)
    }

    /// Brings guest `name` to the front. Bare Linux has no monitor, and needs no switch.
    ///
    /// # Panics
    /// There is no such guest.
    #[track_caller]
    pub fn to_guest(&mut self, name: &str) {
        if self.names == ["bare"] {
            return;
        }
        let index = self.names.iter().position(|known| known == name);
        let index = index.unwrap_or_else(|| panic!("no guest `{name}` among {:?}", self.names));
        self.bring_to_front(Console::Guest(index));
    }

    /// Waits until QEMU ends.
    ///
    /// # Panics
    /// QEMU does not end.
    #[track_caller]
    pub fn wait_for_end(&mut self) {
        if let Err(error) = self.session.wait_for_end(patience()) {
            panic!("{error}");
        }
    }

    /// Reads the memory behind controller `index`, from `offset`.
    ///
    /// # Panics
    /// The range is beyond the end of the memory.
    #[track_caller]
    pub fn read_controller(&self, index: usize, offset: u64, bytes: &mut [u8]) {
        let path = self.session.controller_file(index);
        let read = std::fs::File::open(&path).and_then(|file| file.read_exact_at(bytes, offset));
        if let Err(error) = read {
            panic!("{}: {error}", path.display());
        }
    }

    /// Writes to the memory behind controller `index` at `offset`, without the knowledge of any software.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn write_controller(&self, index: usize, offset: u64, bytes: &[u8]) {
        let path = self.session.controller_file(index);
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        if let Err(error) = file.and_then(|file| file.write_all_at(bytes, offset)) {
            panic!("{}: {error}", path.display());
        }
    }

    /// Finds `pattern` in the memory behind controller `index`. Returns its offsets that are multiples of `alignment`.
    ///
    /// # Panics
    /// The file cannot be read.
    pub fn find_in_controller(&self, index: usize, pattern: &[u8], alignment: usize) -> Vec<u64> {
        const CHUNK: u64 = 4 << 20;
        let path = self.session.controller_file(index);
        let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let mut found = Vec::new();
        let mut chunk = Vec::new();
        for start in (0..size).step_by(CHUNK as usize) {
            let end = size.min(start + CHUNK + pattern.len() as u64 - 1);
            chunk.resize((end - start) as usize, 0);
            self.read_controller(index, start, &mut chunk);
            let places = (0..CHUNK.min(size - start) as usize).step_by(alignment);
            found.extend(places.filter(|&at| chunk[at..].starts_with(pattern)).map(|at| start + at as u64));
        }
        found
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // The test's thread has its name. Not by `eprintln!`, which is shown for failed tests only.
        let thread = std::thread::current();
        let took =
            format!("{:7.1} s  {}\n", self.started.elapsed().as_secs_f32(), thread.name().unwrap_or("?"));
        let _ = std::io::stderr().write_all(took.as_bytes());
        if std::thread::panicking() {
            eprintln!("--- {}", self.session.command());
            eprintln!("{}", self.transcript());
            eprintln!("--- QEMU said: {}", self.session.complaints());
        }
    }
}

/// Returns `shown` without the lines of Ballast's log, which can come between any others.
fn without_log(shown: &str) -> String {
    let is_log = |line: &str| {
        let mut words = line.split_whitespace();
        let is_stamp = words.next().is_some_and(|word| word.contains('.') && word.parse::<f64>().is_ok());
        is_stamp
            && words.next().is_some_and(|word| ["error", "warn", "info", "debug", "trace"].contains(&word))
    };
    let kept: Vec<&str> = shown.split('\n').filter(|line| !is_log(line)).collect();
    kept.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_left_out() {
        let shown = "a\n    0.024375 info  boot::start: Ballast\n1.5 GiB free\nb";
        assert_eq!(without_log(shown), "a\n1.5 GiB free\nb");
    }
}
