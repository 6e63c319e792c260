//! Numbers as people and models write them, read exactly: `-1,234.50`, `$5`, `3/4`, `12 apples.`, `6e3`, `15%`.

use num_bigint::BigInt;
use num_rational::Ratio;
use num_traits::{One, Zero};

/// An exact number.
pub type Rational = Ratio<BigInt>;

/// Longest number that is read, in digits. Longer ones are refused, not rounded.
pub const DIGITS_MAX: usize = 400;

/// Symbols that may stand before or after a number.
const CURRENCIES: [char; 6] = ['$', '€', '£', '¥', '₹', '₽'];

/// Reads `text` as one number: sign, digits, groups of three divided by commas, a point, an exponent of ten, or a
/// fraction of two such numbers. A currency before or after it, a percent sign or words behind it and a full stop at
/// the end are passed over: `$18`, `18 dollars.` and `18%` are 18. `None` if this is not one number.
pub fn parse(text: &str) -> Option<Rational> {
    let mut text = text.trim().trim_end_matches('.').trim_end();
    let negative = strip_sign(&mut text);
    text = text.trim_start_matches("\\").trim_start_matches(CURRENCIES).trim_start();
    let negative = negative ^ strip_sign(&mut text);
    let (value, rest) = decimal(text)?;
    let (value, rest) = match rest.trim_start().strip_prefix('/') {
        Some(divisor) => {
            let (divisor, rest) = decimal(divisor.trim_start())?;
            if divisor.is_zero() {
                return None;
            }
            (value / divisor, rest)
        }
        None => (value, rest),
    };
    is_unit(rest).then(|| if negative { -value } else { value })
}

/// Takes signs off the start; whether the result is negative.
fn strip_sign(text: &mut &str) -> bool {
    let mut negative = false;
    while let Some(c) = text.chars().next().filter(|c| matches!(c, '+' | '-' | '−')) {
        negative ^= c != '+';
        *text = text[c.len_utf8()..].trim_start();
    }
    negative
}

/// The number that `text` begins with, and what follows it.
fn decimal(text: &str) -> Option<(Rational, &str)> {
    let integer_len = integer_length(text);
    let mut digits: String = text[..integer_len].chars().filter(|c| *c != ',').collect();
    let mut rest = &text[integer_len..];
    let mut exponent = 0i64;
    if let Some(behind) = rest.strip_prefix('.') {
        let len = behind.bytes().take_while(u8::is_ascii_digit).count();
        if integer_len == 0 && len == 0 {
            return None;
        }
        digits.push_str(&behind[..len]);
        exponent -= len as i64;
        rest = &behind[len..];
    } else if integer_len == 0 {
        return None;
    }
    if let Some((power, behind)) = power_of_ten(rest) {
        exponent += power;
        rest = behind;
    }
    if digits.len() > DIGITS_MAX || exponent.unsigned_abs() > DIGITS_MAX as u64 {
        return None;
    }
    Some((scaled(digits.parse().ok()?, exponent as i32), rest))
}

/// `mantissa` · 10^`exponent`.
pub(crate) fn scaled(mantissa: BigInt, exponent: i32) -> Rational {
    let power = BigInt::from(10).pow(exponent.unsigned_abs());
    if exponent < 0 { Rational::new(mantissa, power) } else { Rational::new(mantissa * power, BigInt::one()) }
}

/// Bytes of digits at the start, with commas that divide groups of three.
pub(crate) fn integer_length(text: &str) -> usize {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let mut len = digits(text);
    if len == 0 || len > 3 {
        return len;
    }
    while text[len..].starts_with(',') && digits(&text[len + 1..]) == 3 {
        len += 4;
    }
    len
}

fn power_of_ten(text: &str) -> Option<(i64, &str)> {
    let behind = text.strip_prefix(['e', 'E'])?;
    let (sign, digits) = match behind.strip_prefix(['+', '-']) {
        Some(digits) => (if behind.starts_with('-') { -1 } else { 1 }, digits),
        None => (1, behind),
    };
    let len = digits.bytes().take_while(u8::is_ascii_digit).count();
    Some((sign * digits[..len].parse::<i64>().ok()?, &digits[len..]))
}

/// Whether `rest` may stand behind a number: nothing, a percent sign, a currency, words.
fn is_unit(rest: &str) -> bool {
    let rest = rest.trim();
    let rest = rest.strip_prefix("\\%").or(rest.strip_prefix('%')).unwrap_or(rest).trim_start_matches(CURRENCIES);
    rest.chars().all(|c| c.is_alphabetic() || c.is_whitespace() || matches!(c, '.' | '\'' | '²' | '³' | '°'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        let cases = [
            ("42", "42"),
            (" 1,234,567 ", "1234567"),
            ("-$1,000.50", "-2001/2"),
            ("$-3", "-3"),
            ("\\$18.90", "189/10"),
            ("18 dollars.", "18"),
            ("3/4", "3/4"),
            ("15%", "15"),
            (".5", "1/2"),
            ("5.", "5"),
            ("+007", "7"),
            ("6e3", "6000"),
            ("−2", "-2"),
            ("12 m²", "12"),
        ];
        for (text, value) in cases {
            assert_eq!(parse(text).map(|v| v.to_string()), Some(value.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_one_number_is_refused() {
        let long = "9".repeat(DIGITS_MAX + 1);
        for text in ["", "-", ".", "x", "1,2", "1 2", "3/0", "1e999999999999", "2+2", "1..2", "#5", &long] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
