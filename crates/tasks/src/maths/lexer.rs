//! LaTeX or plain text → tokens. What only changes the look is dropped here.

use num_bigint::BigInt;
use num_traits::One;

use crate::number::{self, Rational};

/// Most tokens of an answer.
const TOKENS_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Digits with at most one point; no sign. Kept as text, since `\frac34` takes it apart.
    Digits(String),
    /// A number that is no plain decimal: `0.\overline{3}`.
    Number(Rational),
    /// A variable or constant: one letter, or a Greek one by its name.
    Name(String),
    /// `\frac`, `\sqrt`, `\sin`, …, without the backslash; plain `sqrt` and `sin` too.
    Command(String),
    /// An operator, bracket, separator or relation, in one character: `≤` for `\le`, `∪` for `\cup`, `⟨` for `\{`.
    Symbol(char),
    Text(String),
    /// `^\circ`, `°`.
    Degree,
    /// `%`.
    Percent,
}

/// Symbols by their commands.
const SYMBOLS: [(&str, char); 45] = [
    ("cdot", '*'),
    ("times", '*'),
    ("ast", '*'),
    ("div", '/'),
    ("pm", '±'),
    ("mp", '∓'),
    ("le", '≤'),
    ("leq", '≤'),
    ("leqslant", '≤'),
    ("ge", '≥'),
    ("geq", '≥'),
    ("geqslant", '≥'),
    ("lt", '<'),
    ("gt", '>'),
    ("ne", '≠'),
    ("neq", '≠'),
    ("in", '∈'),
    ("cup", '∪'),
    ("approx", '='),
    ("equiv", '='),
    ("{", '⟨'),
    ("}", '⟩'),
    ("lbrace", '⟨'),
    ("rbrace", '⟩'),
    ("lbrack", '['),
    ("rbrack", ']'),
    ("lvert", '|'),
    ("rvert", '|'),
    ("vert", '|'),
    ("mid", '¦'),
    ("langle", '('),
    ("rangle", ')'),
    ("to", '→'),
    ("rightarrow", '→'),
    ("setminus", '∖'),
    ("colon", ':'),
    ("cap", '∩'),
    ("infty", '∞'),
    ("emptyset", '∅'),
    ("varnothing", '∅'),
    ("lfloor", '⌊'),
    ("rfloor", '⌋'),
    ("lceil", '⌈'),
    ("rceil", '⌉'),
    ("\\", '⏎'),
];

/// Commands that only change the look.
const LOOKS: [&str; 35] = [
    "left",
    "right",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "displaystyle",
    "textstyle",
    "limits",
    ",",
    ";",
    ":",
    "!",
    " ",
    "quad",
    "qquad",
    "$",
    "thinspace",
    "mathbf",
    "mathit",
    "boldsymbol",
    "vec",
    "hat",
    "bar",
    "(",
    ")",
    "[",
    "]",
    "middle",
    "nolimits",
    "enspace",
];

/// Commands whose argument is text.
const TEXTS: [&str; 9] = ["text", "mbox", "textbf", "textit", "textrm", "mathrm", "mathsf", "operatorname", "hbox"];

/// Those of them that also set constants upright, and how these are written there.
const UPRIGHT: [&str; 3] = ["mathrm", "mathsf", "operatorname"];
const CONSTANTS: [&str; 4] = ["i", "e", "pi", "\\pi"];
/// Spaces that divide groups of three digits.
const THIN_SPACES: [&str; 6] = ["\\,", "\\ ", "~", "\u{a0}", "\u{2009}", "\u{202f}"];

/// Functions, with a backslash or without.
pub(super) const FUNCTIONS: [&str; 20] = [
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp",
    "sqrt", "gcd", "max", "min", "abs",
];

/// Units as plain words.
const UNITS: [&str; 64] = [
    "cm",
    "mm",
    "km",
    "meter",
    "meters",
    "metres",
    "kilometers",
    "centimeters",
    "millimeters",
    "inch",
    "inches",
    "ft",
    "foot",
    "feet",
    "yard",
    "yards",
    "mile",
    "miles",
    "mph",
    "second",
    "seconds",
    "sec",
    "secs",
    "minute",
    "minutes",
    "mins",
    "hour",
    "hours",
    "hrs",
    "day",
    "days",
    "week",
    "weeks",
    "month",
    "months",
    "year",
    "years",
    "dollar",
    "dollars",
    "cent",
    "cents",
    "degree",
    "degrees",
    "radians",
    "unit",
    "units",
    "square",
    "cubic",
    "sq",
    "percent",
    "people",
    "students",
    "ways",
    "points",
    "pounds",
    "lbs",
    "grams",
    "kg",
    "liters",
    "gallons",
    "apples",
    "marbles",
    "per",
    "euros",
];

const GREEK: [&str; 27] = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Delta",
    "Omega",
    "ell",
];

pub(super) struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Token>,
    /// Open brackets in which a comma divides, even between groups of three digits.
    brackets: usize,
}

/// The tokens of `text`; `None` where a character has no meaning here or there are too many.
pub(super) fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut lexer = Lexer { rest: text.trim(), tokens: Vec::new(), brackets: 0 };
    while let Some(c) = lexer.rest.chars().next() {
        lexer.token(c)?;
        if lexer.tokens.len() > TOKENS_MAX {
            return None;
        }
    }
    Some(lexer.tokens)
}

impl Lexer<'_> {
    fn push(&mut self, token: Token) {
        self.tokens.push(token);
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }

    fn symbol(&mut self, symbol: char) {
        match symbol {
            '(' | '[' | '⟨' => self.brackets += 1,
            ')' | ']' | '⟩' => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.push(Token::Symbol(symbol));
    }

    fn token(&mut self, c: char) -> Option<()> {
        match c {
            '\\' => return self.command(),
            '0'..='9' | '.' => return self.number(),
            'a'..='z' | 'A'..='Z' => self.word(),
            '%' => self.plain(c, Token::Percent),
            '°' => self.plain(c, Token::Degree),
            '$' | '~' | '&' if c != '&' => self.skip(1),
            c if c.is_whitespace() || c == '\u{200b}' => self.skip(c.len_utf8()),
            _ => {
                self.skip(c.len_utf8());
                match c {
                    '+' | '-' | '*' | '/' | '^' | '_' | '=' | '<' | '>' | '!' | ',' | ';' | ':' | '(' | ')' | '['
                    | ']' | '{' | '}' | '|' | '&' | '\'' | '±' | '∓' | '≤' | '≥' | '≠' | '∈' | '∪' | '∞' | '∅' => {
                        self.symbol(c)
                    }
                    '−' | '–' => self.symbol('-'),
                    '×' | '·' | '⋅' => self.symbol('*'),
                    '÷' => self.symbol('/'),
                    '≈' => self.symbol('='),
                    '²' | '³' => {
                        self.symbol('^');
                        self.push(Token::Digits(if c == '²' { "2" } else { "3" }.to_owned()));
                    }
                    '√' => self.push(Token::Command("sqrt".to_owned())),
                    'π' => self.push(Token::Name("pi".to_owned())),
                    '€' | '£' | '¥' => {}
                    c if c.is_alphabetic() => self.push(Token::Name(c.to_string())),
                    _ => return None,
                }
            }
        }
        Some(())
    }

    fn plain(&mut self, c: char, token: Token) {
        self.skip(c.len_utf8());
        self.push(token);
    }

    fn command(&mut self) -> Option<()> {
        let behind = &self.rest[1..];
        let letters = behind.bytes().take_while(u8::is_ascii_alphabetic).count();
        let len = if letters > 0 { letters } else { behind.chars().next()?.len_utf8() };
        let name = behind[..len].to_owned();
        self.skip(1 + len);
        let name = name.as_str();
        if let Some((_, symbol)) = SYMBOLS.iter().find(|(command, _)| *command == name) {
            self.symbol(*symbol);
        } else if TEXTS.contains(&name) {
            let text = self.argument()?.trim().to_owned();
            if FUNCTIONS.contains(&text.as_str()) && !self.is_unit(&text) {
                self.push(Token::Command(text));
            } else if UPRIGHT.contains(&name) && CONSTANTS.contains(&text.as_str()) {
                self.push(Token::Name(text.trim_start_matches('\\').to_owned()));
            } else if decimal(&text).is_some() {
                self.push(Token::Digits(text));
            } else if !text.is_empty() {
                self.push(Token::Text(text));
            }
        } else if name == "%" {
            self.push(Token::Percent);
        } else if name == "circ" || name == "degree" {
            // `^\circ` and `^{\circ}`.
            while matches!(self.tokens.last(), Some(Token::Symbol('^' | '{'))) {
                if self.tokens.pop() == Some(Token::Symbol('{')) {
                    self.rest = self.rest.trim_start().strip_prefix('}')?;
                }
            }
            self.push(Token::Degree);
        } else if name == "mathbb" || name == "mathcal" {
            let text = self.argument()?.to_owned();
            self.push(Token::Name(format!("mathbb {text}")));
        } else if name == "begin" || name == "end" {
            let environment = self.argument()?.to_owned();
            if environment == "array" && name == "begin" {
                self.argument()?;
            }
            let matrix = environment.ends_with("matrix") || environment == "array";
            self.push(Token::Command(if matrix { format!("{name} matrix") } else { return None }));
        } else if GREEK.contains(&name) || name == "pi" {
            self.push(Token::Name(name.to_owned()));
        } else if matches!(name, "dfrac" | "tfrac" | "cfrac" | "frac") {
            self.push(Token::Command("frac".to_owned()));
        } else if matches!(name, "dbinom" | "tbinom" | "binom") {
            self.push(Token::Command("binom".to_owned()));
        } else if FUNCTIONS.contains(&name) {
            self.push(Token::Command(name.to_owned()));
        } else if !LOOKS.contains(&name) {
            return None;
        }
        Some(())
    }

    /// The content of the braces that follow.
    fn argument(&mut self) -> Option<&str> {
        let rest = self.rest.trim_start().strip_prefix('{')?;
        let mut depth = 0usize;
        for (at, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    self.rest = &rest[at + 1..];
                    return Some(&rest[..at]);
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
        None
    }

    fn number(&mut self) -> Option<()> {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let mut text = String::new();
        // TeX takes one digit behind `_` and `^`: what follows a space there is no group of it.
        let mut in_groups = !matches!(self.tokens.last(), Some(Token::Symbol('_' | '^')));
        loop {
            let len = digits(self.rest);
            text.push_str(&self.rest[..len]);
            self.skip(len);
            in_groups &= len <= 3 && !text.is_empty();
            // `10,\!080` everywhere; `10\,080` behind up to three digits; `10,080` where a comma does not divide.
            let rest = self.rest;
            let group = |rest: &str| (digits(rest) == 3).then_some(()).is_some();
            let thin = THIN_SPACES.iter().find_map(|space| rest.strip_prefix(*space)).filter(|_| in_groups);
            let spaced = rest.strip_prefix(",\\!").or(rest.strip_prefix("{,}")).or(thin).map(str::trim_start);
            let bare = rest.strip_prefix(',').filter(|_| self.brackets == 0 && !text.is_empty());
            match spaced.filter(|rest| group(rest)).or(bare.filter(|rest| group(rest) && text.len() <= 3 * 40)) {
                Some(rest) if !text.contains('.') => self.rest = rest,
                _ => break,
            }
        }
        let behind = self.rest.strip_prefix('.').unwrap_or_default();
        let repeats = behind[digits(behind)..].starts_with("\\overline{");
        if digits(behind) > 0 || repeats {
            text.push('.');
            text.push_str(&behind[..digits(behind)]);
            self.skip(1 + digits(behind));
        } else if self.rest.starts_with('.') {
            self.skip(1); // the full stop of a sentence, or `5.`
        }
        if text.len() > number::DIGITS_MAX {
            return None;
        }
        if repeats {
            self.skip("\\overline".len());
            let period = self.argument()?.to_owned();
            self.push(Token::Number(repeating(&text, &period)?));
        } else if !text.is_empty() {
            self.push(Token::Digits(text));
        }
        Some(())
    }

    /// Whether a word is a unit though it could be something else: `sec` and `min` with nothing behind them that they
    /// could be functions of, and what follows "square", "per" or the slash behind another word.
    fn is_unit(&self, word: &str) -> bool {
        let behind = self.rest.split([',', ';']).next().unwrap_or_default();
        let no_argument = |c: char| c.is_whitespace() || matches!(c, '.' | '$' | '\\' | '}' | ')' | ']');
        match self.tokens.as_slice() {
            [.., Token::Text(_), Token::Symbol('/')] => true,
            [.., Token::Text(before)] if is_of_a_unit(before) => true,
            [_, ..] => matches!(word, "min" | "sec") && behind.chars().all(no_argument),
            [] => false,
        }
    }

    fn word(&mut self) {
        let len = self.rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let word = self.rest[..len].to_owned();
        self.skip(len);
        let lower = word.to_lowercase();
        if self.is_unit(&word) {
            self.push(Token::Text(word));
        } else if FUNCTIONS.contains(&word.as_str()) {
            self.push(Token::Command(word));
        } else if matches!(lower.as_str(), "infinity" | "inf" | "oo") {
            self.symbol('∞');
        } else if lower == "pi" || GREEK.contains(&word.as_str()) {
            self.push(Token::Name(if lower == "pi" { lower } else { word }));
        } else if matches!(lower.as_str(), "and" | "or") || UNITS.contains(&lower.as_str()) || len > 4 {
            self.push(Token::Text(word));
        } else {
            word.chars().for_each(|c| self.push(Token::Name(c.to_string())));
        }
    }
}

/// Whether a unit follows these words: "square", "per".
fn is_of_a_unit(text: &str) -> bool {
    ["square", "sq", "cubic", "per"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// The value of plain digits with at most one point.
pub(super) fn decimal(digits: &str) -> Option<Rational> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') || digits.len() > number::DIGITS_MAX {
        return None;
    }
    if !digits.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mantissa: BigInt = format!("0{whole}{fraction}").parse().ok()?;
    Some(number::scaled(mantissa, -(fraction.len() as i32)))
}

/// `0.1` and `6` → 0.1666…
fn repeating(start: &str, period: &str) -> Option<Rational> {
    if period.is_empty() || period.len() > number::DIGITS_MAX || !period.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let shift = start.split_once('.').map_or(0, |(_, fraction)| fraction.len()) as i32;
    let nines = BigInt::from(10).pow(period.len() as u32) - BigInt::one();
    let tail = Rational::new(period.parse().ok()?, nines) * number::scaled(BigInt::one(), -shift);
    Some(decimal(start)? + tail)
}
