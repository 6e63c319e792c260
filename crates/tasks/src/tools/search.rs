//! Search in the documents of a question, by BM25.
//!
//! ```text
//! score(d, q) = Σ over the words w of q   idf(w) · f (k + 1) / (f + k (1 − b + b |d| / mean |d|))
//! idf(w)      = ln(1 + (N − n + 1/2) / (n + 1/2))
//! ```
//! f is how often w is in d, n in how many of the N documents it is; k = 1.2, b = 0.75 (Robertson and Zaragoza, "The
//! Probabilistic Relevance Framework", 2009). Words are letters and digits in lower case. Of equals the first document
//! comes first.

use std::collections::BTreeMap;

use crate::task::{Item, Reference, TaskError};
use crate::tooled::{Open, Tool};

const K: f64 = 1.2;
const B: f64 = 0.75;

/// What a search without a match says.
const NOTHING: &str = "nothing found";

/// Gives the documents that fit best.
pub struct Search {
    /// The most that one search gives.
    pub documents: usize,
}

impl Tool for Search {
    fn about(&self) -> [&str; 2] {
        ["You can search in documents.", "harbour of Velm"]
    }

    fn open<'a>(&'a self, item: &'a Item, _: u64) -> Result<Box<dyn Open + 'a>, TaskError> {
        let documents: &[String] = match &item.reference {
            Reference::Found { documents, .. } => documents,
            _ => &[],
        };
        Ok(Box::new(Index::new(documents, self.documents)))
    }
}

/// Documents, and their words.
struct Index<'a> {
    documents: &'a [String],
    counts: Vec<BTreeMap<String, f64>>,
    lengths: Vec<f64>,
    most: usize,
}

impl<'a> Index<'a> {
    fn new(documents: &'a [String], most: usize) -> Index<'a> {
        let mut counts = Vec::new();
        for document in documents {
            let mut of: BTreeMap<String, f64> = BTreeMap::new();
            words(document).for_each(|word| *of.entry(word).or_default() += 1.0);
            counts.push(of);
        }
        let lengths = counts.iter().map(|of| of.values().sum()).collect();
        Index { documents, counts, lengths, most }
    }

    /// The documents with a word of `query`, the best first.
    fn find(&self, query: &str) -> Vec<&'a str> {
        let n = self.documents.len() as f64;
        let mean = (self.lengths.iter().sum::<f64>() / n.max(1.0)).max(1.0);
        let mut scores = vec![0.0f64; self.documents.len()];
        for word in words(query) {
            let with = self.counts.iter().filter(|of| of.contains_key(&word)).count() as f64;
            let idf = (1.0 + (n - with + 0.5) / (with + 0.5)).ln();
            for ((score, of), length) in scores.iter_mut().zip(&self.counts).zip(&self.lengths) {
                let f = of.get(&word).copied().unwrap_or(0.0);
                *score += idf * f * (K + 1.0) / (f + K * (1.0 - B + B * length / mean));
            }
        }
        let mut found: Vec<usize> = (0..scores.len()).filter(|at| scores[*at] > 0.0).collect();
        found.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        found.into_iter().take(self.most).map(|at| self.documents[at].as_str()).collect()
    }
}

impl Open for Index<'_> {
    fn call(&mut self, text: &str) -> Result<String, TaskError> {
        let found = self.find(text);
        Ok(if found.is_empty() { NOTHING.to_owned() } else { found.join("\n") })
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_words_count_more_and_equals_keep_their_order() {
        let documents = ["the owl of Mira", "the owl of Tavo", "the house", "Mira, Mira and the owl"];
        let documents: Vec<String> = documents.map(str::to_owned).into();
        let find = |query: &str, most| Index::new(&documents, most).find(query);
        assert_eq!(find("tavo the", 1), ["the owl of Tavo"]);
        assert_eq!(find("MIRA!", 2), ["Mira, Mira and the owl", "the owl of Mira"]);
        assert_eq!(find("owl of", 2), ["the owl of Mira", "the owl of Tavo"]);
        assert!(find("harbour", 3).is_empty() && find("", 3).is_empty());
        assert_eq!(Index::new(&documents, 1).call("nobody").unwrap(), NOTHING);
    }

    /// `rank_bm25` 0.2.2 has another idf; this is the formula by hand.
    #[test]
    fn the_order_is_that_of_the_formula() {
        let documents: Vec<String> = ["a b b", "a", "c c c c a"].map(str::to_owned).into();
        let score = |f: f64, n: f64, length: f64| {
            (1.0 + (3.0 - n + 0.5) / (n + 0.5)).ln() * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * length / 3.0))
        };
        let of_a = [score(1.0, 3.0, 3.0), score(1.0, 3.0, 1.0), score(1.0, 3.0, 5.0)];
        assert!(of_a[1] > of_a[0] && of_a[0] > of_a[2]);
        assert_eq!(Index::new(&documents, 3).find("a"), ["a", "a b b", "c c c c a"]);
        assert!(of_a[0] + score(2.0, 1.0, 3.0) > of_a[1]);
        assert_eq!(Index::new(&documents, 1).find("a b"), ["a b b"]);
    }
}
