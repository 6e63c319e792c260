//! Countdown: make a number out of given numbers, each used exactly once.
//!
//! ```text
//! 7 6 1 -> 13        (7*1)+6
//! ```
//! Where the space of puzzles is small it is listed whole, and the held-out puzzles are a fixed number of them, chosen
//! by the seed. Answers are any expressions of [`expression`]: intermediate values of an answer are not limited, those
//! of the puzzles' solutions are.

mod solve;
mod trace;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::number::Rational;
use num_bigint::BigInt;
use wels_data::random::{self, Permutation};

use crate::completion::Format;
use crate::draw::Draw;
use crate::expression;
use crate::prompt::Presentation;
use crate::task::{Item, Reason, Reference, Split, Task, TaskError, foreign};

pub use solve::{Candidate, Operation, Step, candidates};
pub use trace::{Trace, TraceOptions, TraceStyle, Traces};

const NAME: &str = "countdown";
const STREAM_SPLIT: u64 = 1;
const STREAM_NUMBERS: u64 = 2;
/// The largest space that is listed, in sets of numbers; larger ones are drawn from.
const LISTED_SETS_MAX: u64 = 5_000;
/// Most numbers of a puzzle: the solver walks all ways to combine them.
const NUMBERS_MAX: usize = 5;
/// Sets of numbers drawn until one has a puzzle of the split.
const DRAWS_MAX: usize = 10_000;

/// Which puzzles there are.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many numbers a puzzle has, 2 to 5.
    pub numbers: RangeInclusive<usize>,
    /// What they are.
    pub values: RangeInclusive<u64>,
    /// How they may be combined in the solution that makes a puzzle one.
    pub operations: Vec<Operation>,
    /// The largest value, the target included, on the way of that solution; the smallest is 0.
    pub value_max: u64,
    /// What the target may be.
    pub targets: RangeInclusive<u64>,
    /// How many puzzles are held out where all are listed; of larger spaces a tenth is held out.
    pub held_out: u64,
    /// Chooses the held-out puzzles and the order of all.
    pub seed: u64,
}

impl Default for Options {
    /// Three numbers in 1..=12, `+ - *`, values up to 99, targets from 1: 3,986 puzzles, of which 1,000 are held out.
    fn default() -> Self {
        Options {
            numbers: 3..=3,
            values: 1..=12,
            operations: vec![Operation::Add, Operation::Subtract, Operation::Multiply],
            value_max: 99,
            targets: 1..=99,
            held_out: 1000,
            seed: 0,
        }
    }
}

/// Numbers in ascending order, and what to make of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Puzzle {
    /// Ascending.
    pub numbers: Vec<u64>,
    /// Reachable with all of them.
    pub target: u64,
}

/// The puzzles of one split.
pub struct Countdown {
    options: Options,
    presentation: Presentation,
    split: Split,
    space: Space,
}

enum Space {
    /// Every puzzle, and their order; the held-out ones come first.
    Listed(Vec<Puzzle>, Permutation),
    Drawn,
}

impl Countdown {
    /// The puzzles of `split`. Two instances with equal options have disjoint splits.
    pub fn new(options: Options, presentation: Presentation, split: Split) -> Result<Countdown, TaskError> {
        let refuse = |reason: String| Err(TaskError::Options { task: NAME, reason });
        let Options { numbers, values, .. } = &options;
        if numbers.is_empty() || *numbers.start() < 2 || *numbers.end() > NUMBERS_MAX {
            return refuse(format!("a puzzle has 2 to {NUMBERS_MAX} numbers, not {numbers:?}"));
        }
        if values.is_empty() || *values.end() > 1_000_000 || options.value_max > 1_000_000_000_000 {
            return refuse("numbers go to 1,000,000 and values to 1,000,000,000,000".to_owned());
        }
        if options.operations.is_empty() {
            return refuse("there is no operation".to_owned());
        }
        let sets: u64 = numbers
            .clone()
            .map(|n| sets_count(values.end() - values.start() + 1, n as u64))
            .fold(0, u64::saturating_add);
        let space = if sets <= LISTED_SETS_MAX {
            let puzzles = list(&options);
            if puzzles.len() as u64 <= options.held_out {
                return refuse(format!("there are {} puzzles and {} are held out", puzzles.len(), options.held_out));
            }
            let order = Permutation::new(puzzles.len() as u64, random::bits(options.seed, STREAM_SPLIT, 0, 0));
            Space::Listed(puzzles, order)
        } else {
            Space::Drawn
        };
        let task = Countdown { options, presentation, split, space };
        if task.len() != Some(0) {
            task.puzzle(0)?;
        }
        Ok(task)
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The puzzle number `index`, and its numbers in the order in which they are shown.
    pub fn puzzle(&self, index: u64) -> Result<(Puzzle, Vec<u64>), TaskError> {
        let mut draw = Draw::new(self.options.seed, STREAM_NUMBERS + 2 * (self.split == Split::HeldOut) as u64, index);
        let puzzle = match &self.space {
            Space::Listed(puzzles, order) => {
                let len = self.len().expect("listed");
                if index >= len {
                    return Err(TaskError::NoItem { task: NAME.to_owned(), len, index });
                }
                let first = if self.split == Split::HeldOut { 0 } else { self.options.held_out };
                puzzles[order.at(first + index) as usize].clone()
            }
            Space::Drawn => self.draw(&mut draw)?,
        };
        let mut shown = puzzle.numbers.clone();
        draw.shuffle(&mut shown);
        Ok((puzzle, shown))
    }

    /// A puzzle of the split out of a space that is too large to list.
    fn draw(&self, draw: &mut Draw) -> Result<Puzzle, TaskError> {
        let Options { numbers, values, .. } = &self.options;
        for _ in 0..DRAWS_MAX {
            let count = draw.between(*numbers.start() as u64, *numbers.end() as u64);
            let mut drawn: Vec<u64> = (0..count).map(|_| draw.between(*values.start(), *values.end())).collect();
            drawn.sort_unstable();
            let Some(target) = solve::random_target(&drawn, &self.options, draw) else { continue };
            let puzzle = Puzzle { numbers: drawn, target };
            if self.split_of(&puzzle) == self.split {
                return Ok(puzzle);
            }
        }
        let reason = format!("{DRAWS_MAX} draws gave no puzzle with a target in {:?}", self.options.targets);
        Err(TaskError::Options { task: NAME, reason })
    }

    /// One puzzle in ten of a drawn space is held out.
    fn split_of(&self, puzzle: &Puzzle) -> Split {
        let words = puzzle.numbers.iter().chain([&puzzle.target]);
        let hash = words.fold(0, |hash, word| random::bits(self.options.seed, STREAM_SPLIT, hash, *word));
        if random::below(hash, 10) == 0 { Split::HeldOut } else { Split::Train }
    }
}

/// Sets of `size` numbers out of `n`, with repetition: C(n + size − 1, size).
fn sets_count(n: u64, size: u64) -> u64 {
    (0..size).fold(1u64, |count, i| count.saturating_mul(n + i) / (i + 1))
}

/// Every puzzle, in ascending order.
fn list(options: &Options) -> Vec<Puzzle> {
    let mut puzzles = Vec::new();
    for count in options.numbers.clone() {
        let mut numbers = vec![*options.values.start(); count];
        loop {
            let targets: BTreeSet<u64> = solve::reachable(&numbers, &options.operations, options.value_max);
            let targets = targets.into_iter().filter(|target| options.targets.contains(target));
            puzzles.extend(targets.map(|target| Puzzle { numbers: numbers.clone(), target }));
            // The next ascending sequence.
            let Some(at) = numbers.iter().rposition(|number| number < options.values.end()) else { break };
            let next = numbers[at] + 1;
            numbers[at..].fill(next);
        }
    }
    puzzles
}

impl Task for Countdown {
    fn name(&self) -> &str {
        NAME
    }

    fn len(&self) -> Option<u64> {
        match (&self.space, self.split) {
            (Space::Listed(..), Split::HeldOut) => Some(self.options.held_out),
            (Space::Listed(puzzles, _), Split::Train) => Some(puzzles.len() as u64 - self.options.held_out),
            (Space::Drawn, _) => None,
        }
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        let (puzzle, numbers) = self.puzzle(index)?;
        let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let full = format!(
            "Make an expression with the value {} out of the numbers {}. Use each of them exactly once, {} and parentheses",
            puzzle.target,
            texts.join(", "),
            self.options
                .operations
                .iter()
                .map(|operation| operation.symbol().to_string())
                .collect::<Vec<_>>()
                .join(" "),
        );
        let prompt = self.presentation.prompt(&prompt_text(&numbers, puzzle.target), &full);
        let reference = Reference::Expression { numbers, target: puzzle.target as i64 };
        Ok(Item { id: format!("{}={}", puzzle_name(&puzzle.numbers), puzzle.target), prompt, reference })
    }

    fn format(&self) -> Format {
        self.presentation.format
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        match &item.reference {
            Reference::Expression { numbers, target } => Ok(check_expression(answer, numbers, *target)),
            _ => Err(foreign(self, item)),
        }
    }
}

fn prompt_text(numbers: &[u64], target: u64) -> String {
    let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
    format!("{} -> {target}", texts.join(" "))
}

fn puzzle_name(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// Whether `answer` uses each of `numbers` exactly once and has the value `target`. A `= value` at its end is passed
/// over if it is the target.
pub fn check_expression(answer: &str, numbers: &[u64], target: i64) -> Reason {
    let stated = |text: &str| text.trim() == target.to_string();
    let text = answer.rsplit_once('=').filter(|(_, value)| stated(value)).map_or(answer, |(expression, _)| expression);
    let evaluated = match expression::evaluate(text) {
        Ok(evaluated) => evaluated,
        Err(error) => return Reason::Malformed(error.to_string()),
    };
    let sorted = |mut numbers: Vec<BigInt>| {
        numbers.sort_unstable();
        numbers
    };
    let (used, given) = (sorted(evaluated.numbers), sorted(numbers.iter().copied().map(BigInt::from).collect()));
    if used != given {
        return Reason::Wrong(format!("it uses {used:?} and not {given:?}").replace(['[', ']'], ""));
    }
    if evaluated.value != Rational::from_integer(target.into()) {
        return Reason::Wrong(format!("its value is {} and not {target}", evaluated.value));
    }
    Reason::Right
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Style;

    fn nano(split: Split) -> Countdown {
        Countdown::new(Options::default(), Style::Terse.into(), split).unwrap()
    }

    #[test]
    fn the_space_is_listed_and_split() {
        let (train, held_out) = (nano(Split::Train), nano(Split::HeldOut));
        assert_eq!((train.len(), held_out.len()), (Some(2986), Some(1000)));
        let mut all = BTreeSet::new();
        for task in [&train, &held_out] {
            all.extend((0..task.len().unwrap()).map(|index| task.puzzle(index).unwrap().0));
        }
        assert_eq!(all.len(), 3986);
        assert!(train.item(2986).is_err());
    }

    #[test]
    fn every_puzzle_has_a_solution_that_is_graded_right() {
        let task = nano(Split::HeldOut);
        for index in 0..1000 {
            let (puzzle, shown) = task.puzzle(index).unwrap();
            let item = task.item(index).unwrap();
            let all = candidates(&shown, &task.options().operations, task.options().value_max);
            let (right, wrong): (Vec<_>, Vec<_>) = all.iter().partition(|candidate| candidate.value() == puzzle.target);
            assert!(!right.is_empty(), "{puzzle:?}");
            for candidate in &all {
                let grade = task.grade(&item, &format!("<think></think>{}", candidate.expression())).unwrap();
                assert_eq!(grade.correct, candidate.value() == puzzle.target, "{} {grade:?}", candidate.expression());
            }
            assert_eq!(right.len() + wrong.len(), all.len());
        }
    }

    #[test]
    fn answers_are_checked_by_value_and_numbers() {
        let check = |answer: &str| check_expression(answer, &[7, 6, 1], 13);
        assert_eq!(check("( 7 - 1 ) + 6"), Reason::Wrong("its value is 12 and not 13".to_owned()));
        for right in ["7*1+6", "(7*1)+6 = 13", "6 + 7 / 1", "1 × 6 + 7", "-(-7-6)*1"] {
            assert_eq!(check(right), Reason::Right, "{right}");
        }
        assert!(matches!(check("7+6"), Reason::Wrong(_)));
        assert!(matches!(check("7+6+1-1"), Reason::Wrong(_)));
        assert!(matches!(check("13"), Reason::Wrong(_)));
        assert!(matches!(check("7*1+6 = 14"), Reason::Malformed(_)));
        assert!(matches!(check("seven"), Reason::Malformed(_)));
    }

    #[test]
    fn large_spaces_are_drawn_from() {
        let options = Options {
            numbers: 4..=5,
            values: 1..=100,
            operations: Operation::ALL.to_vec(),
            value_max: 9999,
            targets: 100..=999,
            ..Options::default()
        };
        let task = |split| Countdown::new(options.clone(), Style::R1Zero.into(), split).unwrap();
        let (train, held_out) = (task(Split::Train), task(Split::HeldOut));
        for index in 0..20 {
            let (puzzle, _) = train.puzzle(index).unwrap();
            assert!(solve::reachable(&puzzle.numbers, &options.operations, 9999).contains(&puzzle.target));
            assert_eq!(train.split_of(&puzzle), Split::Train);
            assert_eq!(train.split_of(&held_out.puzzle(index).unwrap().0), Split::HeldOut);
        }
    }

    #[test]
    fn options_without_puzzles_are_refused() {
        let new = |options| Countdown::new(options, Style::Terse.into(), Split::Train).map(|_| ());
        assert!(new(Options { numbers: 1..=1, ..Options::default() }).is_err());
        assert!(new(Options { held_out: 3986, ..Options::default() }).is_err());
        assert!(new(Options { operations: vec![], ..Options::default() }).is_err());
        let unreachable = Options { values: 1..=1000, targets: 100_000..=100_000, value_max: 10, ..Options::default() };
        assert!(new(unreachable).is_err());
    }
}
