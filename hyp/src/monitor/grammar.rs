//! The grammar that all commands share: a command is a name, arguments and options, separated by spaces.
//!
//! A command says what it takes as a list of [`Parameter`]s. From that list come the check of what was
//! typed, the usage line, the help and the completion, so that no command checks or words this itself.
//! Optional parameters may stand anywhere: with more words than are required, the first of them are
//! given.

use core::fmt;

use super::machine::{Machine, Reason, set_reason};
use super::mux::{Console, GUESTS};
use super::region::Region;
use super::report::Style;
use super::session::Session;
use super::units;
use crate::observe::log::Level;

/// Most words of a command line, its name included.
pub const WORDS: usize = 16;

/// What an argument may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A guest's name.
    Guest,
    /// A controller's name.
    Controller,
    /// Controllers' names, separated by commas.
    Controllers,
    /// A part of a guest's RAM ([`Region`]).
    Region,
    /// A pool's name.
    Pool,
    /// Anything without a space, which the command understands itself: what it is called.
    Any(&'static str),
    /// A console: a guest's name or `monitor`.
    Console,
    /// A command's name.
    Command,
    /// A whole number between two bounds.
    Number(u64, u64),
    /// A size: `512M`, `2GiB`, `4096`, `0x1000`.
    Size,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A level of the log.
    Level,
    /// Another command with its arguments: the rest of the line.
    Line,
    /// One or the other.
    Either(&'static Kind, &'static Kind),
    /// An option of this command alone, named by the parameter: one of [`FLAGS`].
    Flag,
}

/// The options that single commands take.
pub const FLAGS: [&str; 1] = ["--force"];

/// Whether an argument has to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It has to.
    Required,
    /// It may be left out.
    Optional,
}

/// A parameter of a command.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// What usage lines call it.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Whether it has to be given.
    pub need: Need,
}

/// A parameter that has to be given.
pub const fn required(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, kind, need: Need::Required }
}

/// A parameter that may be left out.
pub const fn optional(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, kind, need: Need::Optional }
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub parameters: &'static [Parameter],
    /// What it does, in a line.
    pub summary: &'static str,
    /// More about it; may be empty.
    pub details: &'static str,
    /// An example of its use.
    pub example: &'static str,
    /// Does it.
    pub run: fn(&mut Session<'_>, &Arguments<'_>) -> Result<(), Failure>,
}

impl Command {
    /// Its name and parameters.
    pub fn usage(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| {
            f.write_str(self.name)?;
            for parameter in self.parameters {
                match parameter.need {
                    Need::Required => write!(f, " {}", parameter.name)?,
                    Need::Optional => write!(f, " [{}]", parameter.name)?,
                }
            }
            Ok(())
        })
    }
}

/// An argument, understood and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument<'a> {
    /// The guest with this index.
    Guest(usize),
    /// The controller with this index.
    Controller(usize),
    /// A console.
    Console(Console),
    /// A number, or a size in bytes.
    Number(u64),
    /// A word.
    Word(&'a str),
    /// A level of the log.
    Level(Level),
}

/// Why a command did nothing, or not all. The words for it are in [`State::why`](super::session::State).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What was typed is not what the command takes.
    Usage,
    /// The machine refuses.
    Refused,
    /// The operator pressed Ctrl-C.
    Interrupted,
}

impl Failure {
    /// What was typed is wrong: `why` becomes `text`.
    pub(super) fn usage(why: &mut Reason, text: fmt::Arguments<'_>) -> Self {
        set_reason(why, text);
        Self::Usage
    }
}

impl From<fmt::Error> for Failure {
    /// The console takes all that is written unless the operator interrupts.
    fn from(_: fmt::Error) -> Self {
        Self::Interrupted
    }
}

/// What was typed behind a command's name, checked.
#[derive(Debug)]
pub struct Arguments<'a> {
    /// By parameter.
    values: [Option<Argument<'a>>; WORDS],
}

impl<'a> Arguments<'a> {
    /// The argument for parameter `at`, if it was given.
    pub fn get(&self, at: usize) -> Option<Argument<'a>> {
        self.values.get(at).copied().flatten()
    }

    /// The guest given for parameter `at`.
    pub fn guest(&self, at: usize) -> Option<usize> {
        match self.get(at) {
            Some(Argument::Guest(guest)) => Some(guest),
            _ => None,
        }
    }

    /// The controller given for parameter `at`.
    pub fn controller(&self, at: usize) -> Option<usize> {
        match self.get(at) {
            Some(Argument::Controller(controller)) => Some(controller),
            _ => None,
        }
    }

    /// The word or line given for parameter `at`.
    pub fn word(&self, at: usize) -> Option<&'a str> {
        match self.get(at) {
            Some(Argument::Word(word)) => Some(word),
            _ => None,
        }
    }

    /// Tells if the option of parameter `at` was given.
    pub fn has_flag(&self, at: usize) -> bool {
        self.word(at).is_some()
    }

    /// The number or size given for parameter `at`.
    pub fn number(&self, at: usize) -> Option<u64> {
        match self.get(at) {
            Some(Argument::Number(number)) => Some(number),
            _ => None,
        }
    }
}

/// A command line taken apart: words, and the options that every command takes.
#[derive(Debug)]
pub struct Words<'a> {
    words: heapless::Vec<&'a str, WORDS>,
    line: &'a str,
    /// Those of [`FLAGS`] that were given.
    flags: heapless::Vec<&'a str, WORDS>,
    /// How the report is written.
    pub style: Style,
    /// Whether `--help` is among them.
    pub wants_help: bool,
}

impl<'a> Words<'a> {
    /// Takes `line` apart. Options may stand anywhere in it, but for a command that takes another one:
    /// there they belong to that.
    ///
    /// # Errors
    /// For an option that there is not, and for too many words; `why` says so.
    pub fn split(line: &'a str, takes_line: fn(&str) -> bool, why: &mut Reason) -> Result<Self, Failure> {
        let mut words = Self {
            words: heapless::Vec::new(),
            line,
            flags: heapless::Vec::new(),
            style: Style::default(),
            wants_help: false,
        };
        for word in line.split(' ').filter(|word| !word.is_empty()) {
            let is_nested = words.words.len() > 1 && words.words.first().is_some_and(|name| takes_line(name));
            match word {
                _ if is_nested => {}
                "--json" => words.style.is_json = true,
                "--exact" => words.style.is_exact = true,
                "--help" | "-h" => words.wants_help = true,
                _ if FLAGS.contains(&word) => {
                    // There is room for all words of a line that can be taken.
                    let _ = words.flags.push(word);
                }
                _ if word.len() > 1 && word.starts_with('-') => {
                    let text = format_args!("{word} is no option; there are --json, --exact and --help");
                    return Err(Failure::usage(why, text));
                }
                _ => {}
            }
            if is_nested || !word.starts_with('-') || word.len() == 1 {
                let too_many = |_| Failure::usage(why, format_args!("more than {WORDS} words"));
                words.words.push(word).map_err(too_many)?;
            }
        }
        Ok(words)
    }

    /// The command's name.
    pub fn name(&self) -> Option<&'a str> {
        self.words.first().copied()
    }

    /// What stands behind the name.
    pub fn arguments(&self) -> &[&'a str] {
        self.words.get(1..).unwrap_or(&[])
    }

    /// The line from its `at`th word on.
    fn rest(&self, at: usize) -> &'a str {
        let Some(word) = self.words.get(at) else { return "" };
        // A word is a part of the line: where it lies is the difference of their addresses.
        let start = (word.as_ptr() as usize).saturating_sub(self.line.as_ptr() as usize);
        self.line.get(start..).unwrap_or("").trim_end_matches(' ')
    }
}

/// Checks what was typed against what `command` takes.
///
/// # Errors
/// `why` says what is wrong and what was expected.
pub fn parse<'a>(
    command: &Command,
    words: &Words<'a>,
    machine: &dyn Machine,
    why: &mut Reason,
) -> Result<Arguments<'a>, Failure> {
    let given = words.arguments();
    let required = command.parameters.iter().filter(|parameter| parameter.need == Need::Required).count();
    let mut spare = given.len().saturating_sub(required);
    let mut values = [None; WORDS];
    let mut next = 0;
    let takes = |flag: &str| command.parameters.iter().any(|parameter| parameter.name == flag);
    if let Some(flag) = words.flags.iter().find(|flag| !takes(flag)) {
        return Err(Failure::usage(why, format_args!("{} takes no {flag}", command.name)));
    }
    for (value, parameter) in values.iter_mut().zip(command.parameters) {
        if let Kind::Flag = parameter.kind {
            *value = words.flags.contains(&parameter.name).then_some(Argument::Word(parameter.name));
            continue;
        }
        if parameter.need == Need::Optional {
            if spare == 0 {
                continue;
            }
            spare -= 1;
        }
        let Some(&word) = given.get(next) else {
            return Err(Failure::usage(why, format_args!("{} is missing", parameter.name)));
        };
        next += 1;
        if let Kind::Line = parameter.kind {
            *value = Some(Argument::Word(words.rest(next)));
            next = given.len();
            continue;
        }
        let understood = understand(parameter.kind, word, machine);
        *value = Some(understood.ok_or_else(|| refuse(parameter, word, machine, why))?);
    }
    match given.get(next) {
        Some(word) => Err(Failure::usage(why, format_args!("nothing was expected at '{word:.40}'"))),
        None => Ok(Arguments { values }),
    }
}

fn understand<'a>(kind: Kind, word: &'a str, machine: &dyn Machine) -> Option<Argument<'a>> {
    match kind {
        Kind::Guest => find_guest(word, machine).map(Argument::Guest),
        Kind::Controller => (0..machine.controller_count())
            .find(|&at| machine.controller(at).is_some_and(|controller| controller.name == word))
            .map(Argument::Controller),
        Kind::Controllers => {
            let is_known = |name| understand(Kind::Controller, name, machine).is_some();
            word.split(',').all(is_known).then_some(Argument::Word(word))
        }
        Kind::Pool => {
            let pools = machine.claiming()?.claims().pools()?;
            pools.find(word).map(|_| Argument::Word(word))
        }
        Kind::Any(_) => Some(Argument::Word(word)),
        Kind::Region => Region::parse(word).map(|_| Argument::Word(word)),
        Kind::Console => find_console(word, machine).map(Argument::Console),
        Kind::Command => Some(Argument::Word(word)),
        Kind::Number(least, most) => {
            units::parse_number(word).filter(|number| (least..=most).contains(number)).map(Argument::Number)
        }
        Kind::Size => units::parse_size(word).map(Argument::Number),
        Kind::Word(choices) => choices.contains(&word).then_some(Argument::Word(word)),
        Kind::Level => Level::from_name(word).map(Argument::Level),
        Kind::Line | Kind::Flag => None,
        Kind::Either(one, other) => {
            understand(*one, word, machine).or_else(|| understand(*other, word, machine))
        }
    }
}

pub(super) fn find_guest(name: &str, machine: &dyn Machine) -> Option<usize> {
    (0..machine.guest_count()).find(|&guest| machine.guest(guest).is_some_and(|guest| guest.name == name))
}

fn find_console(name: &str, machine: &dyn Machine) -> Option<Console> {
    let guests = (0..GUESTS).filter_map(Console::guest);
    core::iter::once(Console::MONITOR)
        .chain(guests)
        .find(|&console| machine.console(console).is_some_and(|status| status.name == name))
}

/// Says what was expected in place of `word`.
fn refuse(parameter: &Parameter, word: &str, machine: &dyn Machine, why: &mut Reason) -> Failure {
    let expected = Expected { kind: parameter.kind, machine };
    Failure::usage(why, format_args!("'{word:.32}' is no {}: expected {expected}", parameter.name))
}

/// Says what a kind of argument is.
struct Expected<'a> {
    kind: Kind,
    machine: &'a dyn Machine,
}

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Number(_, u64::MAX) => f.write_str("a number, in decimal or behind 0x"),
            Kind::Number(least, most) => write!(f, "a number from {least} to {most}"),
            Kind::Size => f.write_str("a size like 2M, 512MiB or 0x200000"),
            Kind::Line => f.write_str("a command"),
            Kind::Either(one, other) => {
                let (one, other) = (Self { kind: *one, ..*self }, Self { kind: *other, ..*self });
                write!(f, "{one}, {other}")
            }
            Kind::Command => f.write_str("a command (see help)"),
            Kind::Flag => f.write_str("an option"),
            Kind::Region => f.write_str("all, dmbs, dmb0, ram0 or a range like 64M@0x48000000"),
            Kind::Controllers => {
                write!(f, "names out of {}, with commas between", Self { kind: Kind::Controller, ..*self })
            }
            Kind::Any(what) => f.write_str(what),
            Kind::Guest | Kind::Controller | Kind::Console | Kind::Pool | Kind::Word(_) | Kind::Level => {
                let mut is_first = true;
                each_choice(self.kind, self.machine, &mut |choice| {
                    let _ = f.write_str(if is_first { "" } else { ", " });
                    let _ = f.write_str(choice);
                    is_first = false;
                });
                match (is_first, self.kind) {
                    (false, _) => Ok(()),
                    (true, Kind::Pool) => f.write_str("a pool (there is none)"),
                    (true, Kind::Guest) => f.write_str("a guest (there is none)"),
                    (true, _) => f.write_str("nothing: there is none"),
                }
            }
        }
    }
}

/// Calls `take` with every word that an argument of `kind` can be, where they can be listed.
pub fn each_choice(kind: Kind, machine: &dyn Machine, take: &mut dyn FnMut(&str)) {
    match kind {
        Kind::Guest => {
            for guest in (0..machine.guest_count()).filter_map(|at| machine.guest(at)) {
                take(guest.name);
            }
        }
        Kind::Controller | Kind::Controllers => {
            for controller in (0..machine.controller_count()).filter_map(|at| machine.controller(at)) {
                take(controller.name);
            }
        }
        Kind::Console => {
            let consoles = core::iter::once(Console::MONITOR).chain((0..GUESTS).filter_map(Console::guest));
            for status in consoles.filter_map(|console| machine.console(console)) {
                take(status.name);
            }
        }
        Kind::Command | Kind::Line => {
            for command in super::command::COMMANDS {
                take(command.name);
            }
        }
        Kind::Word(choices) => choices.iter().for_each(|choice| take(choice)),
        Kind::Level => Level::ALL.iter().for_each(|level| take(level.name())),
        Kind::Either(one, other) => {
            each_choice(*one, machine, take);
            each_choice(*other, machine, take);
        }
        Kind::Pool => {
            let pools = machine.claiming().and_then(|claiming| claiming.claims().pools());
            pools.into_iter().flat_map(|pools| pools.iter()).for_each(|(_, pool)| take(pool.name.as_str()));
        }
        // A region is some guest's: completion knows whose.
        Kind::Number(..) | Kind::Size | Kind::Any(_) | Kind::Region | Kind::Flag => {}
    }
}

/// The one of `choices` that is most like `word`, if any is like it at all.
pub fn nearest(word: &str, choices: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    choices
        .map(|choice| (distance(word.as_bytes(), choice.as_bytes()), choice))
        .filter(|&(distance, choice)| distance <= 1 + choice.len() / 4)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, choice)| choice)
}

/// How many letters have to be changed, added or left out to make one word the other.
fn distance(one: &[u8], other: &[u8]) -> usize {
    const LONGEST: usize = 24;
    if one.len() > LONGEST || other.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: [usize; LONGEST + 1] = core::array::from_fn(|at| at);
    for (above, letter) in one.iter().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        let [first, ..] = &mut row;
        *first = left;
        for (place, against) in row.iter_mut().skip(1).zip(other) {
            let changed = diagonal + usize::from(letter != against);
            diagonal = *place;
            left = changed.min(diagonal + 1).min(left + 1);
            *place = left;
        }
    }
    row.get(other.len()).copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_apart() {
        fn split(line: &str) -> Result<Words<'_>, Failure> {
            Words::split(line, |name| name == "watch", &mut Reason::new())
        }
        let words = split("  guests   --json ").unwrap();
        assert_eq!(words.name(), Some("guests"));
        assert!(words.style.is_json && words.arguments().is_empty());
        let words = split("watch --json 2 guests --exact").unwrap();
        assert_eq!(words.rest(2), "guests --exact");
        assert!(words.style.is_json && !words.style.is_exact);
        assert!(split("guests --jsn").is_err());
        let words = split("migrate --force alpha --force mc1").unwrap();
        assert_eq!(
            (words.arguments(), &words.flags[..]),
            (&["alpha", "mc1"][..], &["--force", "--force"][..])
        );
        assert!(split("- -").is_ok());
        assert!(split(&"a ".repeat(17)).is_err());
    }

    #[test]
    fn near_misses_are_found() {
        let choices = || ["guests", "guest", "cpus", "reset", "controllers"].into_iter();
        assert_eq!(nearest("gests", choices()), Some("guests"));
        assert_eq!(nearest("rest", choices()), Some("reset"));
        assert_eq!(nearest("contrllrs", choices()), Some("controllers"));
        assert_eq!(nearest("xyzzy", choices()), None);
        assert_eq!(nearest(&"g".repeat(100), choices()), None);
        assert_eq!(distance(b"kitten", b"sitting"), 3);
    }
}
