//! Money as integers: amounts, prices per million tokens, peak and off-peak hours.
//!
//! An amount counts billionths of the unit of currency. A request costs the exact sum of its tokens times their prices,
//! rounded down once, so what it costs is a function of its counts and prices alone.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Billionths in one unit of currency.
const NANOS: i64 = 1_000_000_000;
/// Decimal places of an amount.
const PLACES: usize = 9;
const DAY_MINUTES: u32 = 24 * 60;

/// An amount in billionths of the unit of currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub i64);

impl Nanos {
    /// Nothing.
    pub const ZERO: Nanos = Nanos(0);

    /// As a number, for those who do no sums with it.
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / NANOS as f64
    }
}

impl fmt::Display for Nanos {
    /// `1.10`, `0.000000070`: two decimal places, or as many as are needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let whole = self.0.unsigned_abs() / NANOS.unsigned_abs();
        let digits = format!("{:09}", self.0.unsigned_abs() % NANOS.unsigned_abs());
        let kept = digits.trim_end_matches('0').len().max(2);
        write!(f, "{sign}{whole}.{}", &digits[..kept])
    }
}

impl FromStr for Nanos {
    type Err = String;

    /// A decimal number that is not negative, with up to nine decimal places.
    fn from_str(text: &str) -> Result<Nanos, String> {
        let wrong = || format!("`{text}` is no amount: write it as 12 or 0.55, with up to {PLACES} decimal places");
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > PLACES {
            return Err(wrong());
        }
        let part: i64 = format!("{part:0<PLACES$}").parse().map_err(|_| wrong())?;
        let whole: i64 = whole.parse().map_err(|_| wrong())?;
        whole.checked_mul(NANOS).and_then(|nanos| nanos.checked_add(part)).map(Nanos).ok_or_else(wrong)
    }
}

impl Serialize for Nanos {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Nanos {
    /// From a string: a float of the file format could not hold `0.07` exactly.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Nanos, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a request consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of the prompt that were in the cache.
    pub hit: u64,
    /// Tokens of the prompt that were not.
    pub miss: u64,
    /// Tokens put out, reasoning among them.
    pub output: u64,
}

impl Tokens {
    pub fn total(&self) -> u64 {
        self.hit + self.miss + self.output
    }
}

/// Prices of a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Of the prompt, found in the cache.
    pub hit: Nanos,
    /// Of the prompt, not found there.
    pub miss: Nanos,
    /// Put out.
    pub output: Nanos,
    /// Put out as a picture that is drawn; `None` for the price of other output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn: Option<Nanos>,
}

impl Prices {
    /// Of a request for pictures, whose output is drawn.
    pub fn of_drawing(self) -> Prices {
        Prices { output: self.drawn.unwrap_or(self.output), drawn: None, ..self }
    }

    /// What `tokens` cost: the exact sum, rounded down to a billionth. Amounts beyond `i64` stay at its end.
    pub fn cost(&self, tokens: Tokens) -> Nanos {
        let part = |price: Nanos, count: u64| i128::from(price.0) * i128::from(count);
        let sum = part(self.hit, tokens.hit) + part(self.miss, tokens.miss) + part(self.output, tokens.output);
        Nanos(i64::try_from(sum / 1_000_000).unwrap_or(i64::MAX))
    }

    /// The most that a prompt and an answer of these lengths can cost, however much of the prompt is cached.
    pub fn worst_case(&self, prompt: u64, output: u64) -> Nanos {
        let dearest = if self.hit > self.miss { (prompt, 0) } else { (0, prompt) };
        self.cost(Tokens { hit: dearest.0, miss: dearest.1, output })
    }

    /// Tokens of a prompt that an amount pays for, however few of them are cached; `None` where prompts are free.
    pub fn prompt_tokens_for(&self, amount: Nanos) -> Option<u64> {
        let dearest = i128::from(self.hit.max(self.miss).0);
        // One below the next billionth: costs are rounded down.
        let most = ((i128::from(amount.0) + 1) * 1_000_000 - 1).checked_div(dearest)?;
        Some(u64::try_from(most.max(0)).unwrap_or(u64::MAX))
    }
}

/// The prices of the day, read from a TOML file:
///
/// ```toml
/// currency = "USD"
/// peak = { hit = "0.07", miss = "0.27", output = "1.10" }
/// off_peak = { hit = "0.035", miss = "0.135", output = "0.55" }
/// off_peak_utc = "16:30-00:30"
/// ```
/// Without a file everything costs nothing. A request pays the prices of the moment at which it was admitted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tariff {
    /// A label, such as `USD`.
    #[serde(default = "dollars")]
    pub currency: String,
    /// Outside the off-peak hours.
    #[serde(default)]
    pub peak: Prices,
    /// Within them.
    off_peak: Option<Prices>,
    off_peak_utc: Option<Hours>,
}

fn dollars() -> String {
    "USD".to_owned()
}

impl Default for Tariff {
    fn default() -> Tariff {
        Tariff { currency: dollars(), peak: Prices::default(), off_peak: None, off_peak_utc: None }
    }
}

impl Tariff {
    /// Reads the file's text; the message says which key is wrong.
    pub fn from_toml(text: &str) -> Result<Tariff, String> {
        let tariff: Tariff = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        if tariff.off_peak.is_some() != tariff.off_peak_utc.is_some() {
            return Err("`off_peak` and `off_peak_utc` are given together or not at all".to_owned());
        }
        Ok(tariff)
    }

    /// The prices at a time, in milliseconds since 1970.
    pub fn at(&self, unix_ms: i64) -> Prices {
        let minute = (unix_ms.div_euclid(60_000)).rem_euclid(i64::from(DAY_MINUTES)) as u32;
        match (self.off_peak, self.off_peak_utc) {
            (Some(prices), Some(hours)) if hours.contain(minute) => prices,
            _ => self.peak,
        }
    }
}

/// Prices of several models, from the same file with a table `[models.NAME]` for each that has prices of its own, in
/// the one currency of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceList {
    /// Of all models without prices of their own.
    pub others: Tariff,
    pub models: BTreeMap<String, Tariff>,
}

impl PriceList {
    /// Reads the file's text; the message says which key is wrong.
    pub fn from_toml(text: &str) -> Result<PriceList, String> {
        let wrong = |error: toml::de::Error| error.to_string().trim_end().to_owned();
        let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
        let models = table.remove("models").unwrap_or_else(|| toml::Table::new().into());
        // From the text where that is possible: then a message has the line.
        let others = match models.as_table().is_some_and(toml::Table::is_empty) {
            true => Tariff::from_toml(text)?,
            false => Tariff::from_toml(&table.to_string())?,
        };
        let tables: BTreeMap<String, toml::Table> = models.try_into().map_err(|error| format!("models: {error}"))?;
        let tariff = |(name, mut table): (String, toml::Table)| {
            if table.contains_key("currency") {
                return Err(format!("models.{name}: `currency` is one for all models, and stands at the top"));
            }
            table.insert("currency".to_owned(), others.currency.clone().into());
            let tariff = Tariff::from_toml(&table.to_string()).map_err(|error| format!("models.{name}: {error}"))?;
            Ok((name, tariff))
        };
        let models = tables.into_iter().map(tariff).collect::<Result<_, _>>()?;
        Ok(PriceList { others, models })
    }

    /// What the model costs that has these names.
    pub fn of(&self, names: &[String]) -> &Tariff {
        names.iter().find_map(|name| self.models.get(name)).unwrap_or(&self.others)
    }
}

/// A part of the day, `16:30-00:30`: from its first minute up to, but without, the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Hours {
    begin: u32,
    end: u32,
}

impl Hours {
    fn contain(self, minute: u32) -> bool {
        match self.begin <= self.end {
            true => (self.begin..self.end).contains(&minute),
            false => minute >= self.begin || minute < self.end,
        }
    }
}

impl TryFrom<String> for Hours {
    type Error = String;

    fn try_from(text: String) -> Result<Hours, String> {
        let minute = |part: &str| -> Option<u32> {
            let (hour, minute) = part.split_once(':')?;
            let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
            (hour < 24 && minute < 60).then_some(hour * 60 + minute)
        };
        let hours = text.split_once('-').and_then(|(begin, end)| Some((minute(begin)?, minute(end)?)));
        let (begin, end) = hours.ok_or_else(|| format!("`{text}` is no part of a day: write it as 16:30-00:30"))?;
        Ok(Hours { begin, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_exactly() {
        for (text, nanos, again) in [
            ("0.07", 70_000_000, "0.07"),
            ("1.1", 1_100_000_000, "1.10"),
            ("12", 12_000_000_000, "12.00"),
            ("0.000000001", 1, "0.000000001"),
            ("9223372036.854775807", i64::MAX, "9223372036.854775807"),
        ] {
            let amount: Nanos = text.parse().unwrap();
            assert_eq!((amount.0, amount.to_string().as_str()), (nanos, again));
        }
        for wrong in ["", ".", "1.", ".5", "-1", "1e3", "0.0000000001", "9223372036.854775808", "1,5", "+1"] {
            assert!(wrong.parse::<Nanos>().is_err(), "{wrong}");
        }
        assert_eq!(Nanos(-1_500_000_000).to_string(), "-1.50");
    }

    #[test]
    fn a_cost_is_rounded_once_and_down() {
        let prices = Prices { hit: Nanos(500_000), miss: Nanos(500_000), output: Nanos(999_999), ..Prices::default() };
        assert_eq!(prices.cost(Tokens { hit: 1, miss: 1, output: 1 }), Nanos(1), "0.5 + 0.5 + 0.999999");
        let dear = Prices { output: Nanos(i64::MAX), ..prices };
        assert_eq!(dear.cost(Tokens { output: u64::MAX, ..Tokens::default() }), Nanos(i64::MAX));
        assert_eq!(prices.worst_case(4, 0), Nanos(2));
    }

    #[test]
    fn deepseeks_tariff_of_february_2025() {
        let tariff = Tariff::from_toml(
            "peak = { hit = \"0.07\", miss = \"0.27\", output = \"1.10\" }\noff_peak_utc = \"16:30-00:30\"\n\
             off_peak = { hit = \"0.035\", miss = \"0.135\", output = \"0.55\" }",
        )
        .unwrap();
        let minutes = |hour: i64, minute: i64| ((hour * 60) + minute) * 60_000;
        let million = Tokens { hit: 1_000_000, miss: 1_000_000, output: 1_000_000 };
        for (time, cost) in [
            (minutes(16, 29), "1.44"),
            (minutes(16, 30), "0.72"),
            (minutes(23, 59), "0.72"),
            (minutes(24, 29), "0.72"),
            (minutes(24, 30), "1.44"),
        ] {
            assert_eq!(tariff.at(time).cost(million).to_string(), cost, "at {time} ms");
        }
    }

    #[test]
    fn models_have_prices_of_their_own_or_those_of_the_others() {
        let text = "currency = \"CNY\"\npeak = { hit = \"1\", miss = \"2\", output = \"3\" }\n[models.big]\n\
            peak = { hit = \"4\", miss = \"5\", output = \"6\" }\noff_peak = { hit = \"0\", miss = \"0\", output = \"0\" }\n\
            off_peak_utc = \"00:00-12:00\"\n[models.\"free one\"]\n";
        let list = PriceList::from_toml(text).unwrap();
        let at = |name: &str, hour: i64| list.of(&["an alias".to_owned(), name.to_owned()]).at(hour * 3_600_000).output;
        assert_eq!(at("big", 13).to_string(), "6.00");
        assert_eq!([at("big", 1), at("free one", 13)], [Nanos::ZERO; 2]);
        assert_eq!(at("small", 13).to_string(), "3.00");
        assert!(list.models.values().all(|tariff| tariff.currency == "CNY"), "{list:?}");
        let only = "peak = { hit = \"1\", miss = \"2\", output = \"3\" }";
        assert_eq!(PriceList::from_toml(only).unwrap().others, Tariff::from_toml(only).unwrap());
        for (wrong, named) in [
            ("models = 1", "models"),
            ("[models.big]\ncurrency = \"CNY\"", "models.big: `currency`"),
            ("[models.big]\nprice = 1", "models.big: "),
            ("price = 1\n[models.big]", "price"),
            ("[models.big]\npeak = { hit = 1, miss = \"2\", output = \"3\" }", "models.big: "),
        ] {
            let error = PriceList::from_toml(wrong).unwrap_err();
            assert!(error.contains(named), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_wrong_tariff_is_refused() {
        for wrong in [
            "peak = { hit = 0.07, miss = \"1\", output = \"1\" }",
            "price = 1",
            "off_peak_utc = \"16:30-00:30\"",
            "off_peak_utc = \"25:00-00:30\"",
            "peak = { hit = \"-1\", miss = \"1\", output = \"1\" }",
        ] {
            assert!(Tariff::from_toml(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Tariff::from_toml("").unwrap(), Tariff::default());
    }
}
