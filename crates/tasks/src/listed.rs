//! A task whose items are all there, from a file; their references say how answers are checked.

use std::sync::Arc;

use crate::arithmetic::check_number;
use crate::completion::Format;
use crate::countdown::check_expression;
use crate::jail::{Jail, Submission, Verdict};
use crate::language::Language;
use crate::maths;
use crate::task::{Item, Reason, Reference, Task, TaskError, foreign};

/// Items in a list.
pub struct Listed {
    /// For metrics and receipts.
    pub name: String,
    pub items: Vec<Item>,
    /// Where answers stand.
    pub format: Format,
    /// The language that thinking should be in, if that is rewarded.
    pub language: Option<Language>,
    /// For items with code.
    pub jail: Option<Arc<Jail>>,
}

impl Task for Listed {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Option<u64> {
        Some(self.items.len() as u64)
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        let len = self.items.len() as u64;
        let item = usize::try_from(index).ok().and_then(|index| self.items.get(index));
        item.cloned().ok_or_else(|| TaskError::NoItem { task: self.name.clone(), len, index })
    }

    fn format(&self) -> Format {
        self.format
    }

    fn language(&self) -> Option<Language> {
        self.language
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        match &item.reference {
            Reference::Code { before, entry, tests } => {
                let jail = self.jail.as_ref().ok_or_else(|| TaskError::NoJail { task: self.name.clone() })?;
                let answer = &program(before, entry, answer);
                Ok(match jail.judge(&Submission { answer, before, entry, tests })? {
                    Verdict::Passed => Reason::Right,
                    Verdict::Failed(how) => Reason::Wrong(how),
                    verdict => Reason::Wrong(format!("{verdict:?}")),
                })
            }
            reference => check(reference, answer).ok_or_else(|| foreign(self, item)),
        }
    }
}

/// Whether `answer` is right; `None` for code, which has to be run, and for what a program judges.
pub fn check(reference: &Reference, answer: &str) -> Option<Reason> {
    Some(match reference {
        Reference::Expression { numbers, target } => check_expression(answer, numbers, *target),
        Reference::Number(expected) => check_number(answer, expected),
        Reference::Maths(expected) => maths::check(expected, answer),
        Reference::Text(expected) | Reference::Found { answer: expected, .. } => check_text(answer, expected),
        Reference::Begins(expected) => check_beginning(answer, expected),
        Reference::Choice { choices, correct } => match chosen(choices, answer) {
            Some(choice) if choice == *correct => Reason::Right,
            Some(choice) => Reason::Wrong(format!("{} is not {}", letter(choice), letter(*correct))),
            None => Reason::Malformed("it is none of the choices".to_owned()),
        },
        Reference::Code { .. } | Reference::Record(_) => return None,
    })
}

/// Whether `answer` has the words of `expected`.
pub(crate) fn check_text(answer: &str, expected: &str) -> Reason {
    match folded(expected) == folded(answer) {
        true => Reason::Right,
        false => Reason::Wrong(format!("it is not {expected}")),
    }
}

/// Whether `answer` begins with the words of `expected`, and no word of it goes on behind them.
fn check_beginning(answer: &str, expected: &str) -> Reason {
    let (answer, expected) = (folded(answer), folded(expected));
    match answer.strip_prefix(&expected).map(|rest| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')) {
        Some(false) => Reason::Right,
        _ => Reason::Wrong(format!("it does not begin with {expected}")),
    }
}

/// Lower case, single spaces, no full stop.
fn folded(text: &str) -> String {
    let words: Vec<String> = text.trim().trim_end_matches('.').split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}

/// `A` for 0.
pub fn letter(choice: usize) -> char {
    char::from(b'A' + (choice % 26) as u8)
}

/// The choice that an answer names: by its letter (`B`, `(B)`, `B. text`, `\text{(B)}`), or by its text.
fn chosen(choices: &[String], answer: &str) -> Option<usize> {
    let bare = answer.trim().trim_start_matches("\\text{").trim_start_matches(['(', '[', '*', '$']);
    let first = bare.chars().next()?;
    let alone = !bare.chars().nth(1).is_some_and(char::is_alphanumeric) && bare.chars().nth(1) != Some(' ');
    if first.is_ascii_uppercase() && alone {
        let choice = (first as u8 - b'A') as usize;
        return Some(choice).filter(|choice| *choice < choices.len());
    }
    let mut same = (0..choices.len()).filter(|choice| folded(&choices[*choice]) == folded(answer));
    let choice = same.next()?;
    same.next().is_none().then_some(choice)
}

/// What follows a function in a completion that does not stop by itself.
pub(crate) const STOPS: [&str; 6] = ["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n@"];

/// The answer as a program: what stands before, the answer. Where a head stands before, an answer that does not define
/// the function continues it, up to where the next thing begins.
fn program(before: &str, entry: &str, answer: &str) -> String {
    let longer_name = |rest: &str| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let mut definitions = answer.match_indices("def ").map(|(at, def)| &answer[at + def.len()..]);
    let defines = definitions.any(|rest| rest.strip_prefix(entry).is_some_and(|rest| !longer_name(rest)));
    if before.is_empty() || defines {
        return format!("{before}\n{answer}\n");
    }
    let end = STOPS.iter().filter_map(|stop| answer.find(stop)).min().unwrap_or(answer.len());
    format!("{before}{}\n", &answer[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_of_whole_words() {
        let right = |answer| matches!(check_beginning(answer, "Reader::new"), Reason::Right);
        assert!(
            [" reader::new` is called", "Reader::new", "Reader::new(x)", "reader::new. Then"]
                .iter()
                .all(|it| right(it))
        );
        assert!(["", "Reader", "Reader::newest", "Reader::new_one", "a Reader::new"].iter().all(|it| !right(it)));
    }

    #[test]
    fn choices_are_recognised() {
        let choices: Vec<String> = ["one", "two", "a cat"].map(str::to_owned).to_vec();
        for (answer, choice) in [
            ("B", Some(1)),
            ("(B)", Some(1)),
            ("B. two", Some(1)),
            ("B)", Some(1)),
            ("\\text{(B)}", Some(1)),
            ("**B**", Some(1)),
            ("Two.", Some(1)),
            ("a cat", Some(2)),
            ("A cat", Some(2)),
            ("D", None),
            ("b", None),
            ("three", None),
            ("", None),
        ] {
            assert_eq!(chosen(&choices, answer), choice, "{answer:?}");
        }
    }

    #[test]
    fn programs_are_put_together() {
        let body = program("def f(x):\n", "f", "    return x + 1\n\nprint(f(3))");
        assert_eq!(body, "def f(x):\n    return x + 1\n\n");
        let whole = program("import math\ndef f(x):\n    \"x\"\n", "f", "def f(x):\n    return 2");
        assert!(whole.ends_with("\n\ndef f(x):\n    return 2\n"));
        let inner = program("def f(x):\n", "f", "    def fast(y):\n        return y\n    return fast(x)\nprint(f(3))");
        assert!(inner.ends_with("return fast(x)\n"), "{inner}");
        let other = "import math\n\ndef g(x):\n    return 2";
        assert_eq!(program("", "f", other), format!("\n{other}\n"));
    }
}
