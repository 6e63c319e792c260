//! Searching the texts of a folder.

use regex::RegexBuilder;

use super::folder::{EntryKind, Folder, Refusal};
use crate::tool::Stop;

/// Lines that are told, characters of one, files that are read.
const HITS_MAX: usize = 100;
const LINE_CHARS: usize = 240;
const FILES_MAX: usize = 20_000;
/// The deepest folder.
const DEPTH_MAX: usize = 32;
/// Folders that are not entered: what versions and builds leave behind.
pub(super) const SKIPPED: [&str; 4] = [".git", "target", "node_modules", "__pycache__"];

/// What is looked for.
pub(super) enum Pattern {
    Text(String),
    Regex(regex::Regex),
}

impl Pattern {
    pub fn new(text: &str, is_regex: bool) -> Result<Pattern, Refusal> {
        if text.is_empty() {
            return Err("the pattern is empty".to_owned());
        }
        if !is_regex {
            return Ok(Pattern::Text(text.to_owned()));
        }
        let regex = RegexBuilder::new(text).size_limit(1 << 20).build();
        regex.map(Pattern::Regex).map_err(|error| format!("this is no regular expression: {error}"))
    }

    fn is_in(&self, line: &str) -> bool {
        match self {
            Pattern::Text(text) => line.contains(text.as_str()),
            Pattern::Regex(regex) => regex.is_match(line),
        }
    }
}

/// A search under way.
pub(super) struct Search<'a> {
    pub folder: &'a Folder,
    pub pattern: Pattern,
    pub stop: Stop<'a>,
    hits: Vec<String>,
    files: usize,
    /// Why it ended before its end.
    cut: Option<String>,
}

impl<'a> Search<'a> {
    pub fn new(folder: &'a Folder, pattern: Pattern, stop: Stop<'a>) -> Search<'a> {
        Search { folder, pattern, stop, hits: Vec::new(), files: 0, cut: None }
    }

    /// All lines with the pattern under a path, a file or a folder, in the order of names.
    pub fn run(mut self, path: &str) -> Result<String, Refusal> {
        match self.folder.list(path) {
            Ok(_) => self.enter(path.trim_end_matches('/'), 0),
            Err(_) => {
                let text = self.folder.read(path)?;
                self.look(path, &text);
            }
        }
        let mut text = match self.hits.len() {
            0 => format!("nothing found in {} files", self.files),
            _ => self.hits.join("\n"),
        };
        if let Some(cut) = self.cut {
            text += &format!("\n[{cut}]");
        }
        Ok(text)
    }

    fn enter(&mut self, path: &str, depth: usize) {
        // What cannot be listed or read is passed over, as in any search.
        let Ok(entries) = self.folder.list(path) else { return };
        for entry in entries {
            let inner = if path.is_empty() { entry.name.clone() } else { format!("{path}/{}", entry.name) };
            match entry.kind {
                EntryKind::Folder if depth < DEPTH_MAX && !SKIPPED.contains(&entry.name.as_str()) => {
                    self.enter(&inner, depth + 1);
                }
                EntryKind::File => {
                    if let Ok(text) = self.folder.read(&inner) {
                        self.look(&inner, &text);
                    }
                }
                _ => {}
            }
            if (self.stop)() {
                self.cut = Some("stopped by the user".to_owned());
            }
            if self.cut.is_some() {
                return;
            }
        }
    }

    fn look(&mut self, path: &str, text: &str) {
        self.files += 1;
        for (number, line) in (1..).zip(text.lines()) {
            if !self.pattern.is_in(line) {
                continue;
            }
            if self.hits.len() == HITS_MAX {
                self.cut = Some(format!("cut after {HITS_MAX} lines: look for something rarer, or in a part"));
                return;
            }
            let line: String = line.trim_end().chars().take(LINE_CHARS).collect();
            self.hits.push(format!("{path}:{number}: {line}"));
        }
        if self.files == FILES_MAX {
            self.cut = Some(format!("cut after {FILES_MAX} files"));
        }
    }
}
