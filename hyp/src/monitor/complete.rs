//! Completion of the word before the cursor.

use core::fmt::{self, Write};

use super::editor::{Editor, LINE_SIZE};
use super::grammar::{Kind, Need, each_choice, find_guest};
use super::machine::Machine;
use super::region;
use super::report::SCREEN_WIDTH;
use super::session::Commands;

/// Options of every command.
const OPTIONS: Kind = Kind::Word(&["--json", "--exact", "--help"]);

/// Completes the word before the cursor up to the first difference; if the key is repeated, lists the possible words.
///
/// # Errors
/// Those of `out`.
pub(super) fn complete(
    editor: &mut Editor,
    commands: Commands,
    machine: &dyn Machine,
    is_repeated: bool,
    out: &mut dyn Write,
) -> fmt::Result {
    let line = Line::of(editor.line_to_cursor());
    let start = line.as_str().rfind(' ').map_or(0, |at| at + 1);
    let (before, word) = line.as_str().split_at_checked(start).unwrap_or(("", ""));
    let mut common = Line::of("");
    let mut count = 0;
    each_candidate(before, word, commands, machine, &mut |choice| {
        if choice.starts_with(word) {
            common.narrow(choice, count == 0);
            count += 1;
        }
    });
    let missing = common.as_str().get(word.len()..).unwrap_or("");
    if count == 0 {
        return out.write_str("\x07");
    }
    if !missing.is_empty() || count == 1 {
        editor.insert(missing, out)?;
        return if count == 1 { editor.insert(" ", out) } else { Ok(()) };
    }
    if !is_repeated {
        return out.write_str("\x07");
    }
    out.write_str("\n")?;
    let mut column = 0;
    let mut result = Ok(());
    each_candidate(before, word, commands, machine, &mut |choice| {
        if !choice.starts_with(word) || result.is_err() {
            return;
        }
        if column != 0 && column + choice.len() + 2 > SCREEN_WIDTH {
            column = 0;
            result = out.write_str("\n");
        }
        column += choice.len() + 2;
        result = result.and_then(|()| write!(out, "{choice}  "));
    });
    result?;
    out.write_str("\n")?;
    editor.draw(out)
}

/// Calls `take` with every word that can stand behind `before`, in place of `word`.
fn each_candidate(
    before: &str,
    word: &str,
    commands: Commands,
    machine: &dyn Machine,
    take: &mut dyn FnMut(&str),
) {
    let names = |take: &mut dyn FnMut(&str)| commands.0.iter().for_each(|command| take(command.name));
    if word.starts_with('-') {
        let command = before.split(' ').find(|word| !word.is_empty()).and_then(|name| commands.find(name));
        let own = command.into_iter().flat_map(|command| command.parameters);
        own.filter(|parameter| matches!(parameter.kind, Kind::Flag)).for_each(|flag| take(flag.name));
        return each_choice(OPTIONS, machine, take);
    }
    let mut words = before.split(' ').filter(|word| !word.is_empty() && !word.starts_with('-'));
    let Some(name) = words.next() else { return names(take) };
    let Some(command) = commands.find(name) else { return };
    let given = words.clone().count();
    // Completes a nested command, but not a second one within it.
    let line_at = command.parameters.iter().position(|parameter| matches!(parameter.kind, Kind::Line));
    if let Some(at) = line_at
        && given > at
    {
        let Some(nested) = words.nth(at) else { return };
        let start = nested.as_ptr() as usize - before.as_ptr() as usize;
        if !commands.takes_line(nested) {
            each_candidate(before.get(start..).unwrap_or(""), word, commands, machine, take);
        }
        return;
    }
    // A required parameter may stand here already if those before it are optional.
    let mut possible = command.parameters.get(given..).unwrap_or(&[]).iter();
    for parameter in possible.by_ref() {
        match parameter.kind {
            Kind::Region => {
                let guest = words.clone().find_map(|word| find_guest(word, machine));
                region::each_name(machine, guest, take);
            }
            Kind::Command | Kind::Line => names(take),
            kind => each_choice(kind, machine, take),
        }
        if parameter.need == Need::Required {
            break;
        }
    }
}

/// Text of at most a line's length.
struct Line {
    text: heapless::String<LINE_SIZE>,
}

impl Line {
    fn of(text: &str) -> Self {
        let mut line = Self { text: heapless::String::new() };
        for character in text.chars() {
            let _ = line.text.push(character);
        }
        line
    }

    fn as_str(&self) -> &str {
        &self.text
    }

    /// Keeps the common start with `choice`, or takes all of the first choice.
    fn narrow(&mut self, choice: &str, is_first: bool) {
        if is_first {
            *self = Self::of(choice);
            return;
        }
        let common = self.text.bytes().zip(choice.bytes()).take_while(|(one, other)| one == other).count();
        // Names are ASCII: every position is a character boundary.
        if self.text.is_char_boundary(common) {
            self.text.truncate(common);
        }
    }
}
