//! Drawing: pictures under way together, one pass of the language model for the next code of each.
//!
//! **Guidance** (classifier-free, arXiv 2207.12598). A picture of guidance w ≠ 1 is two sequences, one after its prompt
//! and one after the prompt without its words, and both go on with the same codes. From the logits c of the first and u
//! of the second a code is chosen by u + w·(c − u), as `generate` of `transformers` does for Janus.
//!
//! **Same bits.** A picture's codes depend on its prompt and settings alone: not on what else is drawn, on when it was
//! added, on pages or on threads. The random number of a code is that of the seed and of the code's position.
//!
//! **Pages.** A prompt is computed once for all pictures that are added with it. They share its full pages; of the last
//! page, which their codes go on in, each has a copy.

use std::borrow::Cow;

use super::config::JanusConfig;
use super::error::{JanusError, check_ids};
use crate::generate::Sampling;
use crate::model::Model;
use crate::paged::{CacheDtype, CacheLayout, Chunk, PAGE_TOKENS, PagedCache};
use crate::tape::Execution;
use wels_device::host::sample;
use wels_device::{Tensor, exact_cache};

/// What pictures are drawn by: a model that was opened ([`super::Janus`]), or one that learns ([`super::network`]).
pub trait Painter {
    fn config(&self) -> &JanusConfig;

    fn language(&self) -> &Model;

    /// What the layers are given of tokens that exist, `[T, D]`.
    fn token_states(&self, execution: &Execution, tokens: &[u32]) -> Tensor;

    /// What the layers are given of codes that exist, `[T, D]`.
    fn code_states(&self, execution: &Execution, codes: &[u32]) -> Tensor;

    /// The logits `[chunks, codes]` of the next code of sequences that go on by `embeddings`, `[T, D]`.
    fn next_code_logits(
        &self,
        execution: &Execution,
        cache: &mut PagedCache,
        chunks: &[Chunk],
        embeddings: Tensor,
    ) -> Tensor;
}

/// What to draw after.
#[derive(Clone, Copy, Debug)]
pub struct DrawPrompt<'a> {
    /// At least one token; the last begins a picture.
    pub tokens: &'a [u32],
    /// The same without its words, see [`without_words`]. Not looked at if `guidance` is 1.
    pub unconditional: &'a [u32],
    /// w; 1 for none.
    pub guidance: f32,
}

impl<'a> DrawPrompt<'a> {
    fn sequences(&self) -> Vec<&'a [u32]> {
        if self.guidance == 1.0 { vec![self.tokens] } else { vec![self.tokens, self.unconditional] }
    }
}

/// A prompt whose tokens but the first and the last are replaced by `pad`.
pub fn without_words(tokens: &[u32], pad: u32) -> Vec<u32> {
    let last = tokens.len().saturating_sub(1);
    let token = |(place, token): (usize, &u32)| if place == 0 || place == last { *token } else { pad };
    tokens.iter().enumerate().map(token).collect()
}

/// A picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    /// Row by row.
    pub codes: Vec<u32>,
    /// Of each code under the logits that it was chosen by, at temperature 1, if the batch keeps them. Without
    /// guidance, the bits of [`Network::logprobs`](super::network::Network::logprobs).
    pub logprobs: Vec<f32>,
}

/// Draws pictures to the end, one for each way of sampling after each prompt, with their log-probabilities, and a cache
/// that holds what a training pass computes.
///
/// # Errors
/// As [`DrawBatch::add`].
pub fn draw_all(
    painter: &dyn Painter,
    execution: &Execution,
    prompts: &[(DrawPrompt, Vec<Sampling>)],
) -> Result<Vec<Vec<Drawn>>, JanusError> {
    let pages = DrawBatch::pages_for_all(painter, prompts);
    let dtype = exact_cache(execution.device().activations(execution.precision));
    let mut batch = DrawBatch::new(painter, execution, dtype, pages).with_logprobs();
    batch.add_all(painter, execution, prompts)?;
    let mut drawn = batch.finish(painter, execution).into_iter().map(|(_, drawn)| drawn);
    Ok(prompts.iter().map(|(_, samplings)| drawn.by_ref().take(samplings.len()).collect()).collect())
}

/// Names a picture of a [`DrawBatch`]; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PictureId(pub u64);

/// Pictures of one model that are drawn at the same time, with a KV cache of their own.
pub struct DrawBatch {
    cache: PagedCache,
    pages: Pages,
    pictures: Vec<Picture>,
    next_id: u64,
    keeps_logprobs: bool,
}

struct Picture {
    id: PictureId,
    guidance: f32,
    sampling: Sampling,
    /// After the prompt, and, with guidance, after the prompt without words.
    sequences: Vec<Sequence>,
    drawn: Drawn,
}

/// A sequence in the cache.
struct Sequence {
    pages: Vec<u32>,
    /// Tokens and codes whose keys and values are in the pages.
    past: usize,
}

impl DrawBatch {
    /// Without pictures; with room for `pages` pages, whose memory the system gives as it is touched.
    pub fn new(painter: &dyn Painter, execution: &Execution, dtype: CacheDtype, pages: usize) -> DrawBatch {
        let (device, text) = (execution.device(), painter.language().config());
        DrawBatch {
            cache: PagedCache::new(device, text, CacheLayout::Expanded, dtype, pages),
            pages: Pages::new(pages),
            pictures: Vec::new(),
            next_id: 0,
            keeps_logprobs: false,
        }
    }

    /// Keeps the log-probability of each code.
    pub fn with_logprobs(self) -> DrawBatch {
        DrawBatch { keeps_logprobs: true, ..self }
    }

    /// Pages that so many pictures of a prompt take when they are added together.
    pub fn pages_for(painter: &dyn Painter, prompt: &DrawPrompt, pictures: usize) -> usize {
        let codes = painter.config().vq.tokens();
        let of_sequence = |tokens: &[u32]| {
            let shared = tokens.len() / PAGE_TOKENS;
            let partial = usize::from(!tokens.len().is_multiple_of(PAGE_TOKENS));
            // The page that is copied from is the prompt's until the pictures have their own.
            shared + partial + pictures * (pages(tokens.len() + codes) - shared)
        };
        prompt.sequences().into_iter().map(of_sequence).sum()
    }

    fn pages_for_all(painter: &dyn Painter, prompts: &[(DrawPrompt, Vec<Sampling>)]) -> usize {
        prompts.iter().map(|(prompt, samplings)| DrawBatch::pages_for(painter, prompt, samplings.len())).sum()
    }

    /// Pages that nobody has.
    pub fn free_pages(&self) -> usize {
        self.pages.free.len()
    }

    /// Begins a picture for each way of sampling, and chooses its first code.
    ///
    /// # Errors
    /// An unknown token, none, more than the context has room for with the codes, or too few free pages.
    pub fn add(
        &mut self,
        painter: &dyn Painter,
        execution: &Execution,
        prompt: &DrawPrompt,
        samplings: &[Sampling],
    ) -> Result<Vec<PictureId>, JanusError> {
        self.add_all(painter, execution, &[(*prompt, samplings.to_vec())])
    }

    /// [`DrawBatch::add`] for several prompts, which go through the model together.
    ///
    /// # Errors
    /// As there; then nothing is added.
    pub fn add_all(
        &mut self,
        painter: &dyn Painter,
        execution: &Execution,
        prompts: &[(DrawPrompt, Vec<Sampling>)],
    ) -> Result<Vec<PictureId>, JanusError> {
        let sequences: Vec<&[u32]> = prompts.iter().flat_map(|(prompt, _)| prompt.sequences()).collect();
        for tokens in &sequences {
            check(painter, tokens)?;
        }
        let (needed, free) = (DrawBatch::pages_for_all(painter, prompts), self.free_pages());
        if needed > free {
            return Err(JanusError::Pages { needed, free });
        }
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let sequence = |tokens: &&[u32]| Sequence { pages: self.pages.take(pages(tokens.len())), past: tokens.len() };
        let computed: Vec<Sequence> = sequences.iter().map(sequence).collect();
        let chunks: Vec<Chunk> = sequences
            .iter()
            .zip(&computed)
            .map(|(tokens, sequence)| Chunk { tokens, past: 0, pages: &sequence.pages, logits: 0, states: 1 })
            .collect();
        let input = painter.token_states(execution, &sequences.concat());
        let logits = painter.next_code_logits(execution, &mut self.cache, &chunks, input);
        let (values, codebook) = (logits.to_host(), logits.cols());
        let (mut rows, mut rest, mut ids) = (values.chunks_exact(codebook), &computed[..], Vec::new());
        for (prompt, samplings) in prompts {
            let (own, others) = rest.split_at(prompt.sequences().len());
            rest = others;
            let logits: Vec<&[f32]> = rows.by_ref().take(own.len()).collect();
            ids.extend(samplings.iter().map(|it| self.begin(painter, prompt.guidance, *it, own, &logits)));
            own.iter().for_each(|sequence| self.pages.release(&sequence.pages));
        }
        Ok(ids)
    }

    /// A picture after computed prompts.
    fn begin(
        &mut self,
        painter: &dyn Painter,
        guidance: f32,
        sampling: Sampling,
        prompts: &[Sequence],
        logits: &[&[f32]],
    ) -> PictureId {
        let id = PictureId(self.next_id);
        self.next_id += 1;
        let codes = painter.config().vq.tokens();
        let sequences = prompts.iter().map(|prompt| self.fork(prompt, codes)).collect();
        let mut picture = Picture { id, guidance, sampling, sequences, drawn: Drawn::default() };
        picture.choose(logits, self.keeps_logprobs);
        self.pictures.push(picture);
        id
    }

    /// A sequence that goes on from another one, with room for `more`.
    fn fork(&mut self, from: &Sequence, more: usize) -> Sequence {
        let shared = from.past / PAGE_TOKENS;
        let mut pages_of = from.pages[..shared].to_vec();
        pages_of.iter().for_each(|page| self.pages.users[*page as usize] += 1);
        pages_of.extend(self.pages.take(pages(from.past + more) - shared));
        if let Some(partial) = from.pages.get(shared) {
            self.cache.copy_page(*partial, pages_of[shared]);
        }
        Sequence { pages: pages_of, past: from.past }
    }

    /// Chooses the next code of each picture that is not complete.
    pub fn step(&mut self, painter: &dyn Painter, execution: &Execution) {
        let count = painter.config().vq.tokens();
        let under_way = |picture: &Picture| picture.drawn.codes.len() < count;
        let pictures: Vec<&Picture> = self.pictures.iter().filter(|picture| under_way(picture)).collect();
        if pictures.is_empty() {
            return;
        }
        let sequences = pictures.iter().flat_map(|picture| &picture.sequences);
        let chunks: Vec<Chunk> = sequences.map(Sequence::next).collect();
        let last =
            |picture: &&Picture| vec![picture.drawn.codes[picture.drawn.codes.len() - 1]; picture.sequences.len()];
        let codes: Vec<u32> = pictures.iter().flat_map(last).collect();
        let input = painter.code_states(execution, &codes);
        let logits = painter.next_code_logits(execution, &mut self.cache, &chunks, input);
        let (values, codebook) = (logits.to_host(), logits.cols());
        let mut rows = values.chunks_exact(codebook);
        for picture in self.pictures.iter_mut().filter(|picture| under_way(picture)) {
            picture.sequences.iter_mut().for_each(|sequence| sequence.past += 1);
            let logits: Vec<&[f32]> = rows.by_ref().take(picture.sequences.len()).collect();
            picture.choose(&logits, self.keeps_logprobs);
        }
    }

    /// The code of a picture that was chosen last; `None` if it is not in the batch.
    pub fn last_code(&self, id: PictureId) -> Option<u32> {
        self.pictures.iter().find(|picture| picture.id == id)?.drawn.codes.last().copied()
    }

    /// Draws all to the end.
    pub fn finish(&mut self, painter: &dyn Painter, execution: &Execution) -> Vec<(PictureId, Drawn)> {
        let mut complete = self.take_complete(painter);
        while !self.is_empty() {
            self.step(painter, execution);
            complete.append(&mut self.take_complete(painter));
        }
        complete
    }

    /// Takes out the pictures that are complete, in the order in which they were added.
    pub fn take_complete(&mut self, painter: &dyn Painter) -> Vec<(PictureId, Drawn)> {
        let count = painter.config().vq.tokens();
        let complete: Vec<Picture> =
            self.pictures.extract_if(.., |picture| picture.drawn.codes.len() == count).collect();
        complete.iter().for_each(|picture| picture.release(&mut self.pages));
        complete.into_iter().map(|picture| (picture.id, picture.drawn)).collect()
    }

    /// Gives up a picture; `false` if it is not in the batch.
    pub fn remove(&mut self, id: PictureId) -> bool {
        let Some(place) = self.pictures.iter().position(|picture| picture.id == id) else { return false };
        self.pictures.remove(place).release(&mut self.pages);
        true
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }
}

impl Picture {
    /// The next code, from the logits of each sequence.
    fn choose(&mut self, logits: &[&[f32]], keeps_logprobs: bool) {
        let logits = match *logits {
            [conditional, unconditional] => {
                let guided = |(c, u): (&f32, &f32)| (c - u).mul_add(self.guidance, *u);
                Cow::Owned(conditional.iter().zip(unconditional).map(guided).collect::<Vec<f32>>())
            }
            _ => Cow::Borrowed(logits[0]),
        };
        let code = self.sampling.choose(&logits, self.sequences[0].past);
        self.drawn.codes.push(code);
        if keeps_logprobs {
            let total = sample::weights(&logits, 1.0, &mut vec![0.0; logits.len()]);
            self.drawn.logprobs.push(sample::logprob(logits[code as usize], total));
        }
    }

    fn release(&self, pages: &mut Pages) {
        self.sequences.iter().for_each(|sequence| pages.release(&sequence.pages));
    }
}

impl Sequence {
    /// Its place for one code more.
    fn next(&self) -> Chunk<'_> {
        Chunk { tokens: &[0], past: self.past, pages: &self.pages, logits: 0, states: 1 }
    }
}

/// Whether a picture can be drawn after a prompt.
fn check(painter: &dyn Painter, tokens: &[u32]) -> Result<(), JanusError> {
    let (config, context) = (painter.config(), painter.language().context_len());
    check_ids("token", tokens, config.text.vocab_size)?;
    match tokens.len() + config.vq.tokens() {
        _ if tokens.is_empty() => Err(JanusError::Empty),
        tokens if tokens > context => Err(JanusError::TooLong { tokens, context }),
        _ => Ok(()),
    }
}

/// Pages of so many tokens.
fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// Who has which page.
struct Pages {
    free: Vec<u32>,
    /// Sequences that have each page.
    users: Vec<u32>,
}

impl Pages {
    fn new(count: usize) -> Pages {
        Pages { free: (0..count as u32).rev().collect(), users: vec![0; count] }
    }

    /// # Panics
    /// If there are not as many; who adds pictures has looked.
    fn take(&mut self, count: usize) -> Vec<u32> {
        let taken = self.free.split_off(self.free.len() - count);
        taken.iter().for_each(|page| self.users[*page as usize] = 1);
        taken
    }

    fn release(&mut self, pages: &[u32]) {
        for page in pages {
            let users = &mut self.users[*page as usize];
            *users -= 1;
            if *users == 0 {
                self.free.push(*page);
            }
        }
    }
}
