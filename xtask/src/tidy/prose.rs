//! Rules about Markdown: links and paths that lead somewhere, dated decisions, a change log that is open.

use std::path::Path;

use super::{Failures, File};

/// The list of decisions.
const INDEX: &str = "docs/decisions/README.md";
/// Directories whose files are checked where a page names them.
const DIRECTORIES: [&str; 8] = [".ci", "bench", "crates", "dev", "docs", "recipes", "scripts", "xtask"];

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
        let decision = file.path.strip_prefix("docs/decisions/").filter(|_| file.path != INDEX);
        if decision.is_some_and(|name| !is_dated(name)) {
            failures.add(&file.path, 1, "a decision's file is named YYYY-MM-DD-subject.md");
        }
        if decision.is_some_and(|name| !index.contains(name)) {
            failures.add(&file.path, 1, format!("{INDEX} does not name it"));
        }
    }
    if !files.iter().any(|file| file.path == "CHANGELOG.md" && file.text.contains("\n## [Unreleased]\n")) {
        failures.add("CHANGELOG.md", 1, "there is no section `## [Unreleased]`");
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

    #[test]
    fn decisions_are_dated() {
        assert!(is_dated("2026-11-21-weights.md"));
        assert!(!is_dated("weights.md") && !is_dated("2026-11-21-"));
    }
}
