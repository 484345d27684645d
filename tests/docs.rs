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
    assert!(tests_named_in("docs/hostile.md").len() > 15);
}

#[test]
fn the_tests_that_the_known_ways_out_name_are_there() {
    let named = tests_named_in("docs/security.md");
    assert!(named.len() > 30, "{named:?}");
    // And none of the attacks is left out of the table.
    let mut attacks = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/escapes"), &mut attacks);
    for test in attacks.split("#[test]\nfn ").skip(1).filter_map(|text| text.split_once("()")) {
        assert!(named.iter().any(|name| name == test.0), "{} is not in docs/security.md", test.0);
    }
}

/// The names of tests in a document, all of which are there.
fn tests_named_in(document: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    sources(&root.join("tests/it"), &mut tests);
    let text = fs::read_to_string(root.join(document)).expect(document);
    let named = |word: &&str| {
        word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    };
    let names: Vec<String> = text.split('`').skip(1).step_by(2).filter(named).map(str::to_string).collect();
    for name in &names {
        assert!(tests.contains(&format!("fn {name}()")), "{document}: no test is called {name}");
    }
    names
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
