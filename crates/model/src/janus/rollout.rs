//! Pictures drawn by a model that learns: many at a time, code by code, with the log-probability of each.

use super::batch::Input;
use super::network::Network;
use crate::generate::Sampling;
use crate::paged::{CacheLayout, Chunk, PAGE_TOKENS, PagedCache};
use crate::params::Params;
use crate::tape::Execution;
use wels_device::exact_cache;
use wels_device::host::sample;

/// A picture to be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drawing<'a> {
    /// At least one token.
    pub text: &'a [u32],
    /// By its own seed, the choice at a place depends on nothing that is drawn beside it.
    pub sampling: Sampling,
}

/// Classifier-free guidance: logits are u + factor·(c − u), c those after the text and u those after `without`.
#[derive(Clone, Copy, Debug)]
pub struct Guidance<'a> {
    /// What stands in place of the text where there is none, at least one token.
    pub without: &'a [u32],
    pub factor: f32,
}

/// A picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    pub codes: Vec<u32>,
    /// Of each code under the logits that it was chosen by, at temperature 1. Without guidance, the bits of
    /// [`Network::logprobs`].
    pub logprobs: Vec<f32>,
}

impl Network {
    /// Draws pictures of `codes` codes each.
    ///
    /// # Panics
    /// If a text is empty, or has no room for the codes behind it.
    pub fn draw(
        &self,
        params: &Params,
        execution: &Execution,
        drawings: &[Drawing],
        guidance: Option<Guidance>,
        codes: usize,
    ) -> Vec<Drawn> {
        let without = guidance.iter().flat_map(|guidance| drawings.iter().map(|_| guidance.without));
        let texts: Vec<&[u32]> = drawings.iter().map(|drawing| drawing.text).chain(without).collect();
        assert!(texts.iter().all(|text| !text.is_empty()), "a text without a token");
        let mut drawn = vec![Drawn::default(); drawings.len()];
        if drawings.is_empty() || codes == 0 {
            return drawn;
        }
        let mut walk = Walk::new(self, execution, &texts, codes);
        let inputs: Vec<Vec<Input>> =
            texts.iter().map(|text| text.iter().map(|id| Input::Token(*id)).collect()).collect();
        let mut logits = walk.step(self, params, execution, &inputs);
        for place in 0..codes {
            let width = self.config().vq.codes;
            let mut inputs = Vec::with_capacity(texts.len());
            for (i, (drawing, drawn)) in drawings.iter().zip(&mut drawn).enumerate() {
                let row = |i: usize| &logits[i * width..(i + 1) * width];
                let logits = match guidance {
                    None => row(i).to_vec(),
                    Some(guidance) => guided(row(i), row(drawings.len() + i), guidance.factor),
                };
                let code = drawing.sampling.choose(&logits, drawing.text.len() + place);
                let total = sample::weights(&logits, 1.0, &mut vec![0.0; width]);
                drawn.codes.push(code);
                drawn.logprobs.push(sample::logprob(logits[code as usize], total));
                inputs.push(vec![Input::Code(code)]);
            }
            if place + 1 < codes {
                inputs.extend_from_within(..texts.len() - drawings.len());
                logits = walk.step(self, params, execution, &inputs);
            }
        }
        drawn
    }
}

fn guided(with: &[f32], without: &[f32], factor: f32) -> Vec<f32> {
    with.iter().zip(without).map(|(c, u)| u + factor * (c - u)).collect()
}

/// Sequences under way.
struct Walk {
    cache: PagedCache,
    /// Of each sequence.
    pages: Vec<Vec<u32>>,
    past: Vec<usize>,
}

impl Walk {
    fn new(network: &Network, execution: &Execution, texts: &[&[u32]], codes: usize) -> Walk {
        let mut count = 0;
        let pages = texts.iter().map(|text| {
            let first = count;
            count += (text.len() + codes).div_ceil(PAGE_TOKENS) as u32;
            (first..count).collect()
        });
        let pages = pages.collect();
        let dtype = exact_cache(execution.device().activations(execution.precision));
        let config = network.language().config();
        let cache = PagedCache::new(execution.device(), config, CacheLayout::Expanded, dtype, count as usize);
        Walk { cache, pages, past: vec![0; texts.len()] }
    }

    /// The logits `[sequences, codes]` after each sequence's new inputs.
    fn step(&mut self, network: &Network, params: &Params, execution: &Execution, inputs: &[Vec<Input>]) -> Vec<f32> {
        let embeddings = network.embeddings(params, execution, &inputs.concat());
        let places = vec![0; embeddings.rows()];
        let sequences = inputs.iter().zip(&self.pages).zip(&self.past);
        let chunks: Vec<Chunk> = sequences
            .map(|((inputs, pages), past)| Chunk {
                tokens: &places[..inputs.len()],
                past: *past,
                pages,
                logits: 0,
                states: 1,
            })
            .collect();
        let states = network.language().step_states(params, execution, &mut self.cache, &chunks, embeddings);
        self.past.iter_mut().zip(inputs).for_each(|(past, inputs)| *past += inputs.len());
        network.code_logits(params, execution, states).to_host().into_owned()
    }
}
