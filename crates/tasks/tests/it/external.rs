//! Checkers of anyone's own: honest ones, and those that hang, end or lie.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use wels_tasks::external::External;
use wels_tasks::{Reason, TaskError};

/// Right is what contains 42.
const HONEST: &str = r#"while read -r line; do
    id=$(printf %s "$line" | sed 's/.*"id":"\([^"]*\)".*/\1/')
    case "$line" in *'"answer":"42"'*) right=true ;; *) right=false ;; esac
    printf '{"id":"%s","correct":%s,"reason":"not 42"}\n' "$id" "$right"
done"#;

fn checker(script: &str, timeout_ms: u64) -> External {
    let arguments = ["-c".to_owned(), script.to_owned()];
    External::start(Path::new("/bin/sh"), &arguments, Duration::from_millis(timeout_ms)).unwrap()
}

fn message(result: Result<Reason, TaskError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_honest_checker_is_believed() {
    let checker = checker(HONEST, 60_000);
    for _ in 0..5 {
        assert_eq!(checker.check("a", &json!({"q": 1}), "42").unwrap(), Reason::Right);
        assert_eq!(checker.check("b", &json!({"q": 1}), "43").unwrap(), Reason::Wrong("not 42".to_owned()));
    }
}

#[test]
fn one_that_hangs_is_named_and_not_asked_again() {
    // Reads nothing, and the question is longer than a pipe holds. What the shell starts holds the pipe too.
    for script in ["exec sleep 1000", "sleep 1000; true"] {
        let checker = checker(script, 100);
        let long = "x".repeat(1 << 20);
        assert!(message(checker.check("a", &json!(null), &long)).contains("gave no answer within 0.1 s to a"));
        assert!(message(checker.check("b", &json!(null), "1")).contains("failed before"));
    }
}

#[test]
fn one_that_ends_or_lies_is_named() {
    let right = |id: &str| format!("echo '{{\"id\":\"{id}\",\"correct\":true}}'");
    let cases = [
        ("exit 3".to_owned(), "ended before it answered a"),
        ("read -r line; echo nonsense; exec sleep 1000".to_owned(), "answered a with `nonsense`"),
        (format!("read -r line; {}; exec sleep 1000", right("z")), "was asked \"1\", about a, and answered \"z\""),
        ("read -r line; echo '{\"id\":\"1\"}'; exec sleep 1000".to_owned(), "missing field `correct`"),
        ("read -r line; echo '{\"id\":\"1\",\"correct\":1}'; exec sleep 1000".to_owned(), "invalid type"),
        // The first answer is put to it twice.
        (
            format!("read -r l; {}; read -r l; {}; exec sleep 1000", right("1"), right("2").replace("true", "false")),
            "called an answer to a right, and the same answer again wrong",
        ),
        ("exec tr '\\0' x < /dev/zero".to_owned(), "with more than 1048576 bytes"),
    ];
    for (script, expected) in cases {
        let text = message(checker(&script, 60_000).check("a", &json!(null), "1"));
        assert!(text.contains(expected), "{script}: {text}");
    }
    let missing = External::start(Path::new("/no/such/checker"), &[], Duration::from_secs(1));
    assert!(missing.map(|_| ()).unwrap_err().to_string().contains("cannot be started"));
}

#[test]
fn one_that_talks_without_being_asked_is_found_out() {
    // Two lines for each question: the second would count for the next.
    let script = HONEST.replace("done", "printf '{\"id\":\"%s\",\"correct\":true}\\n' \"$id\"\ndone");
    let checker = checker(&script, 60_000);
    let text = message(checker.check("a", &json!(null), "43"));
    assert!(text.contains("without being asked") || text.contains("was asked \"2\""), "{text}");
}
