//! Pictures drawn by a model that learns, or has learnt, with weights as they are trained.

use anyhow::Result;
use wels_model::generate::Sampling;
use wels_model::janus::network::{Network, Weighted};
use wels_model::janus::picture::{Rgb, from_pixels};
use wels_model::janus::{DrawPrompt, Vq, draw_all, without_words};
use wels_model::params::Params;
use wels_model::tape::Execution;

/// Pictures that are drawn at a time.
const AT_ONCE: usize = 64;

/// A model, and what makes pictures of its codes.
pub(super) struct Drawer<'a> {
    pub network: &'a Network,
    pub params: &'a Params,
    pub execution: &'a Execution,
    pub vq: &'a Vq,
}

/// How codes are chosen.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub temperature: f64,
    /// Scale of classifier-free guidance; 1 for none.
    pub guidance: f64,
    /// In the places of the words that guidance leaves out.
    pub pad: u32,
}

impl Choice {
    fn sampling(self, seed: u64) -> Sampling {
        match self.temperature {
            0.0 => Sampling::Greedy,
            temperature => Sampling::Random { temperature: temperature as f32, top_p: 1.0, seed },
        }
    }
}

impl Drawer<'_> {
    /// A picture after each prompt, by a seed of its own.
    pub fn draw(&self, prompts: &[Vec<u32>], seeds: &[u64], choice: Choice) -> Result<Vec<Rgb>> {
        let mut pictures = Vec::with_capacity(prompts.len());
        for (prompts, seeds) in prompts.chunks(AT_ONCE).zip(seeds.chunks(AT_ONCE)) {
            pictures.extend(self.some(prompts, seeds, choice)?);
        }
        Ok(pictures)
    }

    fn some(&self, prompts: &[Vec<u32>], seeds: &[u64], choice: Choice) -> Result<Vec<Rgb>> {
        let guidance = choice.guidance as f32;
        let without: Vec<Vec<u32>> = prompts.iter().map(|tokens| without_words(tokens, choice.pad)).collect();
        let all: Vec<(DrawPrompt, Vec<Sampling>)> = std::iter::zip(prompts, &without)
            .zip(seeds)
            .map(|((tokens, unconditional), seed)| {
                (DrawPrompt { tokens, unconditional, guidance }, vec![choice.sampling(*seed)])
            })
            .collect();
        let model = Weighted { network: self.network, params: self.params };
        let drawn = draw_all(&model, self.execution, &all)?;
        Ok(drawn.iter().flatten().map(|drawn| decoded(self.vq, self.execution, &drawn.codes)).collect())
    }
}

/// The picture of some codes.
pub(super) fn decoded(vq: &Vq, execution: &Execution, codes: &[u32]) -> Rgb {
    from_pixels(&vq.decode(execution, codes), vq.network().config().image_size())
}
