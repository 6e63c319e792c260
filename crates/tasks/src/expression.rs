//! Arithmetic expressions over whole numbers, evaluated exactly: `+ - * /`, `×`, `·`, `÷`, parentheses, signs.

use crate::number::Rational;
use num_bigint::BigInt;
use num_traits::Zero;

/// Longest expression that is read, in bytes.
pub const BYTES_MAX: usize = 4096;
/// Deepest nesting of parentheses and signs.
const DEPTH_MAX: usize = 100;

/// An expression's value and the numbers in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub value: Rational,
    /// Every number that stands in it, in order.
    pub numbers: Vec<BigInt>,
}

/// Why a text is no expression with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Longer than [`BYTES_MAX`].
    #[error("it has {0} bytes, more than {BYTES_MAX}")]
    TooLong(usize),
    /// Nested deeper than anyone would.
    #[error("it is nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// Something that has no place there.
    #[error("{found} in column {column}, where {expected} should be")]
    Unexpected {
        /// From 1, in characters.
        column: usize,
        /// What stands there.
        found: String,
        /// What could stand there.
        expected: &'static str,
    },
    #[error("it divides by zero")]
    DivisionByZero,
}

/// Evaluates `text`, all of it.
pub fn evaluate(text: &str) -> Result<Evaluated, ExpressionError> {
    if text.len() > BYTES_MAX {
        return Err(ExpressionError::TooLong(text.len()));
    }
    let mut parser = Parser { chars: text.chars().collect(), at: 0, depth: 0, numbers: Vec::new() };
    let value = parser.sum()?;
    match parser.peek() {
        None => Ok(Evaluated { value, numbers: parser.numbers }),
        Some(_) => Err(parser.unexpected("an operation or the end")),
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
    numbers: Vec<BigInt>,
}

impl Parser {
    fn peek(&mut self) -> Option<char> {
        while self.chars.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, among: &[char]) -> Option<char> {
        let c = self.peek().filter(|c| among.contains(c))?;
        self.at += 1;
        Some(c)
    }

    fn unexpected(&self, expected: &'static str) -> ExpressionError {
        let found = self.chars.get(self.at).map_or("the end".to_owned(), |c| format!("`{c}`"));
        ExpressionError::Unexpected { column: self.at + 1, found, expected }
    }

    fn sum(&mut self) -> Result<Rational, ExpressionError> {
        let mut value = self.product()?;
        while let Some(operation) = self.take(&['+', '-', '−']) {
            let next = self.product()?;
            value = if operation == '+' { value + next } else { value - next };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<Rational, ExpressionError> {
        let mut value = self.factor()?;
        while let Some(operation) = self.take(&['*', '×', '·', '⋅', '/', '÷']) {
            let next = self.factor()?;
            match operation {
                '/' | '÷' if next.is_zero() => return Err(ExpressionError::DivisionByZero),
                '/' | '÷' => value /= next,
                _ => value *= next,
            }
        }
        Ok(value)
    }

    fn factor(&mut self) -> Result<Rational, ExpressionError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(ExpressionError::TooDeep);
        }
        let value = match self.take(&['-', '−', '+', '(']) {
            Some('(') => {
                let value = self.sum()?;
                if self.take(&[')']).is_none() {
                    return Err(self.unexpected("`)`"));
                }
                value
            }
            Some('+') => self.factor()?,
            Some(_) => -self.factor()?,
            None => self.number()?,
        };
        self.depth -= 1;
        Ok(value)
    }

    fn number(&mut self) -> Result<Rational, ExpressionError> {
        let digits: String = self.chars[self.at..].iter().take_while(|c| c.is_ascii_digit()).collect();
        let Ok(number) = digits.parse::<BigInt>() else { return Err(self.unexpected("a number")) };
        self.at += digits.len();
        self.numbers.push(number.clone());
        Ok(Rational::from_integer(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_exact() {
        let cases = [
            ("1 + 2 * 3", "7"),
            ("(1+2)*3", "9"),
            ("8 / 3 * 3", "8"),
            ("7 − 2 × 3 ÷ 4", "11/2"),
            ("-3 + 5", "2"),
            ("2 - -2", "4"),
            ("1/3 + 1/3 + 1/3", "1"),
        ];
        for (text, value) in cases {
            assert_eq!(evaluate(text).unwrap().value.to_string(), value, "{text}");
        }
        let numbers: Vec<String> = evaluate("(10 - 3) * 10").unwrap().numbers.iter().map(|n| n.to_string()).collect();
        assert_eq!(numbers, ["10", "3", "10"]);
    }

    #[test]
    fn what_is_no_expression_says_why() {
        let message = |text: &str| evaluate(text).unwrap_err().to_string();
        assert_eq!(message(""), "the end in column 1, where a number should be");
        assert_eq!(message("1 + x"), "`x` in column 5, where a number should be");
        assert_eq!(message("1 + 2 = 3"), "`=` in column 7, where an operation or the end should be");
        assert_eq!(message("(1"), "the end in column 3, where `)` should be");
        assert_eq!(message("2**3"), "`*` in column 3, where a number should be");
        assert_eq!(message("1.5"), "`.` in column 2, where an operation or the end should be");
        assert_eq!(message("1/(2-2)"), "it divides by zero");
        assert_eq!(message(&"(".repeat(2000)), "it is nested deeper than 100");
        assert_eq!(message(&"-".repeat(2000)), "it is nested deeper than 100");
        assert_eq!(message(&"9".repeat(5000)), "it has 5000 bytes, more than 4096");
    }
}
