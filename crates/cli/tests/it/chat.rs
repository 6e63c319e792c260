//! Talking without a terminal, and what speculation is measured by.

use crate::lab::Lab;

#[test]
fn questions_from_a_pipe_are_answered_on_stdout() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("r", &[])]);
    let chat = |options: &str, question: &str| {
        lab.shell(&format!("printf '{question}' | NO_COLOR=1 WELS chat runs/r --max-tokens 12 {options}"))
    };
    let said = chat("--temperature 0", "the old bridge");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.len() > 1 && said.stdout.ends_with('\n'), "{said:?}");
    assert!(said.stderr.contains("[12 tokens, ") && said.stderr.contains("cut at the limit]"), "{said:?}");
    assert_eq!(chat("--temperature 0 --no-speculation", "the old bridge").stdout, said.stdout);

    let seeds = ["1", "1", "2"].map(|seed| chat(&format!("--temperature 1 --seed {seed}"), "the old bridge").stdout);
    assert!(seeds[0] == seeds[1] && seeds[0] != seeds[2], "{seeds:?}");

    let lines = chat("--temperature 0 --lines", "the old bridge\\n\\nthe river\\n");
    assert_eq!(lines.stderr.matches("[12 tokens, ").count(), 2, "{lines:?}");

    let nothing = chat("", " ");
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.failure().starts_with("error: there is no question on stdin\nhint: "), "{nothing:?}");
    let hot = chat("--temperature 1000", "a");
    assert!(hot.failure().starts_with("error: temperature: 1000 is not within 0 and 100\n"), "{hot:?}");
    let context = chat("--context 1", "a");
    assert!(context.failure().starts_with("error: --context is 1, and the model's own is "), "{context:?}");
}

#[test]
fn speculation_is_measured_at_equal_answers() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("r", &[])]);
    let said = lab.done(&["bench", "speculation", "runs/r", "--tokens", "20", "--rounds", "1", "--json"]);
    let bench: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(bench["drafts_by"], "MTP");
    assert_eq!(bench["tokens"].as_u64(), Some(3 * 19), "all but the first token of three answers: {bench}");
    assert!(bench["drafted"].as_u64() >= bench["accepted"].as_u64() && bench["ratio"].as_f64() > Some(0.0), "{bench}");
    let chat = lab.wels(&["bench", "speculation", "runs/r", "--chat"]);
    assert_eq!(chat.code, Some(1));
    assert_eq!(chat.failure(), "error: the model has no chat template\nhint: leave out --chat\n");
}
