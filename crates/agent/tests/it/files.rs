//! The tools of a folder, and paths that try to leave it.
#![cfg(unix)]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use serde_json::{Value, json};
use wels_agent::{Outcome, Tool, files};

/// A folder with tools, and a secret beside it.
struct Place {
    outside: tempfile::TempDir,
    tools: HashMap<String, Box<dyn Tool>>,
}

const SECRET: &str = "the secret of the outside";

impl Place {
    fn new() -> Place {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::write(outside.path().join("secret.txt"), SECRET).unwrap();
        let tools = files::tools(&inside, true).unwrap();
        let tools = tools.into_iter().map(|tool| (tool.definition().name, tool)).collect();
        Place { outside, tools }
    }

    fn inside(&self) -> std::path::PathBuf {
        self.outside.path().join("inside")
    }

    fn call(&mut self, tool: &str, arguments: Value) -> Outcome {
        self.tools.get_mut(tool).unwrap().call(&arguments, &|| false)
    }

    fn done(&mut self, tool: &str, arguments: Value) -> String {
        let outcome = self.call(tool, arguments);
        assert!(outcome.worked, "{outcome:?}");
        outcome.text
    }

    fn refused(&mut self, tool: &str, arguments: Value) -> String {
        let outcome = self.call(tool, arguments);
        assert!(!outcome.worked, "{outcome:?}");
        outcome.text
    }
}

#[test]
fn files_are_written_read_found_and_edited() {
    let mut place = Place::new();
    let lines: String = (1..=9).map(|n| format!("line {n}\n")).collect();
    assert_eq!(
        place.done("write_file", json!({"path": "src/a/x.txt", "content": lines})),
        "made src/a/x.txt: 9 lines, 63 bytes"
    );
    assert_eq!(place.done("read_file", json!({"path": "src/a/x.txt"})), lines);
    let some = place.done("read_file", json!({"path": "./src//a/x.txt", "from_line": 3, "lines": 2}));
    assert_eq!(some, "line 3\nline 4\n[lines 3 to 4 of 9]");
    assert!(place.refused("read_file", json!({"path": "src/a/x.txt", "from_line": 10})).contains("not a line 10"));

    let edit = json!({"path": "src/a/x.txt", "old": "line 5\n", "new": "five\n"});
    let preview = place.tools["edit_file"].preview(&edit);
    assert!(preview.contains("\n-line 5\n+five\n"), "{preview}");
    assert_eq!(place.done("edit_file", edit.clone()), "edited src/a/x.txt");
    assert_eq!(fs::read_to_string(place.inside().join("src/a/x.txt")).unwrap(), lines.replace("line 5", "five"));
    assert!(place.refused("edit_file", edit).contains("is not in src/a/x.txt"));
    let twice = json!({"path": "src/a/x.txt", "old": "line", "new": "x"});
    assert!(place.refused("edit_file", twice).contains("8 times"));

    assert_eq!(place.done("list_files", json!({})), "src/");
    assert_eq!(place.done("list_files", json!({"depth": 3})), "src/\nsrc/a/\nsrc/a/x.txt (61 bytes)");
    assert_eq!(place.done("search_files", json!({"pattern": "five"})), "src/a/x.txt:5: five");
    let regex = json!({"pattern": "^line [12]$", "regex": true, "path": "src"});
    assert_eq!(place.done("search_files", regex), "src/a/x.txt:1: line 1\nsrc/a/x.txt:2: line 2");
    assert_eq!(place.done("search_files", json!({"pattern": "^line"})), "nothing found in 1 files");
    assert!(place.refused("search_files", json!({"pattern": "(", "regex": true})).contains("no regular expression"));
}

#[test]
fn writing_keeps_permissions_and_leaves_nothing_else() {
    let mut place = Place::new();
    let script = place.inside().join("run.sh");
    fs::write(&script, "old").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
    assert!(place.done("write_file", json!({"path": "run.sh", "content": "new"})).starts_with("replaced run.sh"));
    assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(fs::read_dir(place.inside()).unwrap().count(), 1);

    // A hard link's other name keeps what it had: the file is replaced, not written into.
    fs::hard_link(place.outside.path().join("secret.txt"), place.inside().join("hard")).unwrap();
    place.done("write_file", json!({"path": "hard", "content": "mine"}));
    assert_eq!(fs::read_to_string(place.outside.path().join("secret.txt")).unwrap(), SECRET);
    assert!(
        place.refused("write_file", json!({"path": ".git/hooks/pre-commit", "content": "x"})).contains("Git's own")
    );
}

#[test]
fn what_is_no_text_or_too_large_is_refused() {
    let mut place = Place::new();
    fs::write(place.inside().join("zeros"), b"a\0b").unwrap();
    fs::write(place.inside().join("latin"), b"caf\xe9").unwrap();
    let large = fs::File::create(place.inside().join("large")).unwrap();
    large.set_len(files::READ_BYTES_MAX + 1).unwrap();
    for (name, why) in [("zeros", "no text"), ("latin", "no text"), ("large", "more than"), (".", "a folder")] {
        assert!(place.refused("read_file", json!({"path": name})).contains(why), "{name}");
    }
    rustix::fs::mkfifoat(rustix::fs::CWD, place.inside().join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    assert!(
        place.refused("read_file", json!({"path": "pipe"})).contains("no regular file"),
        "and it is not waited for"
    );
    let content = "x".repeat(files::WRITE_BYTES_MAX + 1);
    assert!(place.refused("write_file", json!({"path": "new", "content": content})).contains("more than"));
    fs::write(place.inside().join("long"), "y".repeat(300_000)).unwrap();
    let cut = place.done("read_file", json!({"path": "long"}));
    assert!(cut.len() >= 300_000, "one line is shown whole here, and cut as a result");
}

#[test]
fn links_within_work_and_links_out_do_not() {
    let mut place = Place::new();
    place.done("write_file", json!({"path": "a/x", "content": "inner"}));
    symlink("a", place.inside().join("within")).unwrap();
    symlink("..", place.inside().join("up")).unwrap();
    symlink(place.outside.path(), place.inside().join("absolute")).unwrap();
    symlink("../secret.txt", place.inside().join("file")).unwrap();
    symlink("/proc/self/root", place.inside().join("magic")).unwrap();
    assert_eq!(place.done("read_file", json!({"path": "within/x"})), "inner");
    for path in ["up/secret.txt", "absolute/secret.txt", "file", "magic/etc/passwd", "up/inside/a/x"] {
        let refusal = place.refused("read_file", json!({"path": path}));
        assert!(refusal.contains("leads out of the folder"), "{path}: {refusal}");
        place.refused("write_file", json!({"path": path, "content": "x"}));
    }
    assert!(place.refused("list_files", json!({"path": "up"})).contains("leads out"));
    let found = place.done("search_files", json!({"pattern": "secret"}));
    assert_eq!(found, "nothing found in 1 files");
    assert_eq!(fs::read_to_string(place.outside.path().join("secret.txt")).unwrap(), SECRET);
}

/// A repository may come with a link to where Git keeps what it runs.
#[test]
fn writing_follows_no_link_and_so_none_into_git() {
    let mut place = Place::new();
    let hooks = place.inside().join(".git/hooks");
    fs::create_dir_all(&hooks).unwrap();
    fs::write(hooks.join("sample"), "old").unwrap();
    symlink(".git/hooks", place.inside().join("docs")).unwrap();
    symlink(".", place.inside().join("here")).unwrap();
    let said = place.refused("write_file", json!({"path": "docs/pre-commit", "content": "x"}));
    assert!(said.contains("is a link that is not followed"), "{said}");
    let edit = json!({"path": "docs/sample", "old": "old", "new": "new"});
    let said = place.refused("edit_file", edit);
    assert!(said.contains("is a link that is not followed"), "{said}");
    place.refused("write_file", json!({"path": "here/.git/hooks/pre-commit", "content": "x"}));
    place.refused("write_file", json!({"path": ".GIT/hooks/pre-commit", "content": "x"}));
    assert_eq!(fs::read_to_string(hooks.join("sample")).unwrap(), "old");
    assert_eq!(fs::read_dir(&hooks).unwrap().count(), 1);
}

/// A folder is made a link that leads out, and a folder again, all the time, while files in it are read and written.
#[cfg(target_os = "linux")]
#[test]
fn a_link_that_appears_meanwhile_leads_nowhere() {
    let mut place = Place::new();
    let (inside, other) = (place.inside(), place.inside().join("other"));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("secret.txt"), "harmless").unwrap();
    symlink(place.outside.path(), inside.join("link")).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !ends.load(Ordering::Relaxed) {
                renameat_with(CWD, inside.join("other"), CWD, inside.join("link"), RenameFlags::EXCHANGE).unwrap();
            }
        });
        let mut reads = 0;
        for _ in 0..3000 {
            let read = place.call("read_file", json!({"path": "other/secret.txt"}));
            reads += usize::from(read.worked);
            assert!(!read.worked || read.text != SECRET);
            place.call("write_file", json!({"path": "other/written.txt", "content": "x"}));
        }
        ends.store(true, Ordering::Relaxed);
        assert!(reads > 0);
    });
    let beside: Vec<_> = fs::read_dir(place.outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 2, "nothing was written outside: {beside:?}");
}

fn shape(root: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever path is made of these parts, in whatever order: nothing outside is read, listed or changed.
    #[test]
    fn no_path_leads_out(parts in prop::collection::vec(prop::sample::select(vec![
        "..", ".", "", "/", "a", "up", "absolute", "secret.txt", "inside", "...", "..\\", "~", "%2e%2e", "a\0b", "é",
        "proc", "self", "root", "within",
    ]), 0..7)) {
        let mut place = Place::new();
        place.done("write_file", json!({"path": "a/x", "content": "inner"}));
        symlink("..", place.inside().join("up")).unwrap();
        symlink("/", place.inside().join("absolute")).unwrap();
        symlink("a", place.inside().join("within")).unwrap();
        let path = parts.join("/");
        for tool in ["read_file", "list_files", "search_files"] {
            let outcome = place.call(tool, json!({"path": path, "pattern": "secret"}));
            prop_assert!(!outcome.text.contains(SECRET), "{tool} {path}: {outcome:?}");
            prop_assert!(!(outcome.worked && outcome.text.contains("inside/")), "{tool} {path}: {outcome:?}");
        }
        place.call("write_file", json!({"path": path, "content": "changed"}));
        place.call("edit_file", json!({"path": path, "old": "secret", "new": "x"}));
        prop_assert_eq!(shape(place.outside.path()), ["inside", "secret.txt"]);
        prop_assert_eq!(fs::read_to_string(place.outside.path().join("secret.txt")).unwrap(), SECRET);
    }
}
