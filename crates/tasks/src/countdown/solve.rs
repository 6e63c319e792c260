//! All ways to combine numbers.

use std::collections::BTreeSet;

use super::Options;
use crate::draw::Draw;

/// A way to combine two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `+`.
    Add,
    /// `-`, the smaller from the larger.
    Subtract,
    /// `*`.
    Multiply,
    /// `/`, where nothing is left over.
    Divide,
}

impl Operation {
    /// All four.
    pub const ALL: [Operation; 4] = [Operation::Add, Operation::Subtract, Operation::Multiply, Operation::Divide];

    /// As in expressions.
    pub fn symbol(self) -> char {
        match self {
            Operation::Add => '+',
            Operation::Subtract => '-',
            Operation::Multiply => '*',
            Operation::Divide => '/',
        }
    }

    /// `a` and `b` combined, if the result is a whole number from 0 on.
    fn apply(self, a: u64, b: u64) -> Option<u64> {
        match self {
            Operation::Add => a.checked_add(b),
            Operation::Subtract => a.checked_sub(b),
            Operation::Multiply => a.checked_mul(b),
            Operation::Divide => (b != 0 && a.is_multiple_of(b)).then(|| a / b),
        }
    }

    fn commutes(self) -> bool {
        matches!(self, Operation::Add | Operation::Multiply)
    }
}

/// One equation on the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// Left operand.
    pub a: u64,
    /// What is done.
    pub operation: Operation,
    /// Right operand.
    pub b: u64,
    /// What comes out.
    pub value: u64,
}

impl Step {
    /// What really comes out.
    pub(super) fn recomputed(&self) -> Option<u64> {
        self.operation.apply(self.a, self.b)
    }
}

/// A way to combine all numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    steps: Vec<Step>,
    expression: String,
}

impl Candidate {
    /// The equations in their order, one fewer than numbers.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The whole expression, without spaces, every operand that is not a number in parentheses.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// What comes out in the end.
    pub fn value(&self) -> u64 {
        self.steps.last().expect("two numbers at least").value
    }
}

/// A number or an expression with its value.
#[derive(Clone)]
struct Operand {
    value: u64,
    text: String,
    compound: bool,
}

impl Operand {
    fn quoted(&self) -> String {
        if self.compound { format!("({})", self.text) } else { self.text.clone() }
    }
}

/// Every way to combine all of `numbers` with no value above `value_max`, each once, in ascending order of their steps.
/// Sums and products are not turned around: a result stands before a number, among numbers the first shown comes first.
pub fn candidates(numbers: &[u64], operations: &[Operation], value_max: u64) -> Vec<Candidate> {
    let start: Vec<Operand> =
        numbers.iter().map(|&value| Operand { value, text: value.to_string(), compound: false }).collect();
    let mut found = BTreeSet::new();
    combine(&start, &mut Vec::new(), operations, value_max, &mut found);
    found.into_iter().collect()
}

fn combine(
    operands: &[Operand],
    steps: &mut Vec<Step>,
    operations: &[Operation],
    value_max: u64,
    found: &mut BTreeSet<Candidate>,
) {
    if let [result] = operands {
        if !steps.is_empty() {
            found.insert(Candidate { steps: steps.clone(), expression: result.text.clone() });
        }
        return;
    }
    for i in 0..operands.len() {
        for j in 0..operands.len() {
            for &operation in operations {
                if i == j || (operation.commutes() && i > j) {
                    continue;
                }
                let (a, b) = (&operands[i], &operands[j]);
                let Some(value) = operation.apply(a.value, b.value).filter(|&value| value <= value_max) else {
                    continue;
                };
                let text = format!("{}{}{}", a.quoted(), operation.symbol(), b.quoted());
                let mut rest = vec![Operand { value, text, compound: true }];
                let others = operands.iter().enumerate().filter(|(at, _)| *at != i && *at != j);
                rest.extend(others.map(|(_, operand)| operand.clone()));
                steps.push(Step { a: a.value, operation, b: b.value, value });
                combine(&rest, steps, operations, value_max, found);
                steps.pop();
            }
        }
    }
}

/// Every value that all of `numbers` can be combined to.
pub fn reachable(numbers: &[u64], operations: &[Operation], value_max: u64) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    walk(numbers, operations, value_max, &mut found);
    found
}

fn walk(numbers: &[u64], operations: &[Operation], value_max: u64, found: &mut BTreeSet<u64>) {
    if let [value] = numbers {
        found.insert(*value);
        return;
    }
    for i in 0..numbers.len() {
        for j in (0..numbers.len()).filter(|&j| j != i) {
            for operation in operations {
                if operation.commutes() && i > j {
                    continue;
                }
                let value = operation.apply(numbers[i], numbers[j]).filter(|&value| value <= value_max);
                let Some(value) = value else { continue };
                let others = numbers.iter().enumerate().filter(|(at, _)| *at != i && *at != j);
                let rest: Vec<u64> = std::iter::once(value).chain(others.map(|(_, number)| *number)).collect();
                walk(&rest, operations, value_max, found);
            }
        }
    }
}

/// A target for `numbers` out of a random way to combine them; `None` if that way leads out of bounds.
pub(super) fn random_target(numbers: &[u64], options: &Options, draw: &mut Draw) -> Option<u64> {
    let mut numbers = numbers.to_vec();
    while numbers.len() > 1 {
        let a = numbers.swap_remove(draw.below(numbers.len()));
        let b = numbers.swap_remove(draw.below(numbers.len()));
        let operation = *draw.one(&options.operations);
        numbers.push(operation.apply(a.max(b), a.min(b)).filter(|&value| value <= options.value_max)?);
    }
    Some(numbers[0]).filter(|target| options.targets.contains(target))
}
