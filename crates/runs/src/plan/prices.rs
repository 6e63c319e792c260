//! The table of API prices: US$ per million tokens and the quality index, with date and source. Users add rows.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::PlanError;

/// The rows that come with the program.
const BUILT_IN: &str = include_str!("../../data/prices.toml");

/// Tokens read for each token written in [`Price::blended`], as Artificial Analysis weighs them.
pub const INPUT_PER_OUTPUT: f64 = 3.0;

/// One model of one provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub model: String,
    /// For a million tokens read; `None` if no price was published.
    pub usd_in: Option<f64>,
    /// For a million tokens written.
    pub usd_out: Option<f64>,
    /// Quality index, a percentage.
    pub quality: Option<f64>,
    /// Of the price; the file's if left out.
    #[serde(default)]
    pub date: String,
    /// Of price and quality; the file's if left out.
    #[serde(default)]
    pub source: String,
    /// Whether this program measured the quality or computed the price.
    #[serde(default)]
    pub own: bool,
}

impl Price {
    /// US$ per million tokens, three read for one written; `None` without a price.
    pub fn blended(&self) -> Option<f64> {
        Some((INPUT_PER_OUTPUT * self.usd_in? + self.usd_out?) / (INPUT_PER_OUTPUT + 1.0))
    }

    fn check(&self) -> Result<(), String> {
        let price = |x: Option<f64>| x.is_none_or(|x| x.is_finite() && x >= 0.0);
        if !price(self.usd_in) || !price(self.usd_out) {
            return Err(format!("{}: a price must be 0 or more", self.model));
        }
        match self.quality.is_none_or(|x| (0.0..=100.0).contains(&x)) {
            true => Ok(()),
            false => Err(format!("{}: quality must be a percentage", self.model)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    date: String,
    #[serde(default)]
    source: String,
    price: Vec<Price>,
}

/// The prices that are known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prices(Vec<Price>);

impl Prices {
    /// The built-in rows.
    pub fn built_in() -> Prices {
        Prices(read("prices.toml", BUILT_IN).expect("the built-in rows are valid, as a test shows"))
    }

    /// The built-in rows and those of a file, which replace rows of the same model.
    ///
    /// # Errors
    /// [`PlanError`] if the file cannot be read or a row is wrong.
    pub fn with_file(file: Option<&Path>) -> Result<Prices, PlanError> {
        let mut prices = Prices::built_in();
        if let Some(file) = file {
            read(&file.display().to_string(), &PlanError::read(file)?)?.into_iter().for_each(|price| prices.add(price));
        }
        Ok(prices)
    }

    /// Adds a row, or replaces the one of the same model.
    pub fn add(&mut self, price: Price) {
        self.0.retain(|known| known.model != price.model);
        self.0.push(price);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Price> {
        self.0.iter()
    }
}

fn read(origin: &str, text: &str) -> Result<Vec<Price>, PlanError> {
    let file: File = PlanError::parse(origin, text)?;
    let mut prices = file.price;
    for price in &mut prices {
        price.check().map_err(|message| PlanError::Value { origin: origin.to_string(), message })?;
        for (own, shared) in [(&mut price.date, &file.date), (&mut price.source, &file.source)] {
            if own.is_empty() {
                own.clone_from(shared);
            }
        }
    }
    Ok(prices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_table() {
        let prices = Prices::built_in();
        let row = |name: &str| prices.iter().find(|price| price.model == name).unwrap();
        let published: [(&str, Option<f64>, Option<f64>, f64); 9] = [
            ("DeepSeek R1", Some(0.55), Some(2.19), 89.0),
            ("DeepSeek V3", Some(0.27), Some(1.10), 79.0),
            ("GPT-o1", Some(15.0), Some(60.0), 90.0),
            ("o3 mini", Some(1.10), Some(4.40), 89.0),
            ("o1 mini", Some(3.0), Some(12.0), 84.0),
            ("GPT-4o", Some(2.50), Some(10.0), 75.0),
            ("Claude 3.5 Sonnet", Some(3.0), Some(15.0), 80.0),
            ("Gemini 2.0", None, None, 82.0),
            ("Gemini 1.5 Pro", Some(1.25), Some(5.0), 80.0),
        ];
        assert_eq!(prices.iter().count(), published.len());
        for (model, usd_in, usd_out, quality) in published {
            let price = row(model);
            assert_eq!((price.usd_in, price.usd_out, price.quality), (usd_in, usd_out, Some(quality)), "{model}");
            assert!(!price.date.is_empty() && !price.source.is_empty(), "{model}");
        }
        assert!((row("DeepSeek R1").blended().unwrap() - 0.96).abs() < 1e-9);
        assert!((row("DeepSeek V3").blended().unwrap() - 0.4775).abs() < 1e-9);
        assert_eq!(row("Gemini 2.0").blended(), None);
    }

    #[test]
    fn prices_below_nothing_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        for (row, message) in [
            ("model = \"a\"\nusd_in = -1", "a: a price must be 0 or more"),
            ("model = \"a\"\nquality = 101", "a: quality must be a percentage"),
            ("usd_in = 1", "missing field `model`"),
        ] {
            std::fs::write(&file, format!("[[price]]\n{row}\n")).unwrap();
            let error = Prices::with_file(Some(&file)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        std::fs::write(&file, "date = \"2026-01-01\"\n[[price]]\nmodel = \"GPT-4o\"\nusd_in = 1\nusd_out = 2\n")
            .unwrap();
        let prices = Prices::with_file(Some(&file)).unwrap();
        let row = prices.iter().find(|price| price.model == "GPT-4o").unwrap();
        assert_eq!((row.usd_out, row.date.as_str(), row.quality), (Some(2.0), "2026-01-01", None));
    }
}
