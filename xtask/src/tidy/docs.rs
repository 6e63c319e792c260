//! Rules about doc comments: what libraries make public says what it is, and no line only repeats a name.
//!
//! The compiler's `missing_docs` wants a line at every field and variant, and so gets lines such as "The path." Here
//! types, constants and functions that take something need one. Fields, variants and functions of nothing but `self`
//! may be left to their names and types.

use std::collections::{HashMap, HashSet};

use super::{Failures, File};
use crate::reference;
use crate::source::{code_only, words};

/// Not libraries: nobody else can use what is public there.
const BINARIES: [&str; 1] = ["crates/cli/"];
/// Words that say nothing by themselves.
const EMPTY: [&str; 24] = [
    "a", "all", "an", "and", "are", "as", "for", "here", "how", "in", "is", "it", "its", "many", "number", "of", "one",
    "s", "some", "that", "the", "their", "this", "what",
];
/// What some names say beside their own words.
const SAID: [(&str, &[&str]); 4] = [
    ("path", &["file", "folder", "directory"]),
    ("reason", &["wrong", "why"]),
    ("message", &["words", "wrong"]),
    ("source", &["system", "reason"]),
];

/// Checks the sources of all crates.
pub fn check(files: &[File], failures: &mut Failures) {
    let is_in = |path: &str, list: &[&str]| list.iter().any(|directory| path.starts_with(directory));
    let is_source = |file: &&File| file.path.ends_with(".rs") && file.path.contains("/src/");
    let sources: Vec<&File> = files.iter().filter(|file| file.path.starts_with("crates/")).filter(is_source).collect();
    let crate_of = |file: &File| file.path.split('/').nth(1).unwrap_or_default().to_owned();
    let mut public: HashMap<String, HashSet<&str>> = HashMap::new();
    for file in &sources {
        public.entry(crate_of(file)).or_default().extend(public_types(&file.text));
    }
    for file in sources {
        let is_library = !is_in(&file.path, &BINARIES);
        // The lines at a recipe's keys are a page of their own, and those at arguments are help, without a full stop.
        let is_page = reference::SOURCES.contains(&file.path.as_str());
        let is_help = |line: &str| !is_library && !line.ends_with('.');
        for item in items(&file.text, &public[&crate_of(file)]) {
            if item.needs_doc && item.doc.is_empty() && is_library {
                failures.add(&file.path, item.line, format!("`{}` is public and has no doc comment", item.name));
            }
            let [line] = item.doc[..] else { continue };
            if !is_page && !is_help(line) && !item.needs_doc && repeats(line, &item.context) {
                failures.add(&file.path, item.doc_line, format!("`///{line}` only repeats the name"));
            }
        }
    }
}

/// Names of the types that a file makes public.
fn public_types(source: &str) -> impl Iterator<Item = &str> {
    let types = ["pub struct ", "pub enum ", "pub trait ", "pub type ", "pub union "];
    let behind = move |line| types.iter().find_map(|keyword| str::strip_prefix(line, keyword));
    source.lines().filter_map(behind).filter_map(|rest| words(rest).next()).map(|(_, name)| name)
}

/// What may have a doc comment.
struct Item<'a> {
    name: &'a str,
    /// From 1.
    line: usize,
    /// Of its doc comment, which may be empty.
    doc: Vec<&'a str>,
    /// Where that begins.
    doc_line: usize,
    needs_doc: bool,
    /// Words of its line and of those that it is nested in.
    context: Vec<String>,
}

/// The items of a source, without those of its unit tests.
fn items<'a>(source: &'a str, public: &HashSet<&str>) -> Vec<Item<'a>> {
    let code = code_only(source);
    let code: Vec<&str> = code.lines().collect();
    let lines: Vec<&str> = source.lines().collect();
    let end = lines.iter().position(|line| line.starts_with("#[cfg(test)]")).unwrap_or(lines.len());
    let mut found = Vec::new();
    let (mut doc, mut doc_line, mut brackets) = (Vec::new(), 0, 0);
    for (at, line) in lines[..end].iter().enumerate() {
        let text = line.trim_start();
        if let Some(text) = text.strip_prefix("///") {
            doc_line = if doc.is_empty() { at + 1 } else { doc_line };
            doc.push(text);
        } else if brackets > 0 || text.starts_with("#[") {
            brackets += code[at].matches('[').count();
            brackets = brackets.saturating_sub(code[at].matches(']').count());
        } else {
            let doc = std::mem::take(&mut doc);
            if let Some((name, needs_doc)) = declared(line) {
                let needs_doc = needs_doc && nesting(&code, at).skip(1).all(|line| is_reachable(line, public));
                let context = nesting(&code, at).flat_map(parts).collect();
                found.push(Item { name, line: at + 1, doc, doc_line, needs_doc, context });
            }
        }
    }
    found
}

/// Whether what is public within this line may be so for all: it is not in a private module, nor in a private type.
fn is_reachable(line: &str, public: &HashSet<&str>) -> bool {
    let text = line.trim_start();
    let is_of_public = |text: &str| words(text).any(|(_, word)| public.contains(word));
    text.starts_with("pub ") || text.strip_prefix("impl").is_some_and(is_of_public)
}

/// The name that a line gives to something, and whether that has to have a doc comment.
fn declared(line: &str) -> Option<(&str, bool)> {
    let text = line.trim_start();
    let is_public = text.starts_with("pub ");
    let names: Vec<&str> = words(text).map(|(_, word)| word).collect();
    let modifiers = ["pub", "crate", "super", "async", "unsafe", "extern", "const", "fn"];
    let behind = names.iter().position(|word| !modifiers.contains(word))?;
    let keyword = |word: &str| matches!(word, "struct" | "enum" | "trait" | "type" | "static" | "union");
    let at = match names[behind] {
        word if keyword(word) => behind,
        _ if behind > 0 && matches!(names[behind - 1], "fn" | "const") => behind - 1,
        name => return Some((name, false)),
    };
    let name = *names.get(at + 1)?;
    let rest = &text[name.as_ptr() as usize - text.as_ptr() as usize + name.len()..];
    let takes_only_self = names[at] == "fn" && (rest.starts_with("(&self)") || rest.starts_with("(self)"));
    Some((name, is_public && !takes_only_self))
}

/// A line and those above it that it is nested in, by their indentation.
fn nesting<'a>(code: &'a [&'a str], at: usize) -> impl Iterator<Item = &'a str> {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let mut limit = indentation(code[at]) + 1;
    code[..=at].iter().rev().copied().filter(move |line| {
        let is_outer = !line.trim().is_empty() && indentation(line) < limit;
        limit = if is_outer { indentation(line) } else { limit };
        is_outer
    })
}

/// Words of identifiers, small and singular, and what some of them say besides.
fn parts(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (_, identifier) in words(code) {
        let mut word = String::new();
        for c in identifier.chars() {
            if c == '_' || c.is_uppercase() && !word.ends_with(char::is_uppercase) {
                found.push(std::mem::take(&mut word));
            }
            word.extend(Some(c).filter(|c| *c != '_'));
        }
        found.push(word);
    }
    let small: Vec<String> = found.iter().map(|word| singular(&word.to_lowercase())).collect();
    let said = SAID.iter().filter(|(name, _)| small.iter().any(|word| word == name));
    let said: Vec<String> = said.flat_map(|(_, said)| said.iter().map(|word| singular(word))).collect();
    small.into_iter().chain(said).collect()
}

fn singular(word: &str) -> String {
    word.strip_suffix('s').filter(|stem| stem.len() > 2).unwrap_or(word).to_owned()
}

/// Whether a line has plain words alone, all of them empty or in the context.
fn repeats(line: &str, context: &[String]) -> bool {
    let is_plain = line.chars().all(|c| c.is_ascii_alphabetic() || " '.,".contains(c));
    let known = |word: &str| EMPTY.contains(&word) || context.contains(&singular(word));
    is_plain && words(&line.to_lowercase()).all(|(_, word)| known(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(path: &str, text: &str) -> Vec<String> {
        let mut failures = Failures::default();
        check(&[File { path: path.into(), text: text.into() }], &mut failures);
        failures.0
    }

    const REPEATS: &str = r"
/// A shard.
pub struct Shard {
    /// Number of tokens.
    pub tokens: u64,
    /// From 0.
    pub at: u64,
}
impl Shard {
    /// The shard's path.
    #[inline]
    pub fn file_path(&self) -> &Path {
        let x = 1;
    }
}
/// What went wrong.
enum Error {
    /// The file.
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: Io,
    },
    /// The disk is full.
    Full,
}
";

    #[test]
    fn lines_that_only_repeat_a_name_are_found() {
        let found = failures("crates/data/src/a.rs", REPEATS);
        let message = |line: u8, text: &str| format!("crates/data/src/a.rs:{line}: `/// {text}` only repeats the name");
        let lines =
            [(4, "Number of tokens."), (10, "The shard's path."), (20, "The file."), (22, "The system's reason.")];
        assert_eq!(found, lines.map(|(line, text)| message(line, text)));
        let help = "/// Of `wels show`.\nstruct ReadArgs {\n    /// The file\n    path: PathBuf,\n}\n";
        assert_eq!(failures("crates/cli/src/a.rs", help), [""; 0]);
        assert_eq!(failures("crates/runs/src/a.rs", help).len(), 1);
    }

    const PUBLIC: &str = r"
pub struct A;

/// Says.
#[derive(
    Debug,
)]
pub struct B {
    pub c: u8,
}
impl B {
    pub const fn c(self) -> &'static str {
        0
    }
    pub const fn d(&self, e: u8) {}
    fn f() {}
}
pub const G: u8 = 0;
pub(crate) struct H;
impl H {
    pub fn i() {}
}
#[cfg(test)]
mod tests {
    pub fn j() {}
}
";

    #[test]
    fn what_is_public_needs_a_doc_comment() {
        let found = failures("crates/model/src/a.rs", PUBLIC);
        let message =
            |line: u8, name: &str| format!("crates/model/src/a.rs:{line}: `{name}` is public and has no doc comment");
        assert_eq!(found, [message(2, "A"), message(15, "d"), message(18, "G")]);
        assert_eq!(failures("crates/cli/src/a.rs", PUBLIC), [""; 0]);
    }
}
