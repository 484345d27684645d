//! What a program needs to begin, read into the page cache: itself, its interpreter, the libraries that it is linked with.
//!
//! What is in the page cache of a subvolume is not in that of its snapshots: each reads its files from the disk once. For a
//! short command that is most of what a start costs.
//!
//! What is needed is found out in the layer, and then read ahead in each of its snapshots. Only regular files are read, nothing
//! is run, and whatever is not as it should be ends it: it is a courtesy.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi::{DT_NEEDED, DT_STRTAB, PT_INTERP, PT_LOAD};
use elf::endian::AnyEndian;
use elf::string_table::StringTable;

use crate::kernel::{fs, resolve};

/// A larger file is not read: it is mapped, and little of it is used.
const LARGEST: u64 = 8 << 20;

/// How much is read for a program, and how many files.
const BYTES: usize = 24 << 20;
const FILES: usize = 40;

/// Where libraries lie (ld.so(8)), beside the directory of the interpreter.
const LIBRARIES: [&str; 7] =
    ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/lib", "/usr/lib64", "/usr/lib", "/usr/local/lib"];

/// What is looked at for every command, by its loader or by tupper.
const ALWAYS: [&str; 6] =
    ["/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// What is mounted on in every container.
const PLACES: [&str; 4] = ["/proc", "/dev", "/sys", "/etc"];

/// The first of these programs that is a file.
pub(super) fn first<'a>(root: BorrowedFd<'_>, candidates: &'a [String]) -> Option<&'a String> {
    candidates.iter().find(|path| resolve::read_in_root(root, Path::new(path), LARGEST).is_ok())
}

/// The files that these programs need.
pub(super) fn needed(root: BorrowedFd<'_>, programs: &[String]) -> Vec<PathBuf> {
    let mut reading = Reading { root, seen: HashSet::new(), bytes: 0 };
    for path in ALWAYS {
        reading.file(Path::new(path));
    }
    programs.iter().for_each(|program| reading.program(Path::new(program)));
    reading.seen.into_iter().collect()
}

/// Has these files read, and looks at the places that something is mounted on. Does not wait for it.
pub(super) fn read_ahead(root: BorrowedFd<'_>, files: &[PathBuf]) {
    for place in PLACES {
        let _ = fs::open_directory_in_root(root, place);
    }
    for file in files {
        let _ = resolve::read_ahead_in_root(root, file);
    }
}

struct Reading<'a> {
    root: BorrowedFd<'a>,
    seen: HashSet<PathBuf>,
    bytes: usize,
}

impl Reading<'_> {
    fn file(&mut self, path: &Path) -> Option<Vec<u8>> {
        if self.bytes >= BYTES || self.seen.len() >= FILES || self.seen.contains(path) {
            return None;
        }
        let bytes = resolve::read_in_root(self.root, path, LARGEST).ok()?;
        self.seen.insert(path.to_path_buf());
        self.bytes += bytes.len();
        Some(bytes)
    }

    fn program(&mut self, path: &Path) {
        let Some(bytes) = self.file(path) else { return };
        // execve(2), "Interpreter scripts".
        if let Some(line) = bytes.strip_prefix(b"#!") {
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let word = line.split(|byte| byte.is_ascii_whitespace()).find(|word| !word.is_empty());
            if let Some(Ok(interpreter)) = word.map(std::str::from_utf8) {
                self.program(Path::new(interpreter));
            }
            return;
        }
        let needs = Needs::of(&bytes).unwrap_or_default();
        let mut directories: Vec<PathBuf> = LIBRARIES.iter().map(PathBuf::from).collect();
        if let Some(interpreter) = needs.interpreter {
            self.file(&interpreter);
            directories.extend(interpreter.parent().map(Path::to_path_buf));
        }
        let mut libraries = needs.libraries;
        while let Some(library) = libraries.pop() {
            let bytes = directories.iter().find_map(|directory| self.file(&directory.join(&library)));
            libraries.extend(bytes.and_then(|bytes| Needs::of(&bytes)).unwrap_or_default().libraries);
        }
    }
}

/// What a program is linked with.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    interpreter: Option<PathBuf>,
    /// File names.
    libraries: Vec<String>,
}

impl Needs {
    /// As its headers say: elf(5).
    fn of(bytes: &[u8]) -> Option<Needs> {
        let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).ok()?;
        let segments = file.segments()?;
        let interpreter = segments.iter().find(|segment| segment.p_type == PT_INTERP);
        let interpreter = interpreter.and_then(|segment| file.segment_data(&segment).ok());
        let text = |bytes: &[u8]| Some(PathBuf::from(std::str::from_utf8(bytes.strip_suffix(b"\0")?).ok()?));
        let mut needs = Needs { interpreter: interpreter.and_then(text), libraries: Vec::new() };
        let Some(dynamic) = file.dynamic().ok()? else { return Some(needs) };
        // The strings are found by the address at which they would be mapped.
        let address = dynamic.iter().find(|entry| entry.d_tag == DT_STRTAB)?.d_ptr();
        let offset = segments.iter().filter(|segment| segment.p_type == PT_LOAD).find_map(|segment| {
            let within = address.checked_sub(segment.p_vaddr).filter(|within| *within < segment.p_filesz)?;
            segment.p_offset.checked_add(within)
        })?;
        let strings = StringTable::new(bytes.get(usize::try_from(offset).ok()?..)?);
        let needed = dynamic.iter().filter(|entry| entry.d_tag == DT_NEEDED).take(FILES);
        let names = needed.filter_map(|entry| strings.get(usize::try_from(entry.d_val()).ok()?).ok());
        // A name with a slash is a path of its own; nobody has that.
        needs.libraries.extend(names.filter(|name| !name.contains('/')).map(str::to_string));
        Some(needs)
    }
}

/// What a fuzzer asks: no program needs more than is read, and every library is a name.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(bytes: &[u8]) {
    let needs = Needs::of(bytes).unwrap_or_default();
    assert!(needs.libraries.len() <= FILES && needs.libraries.iter().all(|name| !name.contains('/')), "{needs:?}");
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// This test, or the shell of this host: something that is linked with the C library.
    fn linked() -> Vec<u8> {
        std::fs::read("/bin/sh").expect("a shell")
    }

    #[test]
    fn a_program_needs_what_ldd_says() {
        let needs = Needs::of(&linked()).expect("an ELF");
        let interpreter = needs.interpreter.expect("it is linked dynamically");
        assert!(interpreter.to_string_lossy().contains("/ld-"), "{interpreter:?}");
        assert!(needs.libraries.iter().any(|name| name.starts_with("libc.")), "{:?}", needs.libraries);
    }

    #[test]
    fn what_is_broken_needs_nothing() {
        let whole = linked();
        assert_eq!(Needs::of(b""), None);
        assert_eq!(Needs::of(b"#!/bin/sh\n"), None);
        // Wherever it is cut off, or garbled, nothing worse comes of it.
        for end in (0..whole.len()).step_by(997) {
            let _ = Needs::of(&whole[..end]);
        }
        for at in 0..4096.min(whole.len()) {
            let mut garbled = whole.clone();
            garbled[at] ^= 0xff;
            let _ = Needs::of(&garbled);
        }
    }

    #[test]
    fn a_script_is_followed_to_its_interpreter_and_a_circle_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).expect("write");
        write("script", b"#! /circle -x\n");
        write("circle", b"#!/script\n");
        let root = fs::open_directory_follow(dir.path()).expect("a directory");
        let mut reading = Reading { root: root.as_fd(), seen: HashSet::new(), bytes: 0 };
        reading.program(Path::new("/script"));
        let mut seen: Vec<_> = reading.seen.into_iter().collect();
        seen.sort();
        assert_eq!(seen, [Path::new("/circle"), Path::new("/script")]);
    }

    #[test]
    fn the_first_that_is_there_is_the_program() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("bin/ls")).expect("a directory");
        std::fs::create_dir_all(dir.path().join("usr")).expect("a directory");
        std::fs::write(dir.path().join("usr/ls"), "x").expect("write");
        let root = fs::open_directory_follow(dir.path()).expect("a directory");
        let candidates = ["/sbin/ls", "/bin/ls", "/usr/ls"].map(str::to_string);
        assert_eq!(first(root.as_fd(), &candidates), Some(&candidates[2]));
    }
}
