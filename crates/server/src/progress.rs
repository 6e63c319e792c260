//! How far the answers to one request have come: text, log-probabilities, tokens, endings.

use std::sync::Arc;

use wels_data::Tokenizer;
use wels_engine::{Event, FinishReason, Token, Usage};

use crate::answer::Answer;
use crate::money::{Prices, Tokens};
use crate::prompt::Plan;
use crate::wire::{AnswerEnd, ApiError, Candidate, ChatDelta, Choice, ChoiceLogprobs, TokenLogprob, UsageCounts};
use crate::worker::ChoiceEvent;

/// What an answer has gained.
#[derive(Debug)]
pub enum Update {
    /// Text, or a part of a call, with the log-probabilities of what came since the last one.
    Delta {
        delta: ChatDelta,
        /// Where they were asked for.
        logprobs: Option<ChoiceLogprobs>,
    },
    /// Its end, and why.
    Finish(AnswerEnd),
}

impl Update {
    /// Adds it to a choice that is put together.
    pub fn add_to(self, choice: &mut Choice) {
        match self {
            Update::Delta { delta, logprobs } => {
                choice.push(&delta);
                if let Some(logprobs) = logprobs {
                    choice.logprobs.get_or_insert_default().tokens.extend(logprobs.tokens);
                }
            }
            Update::Finish(end) => choice.end = end,
        }
    }
}

/// The answers to one request.
pub struct Progress {
    plan: Plan,
    tokenizer: Arc<Tokenizer>,
    tracks: Vec<Track>,
}

/// One answer.
struct Track {
    answer: Answer,
    /// Tokens that updates have carried.
    output: u64,
    /// Tokens whose text is held back, as a part of a character or of a marker.
    held: u64,
    reasoning: u64,
    /// Tokens that no delta has carried yet.
    logprobs: Vec<TokenLogprob>,
    /// Bytes of their texts that deltas have carried.
    offset: usize,
    /// Its end was cut off here, and what still comes is of no interest.
    closed: bool,
    usage: Option<Usage>,
}

impl Progress {
    /// Before anything has come.
    pub fn new(plan: Plan, tokenizer: Arc<Tokenizer>) -> Progress {
        let track = |_| Track {
            answer: plan.answer(),
            output: 0,
            held: 0,
            reasoning: 0,
            logprobs: Vec::new(),
            offset: 0,
            closed: false,
            usage: None,
        };
        let tracks = (0..plan.requests.len()).map(track).collect();
        Progress { plan, tokenizer, tracks }
    }

    /// Each prompt counted once, however many answers it has.
    pub fn prompt_tokens(&self) -> u64 {
        self.plan.prompt_tokens() as u64
    }

    /// Whether anything has come.
    pub fn has_begun(&self) -> bool {
        self.tracks.iter().any(Track::has_begun)
    }

    /// Whether all answers have ended.
    pub fn is_finished(&self) -> bool {
        self.tracks.iter().all(|track| track.usage.is_some())
    }

    /// Whether an answer has all that it needs and should be ended.
    pub fn wants_no_more(&self, choice: usize) -> bool {
        let track = &self.tracks[choice];
        track.closed && track.usage.is_none()
    }

    /// What an event adds to its answer.
    pub fn take(&mut self, event: ChoiceEvent) -> Result<Vec<Update>, ApiError> {
        match event.event {
            Event::Token(token) => Ok(self.token(event.choice, token)),
            Event::Embedding { .. } => Ok(Vec::new()), // asked for by no request that is answered here
            Event::Finished(finished) => self.finish(event.choice, finished.reason, finished.usage),
        }
    }

    /// Notes of an answer that is given up how much of its prompt was cached. Nothing more is sent of it.
    pub fn count(&mut self, choice: usize, usage: Usage) {
        let track = &mut self.tracks[choice];
        if track.has_begun() {
            track.usage.get_or_insert(usage);
        }
    }

    fn token(&mut self, choice: usize, token: Token) -> Vec<Update> {
        let entry = self.logprob(choice, &token);
        let track = &mut self.tracks[choice];
        if track.closed {
            return Vec::new();
        }
        track.held += 1;
        track.reasoning += u64::from(track.answer.is_thinking());
        track.logprobs.extend(entry);
        let deltas = track.answer.push(&token.text);
        track.closed = self.plan.single_call && track.answer.complete_calls() > 0;
        self.updates(choice, deltas)
    }

    fn finish(&mut self, choice: usize, reason: FinishReason, usage: Usage) -> Result<Vec<Update>, ApiError> {
        let track = &mut self.tracks[choice];
        track.usage = Some(usage);
        track.output += std::mem::take(&mut track.held);
        match reason {
            FinishReason::Error => return Err(ApiError::internal("The model failed on this request.")),
            FinishReason::ConstraintTooHard => {
                let message =
                    "The answer's schema or grammar takes more work for a token than is allowed: simplify it.";
                return Err(ApiError::invalid(message));
            }
            // More was generated than could be written to the ledger meanwhile.
            FinishReason::Cancelled if !track.closed => {
                return Err(ApiError::overloaded("The answer could not be passed on in time.", 5));
            }
            _ => {}
        }
        let mut deltas = track.answer.finish();
        if !track.logprobs.is_empty() && deltas.is_empty() {
            deltas.push(ChatDelta::Content(String::new()));
        }
        let calls = track.answer.has_calls();
        let mut updates = self.updates(choice, deltas);
        updates.push(Update::Finish(match reason {
            FinishReason::Length => AnswerEnd::Length,
            _ if calls => AnswerEnd::ToolCalls,
            FinishReason::StopString(which) => AnswerEnd::StopString(self.plan.requests[choice].stop[which].clone()),
            _ => AnswerEnd::Stop,
        }));
        Ok(updates)
    }

    /// The first delta carries the log-probabilities.
    fn updates(&mut self, choice: usize, deltas: Vec<ChatDelta>) -> Vec<Update> {
        let wanted = self.plan.requests[choice].logprobs.is_some();
        let track = &mut self.tracks[choice];
        if !deltas.is_empty() {
            track.output += std::mem::take(&mut track.held);
        }
        let mut update = |delta| {
            let logprobs = wanted.then(|| {
                let tokens = std::mem::take(&mut track.logprobs);
                let offset = track.offset;
                track.offset += tokens.iter().map(|token| token.chosen.token.len()).sum::<usize>();
                ChoiceLogprobs { tokens, offset }
            });
            Update::Delta { delta, logprobs }
        };
        deltas.into_iter().map(&mut update).collect()
    }

    /// The token that ends an answer is not part of it.
    fn logprob(&self, choice: usize, token: &Token) -> Option<TokenLogprob> {
        let logprob = token.logprob?;
        if self.plan.requests[choice].stop_tokens.contains(&token.token) {
            return None;
        }
        let candidate = |id: u32, logprob: f32| {
            let bytes = self.tokenizer.token_bytes(id);
            Candidate { token: String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob }
        };
        Some(TokenLogprob {
            chosen: candidate(token.token, logprob),
            top: token.top_logprobs.iter().map(|(id, logprob)| candidate(*id, *logprob)).collect(),
            reasoning: self.tracks[choice].answer.is_thinking(),
        })
    }

    /// What the client has been sent once all that was taken is sent. A prompt counts from its first token on. Until
    /// its answer has ended, or [`Progress::count`] says so, it is not known how much of it was cached, and all of it
    /// counts as cached: nobody pays for what nobody counted.
    pub fn tokens(&self) -> Tokens {
        let mut tokens = Tokens::default();
        for (tracks, requests) in self.tracks.chunks(self.plan.n).zip(self.plan.requests.chunks(self.plan.n)) {
            tokens.output += tracks.iter().map(|track| track.output).sum::<u64>();
            if tracks.iter().any(Track::has_begun) {
                let prompt = requests[0].prompt.len() as u64;
                let hit = tracks[0].usage.map_or(prompt, |usage| (usage.cached as u64).min(prompt));
                tokens.hit += hit;
                tokens.miss += prompt - hit;
            }
        }
        tokens
    }

    /// The account so far.
    pub fn usage(&self, prices: &Prices) -> UsageCounts {
        let tokens = self.tokens();
        let reasoning = self.tracks.iter().map(|track| track.reasoning).sum();
        UsageCounts { tokens, reasoning, images: self.plan.image_tokens as u64, cost: prices.cost(tokens) }
    }
}

impl Track {
    fn has_begun(&self) -> bool {
        self.output + self.held > 0 || self.usage.is_some()
    }
}
