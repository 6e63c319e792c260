//! `wels chat` in a terminal, which Python's `pty` gives it: who is asked, and where keys go.

use std::fs;
use std::process::Command;

use crate::lab::Lab;
use crate::serve::write_model_of;

/// The editor waits for a line.
const PROMPT: &str = r"\[\?2004h.*\?25h$";

/// One whose answer to the first question is long: 847 tokens.
const SEED: &str = "4";

/// What is shown while a model of random weights is talked to; `keys`: what has to be shown, and what is typed then.
fn shown(options: &[&str], keys: &[(&str, &str)]) -> String {
    let lab = Lab::new();
    // Slow enough that there is time to type while it answers.
    write_model_of(&lab.at("m"), 8192, 384, 8);
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/tests/server.py");
    fs::copy(server, lab.at("server.py")).unwrap();
    let program = lab.command(&[&["chat", "m", "--temperature", "1"], options].concat());
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/in_terminal.py")).arg("100").current_dir(lab.at(""));
    command.args(keys.iter().flat_map(|(pattern, keys)| [pattern, keys])).arg("--");
    command.arg(program.get_program()).args(program.get_args()).env("TERM", "xterm").env("NO_COLOR", "1");
    command.env("XDG_STATE_HOME", lab.at("state"));
    let output = command.output().expect("python3 starts");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !shown.contains("<<late>>"), "{shown:?} {output:?}");
    shown
}

#[test]
fn keys_typed_while_an_answer_comes_are_not_in_it_and_stand_in_the_next_line() {
    let keys = [
        (PROMPT, r"a fish\r"),
        (r"a fish.*\n.{20}", r"typed ahead\rmore"),
        (r"tokens/s.*typed ahead.*more.*\?25h$", r"\x03"),
        (PROMPT, r"\x04"),
    ];
    let shown = shown(&["--max-tokens", "3000", "--seed", SEED], &keys);
    let (before, after) = shown.split_once(" tokens/s").unwrap_or_else(|| panic!("{shown:?}"));
    assert!(before.contains("<<keys 1>>"), "the keys came while the model answered: {shown:?}");
    assert!(!before.contains("typed ahead"), "{shown:?}");
    assert!(after.contains("typed ahead"), "{shown:?}");
}

#[test]
fn a_call_is_made_when_the_user_says_yes_and_not_when_no() {
    let options = ["--mcp", "python3 server.py const", "--must-call", "--max-turns", "1", "--max-tokens", "400"];
    for (key, result) in [("y", "→ echo fish"), ("n", "→ refused: the user does not want this call")] {
        // Further calls of the answer are stopped at.
        let keys = [
            (PROMPT, r"a fish\r"),
            (r"● echo.*x: fish.*call echo\? y once.*stop $", key),
            (r"→ .*(stop |\?25h)$", "q"),
            (r"\?25h$", r"\x15\x04"),
        ];
        let shown = shown(&options, &keys);
        assert!(shown.contains(result), "{key}: {shown:?}");
    }
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_chat() {
    let keys = [
        (PROMPT, r"a fish\r"),
        (r"a fish.*\n.{20}", r"\x03"),
        (r"; stopped\].*\?25h$", r"/tools\r"),
        (r"there are none.*\?25h$", r"\x04"),
    ];
    let shown = shown(&["--max-tokens", "6000", "--seed", SEED], &keys);
    assert!(shown.contains("there are none"), "{shown:?}");
}
