//! The filter of lines that the command line's `log=` describes.

use core::fmt;

use super::{Level, Line, Output};

/// Most modules that can have a level of their own.
const RULES: usize = 8;
/// Longest name of a module in a rule.
const MODULE: usize = 24;

/// Levels by module, and the destination of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    output: Output,
    line: Line,
    default: Level,
    rules: [Option<Rule>; RULES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    module: [u8; MODULE],
    module_len: usize,
    level: Level,
}

/// Error in the value of `log=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfigureError<'a> {
    /// The part is none of `text`, `frames`, `off`, `second`, a level or `module=level`.
    Unknown(&'a str),
    /// The part's level is not a level.
    Level(&'a str),
    /// The part's module has more than 24 characters.
    Module(&'a str),
    /// The part is the ninth `module=level`; only eight are kept.
    TooMany(&'a str),
}

impl fmt::Display for ConfigureError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(part) => {
                write!(
                    f,
                    "log={part}: expected text, frames, off, second, error, warn, info, debug or MODULE=LEVEL"
                )
            }
            Self::Level(part) => write!(f, "log={part}: the level must be error, warn, info or debug"),
            Self::Module(part) => write!(f, "log={part}: a module's name has at most {MODULE} characters"),
            Self::TooMany(part) => write!(f, "log={part}: at most {RULES} modules have a level of their own"),
        }
    }
}

impl Filter {
    /// Parses `option`, a list separated by commas. Later parts override earlier ones.
    pub(crate) fn parse(option: &str) -> Result<Self, ConfigureError<'_>> {
        let mut filter =
            Self { output: Output::Text, line: Line::Console, default: Level::Info, rules: [None; RULES] };
        for part in option.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some((module, level)) => {
                    let level = Level::from_name(level).ok_or(ConfigureError::Level(part))?;
                    filter.add(part, module, level)?;
                }
                None => match (part, Level::from_name(part)) {
                    ("text", _) => filter.output = Output::Text,
                    ("frames", _) if cfg!(any(test, feature = "defmt")) => filter.output = Output::Frames,
                    ("second", _) => filter.line = Line::Second,
                    ("off", _) => filter.output = Output::Off,
                    (_, Some(level)) => filter.default = level,
                    (_, None) => return Err(ConfigureError::Unknown(part)),
                },
            }
        }
        Ok(filter)
    }

    fn add<'a>(&mut self, part: &'a str, module: &str, level: Level) -> Result<(), ConfigureError<'a>> {
        let mut rule = Rule { module: [0; MODULE], module_len: module.len(), level };
        let place = rule.module.get_mut(..module.len()).ok_or(ConfigureError::Module(part))?;
        place.copy_from_slice(module.as_bytes());
        let free = self.rules.iter_mut().find(|rule| rule.is_none()).ok_or(ConfigureError::TooMany(part))?;
        *free = Some(rule);
        Ok(())
    }

    pub(crate) fn output(&self) -> Output {
        self.output
    }

    pub(crate) fn line(&self) -> Line {
        self.line
    }

    /// Returns true if some module has a level of its own.
    pub(crate) fn has_rules(&self) -> bool {
        self.rules.iter().any(Option::is_some)
    }

    /// Returns the highest level of any module.
    pub(crate) fn highest(&self) -> Level {
        self.rules.iter().flatten().map(|rule| rule.level).fold(self.default, Ord::max)
    }

    /// Returns true if a line of `module`, a path with `::`, is kept at `level`. The last rule that names a part of the path
    /// decides, or else the level for all modules.
    pub(crate) fn keeps(&self, level: Level, module: &str) -> bool {
        let rule = self.rules.iter().flatten().rev().find(|rule| {
            let name = rule.module.get(..rule.module_len).unwrap_or(&[]);
            // By bytes: a search for text adds much code of core to the image.
            module.as_bytes().split(|&byte| byte == b':').any(|part| !part.is_empty() && part == name)
        });
        level <= rule.map_or(self.default, |rule| rule.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_go_by_module() {
        let filter = Filter::parse("off,warn,guest=debug,vcpu=error").unwrap();
        assert_eq!(filter.output(), Output::Off);
        assert_eq!(filter.highest(), Level::Debug);
        assert!(filter.keeps(Level::Warn, "hyp::board"));
        assert!(!filter.keeps(Level::Info, "hyp::board"));
        assert!(filter.keeps(Level::Debug, "hyp::guest::map"));
        assert!(!filter.keeps(Level::Warn, "hyp::guest::vcpu"));
        assert!(!filter.keeps(Level::Debug, "hyp::guests"));
    }

    #[test]
    fn nothing_means_text_at_info() {
        let filter = Filter::parse("").unwrap();
        assert_eq!((filter.output(), filter.highest()), (Output::Text, Level::Info));
        assert!(!filter.has_rules() && Filter::parse("guest=warn").unwrap().has_rules());
    }

    #[test]
    fn the_last_output_counts() {
        assert_eq!(Filter::parse("text,frames").unwrap().output(), Output::Frames);
        assert_eq!(Filter::parse("frames").unwrap().line(), Line::Console);
        assert_eq!(Filter::parse("frames,second").unwrap().line(), Line::Second);
    }

    #[test]
    fn errors_name_the_part() {
        for (option, message) in [
            (
                "loud",
                "log=loud: expected text, frames, off, second, error, warn, info, debug or MODULE=LEVEL",
            ),
            ("text,a=b", "log=a=b: the level must be error, warn, info or debug"),
            (
                "abcdefghijklmnopqrstuvwxy=info",
                "log=abcdefghijklmnopqrstuvwxy=info: a module's name has at most 24 characters",
            ),
            (
                "a=info,b=info,c=info,d=info,e=info,f=info,g=info,h=info,i=info",
                "log=i=info: at most 8 modules have a level of their own",
            ),
        ] {
            assert_eq!(Filter::parse(option).unwrap_err().to_string(), message);
        }
    }
}
