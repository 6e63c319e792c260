//! Tokens → answers.

use num_bigint::BigInt;
use num_traits::{One, Zero};

use super::lexer::{self, FUNCTIONS, Token};
use super::unit::Unit;
use crate::number::Rational;

/// Deepest nesting.
const DEPTH_MAX: usize = 40;
/// Most signs of a factorial or a degree behind one factor.
const SUFFIXES_MAX: usize = 8;
/// Most fractions that are parsed once more because they are no part of a mixed number; nested ones double the work.
const RETRIES_MAX: usize = 100;

/// What an answer says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// A number or a formula.
    Value(Value),
    /// Brackets with commas: tuples, points, intervals.
    Tuple {
        open: char,
        close: char,
        items: Vec<Answer>,
    },
    /// `\{…\}`.
    Set(Vec<Answer>),
    /// Commas or words between; `or` says whether the word was "or".
    List {
        items: Vec<Answer>,
        or: bool,
    },
    /// `∪` between intervals.
    Union(Vec<Answer>),
    /// Rows.
    Matrix(Vec<Vec<Answer>>),
    /// `a < b ≤ c`: sides and the signs between them.
    Relation {
        sides: Vec<Answer>,
        signs: Vec<char>,
    },
    /// Digits in a base that is named.
    Based {
        digits: String,
        base: String,
    },
    Text(String),
}

/// A formula with what stands around it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Value {
    pub(super) expr: Expr,
    /// What words stand behind it.
    pub(super) unit: Option<Unit>,
    pub(super) percent: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Number(Rational),
    Name(String),
    Infinity,
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Power(Box<Expr>, Box<Expr>),
    /// A function, by its name.
    Call(String, Vec<Expr>),
}

/// It cannot be read as mathematics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unreadable;

type Parsed<T> = Result<T, Unreadable>;

/// Reads a whole answer.
pub(super) fn parse(text: &str) -> Parsed<Answer> {
    if let Some((digits, base)) = based(text) {
        return Ok(Answer::Based { digits, base });
    }
    let tokens = lexer::tokens(text).ok_or(Unreadable)?;
    answer(&tokens, 0)
}

/// `2516_8`, `4210_{5}`, `1A_{16}`.
fn based(text: &str) -> Option<(String, String)> {
    let text: String = text.chars().filter(|c| !c.is_whitespace() && *c != '$').collect();
    let (digits, base) = text.split_once('_')?;
    let base = base.trim_matches(['{', '}']).trim_start_matches("\\text{");
    let base = match base {
        "two" => "2",
        "eight" => "8",
        "ten" => "10",
        base => base,
    };
    let numeral = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit());
    let numeral = numeral && digits.starts_with(|c: char| c.is_ascii_digit());
    let valid = numeral && !base.is_empty() && base.chars().all(|c| c.is_ascii_digit());
    valid.then(|| (digits.trim_start_matches('0').to_uppercase(), base.to_owned()))
}

fn answer(tokens: &[Token], depth: usize) -> Parsed<Answer> {
    if depth > DEPTH_MAX {
        return Err(Unreadable);
    }
    let comma = |token: &Token| matches!(token, Token::Symbol(',' | ';')) || word(token, &["and", "or"]);
    let parts = split(tokens, comma)?;
    if parts.len() == 1 {
        return relation(tokens, depth + 1);
    }
    // "1, 2, and 3"
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    let items = parts.map(|part| relation(part, depth + 1)).collect::<Parsed<Vec<Answer>>>()?;
    let or = tokens.iter().any(|token| word(token, &["or"]));
    Ok(Answer::List { items: flattened(items), or })
}

/// A list within a list, made by `±`, becomes part of it.
fn flattened(items: Vec<Answer>) -> Vec<Answer> {
    let flat = items.into_iter().flat_map(|item| match item {
        Answer::List { items, .. } => items,
        item => vec![item],
    });
    flat.collect()
}

fn word(token: &Token, words: &[&str]) -> bool {
    matches!(token, Token::Text(text) if words.contains(&text.to_lowercase().as_str()))
}

/// Parts between the tokens that `divides` names, outside of all brackets.
fn split(tokens: &[Token], divides: impl Fn(&Token) -> bool) -> Parsed<Vec<&[Token]>> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0i32);
    for (at, token) in tokens.iter().enumerate() {
        depth += nesting(token);
        if depth < 0 {
            return Err(Unreadable);
        }
        if depth == 0 && divides(token) {
            parts.push(&tokens[start..at]);
            start = at + 1;
        }
    }
    parts.push(&tokens[start..]);
    if depth == 0 { Ok(parts) } else { Err(Unreadable) }
}

/// +1 for what opens, −1 for what closes.
fn nesting(token: &Token) -> i32 {
    match token {
        Token::Symbol('(' | '[' | '{' | '⟨') => 1,
        Token::Symbol(')' | ']' | '}' | '⟩') => -1,
        Token::Command(command) if command == "begin matrix" => 1,
        Token::Command(command) if command == "end matrix" => -1,
        _ => 0,
    }
}

fn relation(tokens: &[Token], depth: usize) -> Parsed<Answer> {
    let sign = |token: &Token| match token {
        Token::Symbol(sign @ ('=' | '<' | '>' | '≤' | '≥' | '≠' | '∈')) => Some(*sign),
        _ => None,
    };
    let parts = split(tokens, |token| sign(token).is_some())?;
    if parts.len() == 1 {
        return union(tokens, depth + 1);
    }
    let mut signs = Vec::new();
    let mut level = 0;
    for token in tokens {
        level += nesting(token);
        signs.extend(sign(token).filter(|_| level == 0));
    }
    let sides = parts.into_iter().map(|part| union(part, depth + 1)).collect::<Parsed<Vec<Answer>>>()?;
    Ok(Answer::Relation { sides, signs })
}

fn union(tokens: &[Token], depth: usize) -> Parsed<Answer> {
    let parts = split(tokens, |token| *token == Token::Symbol('∪'))?;
    if parts.len() == 1 {
        return single(tokens, depth + 1);
    }
    Ok(Answer::Union(parts.into_iter().map(|part| single(part, depth + 1)).collect::<Parsed<Vec<Answer>>>()?))
}

/// Brackets, a matrix, words, or a formula.
fn single(tokens: &[Token], depth: usize) -> Parsed<Answer> {
    if depth > DEPTH_MAX || tokens.is_empty() {
        return Err(Unreadable);
    }
    if *tokens == [Token::Symbol('∅')] || *tokens == [Token::Symbol('⟨'), Token::Symbol('⟩')] {
        return Ok(Answer::Set(Vec::new()));
    }
    if let Some(answer) = bracketed(tokens, depth)? {
        return Ok(answer);
    }
    if let Some(text) = words(tokens) {
        return Ok(Answer::Text(text));
    }
    if let [Token::Command(begin), inner @ .., Token::Command(end)] = tokens
        && begin == "begin matrix"
        && end == "end matrix"
        && split(inner, |_| false).is_ok()
    {
        return matrix(inner, depth);
    }
    formula(tokens, depth)
}

fn bracketed(tokens: &[Token], depth: usize) -> Parsed<Option<Answer>> {
    let [Token::Symbol(open @ ('(' | '[' | '⟨')), inner @ .., Token::Symbol(close @ (')' | ']' | '⟩'))] = tokens
    else {
        return Ok(None);
    };
    let Ok(parts) = split(inner, |token| matches!(token, Token::Symbol(',' | ';'))) else { return Ok(None) };
    if *open == '⟨' {
        let items = parts.into_iter().map(|part| answer(part, depth + 1)).collect::<Parsed<Vec<Answer>>>()?;
        return Ok(Some(Answer::Set(flattened(items))));
    }
    if parts.len() == 1 {
        return match words(inner) {
            Some(text) => Ok(Some(Answer::Text(text))),
            // `\left(\begin{array}…\end{array}\right)`
            None if matches!(inner.first(), Some(Token::Command(command)) if command == "begin matrix") => {
                single(inner, depth + 1).map(Some)
            }
            None => Ok(None),
        };
    }
    let items = parts.into_iter().map(|part| answer(part, depth + 1)).collect::<Parsed<Vec<Answer>>>()?;
    Ok(Some(Answer::Tuple { open: *open, close: *close, items }))
}

/// All tokens as words, if they are nothing else.
fn words(tokens: &[Token]) -> Option<String> {
    let mut all = String::new();
    for token in tokens {
        match token {
            Token::Text(text) => all.push_str(text),
            Token::Symbol('-' | '(' | ')' | ',') if tokens.len() > 1 => {}
            _ => return None,
        }
    }
    Some(all).filter(|text| !text.is_empty())
}

fn matrix(tokens: &[Token], depth: usize) -> Parsed<Answer> {
    let rows = split(tokens, |token| *token == Token::Symbol('⏎'))?;
    let rows = rows.into_iter().filter(|row| !row.is_empty());
    let rows = rows.map(|row| {
        let cells = split(row, |token| *token == Token::Symbol('&'))?;
        cells.into_iter().map(|cell| single(cell, depth + 1)).collect::<Parsed<Vec<Answer>>>()
    });
    Ok(Answer::Matrix(rows.collect::<Parsed<Vec<_>>>()?))
}

/// A formula with its unit; with `±` both of them.
fn formula(tokens: &[Token], depth: usize) -> Parsed<Answer> {
    let (tokens, unit, percent) = without_unit(tokens);
    let either = |token: &Token| matches!(token, Token::Symbol('±' | '∓'));
    if tokens.iter().any(either) {
        let with = |plus: char, minus: char| {
            let sign = |token: &Token| match token {
                Token::Symbol('±') => Token::Symbol(plus),
                Token::Symbol('∓') => Token::Symbol(minus),
                token => token.clone(),
            };
            let signed: Vec<Token> = tokens.iter().map(sign).collect();
            let expr = Parser::all(&signed, depth)?;
            Ok(Answer::Value(Value { expr, unit: unit.clone(), percent }))
        };
        return Ok(Answer::List { items: vec![with('+', '-')?, with('-', '+')?], or: false });
    }
    Ok(Answer::Value(Value { expr: Parser::all(tokens, depth)?, unit, percent }))
}

/// Takes words, degrees and percent signs off the end.
fn without_unit(tokens: &[Token]) -> (&[Token], Option<Unit>, bool) {
    let mut rest = tokens;
    let (mut unit, mut percent) = (String::new(), false);
    while rest.len() > 1 {
        rest = match rest {
            [before @ .., Token::Text(text)] => {
                unit.insert_str(0, &format!("{text} "));
                before
            }
            [before @ .., Token::Text(text), Token::Symbol('^'), Token::Digits(power)] => {
                unit.insert_str(0, &with_power(text, power));
                before
            }
            [
                before @ ..,
                Token::Text(text),
                Token::Symbol('^'),
                Token::Symbol('{'),
                Token::Digits(power),
                Token::Symbol('}'),
            ] => {
                unit.insert_str(0, &with_power(text, power));
                before
            }
            // `\sin 30^\circ` has its degrees within.
            [before @ .., Token::Degree] if !before.iter().any(is_function) => {
                unit.insert_str(0, "degree ");
                before
            }
            [before @ .., Token::Percent] => {
                percent = true;
                before
            }
            [before @ .., Token::Symbol('/')] if !unit.is_empty() => {
                unit.insert(0, '/');
                before
            }
            _ => break,
        };
    }
    match Unit::read(&unit) {
        Some(unit) if unit.words == "percent" => (rest, None, true),
        unit => (rest, unit, percent),
    }
}

fn is_function(token: &Token) -> bool {
    matches!(token, Token::Command(command) if FUNCTIONS.contains(&command.as_str()) && command != "sqrt")
}

/// The power right behind its word, also behind `in.`.
fn with_power(text: &str, power: &str) -> String {
    format!("{}^{power} ", text.trim_end_matches(|c: char| !c.is_alphanumeric()))
}

/// Sums, products, powers.
struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    retries: usize,
}

impl Parser {
    fn all(tokens: &[Token], depth: usize) -> Parsed<Expr> {
        let mut parser = Parser { tokens: tokens.to_vec(), at: 0, depth, retries: 0 };
        let expr = parser.sum()?;
        if parser.at == parser.tokens.len() { Ok(expr) } else { Err(Unreadable) }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, symbol: char) -> bool {
        let found = self.peek() == Some(&Token::Symbol(symbol));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: char) -> Parsed<()> {
        if self.take(symbol) { Ok(()) } else { Err(Unreadable) }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Unreadable);
        }
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    fn sum(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            let mut terms = vec![parser.product()?];
            loop {
                if parser.take('+') {
                    terms.push(parser.product()?);
                } else if parser.take('-') {
                    terms.push(negative(parser.product()?));
                } else {
                    break;
                }
            }
            Ok(if terms.len() == 1 { terms.remove(0) } else { Expr::Sum(terms) })
        })
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut factors = vec![self.signed()?];
        loop {
            let mixed = self.mixed_number(factors.last().expect("one at least"))?;
            if let Some(sum) = mixed {
                *factors.last_mut().expect("one at least") = sum;
            } else if self.take('*') {
                factors.push(self.signed()?);
            } else if self.take('/') {
                factors.push(inverse(self.signed()?));
            } else if self.goes_on(factors.last().expect("one at least"))? {
                factors.push(self.power()?);
            } else {
                break;
            }
        }
        Ok(if factors.len() == 1 { factors.remove(0) } else { Expr::Product(factors) })
    }

    /// `1\frac{4}{5}` and `1 4/5` are sums.
    fn mixed_number(&mut self, before: &Expr) -> Parsed<Option<Expr>> {
        let plain = self.at > 0 && matches!(&self.tokens[self.at - 1], Token::Digits(digits) if !digits.contains('.'));
        let (true, Expr::Number(whole)) = (plain, before) else { return Ok(None) };
        let fraction = match &self.tokens[self.at..] {
            [Token::Command(command), ..] if command == "frac" => {
                let start = (self.at, self.tokens.clone());
                self.at += 1;
                let parts = (self.argument()?, self.argument()?);
                let (Expr::Number(a), Expr::Number(b)) = &parts else {
                    (self.at, self.tokens) = start;
                    self.retries += 1;
                    if self.retries > RETRIES_MAX {
                        return Err(Unreadable);
                    }
                    return Ok(None);
                };
                if b.is_zero() {
                    return Err(Unreadable);
                }
                a / b
            }
            [Token::Digits(a), Token::Symbol('/'), Token::Digits(b), ..] => {
                let (a, b) = (number(a)?, number(b)?);
                if b.is_zero() {
                    return Err(Unreadable);
                }
                self.at += 3;
                a / b
            }
            _ => return Ok(None),
        };
        Ok(Some(Expr::Number(if *whole < Rational::zero() { whole - fraction } else { whole + fraction })))
    }

    fn signed(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            if parser.take('-') {
                // A mixed number keeps its sign: −1 4/5.
                let inner = parser.signed()?;
                Ok(match parser.mixed_number(&inner)? {
                    Some(mixed) => negative(mixed),
                    None => negative(inner),
                })
            } else if parser.take('+') {
                parser.signed()
            } else {
                parser.power()
            }
        })
    }

    fn begins_factor(&self) -> bool {
        match self.peek() {
            Some(Token::Digits(_) | Token::Number(_) | Token::Name(_)) => true,
            Some(Token::Command(command)) => {
                FUNCTIONS.contains(&command.as_str()) || matches!(command.as_str(), "frac" | "binom")
            }
            Some(Token::Symbol(symbol)) => matches!(symbol, '(' | '[' | '{' | '∞' | '⌊' | '⌈'),
            _ => false,
        }
    }

    /// Whether another factor follows `factor` without a sign. Digits behind digits cannot be read: `3 4` is not 12.
    fn goes_on(&self, factor: &Expr) -> Parsed<bool> {
        let digits = |at: usize| matches!(self.tokens.get(at), Some(Token::Digits(_) | Token::Number(_)));
        let adjacent = matches!(factor, Expr::Number(_)) && self.at > 0 && digits(self.at - 1) && digits(self.at);
        if adjacent { Err(Unreadable) } else { Ok(self.begins_factor()) }
    }

    fn power(&mut self) -> Parsed<Expr> {
        let mut base = self.primary()?;
        for _ in 0..=SUFFIXES_MAX {
            if self.take('!') {
                base = Expr::Call("factorial".to_owned(), vec![base]);
            } else if self.peek() == Some(&Token::Degree) {
                self.at += 1;
                let factor =
                    Expr::Product(vec![Expr::Name("pi".to_owned()), Expr::Number(Rational::new(1.into(), 180.into()))]);
                base = Expr::Product(vec![base, factor]);
            } else if self.take('^') {
                let exponent = self.exponent()?;
                return Ok(Expr::Power(Box::new(base), Box::new(exponent)));
            } else {
                return Ok(base);
            }
        }
        Err(Unreadable)
    }

    /// One argument, or a signed number or name: `x^{10}`, `x^10`, `x^-1`, `x^(1/2)`.
    fn exponent(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            if parser.take('-') {
                return Ok(negative(parser.exponent()?));
            }
            if matches!(parser.peek(), Some(Token::Symbol('{'))) {
                return parser.argument();
            }
            parser.power()
        })
    }

    /// `{…}`, or the next digit or symbol alone, as TeX takes it.
    fn argument(&mut self) -> Parsed<Expr> {
        match self.peek().cloned() {
            Some(Token::Symbol('{')) => {
                self.at += 1;
                let inner = self.sum()?;
                self.expect('}')?;
                Ok(inner)
            }
            Some(Token::Digits(digits)) => {
                let (first, rest) = digits.split_at(1);
                if rest.is_empty() || digits.contains('.') {
                    self.at += 1;
                    return Ok(Expr::Number(number(&digits)?));
                }
                let first = Expr::Number(number(first)?);
                self.tokens[self.at] = Token::Digits(rest.to_owned());
                Ok(first)
            }
            Some(_) => self.primary(),
            None => Err(Unreadable),
        }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let token = self.peek().cloned().ok_or(Unreadable)?;
        self.at += 1;
        match token {
            Token::Digits(digits) => Ok(Expr::Number(number(&digits)?)),
            Token::Number(value) => Ok(Expr::Number(value)),
            Token::Name(name) => Ok(Expr::Name(self.with_subscript(name)?)),
            Token::Symbol('∞') => Ok(Expr::Infinity),
            Token::Symbol(open @ ('(' | '[' | '{' | '|' | '⌊' | '⌈')) => {
                let inner = self.sum()?;
                let (close, call) = match open {
                    '(' => (')', None),
                    '[' => (']', None),
                    '{' => ('}', None),
                    '⌊' => ('⌋', Some("floor")),
                    '⌈' => ('⌉', Some("ceil")),
                    _ => ('|', Some("abs")),
                };
                self.expect(close)?;
                Ok(call.map_or(inner.clone(), |name| Expr::Call(name.to_owned(), vec![inner])))
            }
            Token::Command(command) => self.deeper(|parser| parser.command(&command)),
            _ => Err(Unreadable),
        }
    }

    fn with_subscript(&mut self, name: String) -> Parsed<String> {
        if !self.take('_') {
            return Ok(name);
        }
        let begin = self.at;
        let braces = self.take('{');
        while braces && self.peek().is_some_and(|token| *token != Token::Symbol('}')) {
            self.at += 1;
        }
        self.at += 1;
        let subscript = self.tokens.get(begin..self.at).ok_or(Unreadable)?;
        let bare: Vec<&Token> = subscript.iter().filter(|token| !matches!(token, Token::Symbol('{' | '}'))).collect();
        Ok(format!("{name}_{bare:?}"))
    }

    fn command(&mut self, command: &str) -> Parsed<Expr> {
        match command {
            "frac" => {
                let (a, b) = (self.argument()?, self.argument()?);
                Ok(Expr::Product(vec![a, inverse(b)]))
            }
            "binom" => Ok(Expr::Call("binom".to_owned(), vec![self.argument()?, self.argument()?])),
            "sqrt" => {
                let mut degree = Expr::Number(Rational::from_integer(2.into()));
                if self.take('[') {
                    degree = self.sum()?;
                    self.expect(']')?;
                }
                let radicand = if self.take('{') {
                    let inner = self.sum()?;
                    self.expect('}')?;
                    inner
                } else {
                    self.primary()?
                };
                Ok(Expr::Power(Box::new(radicand), Box::new(inverse(degree))))
            }
            name if FUNCTIONS.contains(&name) => self.function(name),
            _ => Err(Unreadable),
        }
    }

    fn function(&mut self, name: &str) -> Parsed<Expr> {
        let mut name = name.to_owned();
        let mut arguments = Vec::new();
        if name == "log" && self.take('_') {
            arguments.push(self.argument()?);
        }
        let mut exponent = if self.take('^') { Some(self.exponent()?) } else { None };
        if exponent == Some(negative(Expr::Number(Rational::one()))) && name.len() == 3 {
            name = format!("arc{name}");
            exponent = None;
        }
        if matches!(self.peek(), Some(Token::Symbol('(' | '{' | '['))) {
            let close = if self.take('(') {
                ')'
            } else if self.take('{') {
                '}'
            } else {
                self.expect('[')?;
                ']'
            };
            arguments.push(self.sum()?);
            while self.take(',') {
                arguments.push(self.sum()?);
            }
            self.expect(close)?;
        } else {
            let mut factors = vec![self.signed()?];
            while self.goes_on(factors.last().expect("one at least"))? && !self.peek().is_some_and(is_function) {
                factors.push(self.power()?);
            }
            arguments.push(if factors.len() == 1 { factors.remove(0) } else { Expr::Product(factors) });
        }
        if name == "exp" {
            let e = Expr::Name("e".to_owned());
            return Ok(Expr::Power(Box::new(e), Box::new(arguments.pop().ok_or(Unreadable)?)));
        }
        let call = Expr::Call(name, arguments);
        Ok(match exponent {
            Some(exponent) => Expr::Power(Box::new(call), Box::new(exponent)),
            None => call,
        })
    }
}

fn number(digits: &str) -> Parsed<Rational> {
    lexer::decimal(digits).ok_or(Unreadable)
}

fn negative(expr: Expr) -> Expr {
    match expr {
        Expr::Number(number) => Expr::Number(-number),
        expr => Expr::Product(vec![Expr::Number(-Rational::one()), expr]),
    }
}

fn inverse(expr: Expr) -> Expr {
    match expr {
        Expr::Number(number) if !number.is_zero() => {
            Expr::Number(Rational::new(number.denom().clone(), BigInt::clone(number.numer())))
        }
        expr => Expr::Power(Box::new(expr), Box::new(Expr::Number(-Rational::one()))),
    }
}
