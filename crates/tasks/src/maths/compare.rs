//! Whether two parsed answers say the same.

use num_bigint::BigInt;
use num_traits::{One, ToPrimitive};

use super::form::{Form, FormBuilder};
use super::numeric;
use super::parser::{Answer, Expr, Value};
use crate::number::{self, Rational};

/// Whether `answer` says what `reference` says.
pub(super) fn same(reference: &Answer, answer: &Answer) -> bool {
    if let (Answer::Relation { sides: a, signs: s }, Answer::Relation { sides: b, signs: t }) = (reference, answer)
        && let (Some((x, _)), Some((y, _))) = (interval(a, s), interval(b, t))
        && x != y
    {
        return false;
    }
    let (reference, answer) = (simple(reference), simple(answer));
    match (&reference, &answer) {
        (Answer::Text(a), b) => spelled(b).is_some_and(|b| letters(a) == letters(&b)),
        (a, Answer::Text(b)) => spelled(a).is_some_and(|a| letters(&a) == letters(b)),
        (Answer::Based { digits: a, base }, b) => match b {
            Answer::Based { digits, base: other } => a == digits && base == other,
            Answer::Value(value) => whole(value).is_some_and(|digits| *a == digits),
            _ => false,
        },
        (Answer::Relation { .. }, _) | (_, Answer::Relation { .. }) => relations(&reference, &answer),
        (Answer::Value(a), Answer::Value(b)) => values(a, b),
        (Answer::Tuple { open, close, items }, Answer::Tuple { open: o, close: c, items: others }) => {
            (open, close) == (o, c) && in_order(items, others)
        }
        (Answer::Set(a), Answer::Set(b)) => in_any_order(&distinct(a), &distinct(b)),
        (Answer::Set(a) | Answer::List { items: a, .. }, Answer::Set(b) | Answer::List { items: b, .. }) => {
            in_any_order(a, b)
        }
        (Answer::Union(a), Answer::Union(b)) => in_any_order(a, b),
        (Answer::Matrix(a), Answer::Matrix(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| in_order(a, b)),
        // A column is also written as a tuple.
        (Answer::Matrix(rows), Answer::Tuple { open: '(', close: ')', items }) => {
            rows.len() == items.len() && rows.iter().zip(items).all(|(row, item)| row.len() == 1 && same(&row[0], item))
        }
        _ => false,
    }
}

/// Without a variable before `=` or `∈`, without braces around one thing, inequalities of one variable as intervals.
fn simple(answer: &Answer) -> Answer {
    match answer {
        Answer::Set(items) | Answer::List { items, .. } if items.len() == 1 => simple(&items[0]),
        Answer::Relation { sides, signs } => match (sides.as_slice(), signs.as_slice()) {
            ([_, set], ['∈']) => simple(set),
            _ => interval(sides, signs).map_or(answer.clone(), |(_, interval)| interval),
        },
        Answer::List { items, or: true } => union_of_inequalities(items).unwrap_or(answer.clone()),
        _ => answer.clone(),
    }
}

/// "x < 2 or x > 3".
fn union_of_inequalities(items: &[Answer]) -> Option<Answer> {
    let mut intervals = Vec::new();
    let mut variables = Vec::new();
    for item in items {
        let Answer::Relation { sides, signs } = item else { return None };
        let (variable, interval) = interval(sides, signs)?;
        variables.push(variable);
        intervals.push(interval);
    }
    variables.windows(2).all(|pair| pair[0] == pair[1]).then_some(Answer::Union(intervals))
}

/// An inequality of one variable as an interval, with the variable.
fn interval(sides: &[Answer], signs: &[char]) -> Option<(String, Answer)> {
    let infinity = |negative: bool| {
        let expr = if negative {
            Expr::Product(vec![Expr::Number(-Rational::from_integer(1.into())), Expr::Infinity])
        } else {
            Expr::Infinity
        };
        Answer::Value(Value { expr, unit: None, percent: false })
    };
    let make = |low: (Answer, bool), high: (Answer, bool)| Answer::Tuple {
        open: if low.1 { '[' } else { '(' },
        close: if high.1 { ']' } else { ')' },
        items: vec![low.0, high.0],
    };
    let closed = |sign: char| matches!(sign, '≤' | '≥');
    match (sides, signs) {
        ([a, b], [sign @ ('<' | '>' | '≤' | '≥')]) => {
            let left = variable(a);
            let (name, bound) = left.map(|name| (name, b)).or(variable(b).map(|name| (name, a)))?;
            // Whether the variable is the smaller side.
            let below = matches!(sign, '<' | '≤') == variable(a).is_some();
            let bound = (bound.clone(), closed(*sign));
            let interval =
                if below { make((infinity(true), false), bound) } else { make(bound, (infinity(false), false)) };
            Some((name, interval))
        }
        ([a, x, b], [s, t]) if matches!((s, t), ('<' | '≤', '<' | '≤') | ('>' | '≥', '>' | '≥')) => {
            let (low, high) = if matches!(s, '<' | '≤') { ((a, s), (b, t)) } else { ((b, t), (a, s)) };
            Some((variable(x)?, make((low.0.clone(), closed(*low.1)), (high.0.clone(), closed(*high.1)))))
        }
        _ => None,
    }
}

/// The name, if this is a variable alone.
fn variable(answer: &Answer) -> Option<String> {
    match answer {
        Answer::Value(Value { expr: Expr::Name(name), unit: None, .. })
            if !matches!(name.as_str(), "pi" | "e" | "i") =>
        {
            Some(name.clone())
        }
        _ => None,
    }
}

/// Whether this only names what is asked for: `x`, `f(x)`, words.
fn names_something(answer: &Answer) -> bool {
    match answer {
        Answer::Text(_) => true,
        Answer::Value(Value { expr: Expr::Product(factors), .. }) => {
            matches!(factors.as_slice(), [Expr::Name(_), Expr::Name(_)])
        }
        Answer::Tuple { items, .. } => items.iter().all(|item| variable(item).is_some()),
        answer => variable(answer).is_some(),
    }
}

/// Equations up to a factor; an equation with a name on one side against a value; inequalities up to a positive factor.
fn relations(reference: &Answer, answer: &Answer) -> bool {
    match (reference, answer) {
        (Answer::Relation { sides: a, signs: s }, Answer::Relation { sides: b, signs: t }) => {
            let equations = s.iter().chain(t).all(|sign| *sign == '=');
            if equations && names_something(&a[0]) && same(&a[0], &b[0]) && same(&a[a.len() - 1], &b[b.len() - 1]) {
                return true;
            }
            a.len() == 2 && b.len() == 2 && proportional(a, s[0], b, t[0])
        }
        (Answer::Relation { sides, signs }, value) => named_value(sides, signs).is_some_and(|named| same(named, value)),
        (value, Answer::Relation { sides, signs }) => named_value(sides, signs).is_some_and(|named| same(value, named)),
        _ => false,
    }
}

/// The value in `x = 5`, `5 = x` and `f(x) = y = 5`.
fn named_value<'a>(sides: &'a [Answer], signs: &[char]) -> Option<&'a Answer> {
    let (first, last) = (sides.first()?, sides.last()?);
    if !signs.iter().all(|sign| *sign == '=') {
        return None;
    }
    if names_something(first) {
        return Some(last);
    }
    (names_something(last) && sides.len() == 2).then_some(first)
}

fn proportional(a: &[Answer], s: char, b: &[Answer], t: char) -> bool {
    let mut builder = FormBuilder::new();
    let mut difference = |sides: &[Answer]| match sides {
        [Answer::Value(left), Answer::Value(right)] => {
            let minus = Expr::Product(vec![Expr::Number(-Rational::from_integer(1.into())), right.expr.clone()]);
            builder.reset_work();
            builder.form(&Expr::Sum(vec![left.expr.clone(), minus])).ok()
        }
        _ => None,
    };
    let (Some(x), Some(y)) = (difference(a), difference(b)) else { return false };
    builder.reset_work();
    let turned = |sign: char| match sign {
        '<' => '>',
        '>' => '<',
        '≤' => '≥',
        '≥' => '≤',
        sign => sign,
    };
    match builder.proportional(&x, &y) {
        Ok(Some(positive)) => {
            if positive || s == '=' {
                s == t
            } else {
                s == turned(t)
            }
        }
        _ => false,
    }
}

fn in_order(a: &[Answer], b: &[Answer]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

/// Whether the answers pair up.
fn in_any_order(a: &[Answer], b: &[Answer]) -> bool {
    let mut left: Vec<&Answer> = b.iter().collect();
    a.len() == b.len()
        && a.iter().all(|a| match left.iter().position(|b| same(a, b)) {
            Some(at) => {
                left.swap_remove(at);
                true
            }
            None => false,
        })
}

fn distinct(items: &[Answer]) -> Vec<Answer> {
    let mut kept: Vec<Answer> = Vec::new();
    for item in items {
        if !kept.iter().any(|other| same(other, item)) {
            kept.push(item.clone());
        }
    }
    kept
}

fn values(reference: &Value, answer: &Value) -> bool {
    let units = match (&reference.unit, &answer.unit) {
        (Some(a), Some(b)) => a.powers == b.powers,
        _ => true,
    };
    if !units {
        return false;
    }
    if expressions(&reference.expr, &answer.expr) {
        return true;
    }
    let actual = |value: &Value| match value.percent {
        true => Expr::Product(vec![value.expr.clone(), Expr::Number(Rational::new(1.into(), 100.into()))]),
        false => value.expr.clone(),
    };
    reference.percent != answer.percent && expressions(&actual(reference), &actual(answer))
}

fn expressions(a: &Expr, b: &Expr) -> bool {
    if a == b {
        return true;
    }
    let mut builder = FormBuilder::new();
    let forms: Result<(Form, Form), _> = builder.form(a).and_then(|x| Ok((x, builder.form(b)?)));
    match forms.and_then(|(x, y)| builder.equal(&x, &y)) {
        Ok(Some(equal)) => equal,
        Ok(None) | Err(_) => numeric::equal(a, b),
    }
}

/// The number that an answer is, or that it gives a name: `18`, `x = 5`. `None` for a calculation.
pub(super) fn written_number(answer: &Answer) -> Option<Rational> {
    match simple(answer) {
        Answer::Value(value) => written(&value.expr),
        Answer::Relation { sides, signs } => written_number(named_value(&sides, &signs)?),
        _ => None,
    }
}

/// What is written as one number: digits, a fraction of two of them, a power of ten behind them. Products with
/// decimals such as 0.5 are parsed into the same as fractions, and pass with them.
fn written(expr: &Expr) -> Option<Rational> {
    let factors = match expr {
        Expr::Number(number) => return Some(number.clone()),
        Expr::Product(factors) => factors.as_slice(),
        _ => return None,
    };
    match factors {
        [Expr::Number(sign), fraction @ Expr::Product(_)] if *sign == -Rational::one() => Some(-written(fraction)?),
        [Expr::Number(a), Expr::Number(b)] if !b.is_integer() && b.numer().magnitude().is_one() => Some(a * b),
        [Expr::Number(mantissa), Expr::Power(base, exponent)] => {
            let (Expr::Number(base), Expr::Number(exponent)) = (base.as_ref(), exponent.as_ref()) else { return None };
            let ten = *base == Rational::from_integer(10.into());
            let exponent = exponent.to_integer().to_i32().filter(|_| ten && exponent.is_integer())?;
            let fits = exponent.unsigned_abs() as usize <= number::DIGITS_MAX;
            fits.then(|| mantissa * number::scaled(BigInt::one(), exponent))
        }
        _ => None,
    }
}

/// The digits of a whole number without sign or unit.
fn whole(value: &Value) -> Option<String> {
    match &value.expr {
        Expr::Number(number) if number.is_integer() && value.unit.is_none() => Some(number.to_string()),
        _ => None,
    }
}

/// What could be words: `B` and `(B)` for `\text{(B)}`.
fn spelled(answer: &Answer) -> Option<String> {
    fn names(expr: &Expr, text: &mut String) -> bool {
        match expr {
            Expr::Name(name) if name.chars().count() == 1 => {
                text.push_str(name);
                true
            }
            Expr::Product(factors) => factors.iter().all(|factor| names(factor, text)),
            _ => false,
        }
    }
    match answer {
        Answer::Text(text) => Some(text.clone()),
        Answer::Value(Value { expr, unit, .. }) => {
            let mut text = String::new();
            names(expr, &mut text).then(|| text + unit.as_ref().map_or("", |unit| &unit.words))
        }
        _ => None,
    }
}

/// Lower-case letters and digits alone.
fn letters(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}
