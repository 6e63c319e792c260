//! Whole numbers: chains of operations, products.

use std::ops::RangeInclusive;

use crate::number::Rational;
use num_bigint::BigInt;

use crate::completion::Format;
use crate::draw::Draw;
use crate::expression;
use crate::maths;
use crate::number;
use crate::prompt::Presentation;
use crate::task::{Item, Reason, Reference, Split, Task, TaskError, foreign};
use wels_data::random;

/// Streams of random numbers; a question's split is drawn from its text.
const STREAM_QUESTION: u64 = 1;
const STREAM_SPLIT: u64 = 2;
/// Questions drawn until one belongs to the split.
const DRAWS_MAX: u64 = 10_000;
/// Most digits of a number.
const DIGITS_MAX: u32 = 18;

/// Which questions are made.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `12+7*3-4`: numbers and operations from left to right, with the usual precedence.
    Chain {
        /// How many numbers.
        terms: RangeInclusive<usize>,
        /// Digits of each number.
        digits: RangeInclusive<u32>,
        /// Of `+ - *`.
        operations: Vec<char>,
    },
    /// `47*86`.
    Product {
        /// Digits of the first factor.
        first: RangeInclusive<u32>,
        /// Digits of the second factor.
        second: RangeInclusive<u32>,
    },
}

/// A generator of arithmetic questions.
#[derive(Clone, Debug)]
pub struct Arithmetic {
    kind: Kind,
    presentation: Presentation,
    split: Split,
    held_out: f64,
    seed: u64,
}

impl Arithmetic {
    /// A generator without end. `held_out` is the share of questions, by a hash of their text and the seed, that belong
    /// to [`Split::HeldOut`]; a train item is never the same question as a held-out one.
    pub fn new(
        kind: Kind,
        presentation: Presentation,
        split: Split,
        held_out: f64,
        seed: u64,
    ) -> Result<Arithmetic, TaskError> {
        let task = Arithmetic { kind, presentation, split, held_out, seed };
        let refuse = |reason: &str| Err(TaskError::Options { task: task.kind_name(), reason: reason.to_owned() });
        let digits_fit =
            |digits: &RangeInclusive<u32>| !digits.is_empty() && *digits.start() > 0 && *digits.end() <= DIGITS_MAX;
        match &task.kind {
            Kind::Chain { terms, digits, operations } => {
                if !digits_fit(digits) {
                    return refuse("numbers have 1 to 18 digits");
                }
                if terms.is_empty() || *terms.start() < 2 || *terms.end() > 64 {
                    return refuse("a chain has 2 to 64 numbers");
                }
                if operations.is_empty() || !operations.iter().all(|operation| "+-*".contains(*operation)) {
                    return refuse("operations are `+`, `-` and `*`, at least one");
                }
            }
            Kind::Product { first, second } if !digits_fit(first) || !digits_fit(second) => {
                return refuse("factors have 1 to 18 digits");
            }
            Kind::Product { .. } => {}
        }
        if !(0.0..1.0).contains(&held_out) || (split == Split::HeldOut && held_out == 0.0) {
            return refuse("the held-out share is in 0..1, and above 0 where held-out items are asked for");
        }
        task.item(0)?;
        Ok(task)
    }

    fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Chain { .. } => "chain",
            Kind::Product { .. } => "product",
        }
    }

    fn question(&self, draw: &mut Draw) -> String {
        let number = |draw: &mut Draw, digits: &RangeInclusive<u32>| {
            let digits = draw.between(u64::from(*digits.start()), u64::from(*digits.end())) as u32;
            let min = if digits == 1 { 0 } else { 10u64.pow(digits - 1) };
            draw.between(min, 10u64.pow(digits) - 1).to_string()
        };
        match &self.kind {
            Kind::Chain { terms, digits, operations } => {
                let terms = draw.between(*terms.start() as u64, *terms.end() as u64);
                let mut text = number(draw, digits);
                for _ in 1..terms {
                    text.push(*draw.one(operations));
                    text.push_str(&number(draw, digits));
                }
                text
            }
            Kind::Product { first, second } => format!("{}*{}", number(draw, first), number(draw, second)),
        }
    }

    /// The expression that item `index` asks for, as in `12+7*3`.
    pub fn question_at(&self, index: u64) -> Result<String, TaskError> {
        let mut draw = Draw::new(self.seed, STREAM_QUESTION + ((self.split == Split::HeldOut) as u64) * 16, index);
        let questions = (0..DRAWS_MAX).map(|_| self.question(&mut draw));
        { questions }.find(|question| self.split_of(question) == self.split).ok_or_else(|| {
            let reason = format!("{DRAWS_MAX} questions in a row belong to the other split");
            TaskError::Options { task: self.kind_name(), reason }
        })
    }

    fn split_of(&self, question: &str) -> Split {
        let hash = question.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
        });
        let draw = random::bits(self.seed, STREAM_SPLIT, hash, 0);
        if ((draw >> 11) as f64) < self.held_out * (1u64 << 53) as f64 { Split::HeldOut } else { Split::Train }
    }
}

impl Task for Arithmetic {
    fn name(&self) -> &str {
        self.kind_name()
    }

    fn len(&self) -> Option<u64> {
        None
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        let question = self.question_at(index)?;
        let value = expression::evaluate(&question).expect("the generator makes expressions").value;
        let mut full = question.clone();
        for operation in ["+", "-", "*"] {
            full = full.replace(operation, &format!(" {operation} "));
        }
        let prompt = self.presentation.prompt(&format!("{question}="), &format!("What is {full}?"));
        Ok(Item { id: format!("{}-{index}", self.kind_name()), prompt, reference: Reference::Number(value) })
    }

    fn format(&self) -> Format {
        self.presentation.format
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        match &item.reference {
            Reference::Number(expected) => Ok(check_number(answer, expected)),
            _ => Err(foreign(self, item)),
        }
    }
}

/// Whether `answer` is the number `expected`, read by [`number::parse`] or, where that finds none, in LaTeX by
/// [`maths::number`].
pub fn check_number(answer: &str, expected: &Rational) -> Reason {
    match number::parse(answer).or_else(|| maths::number(answer)) {
        None => Reason::Malformed("it is not one number".to_owned()),
        Some(value) if value == *expected => Reason::Right,
        Some(value) => Reason::Wrong(format!("{} is not {}", decimal_text(&value), decimal_text(expected))),
    }
}

/// A whole number as such, others as fractions.
fn decimal_text(value: &Rational) -> String {
    if value.is_integer() { BigInt::to_string(value.numer()) } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Style;
    use crate::task::Prompt;

    fn chain(split: Split) -> Arithmetic {
        let kind = Kind::Chain { terms: 2..=3, digits: 1..=1, operations: vec!['+', '-'] };
        Arithmetic::new(kind, Style::Terse.into(), split, 0.2, 7).unwrap()
    }

    fn text(item: &Item) -> &str {
        match &item.prompt {
            Prompt::Text(text) => text,
            Prompt::Messages(_) => panic!("terse prompts are text"),
        }
    }

    #[test]
    fn items_are_functions_of_seed_and_index() {
        let (task, again) = (chain(Split::Train), chain(Split::Train));
        let items: Vec<Item> = (0..50).map(|index| task.item(index).unwrap()).collect();
        assert!((0..50).rev().all(|index| again.item(index).unwrap() == items[index as usize]));
        assert_ne!(text(&items[0]), text(&items[1]));
    }

    #[test]
    fn splits_are_disjoint() {
        let (train, held_out) = (chain(Split::Train), chain(Split::HeldOut));
        let questions = |task: &Arithmetic| -> std::collections::BTreeSet<String> {
            (0..2000).map(|index| text(&task.item(index).unwrap()).to_owned()).collect()
        };
        let (train, held_out) = (questions(&train), questions(&held_out));
        assert!(train.is_disjoint(&held_out));
        assert!(held_out.len() > 100, "{}", held_out.len());
    }

    #[test]
    fn answers_are_checked_exactly() {
        let kind = Kind::Product { first: 2..=2, second: 2..=2 };
        let task = Arithmetic::new(kind, Style::R1Zero.into(), Split::Train, 0.1, 0).unwrap();
        let item = task.item(3).unwrap();
        let Reference::Number(value) = &item.reference else { panic!() };
        let completion = |answer: &str| format!("<think>well</think> <answer>{answer}</answer>");
        let right = task.reward(&item, &completion(&value.to_string())).unwrap();
        assert_eq!((right.accuracy, right.format), (1.0, 1.0));
        let wrong = task.reward(&item, &completion(&(value + BigInt::from(1)).to_string())).unwrap();
        assert_eq!((wrong.accuracy, wrong.format), (0.0, 1.0));
        let malformed = task.grade(&item, &completion("a lot")).unwrap();
        assert_eq!(malformed.reason, Reason::Malformed("it is not one number".to_owned()));
    }

    #[test]
    fn options_without_items_are_refused() {
        let new = |digits, operations, held_out| {
            let kind = Kind::Chain { terms: 2..=2, digits, operations };
            Arithmetic::new(kind, Style::Terse.into(), Split::HeldOut, held_out, 0).map(|_| ())
        };
        assert!(new(1..=2, vec!['+'], 0.1).is_ok());
        assert!(new(0..=2, vec!['+'], 0.1).is_err());
        assert!(new(1..=19, vec!['+'], 0.1).is_err());
        assert!(new(1..=2, vec!['/'], 0.1).is_err());
        assert!(new(1..=2, vec!['+'], 0.0).is_err());
    }
}
