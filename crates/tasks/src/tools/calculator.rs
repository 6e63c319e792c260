//! A calculator, and how sums and puzzles are worked with one.

use num_bigint::BigInt;

use crate::arithmetic::Arithmetic;
use crate::countdown::{Countdown, candidates};
use crate::draw::Draw;
use crate::environment::DemonstrationOptions;
use crate::expression;
use crate::task::{Item, Task, TaskError};
use crate::tooled::{Demonstrator, Open, Shown, Tool};

/// Says what an expression is worth, exactly: whole numbers, or fractions such as 7/2.
pub struct Calculator;

impl Tool for Calculator {
    fn about(&self) -> [&str; 2] {
        ["You have a calculator.", "12*34"]
    }

    fn open<'a>(&'a self, _: &'a Item, _: u64) -> Result<Box<dyn Open + 'a>, TaskError> {
        Ok(Box::new(Calculator))
    }
}

impl Open for Calculator {
    fn call(&mut self, text: &str) -> Result<String, TaskError> {
        Ok(match expression::evaluate(text) {
            Ok(evaluated) if evaluated.value.is_integer() => evaluated.value.numer().to_string(),
            Ok(evaluated) => evaluated.value.to_string(),
            Err(error) => format!("error: {error}"),
        })
    }
}

/// Works chains of operations one call after the other, products first.
pub struct Chains(pub Arithmetic);

impl Demonstrator for Chains {
    fn show(&self, index: u64, options: &DemonstrationOptions, draw: &mut Draw) -> Result<Shown, TaskError> {
        let item = self.0.item(index)?;
        let (mut numbers, mut operations) = terms(&self.0.question_at(index)?);
        let direct = draw.chance(options.direct);
        let quit = if options.quit.is_empty() { 0.0 } else { *draw.one(&options.quit) };
        if direct {
            let digits = numbers.iter().map(|number| number.to_string().len() as u32).max().unwrap_or(1) + 1;
            let guess = draw.between(0, 10u64.pow(digits.min(9)) - 1).to_string();
            return Ok(Shown { item, calls: Vec::new(), answer: guess });
        }
        let mut calls = Vec::new();
        while !operations.is_empty() {
            let slips = draw.chance(options.slips);
            let product = operations.iter().position(|operation| *operation == '*');
            // Who slips forgets that products come first, or takes a number wrong.
            let at = if slips { draw.below(operations.len()) } else { product.unwrap_or(0) };
            let (mut a, b, operation) = (numbers[at].clone(), numbers.remove(at + 1), operations.remove(at));
            if slips {
                a += BigInt::from(draw.between(1, 9));
            }
            let value = match operation {
                '*' => &a * &b,
                '-' => &a - &b,
                _ => &a + &b,
            };
            calls.push(format!("{a}{operation}{b}"));
            numbers[at] = value;
            if !operations.is_empty() && draw.chance(quit) {
                return Ok(Shown { item, calls, answer: numbers[at].to_string() });
            }
        }
        Ok(Shown { item, calls, answer: numbers[0].to_string() })
    }
}

/// The numbers and operations of a chain without parentheses.
fn terms(question: &str) -> (Vec<BigInt>, Vec<char>) {
    let numbers = question.split(['+', '-', '*']).map(|number| number.parse().expect("the generator's numbers"));
    (numbers.collect(), question.chars().filter(|c| !c.is_ascii_digit()).collect())
}

/// Tries expressions until one has the value that a puzzle asks for, or gives up.
pub struct Tries(pub Countdown);

/// Most tries that are shown.
const TRIES_MAX: usize = 6;

impl Demonstrator for Tries {
    fn show(&self, index: u64, options: &DemonstrationOptions, draw: &mut Draw) -> Result<Shown, TaskError> {
        let puzzle = self.0.len().map_or(index, |len| draw.below(len as usize) as u64);
        let item = self.0.item(puzzle)?;
        let (puzzle, shown) = self.0.puzzle(puzzle)?;
        let bounds = self.0.options();
        let mut all = candidates(&shown, &bounds.operations, bounds.value_max);
        draw.shuffle(&mut all);
        let direct = draw.chance(options.direct);
        let quit = if options.quit.is_empty() { 0.0 } else { *draw.one(&options.quit) };
        let mut calls = Vec::new();
        for candidate in all.iter().take(TRIES_MAX) {
            let expression = candidate.expression().to_owned();
            if direct {
                return Ok(Shown { item, calls, answer: expression });
            }
            calls.push(expression.clone());
            // Who slips takes a value for the one that is asked for.
            if candidate.value() == puzzle.target || draw.chance(quit) || draw.chance(options.slips) {
                return Ok(Shown { item, calls, answer: expression });
            }
        }
        let answer = calls.last().cloned().unwrap_or_default();
        Ok(Shown { item, calls, answer })
    }
}
