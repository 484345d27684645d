//! Holds `src` to the table of rooms in ARCHITECTURE.md.
//!
//! Every path that leaves a room (`crate::x`, in a `use` or inline, alone or in a group, and `super::` that climbs out)
//! is an arrow; each has to be allowed by the room's row. Beside the arrows, some words belong to one room alone
//! ([`SEALED`]). The reading is lexical: comments, strings and character literals are blanked, the rest is
//! split into tokens; macros that would build a path out of pieces are beyond it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What may be named in some rooms only: the token, what has to follow it, and the rooms.
const SEALED: &[(&str, &str, &[&str])] = &[
    ("unsafe", "", &["kernel"]),
    ("asm", "!", &["kernel"]),
    ("nix", "::", &["kernel", "error"]), // error names errno values and their texts
    ("libc", "::", &["kernel", "error"]),
    ("btrfsutil", "::", &["kernel"]),
    // The core is synchronous: fork and unshare(CLONE_NEWUSER) want a single thread.
    ("tokio", "::", &["transport"]),
    ("reqwest", "::", &["transport"]),
    ("zbus", "::", &["sandbox"]), // its wire format alone
    ("clap", "::", &["cli"]),
    ("anyhow", "::", &["cli"]),
    ("indicatif", "::", &["cli"]),
    ("console", "::", &["cli"]),
    ("println", "!", &["cli"]),
    ("eprintln", "!", &["cli"]),
    ("print", "!", &["cli"]),
    ("eprint", "!", &["cli"]),
    ("stdout", "(", &["cli"]),
    ("stderr", "(", &["cli"]),
];

/// The rooms of ARCHITECTURE.md, best rank first, each with the rooms it may use.
struct House {
    rank: Vec<String>,
    may_use: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, PartialEq, Eq, Clone)]
struct Token {
    text: String,
    line: usize,
}

#[test]
fn every_arrow_in_src_is_allowed() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let house = House::parse(&fs::read_to_string(top.join("ARCHITECTURE.md")).expect("read ARCHITECTURE.md"))
        .unwrap_or_else(|why| panic!("ARCHITECTURE.md: {why}"));
    let files = rust_files(&top.join("src"));
    assert!(files.iter().any(|f| f.ends_with("kernel/mod.rs")), "src was not read: {files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("read a source file");
        wrong.extend(house.check(file.strip_prefix(top.join("src")).expect("below src"), &text));
    }
    assert!(wrong.is_empty(), "{} not allowed by ARCHITECTURE.md:\n{}", wrong.len(), wrong.join("\n"));
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("read a source directory") {
        let path = entry.expect("read a source directory").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

impl House {
    /// Reads the rows `| room | job | may use |` and the sentence `Everyone may use ….`.
    fn parse(text: &str) -> Result<House, String> {
        let everyone = text
            .split_once("Everyone may use ")
            .map(|(_, rest)| backticked(rest.split_once('.').map_or(rest, |(sentence, _)| sentence)))
            .ok_or("no sentence \"Everyone may use …\"")?;
        let mut house = House { rank: Vec::new(), may_use: BTreeMap::new() };
        for line in text.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [rooms, _, uses] = cells[..] else { return Err(format!("not three cells: {line}")) };
            let uses = match uses {
                "–" => Vec::new(),
                "all above" => house.rank.clone(),
                "the library's public API" => house.rank.clone(),
                listed => listed.split_whitespace().map(str::to_string).collect(),
            };
            if let Some(below) = uses.iter().find(|used| !house.rank.contains(used)) {
                return Err(format!("{rooms} may not use {below}: it is not above"));
            }
            // `main.rs`, `cli/` are one room, called by the last of its names.
            let room = backticked(rooms).pop().ok_or(format!("no room in {line}"))?;
            if house.may_use.insert(room.clone(), [uses, everyone.clone()].concat()).is_some() {
                return Err(format!("{room} has two rows"));
            }
            house.rank.push(room);
        }
        match everyone.iter().find(|room| !house.rank.contains(room)) {
            Some(room) => Err(format!("everyone may use {room}, which has no row")),
            None if house.rank.len() < 5 => Err("the table of rooms is missing".to_string()),
            None => Ok(house),
        }
    }

    /// What in one file is not allowed, a line each; `path` is relative to src.
    fn check(&self, path: &Path, text: &str) -> Vec<String> {
        let place = |token: &Token| format!("  src/{}:{}", path.display(), token.line);
        let module = module_of(path);
        let tokens = tokenize(&blank(text));
        let Some(room) = room_of(path) else {
            // lib.rs lists the rooms and does nothing else.
            return sealed_words("lib", &tokens).map(|t| format!("{}: {} in lib.rs", place(t), t.text)).collect();
        };
        let Some(may_use) = self.may_use.get(&room) else {
            return vec![format!("  src/{}: the room `{room}` has no row", path.display())];
        };
        let arrows = arrows(&module, &tokens).into_iter().filter_map(|(token, to)| match () {
            () if to == room || may_use.contains(&to) => None,
            () if room == "cli" => None, // `crate` is the binary there, and the compiler knows what the library shows
            () if !self.rank.contains(&to) => Some(format!("{}: {room} -> {to}, which is no room", place(&token))),
            () => Some(format!("{}: {room} -> {to}", place(&token))),
        });
        let words = sealed_words(&room, &tokens).map(|t| format!("{}: {} in {room}", place(t), t.text));
        arrows.chain(words).collect()
    }
}

fn backticked(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(|name| name.trim_end_matches('/').trim_end_matches(".rs").to_string())
        .collect()
}

/// The room of a file; none for lib.rs.
fn room_of(path: &Path) -> Option<String> {
    match module_of(path).into_iter().next() {
        Some(first) if first == "main" => Some("cli".to_string()),
        first => first,
    }
}

/// `kernel/mod.rs` is `kernel`, `kernel/fs.rs` is `kernel::fs`, `lib.rs` is the crate.
fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().expect("source files have plain names").to_string())
        .collect();
    if parts.len() == 1 && parts[0] == "lib" || parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Each path out of the crate's root in these tokens: where it is, and the name that follows the root.
fn arrows(module: &[String], tokens: &[Token]) -> Vec<(Token, String)> {
    let mut found = Vec::new();
    let mut inline: Vec<usize> = Vec::new(); // the brace depths at which inline modules began
    let mut depth = 0;
    let text = |at: usize| tokens.get(at).map_or("", |t| t.text.as_str());
    for at in 0..tokens.len() {
        match text(at) {
            "{" => {
                if at >= 2 && text(at - 2) == "mod" {
                    inline.push(depth);
                }
                depth += 1;
            }
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            "crate" if text(at + 1) == "::" => found.extend(names_after(tokens, at + 2)),
            // A chain of supers is counted from its first.
            "super" if text(at + 1) == "::" && !(at >= 2 && text(at - 1) == "::" && text(at - 2) == "super") => {
                let supers = (at..tokens.len()).step_by(2).take_while(|i| text(*i) == "super").count();
                if supers == module.len() + inline.len() {
                    found.extend(names_after(tokens, at + 2 * supers));
                }
            }
            _ => {}
        }
    }
    found
}

/// The names at `at`: one, or the first of each path of a group `{a::b, c}`.
fn names_after(tokens: &[Token], at: usize) -> Vec<(Token, String)> {
    let Some(first) = tokens.get(at) else { return Vec::new() };
    if first.text != "{" {
        return vec![(first.clone(), first.text.clone())];
    }
    let mut names = Vec::new();
    let mut depth = 0;
    for pair in tokens[at..].windows(2) {
        match pair[0].text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && matches!(pair[0].text.as_str(), "{" | ",") && pair[1].text != "}" {
            names.push((pair[1].clone(), pair[1].text.clone()));
        }
    }
    names
}

fn sealed_words<'a>(room: &'a str, tokens: &'a [Token]) -> impl Iterator<Item = &'a Token> {
    tokens.iter().enumerate().filter_map(move |(at, token)| {
        let next = tokens.get(at + 1).map_or("", |t| t.text.as_str());
        let used = at > 0 && tokens[at - 1].text == "use" && matches!(next, "as" | ";");
        let method = at > 0 && tokens[at - 1].text == ".";
        SEALED
            .iter()
            .any(|(word, follows, rooms)| {
                token.text == *word
                    && !method
                    && (follows.is_empty() || next == *follows || *follows == "::" && used)
                    && !rooms.contains(&room)
            })
            .then_some(token)
    })
}

/// Words, `::`, and every other character by itself.
fn tokenize(text: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                c if c.is_alphanumeric() || c == '_' => {
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
                }
                ':' if rest.starts_with("::") => 2,
                c => c.len_utf8(),
            };
            tokens.push(Token { text: rest[..length].to_string(), line: number + 1 });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// The text with comments, strings and character literals blanked, line by line as it was.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let starts = |from: usize, what: &str| what.chars().enumerate().all(|(i, c)| chars.get(from + i) == Some(&c));
    let find = |from: usize, what: &str| (from..chars.len()).find(|i| starts(*i, what));
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if starts(at, "//") => find(at, "\n").unwrap_or(chars.len()),
        '/' if starts(at, "/*") => {
            let (mut depth, mut i) = (1, at + 2);
            while depth > 0 && i < chars.len() {
                match () {
                    () if starts(i, "/*") => (depth, i) = (depth + 1, i + 2),
                    () if starts(i, "*/") => (depth, i) = (depth - 1, i + 2),
                    () => i += 1,
                }
            }
            i
        }
        'r' if !in_word || matches!(chars[at - 1], 'b' | 'c') => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            match chars.get(at + 1 + hashes) {
                Some('"') => {
                    let close = format!("\"{}", "#".repeat(hashes));
                    find(at + 2 + hashes, &close).map_or(chars.len(), |i| i + close.len())
                }
                _ => at,
            }
        }
        '"' => escaped_end(chars, at, '"'),
        // A lifetime has no closing quote after its first character.
        '\'' if chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'') => escaped_end(chars, at, '\''),
        _ => at,
    }
}

fn escaped_end(chars: &[char], start: usize, close: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != close {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

// --- the checker itself, on small bad inputs

const TABLE: &str = "Everyone may use `error` and `name`.\n
| room | its one job | may use |
|---|---|---|
| `error` | errors | – |
| `name` | names | – |
| `kernel/` | calls | – |
| `store/` | disk | kernel |
| `image/` | images | store kernel |
| `sandbox/` | processes | kernel |
| `container/` | both | all above |
| `main.rs`, `cli/` | terminal | the library's public API |
";

fn wrong(path: &str, text: &str) -> Vec<String> {
    House::parse(TABLE).expect("the table is good").check(Path::new(path), text)
}

#[test]
fn an_arrow_that_the_table_does_not_allow_is_named_with_its_line() {
    assert_eq!(wrong("sandbox/plan.rs", "\nuse crate::store::Store;\n"), ["  src/sandbox/plan.rs:2: sandbox -> store"]);
    assert_eq!(wrong("store/mod.rs", "fn f() -> crate::image::Id { todo }"), ["  src/store/mod.rs:1: store -> image"]);
    assert_eq!(
        wrong(
            "kernel/fs.rs",
            "use crate::{\n    error::{Kind, Error},\n    store::lock::{self, Lock},\n    image,\n};"
        ),
        ["  src/kernel/fs.rs:3: kernel -> store", "  src/kernel/fs.rs:4: kernel -> image"]
    );
    assert_eq!(wrong("store/a.rs", "use crate::Error;"), ["  src/store/a.rs:1: store -> Error, which is no room"]);
    assert_eq!(wrong("attic/mod.rs", ""), ["  src/attic/mod.rs: the room `attic` has no row"]);
}

#[test]
fn allowed_arrows_pass() {
    assert!(
        wrong("image/mod.rs", "use crate::store::{Store, record};\nuse crate::{error::Result, kernel::fs};").is_empty()
    );
    assert!(wrong("container/mod.rs", "use crate::sandbox; use crate::image;").is_empty());
    assert!(wrong("cli/run.rs", "use tupper::container; use crate::cli::table; fn f() { println!(); }").is_empty());
    assert!(wrong("store/a.rs", "pub(crate) fn f() {}\nuse crate::store::lock;").is_empty());
}

#[test]
fn super_is_followed_only_where_it_leaves_the_room() {
    assert_eq!(wrong("store/lock.rs", "use super::super::image;"), ["  src/store/lock.rs:1: store -> image"]);
    assert_eq!(wrong("store/mod.rs", "use super::{kernel::fs, sandbox};"), ["  src/store/mod.rs:1: store -> sandbox"]);
    assert!(wrong("store/lock.rs", "use super::image;\nmod tests { use super::super::image; }").is_empty());
    assert_eq!(wrong("store/lock.rs", "mod tests { use super::super::super::image; }").len(), 1);
    assert_eq!(wrong("store/lock.rs", "mod tests { fn f() {} }\nuse super::super::image;").len(), 1);
}

#[test]
fn words_in_comments_and_strings_are_no_arrows() {
    let text = "//! [`crate::image`] unsafe\n/* crate::image /* nested */ crate::image */\nconst A: &str = \"crate::image \\\" \
                crate::image\";\nconst B: &str = r#\"unsafe \" crate::image\"#;\nconst C: char = '\"'; \
                const D: &'static [u8] = b\"libc::x\";\n// println!(\n";
    assert_eq!(wrong("store/a.rs", text), [""; 0]);
    assert_eq!(wrong("store/a.rs", "const C: char = '\"'; use crate::image; // \"").len(), 1);
    assert_eq!(wrong("store/a.rs", "fn f<'a>(x: &'a str) {} fn g(c: char) { c == '\\''; crate::image::x() }").len(), 1);
}

#[test]
fn sealed_words_stay_in_their_room() {
    for text in
        ["unsafe { f() }", "nix::unistd::getpid()", "use libc;", "use nix as n;", "println!(\"\")", "io::stdout()"]
    {
        assert_eq!(wrong("store/a.rs", text).len(), 1, "{text}");
        assert_eq!(wrong("lib.rs", text).len(), 1, "{text}");
    }
    for text in ["let libc = 1;", "child.stdout()", "#![deny(unsafe_code)]", "fn print() {}", "unsafe_code"] {
        assert!(wrong("store/a.rs", text).is_empty(), "{text}");
    }
    assert!(wrong("kernel/a.rs", "unsafe { libc::getpid() }").is_empty());
    assert!(wrong("error.rs", "libc::ENOENT").is_empty());
    assert!(wrong("main.rs", "println!()").is_empty());
    assert_eq!(wrong("main.rs", "unsafe {}").len(), 1);
}

#[test]
fn a_table_that_contradicts_itself_is_refused() {
    for (from, to, why) in [
        ("| `store/` | disk | kernel |", "| `store/` | disk | image |", "may not use image: it is not above"),
        ("| `store/` | disk | kernel |", "| `store/` | disk |", "not three cells"),
        ("| `image/`", "| `store/`", "has two rows"),
        ("`error` and", "`errno` and", "which has no row"),
        ("Everyone may use", "All use", "no sentence"),
    ] {
        let refused = House::parse(&TABLE.replace(from, to)).err().unwrap_or_default();
        assert!(refused.contains(why), "{why}: {refused:?}");
    }
}
