//! Whether two answers to a question of mathematics say the same, written in LaTeX or plainly.
//!
//! An answer is read into numbers, expressions, tuples, intervals, sets, matrices, relations or text. Expressions are
//! compared exactly, as quotients of polynomials over the rationals in variables, π, e, i and roots of primes (`form`);
//! only where they hold functions or powers of another kind, by value at several points (`numeric`). What is passed
//! over: `$`, spacing, `\left`, sizes, a unit, currency, degree or percent sign that only one side has, a variable
//! before `=`, the order of sets and of bare lists. What is not: the order and the brackets of tuples and intervals,
//! units that differ, bases that differ, decimals that are rounded.
//!
//! Work is bounded: longer or deeper answers than the limits are compared as text, formulas with larger forms by value.

mod lexer;

mod unit;

mod parser;

mod form;

mod numeric;

mod compare;

use crate::completion::last_boxed;
use crate::number::Rational;
use crate::task::Reason;

/// Longest answer that is read as mathematics, in bytes; longer ones are compared as text.
pub const BYTES_MAX: usize = 2000;

/// Whether `answer` says what `reference` says.
pub fn check(reference: &str, answer: &str) -> Reason {
    if equivalent(reference, answer) {
        Reason::Right
    } else {
        let shown: String = answer.chars().take(80).collect();
        Reason::Wrong(format!("{shown} is not {reference}"))
    }
}

/// Whether two answers are the same; not symmetric: units, a variable or a percent sign may be missing or added.
pub fn equivalent(reference: &str, answer: &str) -> bool {
    let (reference, answer) = (unboxed(reference), unboxed(answer));
    if answer.trim().is_empty() {
        return reference.trim().is_empty();
    }
    if plain(reference) == plain(answer) {
        return true;
    }
    if reference.len() > BYTES_MAX || answer.len() > BYTES_MAX {
        return false;
    }
    match (parser::parse(reference), parser::parse(answer)) {
        (Ok(reference), Ok(answer)) => compare::same(&reference, &answer),
        _ => false,
    }
}

/// The number that `answer` writes in LaTeX, or gives a variable: `1{,}042`, `\frac{3}{2}`, `18\text{ dollars}`,
/// `x = 5`. As in [`crate::number::parse`] units and percent signs are passed over. `None` for a calculation such as
/// `6 \cdot 7`: the question itself would be its answer.
pub fn number(answer: &str) -> Option<Rational> {
    let answer = unboxed(answer);
    if answer.len() > BYTES_MAX {
        return None;
    }
    compare::written_number(&parser::parse(answer).ok()?)
}

/// What is in the box, if the text is a box.
fn unboxed(text: &str) -> &str {
    let bare = text.trim().trim_matches('$').trim();
    if bare.starts_with("\\boxed") { last_boxed(bare).unwrap_or(text) } else { text }
}

/// Without white space and dollar signs.
fn plain(text: &str) -> String {
    text.trim().trim_end_matches('.').chars().filter(|c| !c.is_whitespace() && *c != '$').collect()
}
