//! Rules about Rust sources.

use super::{Failures, File};
use crate::source::{code_only, functions, line_of, words};

/// A function may not grow past this.
const FUNCTION_LINES: usize = 70;
/// A file may not grow past this.
const FILE_LINES: usize = 700;
/// Where `unsafe` may stand: compute, what talks to a card's driver, and the two wrappers of a memory map.
const UNSAFE: [&str; 5] = [
    "crates/kernels/",
    "crates/cuda/src/launch.rs",
    "crates/cuda/src/launch/",
    "crates/model/src/weights/map.rs",
    "crates/data/src/mapped.rs",
];
/// Macros of unfinished work.
const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Checks every `.rs` file.
pub fn check(files: &[File], failures: &mut Failures) {
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let path = &file.path;
        let code = code_only(&file.text);
        if !file.text.starts_with("//!") {
            failures.add(path, 1, "the file has no `//!` header");
        }
        let lines = file.text.lines().count();
        if lines > FILE_LINES {
            failures.add(path, 1, format!("the file has {lines} lines, more than {FILE_LINES}"));
        }
        for function in functions(&code).iter().filter(|function| function.lines > FUNCTION_LINES) {
            let message = format!("`{}` has {} lines, more than {FUNCTION_LINES}", function.name, function.lines);
            failures.add(path, function.line, message);
        }
        for (at, word) in words(&code) {
            let rest = &code[at + word.len()..];
            if word == "unsafe" && !UNSAFE.iter().any(|allowed| path.starts_with(allowed)) {
                failures.add(path, line_of(&code, at), format!("`unsafe` outside {}", UNSAFE.join(", ")));
            }
            if UNFINISHED.contains(&word) && rest.starts_with('!') {
                failures.add(path, line_of(&code, at), format!("`{word}!` is left"));
            }
            if word == "ignore" && code[..at].ends_with("#[") && rest.starts_with(']') {
                failures.add(path, line_of(&code, at), "`#[ignore]` without a reason");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(path: &str, text: &str) -> Vec<String> {
        let mut failures = Failures::default();
        check(&[File { path: path.into(), text: text.into() }], &mut failures);
        failures.0
    }

    #[test]
    fn the_limit_of_a_function_is_exact() {
        let body = |lines: usize| format!("//! x\nfn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
        assert_eq!(failures("a.rs", &body(70)), [""; 0]);
        assert_eq!(failures("a.rs", &body(71)), ["a.rs:2: `f` has 71 lines, more than 70"]);
    }

    #[test]
    fn the_limit_of_a_file_is_exact() {
        let text = |lines: usize| format!("//! x\n{}", "\n".repeat(lines - 1));
        assert_eq!(failures("a.rs", &text(700)), [""; 0]);
        assert_eq!(failures("a.rs", &text(701)), ["a.rs:1: the file has 701 lines, more than 700"]);
    }

    #[test]
    fn unfinished_and_unguarded_code_is_named() {
        let text = "#[ignore]\n#[ignore = \"slow\"]\nfn f() {\n    todo!(); // dbg!\n    unsafe {}\n}\n";
        let found = failures("crates/model/src/a.rs", text);
        let lines: Vec<&str> = found.iter().map(|failure| failure.split(':').nth(1).unwrap()).collect();
        assert_eq!(lines, ["1", "1", "4", "5"], "{found:?}");
        assert_eq!(failures("crates/kernels/src/a.rs", "//! x\nfn f() { unsafe {} }\n"), [""; 0]);
    }
}
