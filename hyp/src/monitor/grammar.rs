//! The grammar of all commands: a command is a name, arguments and options, separated by spaces.
//!
//! A command describes its arguments as a list of [`Parameter`]s. The check of a typed line, the usage line, the help and
//! the completion come from that list, so that no command does this itself. Optional parameters may stand anywhere: words
//! beyond the required ones are given to the optional parameters, first to last.

use core::fmt;

use stage2::controller::ControllerId;

use super::failure::Failure;
use super::machine::{Machine, Reason};
use super::mux::Console;
use super::region::Region;
use super::report::Style;
use super::units;
use crate::observe::log::Level;

/// Most words of a command line, its name included.
pub const WORDS: usize = 16;

/// The kind of an argument.
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
    /// A word that the command itself parses; with a description.
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

/// The need for an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Must be given.
    Required,
    /// May be left out.
    Optional,
}

/// A parameter of a command.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name in usage lines.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// The need for it.
    pub need: Need,
}

/// Makes a parameter that must be given.
pub const fn required(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, kind, need: Need::Required }
}

/// Makes a parameter that may be left out.
pub const fn optional(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, kind, need: Need::Optional }
}

/// An argument, parsed and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument<'a> {
    /// The guest with this index.
    Guest(usize),
    /// A controller.
    Controller(ControllerId),
    /// A console.
    Console(Console),
    /// A number, or a size in bytes.
    Number(u64),
    /// A word.
    Word(&'a str),
    /// A level of the log.
    Level(Level),
}

/// The arguments of a command, checked.
#[derive(Debug)]
pub struct Arguments<'a> {
    /// The arguments by parameter.
    values: [Option<Argument<'a>>; WORDS],
}

impl<'a> Arguments<'a> {
    /// Returns the argument for parameter `at`, if it was given.
    pub fn get(&self, at: usize) -> Option<Argument<'a>> {
        self.values.get(at).copied().flatten()
    }

    /// Returns the index of the guest given for parameter `at`.
    pub fn guest(&self, at: usize) -> Option<usize> {
        match self.get(at) {
            Some(Argument::Guest(guest)) => Some(guest),
            _ => None,
        }
    }

    /// Returns the controller given for parameter `at`.
    pub fn controller(&self, at: usize) -> Option<ControllerId> {
        match self.get(at) {
            Some(Argument::Controller(controller)) => Some(controller),
            _ => None,
        }
    }

    /// Returns the word or line given for parameter `at`.
    pub fn word(&self, at: usize) -> Option<&'a str> {
        match self.get(at) {
            Some(Argument::Word(word)) => Some(word),
            _ => None,
        }
    }

    /// Tests if the option of parameter `at` was given.
    pub fn has_flag(&self, at: usize) -> bool {
        self.word(at).is_some()
    }

    /// Returns the number or size given for parameter `at`.
    pub fn number(&self, at: usize) -> Option<u64> {
        match self.get(at) {
            Some(Argument::Number(number)) => Some(number),
            _ => None,
        }
    }
}

/// A command line, split into words and options.
#[derive(Debug)]
pub struct Words<'a> {
    words: heapless::Vec<&'a str, WORDS>,
    line: &'a str,
    /// The options of [`FLAGS`] that were given.
    flags: heapless::Vec<&'a str, WORDS>,
    /// The form of the report.
    pub style: Style,
    /// True if `--help` was given.
    pub wants_help: bool,
}

impl<'a> Words<'a> {
    /// Splits `line`. Options may stand anywhere in it; those behind a nested command, which `takes_line` tells of, belong
    /// to that command.
    ///
    /// # Errors
    /// An unknown option or too many words, as `why` says.
    pub fn split(
        line: &'a str,
        takes_line: &dyn Fn(&str) -> bool,
        why: &mut Reason,
    ) -> Result<Self, Failure> {
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
                    // More flags than that are repetitions.
                    let _ = words.flags.push(word);
                }
                _ if word.len() > 1 && word.starts_with('-') => {
                    let text =
                        format_args!("unknown option {word}; every command takes --json, --exact and --help");
                    return Err(Failure::usage(why, text));
                }
                _ => {}
            }
            if is_nested || !word.starts_with('-') || word.len() == 1 {
                let too_many = |_| Failure::usage(why, format_args!("too many words: at most {WORDS}"));
                words.words.push(word).map_err(too_many)?;
            }
        }
        Ok(words)
    }

    /// Returns the command's name.
    pub fn name(&self) -> Option<&'a str> {
        self.words.first().copied()
    }

    /// Returns the words behind the name.
    pub fn arguments(&self) -> &[&'a str] {
        self.words.get(1..).unwrap_or(&[])
    }

    /// Returns the line from its `at`th word on.
    fn rest(&self, at: usize) -> &'a str {
        let Some(word) = self.words.get(at) else { return "" };
        // A word is a slice of the line: the difference of their addresses is its position.
        let start = (word.as_ptr() as usize).saturating_sub(self.line.as_ptr() as usize);
        self.line.get(start..).unwrap_or("").trim_end_matches(' ')
    }
}

/// Parses the words of a command with these parameters.
///
/// # Errors
/// `why` names the wrong word and what was expected.
pub fn parse<'a>(
    parameters: &[Parameter],
    words: &Words<'a>,
    machine: &dyn Machine,
    why: &mut Reason,
) -> Result<Arguments<'a>, Failure> {
    let given = words.arguments();
    let required = parameters.iter().filter(|parameter| parameter.need == Need::Required).count();
    let mut spare = given.len().saturating_sub(required);
    let mut values = [None; WORDS];
    let mut next = 0;
    let takes = |flag: &str| parameters.iter().any(|parameter| parameter.name == flag);
    if let Some(flag) = words.flags.iter().find(|flag| !takes(flag)) {
        return Err(Failure::usage(why, format_args!("{} does not take {flag}", words.name().unwrap_or(""))));
    }
    for (value, parameter) in values.iter_mut().zip(parameters) {
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
            return Err(Failure::usage(why, format_args!("missing {}", parameter.name)));
        };
        next += 1;
        if let Kind::Line = parameter.kind {
            *value = Some(Argument::Word(words.rest(next)));
            next = given.len();
            continue;
        }
        let argument = parse_word(parameter.kind, word, machine);
        *value = Some(argument.ok_or_else(|| refuse(parameter, word, machine, why))?);
    }
    match given.get(next) {
        Some(word) => Err(Failure::usage(why, format_args!("unexpected argument '{word:.40}'"))),
        None => Ok(Arguments { values }),
    }
}

fn parse_word<'a>(kind: Kind, word: &'a str, machine: &dyn Machine) -> Option<Argument<'a>> {
    match kind {
        Kind::Guest => find_guest(word, machine).map(Argument::Guest),
        Kind::Controller => find_controller(word, machine).map(Argument::Controller),
        Kind::Controllers => {
            let is_known = |name| find_controller(name, machine).is_some();
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
            parse_word(*one, word, machine).or_else(|| parse_word(*other, word, machine))
        }
    }
}

/// Finds a guest by its name.
pub(super) fn find_guest(name: &str, machine: &dyn Machine) -> Option<usize> {
    machine.guests().find(|(_, guest)| guest.name == name).map(|(at, _)| at)
}

/// Finds a controller by its name or its number.
pub(super) fn find_controller(name: &str, machine: &dyn Machine) -> Option<ControllerId> {
    let number = units::parse_number(name);
    let is_it = |id: ControllerId, known: &str| known == name || number == Some(id.index() as u64);
    machine.controllers().find(|(id, controller)| is_it(*id, controller.name)).map(|(id, _)| id)
}

fn find_console(name: &str, machine: &dyn Machine) -> Option<Console> {
    Console::all().find(|&console| machine.console(console).is_some_and(|status| status.name == name))
}

/// Returns the refusal of `word`, with what was expected in its place.
fn refuse(parameter: &Parameter, word: &str, machine: &dyn Machine, why: &mut Reason) -> Failure {
    let expected = Expected { kind: parameter.kind, machine };
    Failure::usage(why, format_args!("invalid {} '{word:.32}'; expected {expected}", parameter.name))
}

/// A kind of argument, described for an error.
struct Expected<'a> {
    kind: Kind,
    machine: &'a dyn Machine,
}

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Number(_, u64::MAX) => f.write_str("a number, decimal or 0x..."),
            Kind::Number(_, most) if most >= u32::MAX.into() => f.write_str("a number"),
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
                write!(f, "names separated by commas, from {}", Self { kind: Kind::Controller, ..*self })
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
                    (true, Kind::Pool) => f.write_str("a pool, but there are none"),
                    (true, Kind::Guest) => f.write_str("a guest, but there are none"),
                    (true, _) => f.write_str("a name, but there are none"),
                }
            }
        }
    }
}

/// Calls `take` with every word that an argument of `kind` can be, if they can be listed. The shell knows the commands, and
/// completion the guest to which a region belongs.
pub fn each_choice(kind: Kind, machine: &dyn Machine, take: &mut dyn FnMut(&str)) {
    match kind {
        Kind::Guest => {
            machine.guests().for_each(|(_, guest)| take(guest.name));
        }
        Kind::Controller | Kind::Controllers => {
            machine.controllers().for_each(|(_, controller)| take(controller.name));
        }
        Kind::Console => {
            Console::all()
                .filter_map(|console| machine.console(console))
                .for_each(|console| take(console.name));
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
        Kind::Command | Kind::Line | Kind::Region => {}
        Kind::Number(..) | Kind::Size | Kind::Any(_) | Kind::Flag => {}
    }
}

/// Returns the one of `choices` that resembles `word` most, if any does.
pub fn nearest(word: &str, choices: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    choices
        .map(|choice| (distance(word.as_bytes(), choice.as_bytes()), choice))
        .filter(|&(distance, choice)| distance <= 1 + choice.len() / 4)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, choice)| choice)
}

/// Counts the letters that have to be changed, added or removed to turn one word into the other (Levenshtein).
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
    fn lines_are_split() {
        fn split(line: &str) -> Result<Words<'_>, Failure> {
            Words::split(line, &|name| name == "watch", &mut Reason::new())
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
