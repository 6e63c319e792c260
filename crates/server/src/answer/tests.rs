//! Texts of models, cut into pieces of every size.

use super::*;
use crate::wire::Choice;

/// The answer to a text that comes in pieces of `size` characters.
fn read(start: Start, format: Option<ToolFormat>, given: &str, text: &str, size: usize) -> Choice {
    let mut answer = Answer::new(start, format, vec!["f".to_owned(), "g".to_owned()], given);
    let mut choice = Choice::default();
    let chars: Vec<char> = text.chars().collect();
    for piece in chars.chunks(size) {
        for delta in answer.push(&piece.iter().collect::<String>()) {
            choice.push(&delta);
        }
    }
    for delta in answer.finish() {
        choice.push(&delta);
    }
    choice
}

/// Reasoning, content, and name and arguments of each call.
type Outcome = (Option<String>, String, Vec<(String, String)>);

/// What comes out for every size of the pieces, which must be the same.
fn same(start: Start, format: Option<ToolFormat>, given: &str, text: &str) -> Outcome {
    let outcomes: Vec<_> = (1..=text.chars().count().max(1))
        .map(|size| {
            let choice = read(start, format, given, text, size);
            let calls = choice.calls.into_iter().map(|(_, name, arguments)| (name, arguments)).collect();
            (choice.reasoning, choice.content, calls)
        })
        .collect();
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{text:?}: {outcomes:?}");
    outcomes.into_iter().next().unwrap()
}

fn calls(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string())).collect()
}

#[test]
fn thinking_is_told_apart() {
    let some = |text: &str| Some(text.to_owned());
    for (start, text, reasoning, content) in [
        (Start::Thinking, "\nso it is\n\n</think>\n\n42", some("so it is"), "42"),
        (Start::Thinking, "a < b </ c </thin </think>d", some("a < b </ c </thin"), "d"),
        (Start::Thinking, "cut off </thi", some("cut off </thi"), ""),
        (Start::Thinking, "</think>only an answer", None, "only an answer"),
        (Start::Open, "<think>\nhm\n</think>\n\nyes", some("hm"), "yes"),
        (Start::Open, " <thing> is no thinking", None, " <thing> is no thinking"),
        (Start::Open, "<thi", None, "<thi"),
        (Start::Plain, "<think>x</think>y", None, "<think>x</think>y"),
    ] {
        assert_eq!(same(start, None, "", text), (reasoning, content.to_owned(), vec![]), "{text:?}");
    }
}

#[test]
fn deepseeks_calls() {
    let text = "Let me look.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": \"`\\n```\"}\n\
                ```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n\
                ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let expected = calls(&[("f", "{\"x\": \"`\\n```\"}"), ("g", "{}")]);
    assert_eq!(same(Start::Plain, Some(ToolFormat::DeepSeek), "", text), (None, "Let me look.".to_owned(), expected));
    let later =
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\":1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let outcome = same(Start::Open, Some(ToolFormat::DeepSeek), "", later);
    assert_eq!(outcome, (None, String::new(), calls(&[("f", "{\"x\":1}")])));
}

#[test]
fn hermes_calls() {
    let text = "Sure.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, {\"y\": \"}\\\"\"}]}}\n</tool_call>\n\
                <tool_call>\n{\"arguments\": {\"z\": 1}, \"name\": \"g\"}\n</tool_call>";
    let expected = calls(&[("f", "{\"x\": [1, {\"y\": \"}\\\"\"}]}"), ("g", "{\"z\": 1}")]);
    assert_eq!(same(Start::Plain, Some(ToolFormat::Hermes), "", text), (None, "Sure.".to_owned(), expected));
    let broken = "<tool_call>\nno JSON\n</tool_call> and on";
    assert_eq!(same(Start::Plain, Some(ToolFormat::Hermes), "", broken).2, vec![]);
}

#[test]
fn llamas_calls() {
    let json = Some(ToolFormat::Json);
    let outcome = same(Start::Plain, json, "", "{\"name\": \"f\", \"parameters\": {\"x\": 1}}");
    assert_eq!(outcome, (None, String::new(), calls(&[("f", "{\"x\": 1}")])));
    let other = "{\"name\": \"Ann\", \"age\": 4} is JSON";
    assert_eq!(same(Start::Plain, json, "", other), (None, other.to_owned(), vec![]));
    assert_eq!(same(Start::Plain, json, "", "Hello {\"name\": \"f\"}").2, vec![]);
}

#[test]
fn a_call_that_the_prompt_began_is_read_on() {
    for format in [ToolFormat::DeepSeek, ToolFormat::Hermes, ToolFormat::Json] {
        let (given, between) = format.around_name();
        let outcome = same(Start::Plain, Some(format), &given, &format!("f{between}{{\"x\": {{}}}}"));
        assert_eq!(outcome, (None, String::new(), calls(&[("f", "{\"x\": {}}")])), "{format:?}");
    }
}
