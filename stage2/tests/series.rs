//! Checks SERIES.md: each patch of the series names a test, and each of these tests exists.

use std::fs;
use std::path::Path;

/// Number of patches in the series.
const PATCHES: usize = 21;

/// Appends the text of every Rust source below `folder` to `into`.
fn sources(folder: &Path, into: &mut String) {
    for path in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, into);
        } else if name.ends_with(".rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn each_patch_has_a_test_of_its_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("stage2/SERIES.md")).unwrap();
    let mut code = String::new();
    sources(&root, &mut code);
    let mut patch = 0;
    for row in page.lines().filter(|line| line.starts_with("| P") && line.as_bytes()[3].is_ascii_digit()) {
        patch += 1;
        let number = format!("{patch:02}");
        assert!(row.starts_with(&format!("| P{number} ")), "patch {number} has no row: {row}");
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        // Some tests are of several patches: `p16_p17_p20_…`.
        let is_of_patch = |name: &&str| name.split('_').any(|word| word == format!("p{number}"));
        assert!(names.iter().any(is_of_patch), "patch {number} names no test of its own: {row}");
        for name in names {
            // Attributes and comments may stand between.
            let is_test = code.split_once(&format!("fn {name}(")).is_some_and(|(before, _)| {
                before.rsplit("\n\n").next().is_some_and(|lines| lines.contains("#[test]"))
            });
            assert!(is_test, "{name}, named for patch {number}, is no test");
        }
    }
    assert_eq!(patch, PATCHES);
}
