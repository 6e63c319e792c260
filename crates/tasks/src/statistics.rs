//! What verdicts say about a model: shares with intervals, pass@k, majorities, paired tests.

/// The 97.5% quantile of the normal distribution, for intervals of 95%.
const Z: f64 = 1.959_963_984_540_054;

/// Random numbers of the permutation test.
const STREAM_SIGNS: u64 = 0x7369_676e;

/// A share and the 95% interval that its true value is in.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Share {
    /// In 0..=1.
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// The mean of `items` numbers in 0..=1 that add up to `sum`, with the interval of Wilson ("Probable inference, the law
/// of succession, and statistical inference", 1927, equation 7). Where an item's number is itself a mean of several
/// samples, the interval is too wide rather than too narrow: such numbers vary less than verdicts. `None` of no items.
pub fn share(sum: f64, items: usize) -> Option<Share> {
    if items == 0 {
        return None;
    }
    let n = items as f64;
    let value = sum / n;
    let middle = value + Z * Z / (2.0 * n);
    let half = Z * (value * (1.0 - value) / n + Z * Z / (4.0 * n * n)).max(0.0).sqrt();
    let scale = 1.0 + Z * Z / n;
    // At the ends the formula gives 0 and 1 but for rounding.
    let low = if sum == 0.0 { 0.0 } else { ((middle - half) / scale).max(0.0) };
    let high = if sum == n { 1.0 } else { ((middle + half) / scale).min(1.0) };
    Some(Share { value, low, high })
}

/// The probability that of `k` samples one at least is right, estimated from `right` right ones of `samples`, without
/// bias: 1 − C(n−c, k)/C(n, k) (Chen et al., "Evaluating Large Language Models Trained on Code", 2021, equation 1).
///
/// # Panics
/// Unless `right` ≤ `samples` and 1 ≤ `k` ≤ `samples`.
pub fn pass_at(k: usize, right: usize, samples: usize) -> f64 {
    assert!(right <= samples && (1..=samples).contains(&k), "pass@{k} of {right} of {samples}");
    if samples - right < k {
        return 1.0;
    }
    1.0 - (samples - right + 1..=samples).map(|n| 1.0 - k as f64 / n as f64).product::<f64>()
}

/// The place of the answer that most agree with (cons@k: Wang et al., "Self-Consistency", 2022), of equals the first;
/// `None` if there is no answer at all. `same` says whether two of the places hold the same answer.
pub fn majority(answers: &[Option<String>], same: impl Fn(usize, usize) -> bool) -> Option<usize> {
    let mut classes: Vec<(usize, usize)> = Vec::new();
    for place in (0..answers.len()).filter(|place| answers[*place].is_some()) {
        match classes.iter_mut().find(|(first, _)| same(*first, place)) {
            Some((_, count)) => *count += 1,
            None => classes.push((place, 1)),
        }
    }
    let most = classes.iter().map(|(_, count)| *count).max()?;
    classes.into_iter().find(|(_, count)| *count == most).map(|(first, _)| first)
}

/// Whether two models differ on the same items.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// Items that both have.
    pub items: usize,
    /// Mean of second − first.
    pub value: f64,
    /// Lower end of its 95% interval, by the spread of the items' differences.
    pub low: f64,
    pub high: f64,
    /// Items that the first does better.
    pub first_better: usize,
    /// Items that the second does better.
    pub second_better: usize,
    /// The probability of a difference at least as large if there were none in truth.
    pub p: f64,
    /// `McNemar, exact` where items are right or wrong, else `sign flips`.
    pub test: &'static str,
}

/// Compares two models' scores of the same items, item by item. `None` without items.
///
/// Right-or-wrong items: McNemar's test in its exact form, two-sided: of the items on which the two differ, each is as
/// likely to go either way. Shares of samples: the differences' signs are flipped at random, 20,000 times, by a fixed
/// seed.
///
/// # Panics
/// If the two are not of one length.
pub fn difference(first: &[f64], second: &[f64]) -> Option<Difference> {
    assert_eq!(first.len(), second.len(), "items of the first and of the second");
    if first.is_empty() {
        return None;
    }
    let differences: Vec<f64> = first.iter().zip(second).map(|(first, second)| second - first).collect();
    let n = differences.len() as f64;
    let value = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - value).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let half = Z * (variance / n).sqrt();
    let first_better = differences.iter().filter(|d| **d < 0.0).count();
    let second_better = differences.iter().filter(|d| **d > 0.0).count();
    let whole = first.iter().chain(second).all(|score| *score == 0.0 || *score == 1.0);
    let (p, test) = match whole {
        true => (mcnemar(first_better, second_better), "McNemar, exact"),
        false => (sign_flips(&differences), "sign flips"),
    };
    let (low, high) = ((value - half).max(-1.0), (value + half).min(1.0));
    Some(Difference { items: first.len(), value, low, high, first_better, second_better, p, test })
}

/// Two-sided exact probability of a split at least as uneven as `a` to `b` of fair coins.
pub fn mcnemar(a: usize, b: usize) -> f64 {
    let n = a + b;
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for i in 0..=a.min(b) {
        sum += log_term.exp();
        log_term += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

fn sign_flips(differences: &[f64]) -> f64 {
    const DRAWS: u64 = 20_000;
    let observed = differences.iter().sum::<f64>().abs();
    let differences: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let extreme = (0..DRAWS)
        .filter(|draw| {
            let flipped = differences.chunks(64).zip(0u64..).map(|(chunk, word)| {
                let bits = wels_data::random::bits(0, STREAM_SIGNS, *draw, word);
                chunk.iter().enumerate().map(|(at, d)| if bits >> at & 1 == 1 { -d } else { *d }).sum::<f64>()
            });
            // Sums in another order differ by rounding, which is not to make an equal split less extreme.
            flipped.sum::<f64>().abs() >= observed - 1e-9
        })
        .count();
    (extreme as f64 + 1.0) / (DRAWS as f64 + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-4, "{a} is not {b}");
    }

    /// Known values, to four digits.
    #[test]
    fn intervals_are_wilsons() {
        for (right, n, low, high) in
            [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (250, 1000, 0.2241, 0.2778)]
        {
            let share = share(f64::from(right), n).unwrap();
            near(share.low, low);
            near(share.high, high);
            assert_eq!(share.value, f64::from(right) / n as f64);
        }
        assert_eq!(share(0.0, 0), None);
    }

    /// By drawing every subset.
    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_sample() {
        for samples in 1..=8usize {
            for right in 0..=samples {
                for k in 1..=samples {
                    let subsets = (0u32..1 << samples).filter(|subset| subset.count_ones() as usize == k);
                    let (mut all, mut good) = (0, 0);
                    for subset in subsets {
                        all += 1;
                        good += usize::from(subset & ((1 << right) - 1) != 0);
                    }
                    let share = f64::from(good as u32) / f64::from(all);
                    assert!((pass_at(k, right, samples) - share).abs() < 1e-12, "{k} {right} {samples}");
                }
            }
        }
    }

    #[test]
    fn the_majority_counts_and_the_first_of_equals() {
        let answers = |texts: &[&str]| -> Vec<Option<String>> {
            texts.iter().map(|text| (!text.is_empty()).then(|| (*text).to_owned())).collect()
        };
        for (texts, expected) in [
            (&["a", "b", "b"][..], Some(1)),
            (&["a", "b"], Some(0)),
            (&["", "", "c", "", "d", "d"], Some(4)),
            (&["", ""], None),
        ] {
            let answers = answers(texts);
            assert_eq!(majority(&answers, |a, b| answers[a] == answers[b]), expected, "{texts:?}");
        }
    }

    /// Known values; 1 of 10 is 2·(1 + 10)/2^10.
    #[test]
    fn differences_are_tested_exactly() {
        for (a, b, p) in [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 0.021_484), (9, 1, 0.021_484), (40, 60, 0.056_888)] {
            near(mcnemar(a, b), p);
        }
        assert!(mcnemar(10_000, 11_000) > 0.0 && mcnemar(10_000, 11_000) < 1e-10);
        let first = [0.0, 0.0, 1.0, 1.0];
        let same = difference(&first, &first).unwrap();
        assert_eq!((same.value, same.p, same.first_better), (0.0, 1.0, 0));
        let better = difference(&[0.0; 12], &[1.0; 12]).unwrap();
        near(better.p, 2.0 * 0.5f64.powi(12));
        assert_eq!(difference(&[], &[]), None);
    }

    /// Of twelve equal differences two of 2^12 assignments of signs are as extreme.
    #[test]
    fn shares_of_samples_are_tested_by_flipping_signs() {
        let all = difference(&[0.25; 12], &[0.75; 12]).unwrap();
        assert_eq!(all.test, "sign flips");
        assert!(all.p < 0.002, "{}", all.p);
        let even = difference(&[0.25, 0.75, 0.5, 0.5], &[0.75, 0.25, 0.5, 0.5]).unwrap();
        near(even.p, 1.0);
    }
}
