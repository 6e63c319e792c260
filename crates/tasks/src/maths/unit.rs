//! What stands behind a number: units of measurement, and whatever other words, as powers of single words.

use std::collections::BTreeMap;

/// Words for one unit, in the singular as [`singular`] makes it, and the one that stands for all of them.
const SYNONYMS: [(&str, &str); 21] = [
    ("millimeter", "mm"),
    ("millimetre", "mm"),
    ("centimeter", "cm"),
    ("centimetre", "cm"),
    ("meter", "m"),
    ("metre", "m"),
    ("kilometer", "km"),
    ("kilometre", "km"),
    ("inch", "in"),
    ("inche", "in"),
    ("foot", "ft"),
    ("feet", "ft"),
    ("yard", "yd"),
    ("mile", "mi"),
    ("second", "s"),
    ("sec", "s"),
    ("minute", "min"),
    ("hour", "h"),
    ("hr", "h"),
    ("gram", "g"),
    ("kilogram", "kg"),
];

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit {
    /// Lower-case letters and digits alone, in the order in which they stand.
    pub(super) words: String,
    /// "metres per second squared" is `m` to 1 and `s` to −2.
    pub(super) powers: BTreeMap<String, i64>,
}

impl Unit {
    /// Reads "square inches", "in^2", "miles per hour", "km/h"; `None` where there is no word.
    pub(super) fn read(text: &str) -> Option<Unit> {
        let words: String = text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
        if words.is_empty() {
            return None;
        }
        let spaced = spaced(text);
        let mut factors: Vec<(&str, i64)> = Vec::new();
        let (mut sign, mut times) = (1, 1);
        let mut rest = spaced.split_whitespace().peekable();
        while let Some(word) = rest.next() {
            match (word, factors.last_mut()) {
                ("per", _) => sign = -1,
                ("square" | "sq", _) if rest.peek().is_some() => times = 2,
                ("cubic" | "cu", _) if rest.peek().is_some() => times = 3,
                ("squared", Some((_, power))) => *power = power.saturating_mul(2),
                ("cubed", Some((_, power))) => *power = power.saturating_mul(3),
                _ => {
                    let (name, power) = with_power(word);
                    factors.extend(parts(name).into_iter().map(|(part, one)| (part, sign * times * power * one)));
                    times = 1;
                }
            }
        }
        let mut powers: BTreeMap<String, i64> = BTreeMap::new();
        for (name, power) in factors {
            let sum = powers.entry(name.to_owned()).or_default();
            *sum = sum.saturating_add(power);
        }
        Some(Unit { words, powers })
    }
}

/// Words with single spaces between them, and their powers right behind them: `km per h2` for `km/h²`.
fn spaced(text: &str) -> String {
    let mut spaced = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        match c {
            '/' => spaced.push_str(" per "),
            '°' => spaced.push_str(" degree "),
            '²' => spaced.push('2'),
            '³' => spaced.push('3'),
            '^' | '\'' | '’' => {}
            c if c.is_alphanumeric() => spaced.push(c),
            _ => spaced.push(' '),
        }
    }
    spaced
}

/// `cm2` is `cm` to 2.
fn with_power(word: &str) -> (&str, i64) {
    let name = word.trim_end_matches(|c: char| c.is_ascii_digit());
    match word[name.len()..].parse::<i32>() {
        Ok(power) if !name.is_empty() => (name, i64::from(power)),
        _ => (word, 1),
    }
}

/// The units that a word means.
fn parts(word: &str) -> Vec<(&str, i64)> {
    match word {
        "mph" => vec![("mi", 1), ("h", -1)],
        "kph" | "kmh" => vec![("km", 1), ("h", -1)],
        word => vec![(singular(word), 1)],
    }
}

/// Without a plural, and of synonyms the one that stands for all.
fn singular(word: &str) -> &str {
    let one = word.strip_suffix('s').filter(|rest| rest.len() > 1).unwrap_or(word);
    SYNONYMS.iter().find(|(name, _)| *name == one).map_or(one, |(_, unit)| *unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_words() {
        let cases = [
            ("square inches", "in 2"),
            ("sq. in.", "in 2"),
            ("in^2", "in 2"),
            ("cubic centimetres", "cm 3"),
            ("cu ft", "ft 3"),
            ("feet cubed", "ft 3"),
            ("mph", "h -1, mi 1"),
            ("Miles per Hour", "h -1, mi 1"),
            ("km/h", "h -1, km 1"),
            ("kmh", "h -1, km 1"),
            ("m/s²", "m 1, s -2"),
            ("metres per second squared", "m 1, s -2"),
            ("kg m per s2", "kg 1, m 1, s -2"),
            ("m m", "m 2"),
            ("red marbles", "marble 1, red 1"),
            ("squares", "square 1"),
            ("°F", "degree 1, f 1"),
            ("ms", "ms 1"),
            ("squared", "squared 1"),
            ("m99999999999", "m99999999999 1"),
        ];
        for (text, powers) in cases {
            let unit = Unit::read(text).expect(text);
            let found: Vec<String> = unit.powers.iter().map(|(name, power)| format!("{name} {power}")).collect();
            assert_eq!(found.join(", "), powers, "{text}");
        }
        assert!(["", " ", ".", "^"].iter().all(|text| Unit::read(text).is_none()));
        let large = format!("m {}", "squared ".repeat(100));
        assert_eq!(Unit::read(&large).expect("words").powers["m"], i64::MAX);
    }
}
