//! Every grader over arbitrary Unicode: none panics, what it finds is part of the text, and an answer that is set down
//! right is found right, whatever stands before it.
//!
//! Texts are made from pieces: the markers that graders look for, cut short and doubled, white space that is no space,
//! letters of two to four bytes, and characters drawn from all of Unicode.

use proptest::prelude::*;
use wels_tasks::completion::{AnswerStyle, Format, Thinking};
use wels_tasks::language::{self, Language};
use wels_tasks::listed::check;
use wels_tasks::overlap::Index;
use wels_tasks::{Item, Listed, Prompt, Reason, Reference, Task, expression, maths, number, probe};

const MARKERS: &[&str] = &[
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<thin",
    "think>",
    "</answ",
    "\\boxed",
    "\\boxed{",
    "\\fbox{",
    "\\fbox",
    "\\bo",
    "####",
    "##",
    "```",
    "```python\n",
    "``",
    "{",
    "}",
    "\\{",
    "\\}",
    "\\",
    "$",
    "\\frac",
    "\\frac{",
    "\\text{",
    "\\sqrt",
    "\\left(",
    "\\right]",
    "\\overline{",
    "0.\\overline{",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "\\mathbb{",
    "^\\circ",
    "^{\\circ",
    "\\%",
    "%",
    "_",
    "^",
    "(",
    ")",
    "[",
    "]",
    "|",
    ",",
    ",\\!",
    "{,}",
    ".",
    "-",
    "−",
    "+",
    "*",
    "×",
    "÷",
    "/",
    "=",
    "≤",
    "±",
    "!",
    "1",
    "23",
    "456",
    "1,234",
    "3.5",
    "6e3",
    "e",
    "$18",
    "\\$",
    "(B)",
    "B.",
    "A",
    "x",
    "pi",
    "and",
    "sin",
    "cm",
    "def f",
    "\ndef ",
    "\n#",
    "\n",
    "\r\n",
    "\t",
    " ",
    "i'm sorry",
    "抱歉",
];
const ODD: &[&str] = &[
    "\u{a0}",
    "\u{85}",
    "\u{2003}",
    "\u{2028}",
    "\u{3000}",
    "\u{200b}",
    "\u{feff}",
    "\u{0}",
    "\u{301}",
    "\u{202e}",
    "é",
    "ß",
    "İ",
    "中",
    "文",
    "𝑥",
    "🙂",
    "٣",
    "²",
    "½",
    "\u{10ffff}",
    "'",
    "’",
];

fn marker() -> impl Strategy<Value = String> {
    proptest::sample::select(MARKERS).prop_map(str::to_owned)
}

fn odd() -> impl Strategy<Value = String> {
    proptest::sample::select(ODD).prop_map(str::to_owned)
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => marker(),
        3 => odd(),
        1 => any::<char>().prop_map(String::from),
        // Near misses: a marker, something that may be taken for white space, braces around anything.
        3 => (marker(), odd(), odd()).prop_map(|(marker, space, inside)| format!("{marker}{space}{{{inside}}}")),
    ]
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(piece(), 0..14).prop_map(|pieces| pieces.concat())
}

fn formats() -> impl Iterator<Item = Format> {
    use AnswerStyle::*;
    let styles = [Tags, Boxed, Hashes, LastNumber, Whole, Code, TaggedCode];
    [Thinking::Free, Thinking::Tagged, Thinking::Opened]
        .into_iter()
        .flat_map(move |thinking| styles.into_iter().map(move |answer| Format { thinking, answer }))
}

fn references() -> Vec<Reference> {
    let choices: Vec<String> = ["one", "é", "\u{a0}", "B"].map(str::to_owned).to_vec();
    vec![
        Reference::Number(number::parse("42").unwrap()),
        Reference::Maths("\\frac{1}{2}".to_owned()),
        Reference::Maths("\\{1, x^2\\}".to_owned()),
        Reference::Maths("\\text{é}".to_owned()),
        Reference::Text("Straße".to_owned()),
        Reference::Expression { numbers: vec![1, 23, 456], target: 13 },
        Reference::Choice { choices, correct: 1 },
    ]
}

fn is_part(part: &str, whole: &str) -> bool {
    let (part, whole) = (part.as_bytes().as_ptr_range(), whole.as_bytes().as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn completions_are_taken_apart(text in text()) {
        for format in formats() {
            let parsed = format.parse(&text);
            if let Ok(answer) = parsed.answer {
                prop_assert!(is_part(answer, &text) && !answer.trim().is_empty());
            }
            prop_assert!(parsed.thinking.is_none_or(|thinking| is_part(thinking, &text)));
            prop_assert!(parsed.answer.is_ok() || parsed.fault.is_some());
        }
        let _ = (probe::response(&text), language::share(&text, Language::En));
    }

    #[test]
    fn answers_are_checked(text in text()) {
        for reference in references() {
            prop_assert!(check(&reference, &text).is_some());
        }
        let _ = (number::parse(&text), expression::evaluate(&text));
    }

    #[test]
    fn any_text_may_be_the_reference(reference in text(), answer in text()) {
        let _ = (maths::equivalent(&reference, &answer), maths::check(&reference, &answer));
        prop_assert!(maths::equivalent(&reference, &reference));
        let text = Reference::Text(reference.clone());
        prop_assert_eq!(check(&text, &reference), Some(Reason::Right));
        let choices = Reference::Choice { choices: vec![reference.clone(), answer], correct: 0 };
        prop_assert!(check(&choices, &reference).is_some());
    }

    #[test]
    fn rewards_are_shares(text in text()) {
        for (number, reference) in references().into_iter().enumerate() {
            let item = Item { id: number.to_string(), prompt: Prompt::Text(String::new()), reference };
            for format in formats() {
                let (name, items, language) = ("any".to_owned(), vec![item.clone()], Some(Language::Zh));
                let task = Listed { name, items, format, language, jail: None };
                let reward = task.reward(&item, &text).unwrap();
                let parts = [reward.accuracy, reward.format, reward.language.unwrap()];
                prop_assert!(parts.iter().all(|part| (0.0..=1.0).contains(part)), "{parts:?}");
                prop_assert_eq!(reward.grade, task.grade(&item, &text).unwrap());
            }
        }
    }

    /// White space of any kind between `\boxed` and its brace, and letters of any width within.
    #[test]
    fn a_box_is_found_behind_anything(
        before in text(),
        space in proptest::sample::select(&["", " ", "\n", "\u{a0}", "\u{2003}\u{3000}", " \u{a0} "][..]),
        inside in proptest::sample::select(&["2", "é", "中{é}文", "\\{🙂\\}", "{{\u{a0}}}é"][..]),
        behind in proptest::sample::select(&["", ".", "$ 中", " é}"][..]),
    ) {
        let format = Format { thinking: Thinking::Free, answer: AnswerStyle::Boxed };
        // The end of the thinking, and of a brace or a backslash that is still open.
        let text = format!("{before}</think> }}\\boxed{space}{{{inside}}}{behind}");
        prop_assert_eq!(format.parse(&text).answer, Ok(inside));
    }

    #[test]
    fn a_text_overlaps_with_itself(first in text(), second in text()) {
        let mut index = Index::default();
        index.add("both", &format!("{first} {second}"));
        index.search("corpus", &format!("{second} {first} {second}"));
        let found = &index.items()[0];
        prop_assert_eq!(found.found, found.runs);
    }
}
