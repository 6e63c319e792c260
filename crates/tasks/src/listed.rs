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

/// The choice that an answer names: by its letter (`B`, `(B)`, `B. text`, `\text{(B)}`), or by its text. One that is
/// more than a letter is looked for among the texts first: `T-cells`.
fn chosen(choices: &[String], answer: &str) -> Option<usize> {
    let bare = unwrapped(answer);
    let mut letters = bare.chars();
    let (first, second) = (letters.next()?, letters.next());
    let alone = first.is_ascii_uppercase() && !second.is_some_and(|c| c.is_alphanumeric() || c == ' ');
    let by_letter = || Some((first as u8 - b'A') as usize).filter(|choice| *choice < choices.len());
    if alone && !letters.any(char::is_alphanumeric) {
        return by_letter();
    }
    let with_text = |text: String| {
        let mut same = (0..choices.len()).filter(|choice| folded(&choices[*choice]) == text);
        let choice = same.next()?;
        same.next().is_none().then_some(choice)
    };
    let by_text = with_text(folded(answer)).or_else(|| with_text(folded(bare.trim_end_matches(['}', '*', '$']))));
    if alone { by_text.or_else(by_letter) } else { by_text }
}

/// Without what may open in front of an answer: brackets, emphasis, commands for upright or bold text.
fn unwrapped(answer: &str) -> &str {
    let mut bare = answer.trim_start();
    let opening = ["\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{", "(", "[", "*", "$"];
    while let Some(inner) = opening.iter().find_map(|open| bare.strip_prefix(*open)) {
        bare = inner;
    }
    bare
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
            ("\\textbf{(B)}", Some(1)),
            ("\\mathrm{B}", Some(1)),
            ("$\\mathbf{B}$", Some(1)),
            ("\\textbf{E}", None),
            ("**B**", Some(1)),
            ("**B. two**", Some(1)),
            ("Two.", Some(1)),
            ("\\text{two}", Some(1)),
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
    fn a_text_that_begins_with_a_letter_and_a_hyphen_is_a_text() {
        let choices: Vec<String> = ["D-dimer", "T-cells", "B-cells", "$5", "5", "A", "B"].map(str::to_owned).to_vec();
        for (answer, choice) in [
            ("T-cells", Some(1)),
            ("t-cells.", Some(1)),
            ("\\text{T-cells}", Some(1)),
            ("B-cells", Some(2)),
            ("D-dimer", Some(0)),
            ("D", Some(3)),
            ("D: $5", Some(3)),
            ("$5", Some(3)),
            ("5", Some(4)),
            // A letter is the name of a choice, whatever its text is.
            ("A", Some(0)),
            ("(B)", Some(1)),
            ("Z-scores", None),
        ] {
            assert_eq!(chosen(&choices, answer), choice, "{answer:?}");
        }
    }

    #[test]
    fn numbers_in_latex_are_numbers() {
        let verdict = |expected: &str, answer: &str| {
            let expected = crate::number::parse(expected).unwrap();
            match check(&Reference::Number(expected), answer) {
                Some(Reason::Right) => "right",
                Some(Reason::Wrong(_)) => "wrong",
                Some(Reason::Malformed(_)) => "malformed",
                other => panic!("{other:?}"),
            }
        };
        let cases = [
            ("18", "18\\text{ dollars}", "right"),
            ("18", "\\$18\\text{ per day}", "right"),
            ("18", "$18\\,\\mathrm{cm}^2$", "right"),
            ("1042", "1{,}042", "right"),
            ("10080", "10,\\!080", "right"),
            ("10080", "10\\,080", "right"),
            ("3/2", "\\frac{3}{2}", "right"),
            ("3/2", "1\\frac12", "right"),
            ("-3/2", "-\\dfrac{3}{2}", "right"),
            ("5", "x=5", "right"),
            ("5", "n = \\text{5}", "right"),
            ("45", "45^\\circ", "right"),
            ("600000", "6 \\times 10^5", "right"),
            ("3/5000", "6 \\cdot 10^{-4}", "right"),
            ("18", "19\\text{ dollars}", "wrong"),
            ("1042", "1{,}043", "wrong"),
            ("3/2", "\\frac{2}{3}", "wrong"),
            ("5", "x=-5", "wrong"),
            ("45", "54^\\circ", "wrong"),
            ("600000", "6 \\times 10^6", "wrong"),
            ("5", "x", "malformed"),
            ("5", "a lot", "malformed"),
            ("5", "x > 5", "malformed"),
            ("5", "5, 6", "malformed"),
            ("5", "(5, 5)", "malformed"),
            ("5", "5\\text{ or }6", "malformed"),
            ("12", "3 4", "malformed"),
            ("5", "\\frac{5", "malformed"),
            ("5", "5_8", "malformed"),
            // What only asks for the number is no answer: for rewards the question itself would be right.
            ("42", "6 \\cdot 7", "malformed"),
            ("42", "40+2", "malformed"),
            ("120", "5!", "malformed"),
            ("1024", "2^{10}", "malformed"),
            ("5", "\\sqrt{25}", "malformed"),
        ];
        for (expected, answer, wanted) in cases {
            assert_eq!(verdict(expected, answer), wanted, "{expected}: {answer:?}");
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
