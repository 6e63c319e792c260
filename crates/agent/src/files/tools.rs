//! The tools as a model calls them.

use std::io;
use std::sync::Arc;

use serde_json::{Value, json};

use super::folder::{EntryKind, Folder, Refusal};
use super::search::{Pattern, SKIPPED, Search};
use crate::change;
use crate::tool::{Definition, Effect, Outcome, Stop, Tool, listed, object};

/// Names of one listing.
const ENTRIES_MAX: usize = 500;
/// Lines of a file that are read where the call does not say, and bytes in any case.
const LINES: usize = 400;
const SHOWN_BYTES_MAX: usize = 20 << 10;
const DEPTH_MAX: u64 = 16;

/// What one of them does.
#[derive(Clone, Copy)]
enum Action {
    List,
    Read,
    Search,
    Write,
    Edit,
}

struct FileTool {
    folder: Arc<Folder>,
    action: Action,
}

pub(super) fn all(folder: Arc<Folder>, writes: bool) -> io::Result<Vec<Box<dyn Tool>>> {
    let mut actions = vec![Action::List, Action::Read, Action::Search];
    if writes {
        actions.extend([Action::Write, Action::Edit]);
    }
    let tool = |action| Box::new(FileTool { folder: Arc::clone(&folder), action }) as Box<dyn Tool>;
    Ok(actions.into_iter().map(tool).collect())
}

impl Tool for FileTool {
    fn definition(&self) -> Definition {
        let path = json!({"type": "string", "maxLength": 255, "description": "from the folder on, as src/main.rs"});
        let text = |about: &str| json!({"type": "string", "description": about});
        let number = |about: &str| json!({"type": "integer", "minimum": 1, "description": about});
        let (name, description, parameters) = match self.action {
            Action::List => (
                "list_files",
                "List the files of the user's folder, or of a folder in it, by name and size.",
                object(json!({"path": path, "depth": number("folders in folders, 1 if left out")}), &["path", "depth"]),
            ),
            Action::Read => (
                "read_file",
                "Read a text file of the user's folder, or some lines of it.",
                object(
                    json!({"path": path, "from_line": number("the first line, 1 if left out"),
                        "lines": number("how many, 400 if left out")}),
                    &["from_line", "lines"],
                ),
            ),
            Action::Search => (
                "search_files",
                "Find the lines of the user's files that contain a text, or match a regular expression.",
                object(
                    json!({"pattern": text("what to look for"), "regex": {"type": "boolean"}, "path": path}),
                    &["regex", "path"],
                ),
            ),
            Action::Write => (
                "write_file",
                "Write a whole file in the user's folder; one that is there is replaced.",
                object(json!({"path": path, "content": text("all of the file")}), &[]),
            ),
            Action::Edit => (
                "edit_file",
                "Replace a piece of a file by another. The old piece has to be in the file exactly once.",
                object(
                    json!({"path": path, "old": text("exactly as in the file"), "new": text("what takes its place")}),
                    &[],
                ),
            ),
        };
        Definition { name: name.to_owned(), description: description.to_owned(), parameters }
    }

    fn effect(&self) -> Effect {
        match self.action {
            Action::List | Action::Read | Action::Search => Effect::Reads,
            Action::Write | Action::Edit => Effect::Acts,
        }
    }

    fn preview(&self, arguments: &Value) -> String {
        let path = text(arguments, "path");
        let change = match self.action {
            Action::Write => self.before(path).map(|before| (before, text(arguments, "content").to_owned())),
            Action::Edit => self.edited(arguments),
            _ => return listed(arguments),
        };
        match change {
            Ok((before, after)) => format!("path: {path}\n{}", change::shown(&before, &after)),
            Err(refusal) => format!("path: {path}\n{refusal}"),
        }
    }

    fn call(&mut self, arguments: &Value, stop: Stop) -> Outcome {
        let path = text(arguments, "path");
        let result = match self.action {
            Action::List => self.list(path, arguments["depth"].as_u64().unwrap_or(1)),
            Action::Read => self.read(path, arguments),
            Action::Search => {
                let is_regex = arguments["regex"].as_bool().unwrap_or(false);
                let pattern = Pattern::new(text(arguments, "pattern"), is_regex);
                pattern.and_then(|pattern| Search::new(&self.folder, pattern, stop).run(path))
            }
            Action::Write => self.write(path, text(arguments, "content")),
            Action::Edit => self.edit(arguments),
        };
        result.map_or_else(Outcome::failed, Outcome::done)
    }
}

fn text<'a>(arguments: &'a Value, name: &str) -> &'a str {
    arguments[name].as_str().unwrap_or_default()
}

impl FileTool {
    fn list(&self, path: &str, depth: u64) -> Result<String, Refusal> {
        let mut lines = Vec::new();
        self.enter(path.trim_end_matches('/'), depth.min(DEPTH_MAX), &mut lines)?;
        if lines.is_empty() {
            return Ok("the folder is empty".to_owned());
        }
        if lines.len() > ENTRIES_MAX {
            lines.truncate(ENTRIES_MAX);
            lines.push(format!("[cut after {ENTRIES_MAX} names: list a folder in it]"));
        }
        Ok(lines.join("\n"))
    }

    fn enter(&self, path: &str, depth: u64, lines: &mut Vec<String>) -> Result<(), Refusal> {
        for entry in self.folder.list(path)? {
            let inner = if path.is_empty() { entry.name.clone() } else { format!("{path}/{}", entry.name) };
            lines.push(match entry.kind {
                EntryKind::Folder => format!("{inner}/"),
                EntryKind::File => format!("{inner} ({} bytes)", entry.bytes),
                EntryKind::Link => format!("{inner} (a link)"),
                EntryKind::Other => format!("{inner} (no regular file)"),
            });
            if lines.len() > ENTRIES_MAX {
                return Ok(());
            }
            let entered = entry.kind == EntryKind::Folder && depth > 1 && !SKIPPED.contains(&entry.name.as_str());
            if entered && let Err(refusal) = self.enter(&inner, depth - 1, lines) {
                lines.push(format!("  [{refusal}]"));
            }
        }
        Ok(())
    }

    fn read(&self, path: &str, arguments: &Value) -> Result<String, Refusal> {
        let whole = self.folder.read(path)?;
        let total = whole.lines().count();
        let number = |name: &str, otherwise: usize| arguments[name].as_u64().map_or(otherwise, |n| n as usize);
        let (from, count) = (number("from_line", 1).max(1), number("lines", LINES).max(1));
        if from > total.max(1) {
            return Err(format!("{path} has {total} lines, and not a line {from}"));
        }
        let (mut shown, mut last) = (String::new(), from - 1);
        for line in whole.split_inclusive('\n').skip(from - 1).take(count) {
            if shown.len() + line.len() > SHOWN_BYTES_MAX && last >= from {
                break;
            }
            shown.push_str(line);
            last += 1;
        }
        if from == 1 && last == total {
            return Ok(if shown.is_empty() { "[the file is empty]".to_owned() } else { shown });
        }
        let newline = if shown.ends_with('\n') { "" } else { "\n" };
        Ok(format!("{shown}{newline}[lines {from} to {last} of {total}]"))
    }

    fn write(&self, path: &str, content: &str) -> Result<String, Refusal> {
        let before = self.folder.exists(path)?;
        self.folder.write(path, content)?;
        let done = if before { "replaced" } else { "made" };
        Ok(format!("{done} {path}: {} lines, {} bytes", content.lines().count(), content.len()))
    }

    /// A file's text; none if it is not there.
    fn before(&self, path: &str) -> Result<String, Refusal> {
        if self.folder.exists(path)? { self.folder.read(path) } else { Ok(String::new()) }
    }

    /// A file before and after an edit.
    fn edited(&self, arguments: &Value) -> Result<(String, String), Refusal> {
        let path = text(arguments, "path");
        let (old, new) = (text(arguments, "old"), text(arguments, "new"));
        if old.is_empty() {
            return Err("`old` is empty: to make a file, call write_file".to_owned());
        }
        let before = self.folder.read(path)?;
        match before.matches(old).count() {
            0 => Err(format!("`old` is not in {path}: read the file, and give the piece exactly as it is")),
            1 => {
                let after = before.replacen(old, new, 1);
                Ok((before, after))
            }
            count => Err(format!("`old` is in {path} {count} times: give more of what is around it")),
        }
    }

    fn edit(&self, arguments: &Value) -> Result<String, Refusal> {
        let (_, after) = self.edited(arguments)?;
        let path = text(arguments, "path");
        self.folder.write(path, &after)?;
        Ok(format!("edited {path}"))
    }
}
