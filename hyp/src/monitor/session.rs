//! What a running command has in hand: the console, the machine, and how the operator wants the answer.

use core::fmt::{self, Write};

use super::grammar::Failure;
use super::machine::{Machine, Reason, set_reason};
use super::mux::INTERRUPT;
use super::report::{Report, Style, Value};
use crate::monitor::baseline::Baseline;

/// The console as the monitor uses it. What waits lets others run meanwhile.
pub trait MonitorIo {
    /// The next byte that was typed; waits for it, until `deadline_ns` if that is given.
    fn read(&mut self, deadline_ns: Option<u64>) -> Option<u8>;
    /// The next byte without taking it or waiting for it.
    fn peek(&mut self) -> Option<u8>;
    /// Writes all of `bytes`; waits where there is no room.
    fn write(&mut self, bytes: &[u8]);
    /// Lets others run until `until_ns`, or until there is something to read that was not there before.
    fn sleep(&mut self, until_ns: u64);
    /// Lets others run.
    fn pause(&mut self);
    /// Time since boot in nanoseconds.
    fn now_ns(&mut self) -> u64;
}

/// What the monitor remembers from one command to the next.
#[derive(Debug, Default)]
pub struct State {
    /// What the counters were at the last `stats reset`.
    pub baseline: Baseline,
    /// What was wrong with the last command that failed.
    pub why: Reason,
}

impl State {
    /// Nothing to remember.
    pub const fn new() -> Self {
        Self { baseline: Baseline::new(), why: Reason::new() }
    }
}

/// A command's surroundings. Writing to it writes to the console.
pub struct Session<'a> {
    io: &'a mut dyn MonitorIo,
    /// What was remembered.
    pub state: &'a mut State,
    /// The machine.
    pub machine: &'a dyn Machine,
    /// How the report is written.
    pub style: Style,
    /// Whether Ctrl-C was pressed since the command began.
    is_interrupted: bool,
}

impl<'a> Session<'a> {
    /// A session of a command.
    pub fn new(
        io: &'a mut dyn MonitorIo,
        machine: &'a dyn Machine,
        state: &'a mut State,
        style: Style,
    ) -> Self {
        Self { io, state, machine, style, is_interrupted: false }
    }

    /// Writes the report `name`, whose parts `write` adds.
    ///
    /// # Errors
    /// Where the operator interrupts.
    pub fn report(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut Report<'_>, &dyn Machine) -> fmt::Result,
    ) -> Result<(), Failure> {
        let (machine, style) = (self.machine, self.style);
        let mut report = Report::begin(self, style, name)?;
        write(&mut report, machine)?;
        Ok(report.end()?)
    }

    /// Says in text that something was done; `fields` say so in JSON.
    ///
    /// # Errors
    /// Where the operator interrupts.
    pub fn done(
        &mut self,
        name: &str,
        text: fmt::Arguments<'_>,
        fields: &str,
        values: &[Value<'_>],
    ) -> Result<(), Failure> {
        if self.style.is_json {
            self.report(name, |report, _| report.fields(fields, values))
        } else {
            writeln!(self, "{text}")?;
            Ok(())
        }
    }

    /// What was typed is wrong: `text` says how.
    pub fn usage(&mut self, text: fmt::Arguments<'_>) -> Failure {
        Failure::usage(&mut self.state.why, text)
    }

    /// The machine refuses: `text` says why.
    pub fn refuse(&mut self, text: fmt::Arguments<'_>) -> Failure {
        set_reason(&mut self.state.why, text);
        Failure::Refused
    }

    /// Lets others run, where a command has long to think.
    ///
    /// # Errors
    /// Where the operator interrupts.
    pub fn pause(&mut self) -> Result<(), Failure> {
        self.io.pause();
        // What writes sees the key.
        Ok(self.write_str("")?)
    }

    /// The console.
    pub fn io(&mut self) -> &mut dyn MonitorIo {
        self.io
    }

    /// Another session on the same console.
    pub fn nested(&mut self, style: Style) -> Session<'_> {
        Session {
            io: &mut *self.io,
            state: &mut *self.state,
            machine: self.machine,
            style,
            is_interrupted: false,
        }
    }
}

impl Write for Session<'_> {
    /// Writes text, line ends as terminals want them. Fails once the operator has pressed Ctrl-C: so every
    /// command, however long, ends.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !self.is_interrupted && self.io.peek() == Some(INTERRUPT) {
            let now = self.io.now_ns();
            self.io.read(Some(now));
            self.is_interrupted = true;
        }
        if self.is_interrupted {
            return Err(fmt::Error);
        }
        write_lines(self.io, text);
        Ok(())
    }
}

/// Writes text with a carriage return before each line feed.
pub fn write_lines(io: &mut dyn MonitorIo, text: &str) {
    for (at, line) in text.split('\n').enumerate() {
        if at != 0 {
            io.write(b"\r\n");
        }
        if !line.is_empty() {
            io.write(line.as_bytes());
        }
    }
}
