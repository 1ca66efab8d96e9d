//! Sessions: the console, the machine and the requested form of the answer, as a running command sees them.

use core::fmt::{self, Write};

use stage2::phys::alloc::Memory;

use super::baseline::Baseline;
use super::claiming::Claiming;
use super::failure::{Done, Failure};
use super::grammar::{Arguments, Kind, Need, Parameter, Words, nearest, parse};
use super::machine::{Machine, Reason, reason, set_reason};
use super::migration::Migration;
use super::mux::INTERRUPT;
use super::report::{Cell, Report, Style, Table};

/// The console as the monitor uses it. Calls that wait let others run meanwhile.
pub trait MonitorIo {
    /// Reads a byte that was typed; waits for it, until `deadline_ns` if that is given.
    fn read(&mut self, deadline_ns: Option<u64>) -> Option<u8>;
    /// Returns the next byte, if there is one, and leaves it in the input.
    fn peek(&mut self) -> Option<u8>;
    /// Writes all of `bytes`; waits for room.
    fn write(&mut self, bytes: &[u8]);
    /// Lets others run until `until_ns`, or until new input arrives.
    fn sleep(&mut self, until_ns: u64);
    /// Lets others run.
    fn pause(&mut self);
    /// Returns the time since boot in nanoseconds.
    fn now_ns(&mut self) -> u64;
}

/// A command of the shell.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Its parameters.
    pub parameters: &'static [Parameter],
    /// Its purpose, in a line.
    pub summary: &'static str,
    /// More about it; may be empty.
    pub details: &'static str,
    /// An example of its use.
    pub example: &'static str,
    /// The function that executes it.
    pub run: Run,
}

/// The function of a command.
pub type Run = fn(&mut Session<'_>, &Arguments<'_>) -> Done;

/// Makes a command without parameters and details, whose example is its name.
pub const fn command(name: &'static str, run: Run, summary: &'static str) -> Command {
    Command { name, parameters: &[], summary, details: "", example: name, run }
}

impl Command {
    /// Adds parameters.
    #[must_use]
    pub const fn takes(mut self, parameters: &'static [Parameter]) -> Self {
        self.parameters = parameters;
        self
    }

    /// Adds details.
    #[must_use]
    pub const fn details(mut self, details: &'static str) -> Self {
        self.details = details;
        self
    }

    /// Replaces the example.
    #[must_use]
    pub const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    /// Returns its name and parameters.
    pub fn usage(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| {
            f.write_str(self.name)?;
            self.parameters.iter().try_for_each(|parameter| match parameter.need {
                Need::Required => write!(f, " {}", parameter.name),
                Need::Optional => write!(f, " [{}]", parameter.name),
            })
        })
    }
}

/// The commands of the shell, in the order in which `help` lists them.
#[derive(Clone, Copy)]
pub struct Commands(pub &'static [Command]);

impl Commands {
    /// Finds a command by its name.
    pub fn find(self, name: &str) -> Option<&'static Command> {
        let name = if name == "?" { "help" } else { name };
        self.0.iter().find(|command| command.name == name)
    }

    /// Tests if the command `name` takes another command as its last argument.
    pub fn takes_line(self, name: &str) -> bool {
        let last = self.find(name).and_then(|command| command.parameters.last());
        last.is_some_and(|parameter| matches!(parameter.kind, Kind::Line))
    }
}

/// The state that the monitor keeps from one command to the next.
#[derive(Debug, Default)]
pub struct State {
    /// The counters at the last `stats reset`.
    pub baseline: Baseline,
    /// The error text of the last command that failed.
    pub why: Reason,
}

impl State {
    /// Creates the state after boot.
    pub const fn new() -> Self {
        Self { baseline: Baseline::new(), why: Reason::new() }
    }
}

/// The surroundings of a command. Writing to it writes to the console.
pub struct Session<'a> {
    io: &'a mut dyn MonitorIo,
    /// The commands that there are.
    pub commands: Commands,
    /// The state kept between commands.
    pub state: &'a mut State,
    /// The machine.
    pub machine: &'a dyn Machine,
    /// The form of the answer.
    pub style: Style,
    /// True once Ctrl-C was pressed.
    is_interrupted: bool,
}

impl<'a> Session<'a> {
    /// Creates a session.
    pub fn new(
        io: &'a mut dyn MonitorIo,
        commands: Commands,
        machine: &'a dyn Machine,
        state: &'a mut State,
    ) -> Self {
        Self { io, commands, state, machine, style: Style::default(), is_interrupted: false }
    }

    /// Executes a line.
    ///
    /// # Errors
    /// The line is wrong, the machine refuses, or the operator interrupts.
    pub fn run(&mut self, line: &str) -> Done {
        let commands = self.commands;
        let takes_line = |name: &str| commands.takes_line(name);
        let words = Words::split(line, &takes_line, &mut self.state.why).inspect_err(|_| {
            self.style.is_json |= line.split(' ').any(|word| word == "--json");
        })?;
        self.style.is_json |= words.style.is_json;
        self.style.is_exact |= words.style.is_exact;
        let Some(name) = words.name() else {
            return if words.wants_help { self.run("help") } else { Ok(()) };
        };
        let command = self.find(name)?;
        if words.wants_help {
            return self.run(&reason(format_args!("help {}", command.name)));
        }
        let arguments = parse(command.parameters, &words, self.machine, &mut self.state.why)?;
        (command.run)(self, &arguments)
    }

    /// Finds a command by its name.
    ///
    /// # Errors
    /// There is none; the text names a similar one.
    pub fn find(&mut self, name: &str) -> Result<&'static Command, Failure> {
        if let Some(command) = self.commands.find(name) {
            return Ok(command);
        }
        if ["exit", "quit", "logout"].contains(&name) {
            return Err(self.usage(format_args!(
                "the monitor does not exit: Ctrl-] 1 shows the first guest, Ctrl-] ? lists the keys; Ctrl-A X quits QEMU"
            )));
        }
        Err(match nearest(name, self.commands.0.iter().map(|command| command.name)) {
            Some(near) => self.usage(format_args!("unknown command '{name:.32}'; did you mean {near}?")),
            None => self.usage(format_args!("unknown command '{name:.32}'; help lists the commands")),
        })
    }

    /// Writes the report `name`, whose parts `write` adds.
    ///
    /// # Errors
    /// The operator interrupts.
    pub fn report(
        &mut self,
        name: &str,
        mut write: impl FnMut(&mut Report<'_>, &'a dyn Machine) -> fmt::Result,
    ) -> Done {
        self.report_by(name, &mut write)
    }

    /// Writes a report. Not generic: there are many of them.
    #[inline(never)]
    fn report_by(
        &mut self,
        name: &str,
        write: &mut dyn FnMut(&mut Report<'_>, &'a dyn Machine) -> fmt::Result,
    ) -> Done {
        let (machine, style) = (self.machine, self.style);
        let mut report = Report::begin(self, style, name)?;
        write(&mut report, machine)?;
        Ok(report.end()?)
    }

    /// Writes the report `name`, which is one table, as [`Report::list`] does.
    ///
    /// # Errors
    /// The operator interrupts.
    pub fn list<T>(
        &mut self,
        name: &str,
        key: &str,
        none: &str,
        items: impl Iterator<Item = T> + Clone,
        mut row: impl FnMut(&mut Table<'_>, T) -> fmt::Result,
    ) -> Done {
        self.report(name, |report, _| report.list(key, none, items.clone(), &mut row))
    }

    /// Reports that something was done: by `text`, or in JSON by `cells`.
    ///
    /// # Errors
    /// The operator interrupts.
    pub fn done(&mut self, name: &str, text: fmt::Arguments<'_>, cells: &[Cell<'_>]) -> Done {
        self.report(name, |report, _| report.say(text).and_then(|()| report.fields(cells)))
    }

    /// Returns a usage error with this text.
    pub fn usage(&mut self, text: fmt::Arguments<'_>) -> Failure {
        Failure::usage(&mut self.state.why, text)
    }

    /// Returns the machine's refusal, with this text.
    pub fn refuse(&mut self, text: fmt::Arguments<'_>) -> Failure {
        set_reason(&mut self.state.why, text);
        Failure::Refused
    }

    /// Returns the machine's memory.
    ///
    /// # Errors
    /// It is not set up yet.
    pub fn memory(&mut self) -> Result<&'a Memory<'static>, Failure> {
        self.machine.memory().ok_or_else(|| self.refuse(format_args!("memory is not set up yet")))
    }

    /// Returns migration.
    ///
    /// # Errors
    /// It is not set up yet.
    pub fn migration(&mut self) -> Result<&'a dyn Migration, Failure> {
        self.machine.migration().ok_or_else(|| self.refuse(format_args!("migration is not set up yet")))
    }

    /// Returns pools and claims.
    ///
    /// # Errors
    /// There are no pools.
    pub fn claiming(&mut self) -> Result<&'a dyn Claiming, Failure> {
        let claiming = self.machine.claiming().filter(|claiming| claiming.claims().pools().is_some());
        claiming.ok_or_else(|| self.refuse(format_args!("there are no pools")))
    }

    /// Lets others run in the middle of a long computation.
    ///
    /// # Errors
    /// The operator interrupts.
    pub fn pause(&mut self) -> Done {
        self.io.pause();
        // Writing checks for Ctrl-C.
        Ok(self.write_str("")?)
    }

    /// Returns the console.
    pub fn io(&mut self) -> &mut dyn MonitorIo {
        self.io
    }

    /// Creates another session on the same console.
    pub fn nested(&mut self, style: Style) -> Session<'_> {
        Session {
            io: &mut *self.io,
            commands: self.commands,
            state: &mut *self.state,
            machine: self.machine,
            style,
            is_interrupted: false,
        }
    }
}

impl Write for Session<'_> {
    /// Writes text with the line ends of a terminal. Fails once the operator has pressed Ctrl-C, so that every command,
    /// however long, ends.
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
