//! `cargo xtask tidy`: checks of the repository's own rules, one line a failure, `path:line: message`.

mod circles;

mod docs;

mod edges;

mod prose;

mod rust;

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::ci::TEST_COMMAND;
use crate::reference;

/// The longest line, in characters.
const LINE_CHARS: usize = 120;
/// The largest file in the repository.
const FILE_BYTES: u64 = 512 * 1024;
/// Files that people write, by the end of their name.
const WRITTEN: [&str; 6] = [".rs", ".md", ".toml", ".py", ".sh", ".ci/run"];
/// Directories that exist on one machine and not on the next.
const MACHINE_DIRECTORIES: [&str; 4] = ["home", "root", "tmp", "work"];

/// A file of the repository.
struct File {
    /// From the root, with `/`.
    path: String,
    text: String,
}

/// What is wrong, in the order in which it was found.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    /// `line` from 1.
    fn add(&mut self, path: &str, line: usize, message: impl Display) {
        self.0.push(format!("{path}:{line}: {message}"));
    }
}

/// Reads every file that git tracks, or would, and reports all failures at once.
pub fn run(root: &Path) -> Result<()> {
    let paths = paths(root)?;
    let mut failures = Failures::default();
    let mut files = Vec::new();
    for path in paths {
        let size = fs::metadata(root.join(&path)).with_context(|| format!("cannot read {path}"))?.len();
        if size > FILE_BYTES {
            failures.add(&path, 1, format!("the file has {size} bytes, more than {FILE_BYTES}"));
        }
        if let Ok(text) = fs::read_to_string(root.join(&path)) {
            files.push(File { path, text }); // what is not UTF-8 is no text
        }
    }
    docs::check(&files, &mut failures);
    edges::check(&files, &mut failures);
    circles::check(&files, &mut failures);
    rust::check(&files, &mut failures);
    prose::check(root, &files, &mut failures);
    for file in &files {
        check_lines(file, &mut failures);
    }
    check_copies(&files, &mut failures);
    for failure in &failures.0 {
        eprintln!("{failure}");
    }
    match failures.0.len() {
        0 => Ok(()),
        count => bail!("{count} tidy checks failed"),
    }
}

fn paths(root: &Path) -> Result<Vec<String>> {
    let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(args).current_dir(root).output().context("cannot start git")?;
    ensure!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let listed = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let mut paths: Vec<String> = listed.split_terminator('\0').map(str::to_string).collect();
    paths.retain(|path| root.join(path).is_file()); // a deletion that is not committed yet
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// What is said in two places is the same in both.
fn check_copies(files: &[File], failures: &mut Failures) {
    let text_of = |path: &str| files.iter().find(|file| file.path == path).map_or("", |file| &file.text);
    for path in ["README.md", ".ci/run"] {
        if !text_of(path).contains(TEST_COMMAND) {
            failures.add(path, 1, format!("the test command `{TEST_COMMAND}` is not there"));
        }
    }
    if text_of(reference::PAGE) != reference::page(&reference::SOURCES.map(text_of)) {
        failures.add(
            reference::PAGE,
            1,
            format!("not what `cargo xtask docs` makes of {}", reference::SOURCES.join(", ")),
        );
    }
}

fn check_lines(file: &File, failures: &mut Failures) {
    if !WRITTEN.iter().any(|end| file.path.ends_with(end)) {
        return;
    }
    let in_tests = first_test_line(file);
    for (number, line) in (1..).zip(file.text.lines()) {
        let chars = line.chars().count();
        // Literals, tables and addresses cannot be broken.
        let unbreakable = line.contains(['"', '|']) || line.contains("://");
        if chars > LINE_CHARS && !unbreakable {
            failures.add(&file.path, number, format!("the line has {chars} characters, more than {LINE_CHARS}"));
        }
        if line.ends_with([' ', '\t', '\r']) {
            failures.add(&file.path, number, "white space at the end of the line");
        }
        if let Some(path) = machine_path(line).filter(|_| number < in_tests) {
            failures.add(&file.path, number, format!("`{path}` exists on one machine only"));
        }
    }
    if !file.text.ends_with('\n') {
        failures.add(&file.path, file.text.lines().count(), "no newline at the end of the file");
    }
}

/// The line from which on a file is tests.
fn first_test_line(file: &File) -> usize {
    if file.path.contains("/tests/") {
        return 0;
    }
    let unit_tests = file.text.lines().position(|line| line.starts_with("#[cfg(test)]"));
    unit_tests.map_or(usize::MAX, |at| at + 1)
}

/// An absolute path that begins with one of [`MACHINE_DIRECTORIES`].
fn machine_path(line: &str) -> Option<String> {
    line.match_indices('/').find_map(|(at, _)| {
        let before = line[..at].chars().next_back();
        let begins = before.is_none_or(|c| c.is_whitespace() || "\"'`(=:<".contains(c));
        let rest = &line[at + 1..];
        let first: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
        let goes_on = rest[first.len()..].starts_with('/');
        (begins && goes_on && MACHINE_DIRECTORIES.contains(&first.as_str())).then(|| format!("/{first}/"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_paths_are_seen() {
        assert_eq!(machine_path("open(\"/tmp/x\")"), Some("/tmp/".to_string()));
        assert_eq!(machine_path("see docs/work/x and /workshop/"), None);
    }

    #[test]
    fn lines_are_checked() {
        let text = format!("{}\nend \nno newline", "x".repeat(121));
        let mut failures = Failures::default();
        check_lines(&File { path: "a.rs".into(), text }, &mut failures);
        assert_eq!(failures.0.len(), 3, "{:?}", failures.0);
    }
}
