//! Text from a model, one token after the other, for samples during training and simple commands.
//!
//! The choice of the token at a position depends on the logits, the seed and the position: the random number is
//! `uniform_at(position)` of the seed, not the next one of a generator's state. So neither batching nor a restart
//! changes it.

use crate::model::Model;
use crate::paged::{CacheLayout, Chunk, PAGE_TOKENS, PagedCache};
use crate::params::Params;
use crate::tape::Execution;
use std::ops::ControlFlow;
use wels_device::exact_cache;
use wels_device::host::random::Key;
use wels_device::host::scalar;

/// How to choose a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The likeliest; of equals the first.
    Greedy,
    /// At random by `softmax(logits / temperature)`.
    Random {
        /// More than 0; 1 leaves the model's probabilities.
        temperature: f32,
        /// Choose among the likeliest tokens that together have at least this probability; 1 for all.
        top_p: f32,
        /// Decides, with the position.
        seed: u64,
    },
}

/// Stream of the random numbers that choose tokens.
const STREAM: u64 = 0x7361_6d70_6c65;

impl Sampling {
    /// The token for `position` of a sequence, from its logits `[V]`.
    ///
    /// # Panics
    /// If there are no logits, or the temperature is not more than 0.
    pub fn choose(&self, logits: &[f32], position: usize) -> u32 {
        assert!(!logits.is_empty(), "a choice among no tokens");
        let likeliest = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        match *self {
            Sampling::Greedy => likeliest as u32,
            Sampling::Random { temperature, top_p, seed } => {
                assert!(temperature > 0.0, "temperature {temperature}");
                let max = logits[likeliest];
                let weight = |l: f32| f64::from(scalar::exp((l - max) / temperature));
                let mut candidates: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&l| weight(l))).collect();
                if top_p < 1.0 {
                    keep_likeliest(&mut candidates, f64::from(top_p));
                }
                draw(&candidates, Key { seed, stream: STREAM }.uniform_at(position as u64))
            }
        }
    }
}

/// Keeps the fewest candidates that together have `top_p` of the weight, the likeliest first, of equals the first.
fn keep_likeliest(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let enough = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut sum = 0.0;
    let last = candidates.iter().position(|(_, weight)| {
        sum += weight;
        sum >= enough
    });
    candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
}

/// The candidate in whose share of the weight the number `uniform` in [0, 1) falls.
fn draw(candidates: &[(u32, f64)], uniform: f64) -> u32 {
    let target = uniform * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let drawn = candidates.iter().find(|(_, weight)| {
        sum += weight;
        sum > target
    });
    drawn.unwrap_or(&candidates[candidates.len() - 1]).0
}

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What comes first; at least one token.
    pub prompt: &'a [u32],
    /// The most tokens to add. The model's context may end it sooner.
    pub max_new_tokens: usize,
    /// Tokens that end the text; they are part of the result.
    pub stop: &'a [u32],
    /// How to choose.
    pub sampling: Sampling,
}

/// Continues a prompt; `on_token` sees each token as it is chosen and may end it. Returns the new tokens.
///
/// # Panics
/// If the prompt is empty or longer than the model's context.
pub fn generate(
    model: &Model,
    params: &Params,
    execution: &Execution,
    request: Request,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Vec<u32> {
    let Request { prompt, max_new_tokens, stop, sampling } = request;
    let room = model.context_len().checked_sub(prompt.len()).expect("a prompt no longer than the context");
    let end = prompt.len() + max_new_tokens.min(room);
    let pages: Vec<u32> = (0..end.div_ceil(PAGE_TOKENS) as u32).collect();
    let dtype = exact_cache(execution.device().activations(execution.precision));
    let mut cache = PagedCache::new(execution.device(), model.config(), CacheLayout::Expanded, dtype, pages.len());
    let mut new = Vec::new();
    let (mut past, mut next) = (0, prompt.to_vec());
    while prompt.len() + new.len() < end {
        let chunk = Chunk { tokens: &next, past, pages: &pages, logits: 1, states: 0 };
        let logits = model.step(params, execution, &mut cache, &[chunk]).logits;
        past += next.len();
        let token = sampling.choose(&logits.to_host(), past);
        new.push(token);
        if on_token(token).is_break() || stop.contains(&token) {
            break;
        }
        next = vec![token];
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(temperature: f32, top_p: f32, seed: u64) -> Sampling {
        Sampling::Random { temperature, top_p, seed }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(Sampling::Greedy.choose(&[0.5, 2.0, -1.0, 2.0], 0), 1);
        assert_eq!(random(1e-3, 1.0, 4).choose(&[0.5, 2.0, -1.0, 1.0], 9), 1);
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let count = |sampling: Sampling| {
            let mut count = [0; 3];
            (0..10_000).for_each(|position| count[sampling.choose(&logits, position) as usize] += 1);
            count
        };
        let near = |count: [i32; 3], expected: [i32; 3]| count.iter().zip(expected).all(|(a, b)| (a - b).abs() < 200);
        let all = count(random(1.0, 1.0, 1));
        assert!(near(all, [1000, 6000, 3000]), "{all:?}");
        let two = count(random(1.0, 0.8, 2));
        assert!(near(two, [0, 6667, 3333]) && two[0] == 0, "{two:?}");
        assert_eq!(count(random(1.0, 0.5, 3)), [0, 10_000, 0]);
        let flat = count(random(100.0, 1.0, 4));
        assert!(near(flat, [3333, 3333, 3333]), "{flat:?}");
    }
}
