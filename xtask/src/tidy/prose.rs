//! Rules about Markdown: links, paths and names that lead somewhere, claims with a verdict, dated decisions, a change
//! log that is open.

use std::path::Path;

use super::{Failures, File};
use crate::source::words;

/// The list of decisions.
const INDEX: &str = "docs/decisions/README.md";
/// Directories whose files are checked where a page names them.
const DIRECTORIES: [&str; 8] = [".ci", "bench", "crates", "dev", "docs", "recipes", "scripts", "xtask"];

/// Pages about the past, whose files may be gone.
const HISTORY: [&str; 2] = ["CHANGELOG.md", "dev/LOG.md"];
/// The table of claims.
const CLAIMS: &str = "docs/claims.md";

/// Checks every `.md` file.
pub fn check(root: &Path, files: &[File], failures: &mut Failures) {
    let index = files.iter().find(|file| file.path == INDEX).map_or("", |file| &file.text);
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let directory = root.join(&file.path).parent().expect("a file lies in a directory").to_path_buf();
        for (line, target) in local_links(&file.text) {
            if !directory.join(&target).exists() {
                failures.add(&file.path, line, format!("the link to `{target}` leads nowhere"));
            }
        }
        for (line, path) in named_paths(&file.text) {
            if !root.join(&path).exists() {
                failures.add(&file.path, line, format!("`{path}` is not there"));
            }
        }
        if !HISTORY.contains(&file.path.as_str()) {
            check_sources(file, files, failures);
        }
        let decision = file.path.strip_prefix("docs/decisions/").filter(|_| file.path != INDEX);
        if decision.is_some_and(|name| !is_dated(name)) {
            failures.add(&file.path, 1, "a decision's file is named YYYY-MM-DD-subject.md");
        }
        if decision.is_some_and(|name| !index.contains(name)) {
            failures.add(&file.path, 1, format!("{INDEX} does not name it"));
        }
    }
    if let Some(claims) = files.iter().find(|file| file.path == CLAIMS) {
        check_claims(claims, failures);
    }
    if !files.iter().any(|file| file.path == "CHANGELOG.md" && file.text.contains("\n## [Unreleased]\n")) {
        failures.add("CHANGELOG.md", 1, "there is no section `## [Unreleased]`");
    }
}

/// What a page names of the sources is there: a file by the end of its path, and behind a file an item of it, as in
/// `` `a.rs` `Type::name` `` and `` `a.rs`, `name` ``.
fn check_sources(page: &File, files: &[File], failures: &mut Failures) {
    for (number, line) in (1..).zip(page.text.lines()) {
        let parts: Vec<&str> = line.split('`').collect();
        for (at, code) in parts.iter().enumerate().skip(1).step_by(2) {
            if !is_source(code) {
                continue;
            }
            let named: Vec<&File> = files.iter().filter(|file| ends_with_path(&file.path, code)).collect();
            if named.is_empty() {
                failures.add(&page.path, number, format!("no file's path ends with `{code}`"));
                continue;
            }
            let is_behind = parts.get(at + 1).is_some_and(|between| matches!(*between, " " | ", "));
            let item = parts.get(at + 2).filter(|item| is_behind && parts.len() > at + 3 && is_item(item));
            let Some(name) = item.and_then(|item| item.rsplit("::").next()) else { continue };
            if !named.iter().any(|file| words(&file.text).any(|(_, word)| word == name)) {
                failures.add(&page.path, number, format!("`{code}` has no `{name}`"));
            }
        }
    }
}

/// A Rust or Python file, no pattern.
fn is_source(code: &str) -> bool {
    let plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    [".rs", ".py"].iter().any(|end| code.strip_suffix(end).is_some_and(plain))
}

/// `name` or `Type::name`.
fn is_item(code: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    code.split("::").all(is_name)
}

/// Ends at the border of a path's part.
fn ends_with_path(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

/// Each row has one verdict, `yes` or `**no**`, in its own column, and the page's first lines count them.
fn check_claims(page: &File, failures: &mut Failures) {
    let (mut met, mut all) = (0, 0);
    for (number, line) in (1..).zip(page.text.lines()) {
        let Some(row) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else { continue };
        let cells: Vec<&str> = row.split(" | ").collect();
        match cells[..] {
            ["claim", ..] => {}
            [_, _, measured, verdict @ ("yes" | "**no**"), _, _] if !measured.contains("not met") => {
                met += usize::from(verdict == "yes");
                all += 1;
            }
            _ => failures.add(&page.path, number, "a claim has six columns, the fourth `yes` or `**no**`"),
        }
    }
    let count = format!("{met} of {all} rows");
    if !page.text.contains(&count) {
        failures.add(&page.path, 1, format!("the page does not say that {count} are met"));
    }
}

/// Targets of links to files, with their lines; anchors are cut off. Code is passed over.
fn local_links(markdown: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(markdown.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let text: String = line.split('`').step_by(2).collect();
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:") {
                links.push((number, file.to_string()));
            }
        }
    }
    links
}

/// Paths from the root that stand in `code` by themselves, with their lines. Patterns are none.
fn named_paths(markdown: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    for (number, line) in (1..).zip(markdown.lines()) {
        for code in line.split('`').skip(1).step_by(2) {
            let first = code.split('/').next().unwrap_or_default();
            let is_path = code.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if is_path && code.contains('/') && DIRECTORIES.contains(&first) {
                paths.push((number, code.to_string()));
            }
        }
    }
    paths
}

fn is_dated(name: &str) -> bool {
    let pattern = "0000-00-00-";
    name.len() > pattern.len()
        && name.chars().zip(pattern.chars()).all(|(c, p)| if p == '0' { c.is_ascii_digit() } else { c == p })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_are_found() {
        let text = "[a](x.md#y) [b](https://x.y/z) [c](#here)\n```\n[d](no)\n```\n`[e](no)` ![f](f.png \"t\")\n";
        assert_eq!(local_links(text), [(1, "x.md".to_string()), (5, "f.png".to_string())]);
    }

    #[test]
    fn paths_are_found() {
        let text = "`crates/a.rs` and `crates/*/b.rs`, `runs/x`, `docs`\n`cargo run`, `docs/b.md`\n";
        assert_eq!(named_paths(text), [(1, "crates/a.rs".to_string()), (2, "docs/b.md".to_string())]);
    }

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn sources_and_their_items_are_found() {
        let files = [file("crates/a/src/b.rs", "fn step() {}"), file("crates/a/src/ab.rs", "")];
        let cases = [
            ("`b.rs`, `step`; `src/b.rs` `Trainer::step`; `*/x.rs`; `b.rs` and `leap`", ""),
            ("`crates/a/src/b.rs` `Trainer::leap`: `step`", "p.md:1: `crates/a/src/b.rs` has no `leap`"),
            ("`rc/b.rs`", "p.md:1: no file's path ends with `rc/b.rs`"),
            ("`c.py`, `b.rs`", "p.md:1: no file's path ends with `c.py`"),
        ];
        for (text, expected) in cases {
            let mut failures = Failures::default();
            check_sources(&file("p.md", text), &files, &mut failures);
            assert_eq!(failures.0.join("\n"), expected, "{text}");
        }
    }

    #[test]
    fn claims_have_a_verdict() {
        let head =
            "1 of 2 rows do.\n\n| claim | bar | measured | met? | command | where |\n|---|---|---|---|---|---|\n";
        let row = |verdict: &str| format!("| a | 1 | 2 | {verdict} | `c` | tests |\n");
        let failures = |text: String| {
            let mut failures = Failures::default();
            check_claims(&file(CLAIMS, &text), &mut failures);
            failures.0
        };
        assert_eq!(failures(head.to_string() + &row("yes") + &row("**no**")), [""; 0]);
        assert_eq!(failures(head.to_string() + &row("yes") + &row("yes")).len(), 1, "the count is wrong");
        assert_eq!(failures(head.to_string() + &row("yes") + &row("**no**") + &row("nearly")).len(), 1);
    }

    #[test]
    fn decisions_are_dated() {
        assert!(is_dated("2026-11-21-weights.md"));
        assert!(!is_dated("weights.md") && !is_dated("2026-11-21-"));
    }
}
