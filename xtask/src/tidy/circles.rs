//! Modules that import each other in a circle: two may, three may not, for nobody can read one of them alone.
//!
//! Modules are files. An edge is a path in code outside tests: `crate::…`, `super::…`, `self::…`, or one that begins
//! with a module that the file declares. What a module takes from one that it lies in is none: a file and its folder
//! are read together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Failures, File};
use crate::source::{code_only, words};

/// A module's path in its crate; the root's is empty.
type Module = Vec<String>;

/// Checks every crate.
pub fn check(files: &[File], failures: &mut Failures) {
    let mut crates: BTreeMap<&str, BTreeMap<Module, &File>> = BTreeMap::new();
    for file in files {
        if let Some((krate, module)) = module_of(&file.path) {
            crates.entry(krate).or_default().insert(module, file);
        }
    }
    for (krate, modules) in &crates {
        for circle in circles(modules) {
            let names: Vec<String> = circle.iter().map(|module| module.join("/")).collect();
            failures.add(&modules[&circle[0]].path, 1, format!("{krate}: modules in a circle: {}", names.join(", ")));
        }
    }
}

/// `crates/a/src/b/c.rs` is module `b::c` of `crates/a`.
fn module_of(path: &str) -> Option<(&str, Module)> {
    let (krate, rest) = path.split_once("/src/")?;
    let mut module: Module = rest.strip_suffix(".rs")?.split('/').map(str::to_string).collect();
    if module.last().is_some_and(|last| last == "mod") || ["lib", "main"].contains(&module.join("/").as_str()) {
        module.pop();
    }
    Some((krate, module))
}

/// Each circle of more than two modules once, beginning with its first module: of those through an edge, the shortest.
fn circles(modules: &BTreeMap<Module, &File>) -> BTreeSet<Vec<Module>> {
    let edges: BTreeMap<&Module, BTreeSet<Module>> =
        modules.iter().map(|(module, file)| (module, used_by(module, &file.text, modules))).collect();
    let mut found: BTreeMap<BTreeSet<Module>, Vec<Module>> = BTreeMap::new();
    for (from, used) in &edges {
        for to in used {
            if let Some(mut circle) = way_back(&edges, to, from) {
                let first = (0..circle.len()).min_by_key(|at| &circle[*at]).unwrap_or(0);
                circle.rotate_left(first);
                found.entry(circle.iter().cloned().collect()).or_insert(circle);
            }
        }
    }
    found.into_values().collect()
}

/// The shortest way from `begin` to `end` over other modules, both included.
fn way_back(edges: &BTreeMap<&Module, BTreeSet<Module>>, begin: &Module, end: &Module) -> Option<Vec<Module>> {
    let mut queue = VecDeque::from([vec![begin.clone()]]);
    let mut seen = BTreeSet::from([begin.clone()]);
    while let Some(way) = queue.pop_front() {
        let at = way.last().expect("a way has a beginning");
        for next in edges.get(at).into_iter().flatten() {
            let longer = [&way[..], std::slice::from_ref(next)].concat();
            if next == end && way.len() > 1 {
                return Some(longer);
            }
            if next != end && seen.insert(next.clone()) {
                queue.push_back(longer);
            }
        }
    }
    None
}

/// The modules that a file names, but for those that it lies in.
fn used_by(module: &Module, text: &str, modules: &BTreeMap<Module, &File>) -> BTreeSet<Module> {
    let code = code_only(text);
    let code = &code[..text.find("#[cfg(test)]").map_or(code.len(), |at| at.min(code.len()))];
    let mut used = BTreeSet::new();
    let declared = |name: &str| modules.contains_key(&[module, &[name.to_string()][..]].concat());
    for (at, word) in words(code) {
        let (before, after) = (code[..at].trim_end(), &code[at + word.len()..]);
        let begins = !before.ends_with("::") && (!before.ends_with(['{', ',']) || is_expression(before));
        if begins && after.starts_with("::") && (["crate", "super", "self"].contains(&word) || declared(word)) {
            tree(&step(module, word), &after[2..], &mut used);
        }
    }
    let known =
        |path: Module| (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(|path| modules.contains_key(path));
    let used = used.into_iter().filter_map(known);
    used.filter(|path| path != module && !module.starts_with(path)).collect()
}

/// Whether what follows is no branch of a `use`: the statement that it is in does not begin with that word.
fn is_expression(before: &str) -> bool {
    let statement = before.rsplit([';', '}']).next().unwrap_or_default();
    !words(statement).any(|(_, word)| word == "use")
}

/// Where a segment leads from `at`.
fn step(at: &Module, segment: &str) -> Module {
    match segment {
        "crate" => Vec::new(),
        "self" => at.clone(),
        "super" => at[..at.len().saturating_sub(1)].to_vec(),
        name => [&at[..], &[name.to_string()]].concat(),
    }
}

/// Adds all paths that begin with `at` and go on with `rest`: `a::b`, `{a::b, c}`. What names no module at their ends
/// is cut off later. Gives the rest behind them.
fn tree<'a>(at: &Module, rest: &'a str, used: &mut BTreeSet<Module>) -> &'a str {
    let rest = rest.trim_start();
    if let Some(mut branches) = rest.strip_prefix('{') {
        loop {
            branches = tree(at, branches, used).trim_start();
            match branches.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => branches = more,
                Some(more) => return more.trim_start().strip_prefix('}').unwrap_or(more),
                None => return branches.strip_prefix('}').unwrap_or(branches),
            }
        }
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(rest.len());
    let (segment, behind) = rest.split_at(end);
    let next = if segment.is_empty() { at.clone() } else { step(at, segment) };
    match behind.strip_prefix("::") {
        Some(more) if !more.starts_with('<') => tree(&next, more, used),
        _ => {
            used.insert(next);
            // `name as other`
            let behind = behind.trim_start();
            behind
                .strip_prefix("as ")
                .map_or(behind, |alias| alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<File> =
            files.iter().map(|(path, text)| File { path: (*path).into(), text: (*text).into() }).collect();
        let mut failures = Failures::default();
        check(&files, &mut failures);
        failures.0
    }

    #[test]
    fn three_in_a_circle_are_named_and_two_are_not() {
        let a = ("crates/x/src/a.rs", "use crate::b::{self, B as C};\nuse crate::c;\n");
        let c = ("crates/x/src/c.rs", "use super::a::A;\n");
        let two = [a, ("crates/x/src/b.rs", "fn f() { crate::a::g() }\n"), c];
        assert_eq!(failures(&two), [""; 0]);
        let three = [a, ("crates/x/src/b.rs", "// crate::d\nuse crate::{c::C, d};\n"), c];
        assert_eq!(failures(&three), ["crates/x/src/a.rs:1: crates/x: modules in a circle: a, b, c"]);
    }

    #[test]
    fn a_module_and_those_that_it_lies_in_are_read_together() {
        let parent = ("crates/x/src/p.rs", "mod a;\nmod b;\nuse a::A;\nfn f() { b::g() }\n");
        let inner = [parent, ("crates/x/src/p/a.rs", "use super::P;\n"), ("crates/x/src/p/b.rs", "use super::a;\n")];
        assert_eq!(failures(&inner), [""; 0]);
        let outer =
            [inner[0], inner[1], ("crates/x/src/p/b.rs", "use crate::q;\n"), ("crates/x/src/q.rs", "use crate::p;\n")];
        assert_eq!(failures(&outer), ["crates/x/src/p.rs:1: crates/x: modules in a circle: p, p/b, q"]);
    }

    #[test]
    fn tests_are_left_out() {
        let circle = [
            ("crates/x/src/a.rs", "use crate::b;\n"),
            ("crates/x/src/b.rs", "use crate::c;\n"),
            ("crates/x/src/c.rs", "#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n"),
        ];
        assert_eq!(failures(&circle), [""; 0]);
    }
}
