//! Holds ARCHITECTURE.md's table of rooms against the paths in every file: a path that leaves a room for one that the
//! table does not allow fails the test, and so does a cycle between the files of a room.
//!
//! A room is a folder or a file of `hyp/src`. A path starts at `crate`, `self`, `super`, or at one of the crates that the
//! table names. Test modules may use everything. A file may use the facade of its own folder (`mod.rs`, or the file
//! beside the folder), which may use it: such a pair is no cycle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Crates that the table names, as paths spell them.
const CRATES: [(&str, &str); 2] = [("stage2", "stage2"), ("guest_dts", "guest-dts")];

/// The room whose files still use each other in circles.
const CIRCULAR: &str = "monitor/";

/// One token of a file, and its line.
#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
}

/// A file of `hyp/src`.
struct Source {
    /// `room/file.rs`.
    name: String,
    /// The module's path below the crate.
    module: Vec<String>,
    /// Without comments, strings and modules of tests.
    tokens: Vec<Token>,
    /// Paths that it uses, with their lines.
    paths: Vec<(Vec<String>, usize)>,
}

/// Splits `text` into identifiers, `::` and single characters. Comments, strings and characters are left out.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let (mut at, mut line, mut tokens) = (0, 1, Vec::new());
    while at < bytes.len() {
        let start = at;
        let rest = &text[at..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if rest.starts_with("r#\"") {
            at += rest.find("\"#").map_or(rest.len(), |end| end + 2);
        } else if bytes[at] == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at += 1;
        } else if let Some(escaped) = rest.strip_prefix("'\\") {
            at += 2 + escaped.find('\'').map_or(0, |end| end + 1).max(2);
        } else if bytes[at] == b'\'' && rest.chars().nth(2) == Some('\'') {
            at += rest.char_indices().nth(3).map_or(rest.len(), |(end, _)| end);
        } else if is_word(bytes[at]) {
            at += rest.bytes().take_while(|&byte| is_word(byte)).count();
            tokens.push(Token { text: text[start..at].to_owned(), line });
        } else if rest.starts_with("::") {
            at += 2;
            tokens.push(Token { text: "::".to_owned(), line });
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            if !bytes[start].is_ascii_whitespace() {
                tokens.push(Token { text: text[start..at].to_owned(), line });
            }
        }
        line += text.as_bytes()[start..at.min(bytes.len())].iter().filter(|&&byte| byte == b'\n').count();
    }
    tokens
}

/// Takes out what follows `#[cfg(…test…)]` up to its closing brace or semicolon. Yields the names of modules that are files
/// of tests.
fn take_tests(tokens: &mut Vec<Token>) -> Vec<String> {
    let mut files = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is = |offset: usize, text: &str| tokens.get(at + offset).is_some_and(|token| token.text == text);
        let close = |from: usize| (from..tokens.len()).find(|&index| tokens[index].text == "]");
        if !(is(0, "#") && is(1, "[") && is(2, "cfg")) {
            at += 1;
            continue;
        }
        let Some(end) = close(at) else { break };
        let words: Vec<_> = tokens[at..end].iter().map(|token| token.text.as_str()).collect();
        if !words.contains(&"test") || words.contains(&"not") {
            at = end;
            continue;
        }
        let Some(stop) = (end..tokens.len()).find(|&index| matches!(tokens[index].text.as_str(), "{" | ";"))
        else {
            break;
        };
        let mut last = stop;
        if tokens[stop].text == "{" {
            let mut depth = 0;
            for (index, token) in tokens.iter().enumerate().skip(stop) {
                depth += i32::from(token.text == "{") - i32::from(token.text == "}");
                if depth == 0 {
                    last = index;
                    break;
                }
            }
        } else if tokens[stop - 2].text == "mod" {
            files.push(tokens[stop - 1].text.clone());
        }
        tokens.drain(at..=last);
    }
    files
}

/// Reads the tree of paths at `at`, of which `path` came before, into `paths`. Returns the place behind it.
fn read_paths(tokens: &[Token], at: usize, path: &[String], paths: &mut Vec<(Vec<String>, usize)>) -> usize {
    let Some(token) = tokens.get(at) else { return at };
    let follows = |offset: usize, text: &str| tokens.get(at + offset).is_some_and(|token| token.text == text);
    if token.text == "{" {
        let mut next = at + 1;
        while tokens.get(next).is_some_and(|token| token.text != "}") {
            next = match tokens[next].text.as_str() {
                // Behind `as`, and between the branches.
                "," | "as" => next + 1,
                _ => read_paths(tokens, next, path, paths),
            };
        }
        return next + 1;
    }
    let mut path = path.to_vec();
    if !token.text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
        paths.push((path, token.line));
        return at + 1;
    }
    path.push(token.text.clone());
    if follows(1, "::") && !follows(2, "<") {
        return read_paths(tokens, at + 2, &path, paths);
    }
    paths.push((path, token.line));
    at + 1
}

/// Returns all paths of `tokens` that start at `crate`, `self`, `super` or a crate of the table.
fn paths(tokens: &[Token]) -> Vec<(Vec<String>, usize)> {
    let (mut at, mut paths) = (0, Vec::new());
    while at + 1 < tokens.len() {
        let is_start = matches!(tokens[at].text.as_str(), "crate" | "self" | "super")
            || CRATES.iter().any(|(name, _)| tokens[at].text == *name);
        let is_inside = at > 0 && tokens[at - 1].text == "::";
        at = if is_start && !is_inside && tokens[at + 1].text == "::" {
            read_paths(tokens, at, &[], &mut paths)
        } else {
            at + 1
        };
    }
    paths
}

/// Reads all files below `folder`, which is `prefix` of the source tree.
fn read(folder: &Path, prefix: &str, sources: &mut Vec<Source>, tests: &mut BTreeSet<Vec<String>>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let file = entry.file_name().into_string().unwrap();
        let name = format!("{prefix}{file}");
        if entry.path().is_dir() {
            read(&entry.path(), &format!("{name}/"), sources, tests);
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let mut module: Vec<_> = stem.split('/').map(str::to_owned).collect();
            if matches!(module.last().map(String::as_str), Some("mod")) || matches!(stem, "lib" | "main") {
                module.pop();
            }
            let mut tokens = tokens(&fs::read_to_string(entry.path()).unwrap());
            for test in take_tests(&mut tokens) {
                tests.insert(module.iter().cloned().chain([test]).collect());
            }
            let paths = paths(&tokens);
            sources.push(Source { name, module, tokens, paths });
        }
    }
}

/// Returns the files of the crate that are no tests.
fn sources() -> Vec<Source> {
    let (mut sources, mut tests) = (Vec::new(), BTreeSet::new());
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources, &mut tests);
    sources.retain(|source| {
        !source.module.is_empty()
            && !(1..=source.module.len()).any(|end| tests.contains(&source.module[..end]))
    });
    sources.sort_by(|one, other| one.name.cmp(&other.name));
    sources
}

/// Returns the words in backticks of a cell of a table.
fn words(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Reads ARCHITECTURE.md's table of rooms: what each room of this crate may use.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md")).unwrap();
    let rows =
        text.lines().skip_while(|line| *line != "## Rooms").skip(1).take_while(|line| !line.starts_with('#'));
    let mut table = BTreeMap::new();
    for row in rows.filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let [place, _, knows] = cells[..] else { panic!("not three cells: {row}") };
        for room in words(place).filter_map(|place| place.strip_prefix("hyp/src/")) {
            let room = room.trim_end_matches('/').trim_end_matches(".rs").to_owned();
            let knows = words(knows).map(|word| word.trim_end_matches('/').to_owned()).collect();
            assert!(table.insert(room, knows).is_none(), "a room twice: {row}");
        }
    }
    table
}

/// Returns the module that `path`, used in `module`, starts in, from the root of the crate; `None`: in another crate.
fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let (mut base, mut rest) = match path[0].as_str() {
        "crate" => (&[][..], &path[1..]),
        "self" => (module, &path[1..]),
        "super" => (module, path),
        _ => return None,
    };
    while let Some(above) = rest.strip_prefix(&["super".to_owned()]) {
        (base, rest) = (&base[..base.len().saturating_sub(1)], above);
    }
    Some([base, rest].concat())
}

/// Returns what is wrong with `path`, used by `source`, by `table`.
fn fault(source: &Source, path: &[String], table: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let room = &source.module[0];
    let Some(allowed) = table.get(room) else {
        return Some(format!("ARCHITECTURE.md's table of rooms has no row for `{room}`"));
    };
    let other = match absolute(&source.module, path) {
        Some(path) => path.first().cloned().unwrap_or_default(),
        None => CRATES.iter().find(|(name, _)| path[0] == *name).map(|(_, name)| (*name).to_owned())?,
    };
    let is_room = table.contains_key(&other) || CRATES.iter().any(|(_, name)| other == *name);
    (is_room && other != *room && !allowed.contains(&other)).then(|| {
        let allowed: Vec<_> = allowed.iter().map(String::as_str).collect();
        format!("`{room}` may not know `{other}`, only: {}", allowed.join(", "))
    })
}

#[test]
fn no_path_leaves_a_room_for_one_that_the_table_does_not_allow() {
    let (sources, table) = (sources(), table());
    let mut faults = Vec::new();
    for source in &sources {
        for (path, line) in &source.paths {
            if let Some(fault) = fault(source, path, &table) {
                faults.push(format!("hyp/src/{}:{line}: {}: {fault}", source.name, path.join("::")));
            }
        }
    }
    assert!(sources.len() > 100, "the files were not found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_table_itself_goes_one_way_and_names_rooms_that_there_are() {
    let (sources, mut table) = (sources(), table());
    for room in table.keys() {
        assert!(sources.iter().any(|source| source.module[0] == *room), "no room `{room}`");
    }
    for knows in table.values_mut() {
        knows.retain(|word| !CRATES.iter().any(|(_, name)| word == name));
    }
    // Rooms that know nothing that is left go, until none is left.
    while !table.is_empty() {
        let low: Vec<_> =
            table.iter().filter(|(_, knows)| knows.is_empty()).map(|(room, _)| room.clone()).collect();
        assert!(
            !low.is_empty(),
            "these rooms know each other in a circle, or one that is not there: {table:?}"
        );
        table.retain(|room, _| !low.contains(room));
        table.values_mut().for_each(|knows| knows.retain(|room| !low.contains(room)));
    }
}

/// Returns what each file uses of its own room, by index.
fn uses(sources: &[Source]) -> Vec<BTreeSet<usize>> {
    let by_module: BTreeMap<_, _> = sources.iter().map(|source| &source.module[..]).zip(0..).collect();
    let uses = |(index, source): (usize, &Source)| {
        let mut used = BTreeSet::new();
        for (path, _) in &source.paths {
            let Some(path) = absolute(&source.module, path) else { continue };
            let file = (1..=path.len()).rev().find_map(|end| by_module.get(&path[..end]));
            used.extend(file.copied().filter(|&file| !source.module.starts_with(&sources[file].module)));
        }
        // A facade uses its folder's files without `self`.
        for pair in source.tokens.windows(2).filter(|pair| pair[1].text == "::") {
            let worker: Vec<_> = source.module.iter().cloned().chain([pair[0].text.clone()]).collect();
            used.extend(by_module.get(&worker[..]).copied());
        }
        used.remove(&index);
        used.into_iter().filter(|&file| sources[file].module[0] == source.module[0]).collect()
    };
    sources.iter().enumerate().map(uses).collect()
}

#[test]
fn no_files_of_a_room_use_each_other_in_a_circle() {
    let sources = sources();
    let uses = uses(&sources);
    let mut reached = uses.clone();
    // All that each file reaches: as many rounds as the longest way has steps, at most.
    loop {
        let before = reached.clone();
        for files in &mut reached {
            let further: Vec<_> = files.iter().flat_map(|&file| before[file].iter().copied()).collect();
            files.extend(further);
        }
        if reached == before {
            break;
        }
    }
    let is_known = |index: usize| sources[index].name.starts_with(CIRCULAR);
    for index in (0..sources.len()).filter(|&index| reached[index].contains(&index)) {
        let circle: Vec<_> =
            reached[index].iter().copied().filter(|&other| reached[other].contains(&index)).collect();
        let names: Vec<_> = circle.iter().map(|&file| sources[file].name.as_str()).collect();
        assert!(circle.iter().all(|&file| is_known(file)), "a circle: {}", names.join(", "));
    }
}

#[test]
fn a_wrong_path_is_found_with_its_line() {
    let text = "//! crate::boot\nuse crate::{observe::log, arch::{self, cpu}};\nfn f() { let _ = \"crate::boot\"; super::super::exit::x() }\n#[cfg(test)]\nmod tests { use crate::boot; }\nuse stage2::addr;";
    let mut tokens = tokens(text);
    assert!(take_tests(&mut tokens).is_empty());
    let paths = paths(&tokens);
    let source = Source {
        name: "guest/claims.rs".into(),
        module: vec!["guest".into(), "claims".into()],
        tokens,
        paths: paths.clone(),
    };
    let table: BTreeMap<_, BTreeSet<String>> = [
        ("guest", vec!["observe", "arch"]),
        ("observe", vec![]),
        ("arch", vec![]),
        ("exit", vec!["guest"]),
        ("boot", vec!["guest"]),
    ]
    .into_iter()
    .map(|(room, knows)| (room.to_owned(), knows.into_iter().map(str::to_owned).collect()))
    .collect();
    let faults: Vec<_> = paths
        .iter()
        .filter_map(|(path, line)| fault(&source, path, &table).map(|_| (path.join("::"), *line)))
        .collect();
    assert_eq!(faults, [("super::super::exit::x".to_owned(), 3), ("stage2::addr".to_owned(), 6)]);
}
