//! What the documents say of the tests is so.

use std::fs;
use std::path::Path;

fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => sources(&path, text),
            false => text.push_str(&fs::read_to_string(&path).unwrap_or_default()),
        }
    }
}

#[test]
fn the_tests_that_the_hostile_cases_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    sources(&root.join("tests/it"), &mut tests);
    let document = fs::read_to_string(root.join("docs/hostile.md")).expect("docs/hostile.md");
    let quoted: Vec<&str> = document.split('`').skip(1).step_by(2).collect();
    let named = |word: &&&str| {
        word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    };
    let names: Vec<&&str> = quoted.iter().filter(named).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("fn {name}()")), "no test is called {name}");
    }
}

#[test]
fn the_limits_that_the_hostile_cases_name_have_flags() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/hostile.md")).expect("docs/hostile.md");
    let flags = fs::read_to_string(root.join("src/cli/limits.rs")).expect("src/cli/limits.rs");
    let flags =
        flags.lines().filter_map(|line| line.trim().strip_prefix("max_")?.split_once(": ")).map(|(name, _)| name);
    let flags: Vec<String> = flags.map(|name| format!("--max-{}", name.replace('_', "-"))).collect();
    assert!(flags.len() >= 9);
    for flag in &flags {
        assert!(document.contains(&format!("`{flag}`")), "{flag} is not in the table of limits");
    }
}
