//! Checkers of anyone's own: honest ones, and those that hang, end or lie.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use wels_tasks::external::External;
use wels_tasks::{Reason, TaskError};

fn checker(script: &str, timeout_ms: u64) -> External {
    let arguments = ["-c".to_owned(), script.to_owned()];
    External::start(Path::new("/bin/sh"), &arguments, Duration::from_millis(timeout_ms)).unwrap()
}

fn message(result: Result<Reason, TaskError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_honest_checker_is_believed() {
    // Right is what contains 42.
    let script = r#"while read -r line; do
        id=$(printf %s "$line" | sed 's/.*"id":"\([^"]*\)".*/\1/')
        case "$line" in *'"answer":"42"'*) right=true ;; *) right=false ;; esac
        printf '{"id":"%s","correct":%s,"reason":"not 42"}\n' "$id" "$right"
    done"#;
    let checker = checker(script, 60_000);
    assert_eq!(checker.check("a", &json!({"q": 1}), "42").unwrap(), Reason::Right);
    assert_eq!(checker.check("b", &json!({"q": 1}), "43").unwrap(), Reason::Wrong("not 42".to_owned()));
}

#[test]
fn one_that_hangs_is_named_and_not_asked_again() {
    // Reads nothing, and the question is longer than a pipe holds.
    let checker = checker("exec sleep 1000", 100);
    let long = "x".repeat(1 << 20);
    assert!(message(checker.check("a", &json!(null), &long)).contains("gave no answer within 0.1 s to a"));
    assert!(message(checker.check("b", &json!(null), "1")).contains("failed before"));
}

#[test]
fn one_that_ends_or_lies_is_named() {
    let cases = [
        ("exit 3", "ended before it answered a"),
        ("read -r line; echo nonsense; exec sleep 1000", "answered a with `nonsense`"),
        (
            "read -r line; echo '{\"id\":\"z\",\"correct\":true}'; exec sleep 1000",
            "was asked about a and answered about z",
        ),
        ("read -r line; echo '{\"id\":\"a\"}'; exec sleep 1000", "missing field `correct`"),
        ("read -r line; echo '{\"id\":\"a\",\"correct\":1}'; exec sleep 1000", "invalid type"),
        ("head -c 100000000 /dev/zero", "answered a with"),
    ];
    for (script, expected) in cases {
        let text = message(checker(script, 60_000).check("a", &json!(null), "1"));
        assert!(text.contains(expected), "{script}: {text}");
    }
    let missing = External::start(Path::new("/no/such/checker"), &[], Duration::from_secs(1));
    assert!(missing.map(|_| ()).unwrap_err().to_string().contains("cannot be started"));
}
