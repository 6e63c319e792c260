//! Pictures that are drawn: a batch of their own beside that of the answers, one code a step for each. Of those that
//! wait the oldest of the owner goes first who has the fewest under way; none gives up its place.

use std::collections::VecDeque;
use std::sync::Arc;

use wels_model::generate;
use wels_model::janus::picture::{Rgb, from_pixels};
use wels_model::janus::{DrawBatch, DrawPrompt, Janus, PictureId};
use wels_model::paged::{CacheDtype, PAGE_TOKENS};
use wels_model::tape::Execution;

use crate::event::{Event, FinishReason, Finished, Token, Usage};
use crate::request::{Draw, Request, RequestError, RequestId, Sampling};

/// The most tokens of a prompt that a picture is drawn after.
pub const DRAW_PROMPT_MAX: usize = 512;

/// Each colour of pixels that are not drawn yet.
const NOT_DRAWN: u8 = 128;

/// Pictures under way, and those that wait.
pub(crate) struct Draws {
    janus: Arc<Janus>,
    execution: Execution,
    dtype: CacheDtype,
    /// The most at a time.
    at_once: usize,
    /// Made with the first picture.
    batch: Option<DrawBatch>,
    waiting: VecDeque<(RequestId, Request)>,
    running: Vec<Running>,
}

struct Running {
    id: RequestId,
    owner: u64,
    picture: PictureId,
    usage: Usage,
}

impl Draws {
    pub fn new(janus: Arc<Janus>, dtype: CacheDtype, at_once: usize) -> Draws {
        let execution = Execution::new(janus.device().clone());
        Draws { janus, execution, dtype, at_once, batch: None, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Whether the request can be taken.
    pub fn check(&self, request: &Request, draw: &Draw) -> Result<(), RequestError> {
        let refused = |name, reason: String| Err(RequestError::Parameter { name, reason });
        let (context, codes) = (self.janus.language().context_len(), self.janus.config().vq.tokens());
        let limit = context.saturating_sub(codes).min(DRAW_PROMPT_MAX);
        let tokens = request.prompt.len().max(draw.unconditional.len());
        if tokens > limit {
            return Err(RequestError::PromptTooLong { tokens, limit });
        }
        if draw.unconditional.is_empty() {
            return refused("prompt", "the prompt without words has no token".into());
        }
        if !(0.0..=100.0).contains(&draw.guidance) {
            return refused("cfg", format!("{} is not within 0 and 100", draw.guidance));
        }
        if request.max_tokens != codes {
            return refused("max_tokens", format!("a picture has {codes} codes, not {}", request.max_tokens));
        }
        let vocab_size = self.janus.config().text.vocab_size;
        match draw.unconditional.iter().find(|token| **token as usize >= vocab_size) {
            Some(&token) => Err(RequestError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }

    pub fn push(&mut self, id: RequestId, request: Request) {
        self.waiting.push_back((id, request));
    }

    pub fn waiting(&self) -> impl Iterator<Item = RequestId> {
        self.waiting.iter().map(|(id, _)| *id)
    }

    /// How many wait, and whether one of them is an owner's.
    pub fn queue_of(&self, owner: u64) -> (usize, bool) {
        (self.waiting.len(), self.waiting.iter().any(|(_, request)| request.owner == owner))
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Gives up a picture: what it took.
    pub fn cancel(&mut self, id: RequestId) -> Option<Usage> {
        if let Some(at) = self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            let (_, request) = self.waiting.remove(at)?;
            return Some(Usage { prompt: request.prompt.len(), ..Usage::default() });
        }
        let at = self.running.iter().position(|running| running.id == id)?;
        let Running { picture, usage, .. } = self.running.remove(at);
        self.batch.as_mut().expect("pictures run in it").remove(picture);
        Some(usage)
    }

    /// Begins what there is room for, and a code for each that is under way. The first code comes with the beginning.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        if self.is_empty() {
            return;
        }
        let mut batch = self.batch.take().unwrap_or_else(|| self.new_batch());
        batch.step(&*self.janus, &self.execution);
        self.begin(&mut batch);
        for running in &mut self.running {
            let code = batch.last_code(running.picture).expect("a picture that is under way");
            running.usage.generated += 1;
            events.push(Event::Token(Token {
                id: running.id,
                token: code,
                text: String::new(),
                logprob: None,
                top_logprobs: Vec::new(),
                scored: Vec::new(),
            }));
        }
        for (picture, _) in batch.take_complete(&*self.janus) {
            let at = self.running.iter().position(|running| running.picture == picture).expect("it was under way");
            let Running { id, usage, .. } = self.running.remove(at);
            events.push(Event::Finished(Finished { id, reason: FinishReason::Stop, usage }));
        }
        self.batch = Some(batch);
    }

    /// With room for as many as may run, each with the longest prompt.
    fn new_batch(&self) -> DrawBatch {
        let longest = (DRAW_PROMPT_MAX + self.janus.config().vq.tokens()).div_ceil(PAGE_TOKENS);
        // Both sequences of each, and the last page of each prompt until its pictures have begun.
        DrawBatch::new(&*self.janus, &self.execution, self.dtype, 2 * (longest + 1) * self.at_once)
    }

    /// Those that there is room for.
    fn next(&mut self) -> Vec<(RequestId, Request)> {
        let mut next: Vec<(RequestId, Request)> = Vec::new();
        while self.running.len() + next.len() < self.at_once {
            let begun = self.running.iter().map(|running| running.owner);
            let begun: Vec<u64> = begun.chain(next.iter().map(|(_, request)| request.owner)).collect();
            let of_owner = |owner: u64| begun.iter().filter(|other| **other == owner).count();
            let first = (0..self.waiting.len()).min_by_key(|at| (of_owner(self.waiting[*at].1.owner), *at));
            let Some(first) = first.and_then(|at| self.waiting.remove(at)) else { break };
            next.push(first);
        }
        next
    }

    /// Those with one prompt begin together.
    fn begin(&mut self, batch: &mut DrawBatch) {
        let mut next = self.next();
        while let Some((_, first)) = next.first().cloned() {
            let same =
                |(_, request): &(RequestId, Request)| (&request.prompt, &request.draw) == (&first.prompt, &first.draw);
            let (begun, others) = next.into_iter().partition::<Vec<_>, _>(same);
            next = others;
            let Request { prompt, draw, .. } = &first;
            let draw = draw.as_ref().expect("requests of pictures");
            let Draw { unconditional, guidance } = draw;
            let drawn = DrawPrompt { tokens: prompt, unconditional, guidance: *guidance };
            let samplings: Vec<_> = begun.iter().map(|(_, request)| sampling(request)).collect();
            let ids = batch.add(&*self.janus, &self.execution, &drawn, &samplings);
            let ids = ids.expect("prompts are checked, and there is room for as many as may run");
            let usage = Usage { prompt: prompt.len(), ..Usage::default() };
            let running = |((id, request), picture): (&(RequestId, Request), PictureId)| Running {
                id: *id,
                owner: request.owner,
                picture,
                usage,
            };
            self.running.extend(begun.iter().zip(ids).map(running));
        }
    }
}

/// Choice k of a request has the seed of the request + k.
fn sampling(request: &Request) -> generate::Sampling {
    let Sampling { temperature, top_p, seed, .. } = request.sampling;
    match request.sampling.is_greedy() {
        true => generate::Sampling::Greedy,
        false => {
            let seed = seed.wrapping_add(u64::from(request.choice));
            generate::Sampling::Random { temperature, top_p, seed }
        }
    }
}

/// Makes pictures of codes, on any thread.
#[derive(Clone)]
pub struct Renderer(pub(crate) Arc<Janus>);

impl Renderer {
    /// The picture of the codes that a request was answered with.
    ///
    /// # Errors
    /// In words, if they are not those of one picture of three colours.
    pub fn picture(&self, codes: &[u32]) -> Result<Rgb, String> {
        let janus = &self.0;
        if janus.config().vq.out_channels != 3 {
            return Err(format!("the model draws {} colours, not 3", janus.config().vq.out_channels));
        }
        let pixels = janus.decode(&Execution::new(janus.device().clone()), codes).map_err(|error| error.to_string())?;
        Ok(from_pixels(&pixels, janus.config().vq.image_size()))
    }

    /// What can be seen of a picture of which only the first codes are there: its whole rows, and grey below. The
    /// decoder looks beyond what it draws, so the last row goes on for it, and pixels are near the finished picture's.
    ///
    /// # Errors
    /// As for a picture.
    pub fn partial(&self, codes: &[u32]) -> Result<Rgb, String> {
        let vq = &self.0.config().vq;
        let (grid, side) = (vq.grid, vq.image_size());
        let rows = (codes.len() / grid).min(grid);
        if rows == 0 {
            return Ok(Rgb { width: side, height: side, bytes: vec![NOT_DRAWN; 3 * side * side] });
        }
        let code = |at: usize| codes[(at / grid).min(rows - 1) * grid + at % grid];
        let mut picture = self.picture(&(0..vq.tokens()).map(code).collect::<Vec<u32>>())?;
        picture.bytes[3 * side * (rows * side / grid)..].fill(NOT_DRAWN);
        Ok(picture)
    }
}
