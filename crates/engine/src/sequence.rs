//! A request that is in the engine: its tokens so far, its pages, how its next token is chosen.

use std::cmp::Reverse;
use std::ops::Range;

use wels_device::Tensor;

use crate::constraint::Guide;
use crate::embedding::Pooled;
use crate::event::{FinishReason, Token, Usage};
use crate::pages::Lease;
use crate::request::{Request, RequestId};
use crate::sampler::{Sampler, Scratch, logprobs_of};
use crate::speculate::DraftController;
use crate::text::{Piece, TextStream};
use crate::thinking::Thinker;

pub(crate) struct Sequence {
    pub id: RequestId,
    pub request: Request,
    /// Prompt and answer. The last token of the answer is not in the cache yet.
    /// Places of pictures hold ids of no token.
    pub tokens: Vec<u32>,
    /// Where pictures begin, and what the model is given in their places, `[places, D]`.
    pub pictures: Vec<(usize, Tensor)>,
    /// Tokens, from the first on, whose keys and values are in the pages.
    pub computed: usize,
    pub lease: Lease,
    pub sampler: Sampler,
    pub text: TextStream,
    pub guide: Option<Guide>,
    pub thinker: Option<Thinker>,
    pub pooled: Pooled,
    pub drafting: DraftController,
    /// Drafted by MTP for what follows `tokens`.
    pub draft: Vec<u32>,
    /// States of the last of the computed tokens, which have not gone through MTP's layer: rows of what passes gave.
    pub mtp_pending: Vec<(Tensor, Range<usize>)>,
    /// How many requests of its owner, of its priority, go before it.
    pub rank: usize,
    /// Numbered as requests came to their ranks.
    pub turn: u64,
    /// Whether it has run before, so that its prompt is accounted for.
    pub begun: bool,
    pub usage: Usage,
}

impl Sequence {
    /// Tokens whose keys and values are not in the cache yet: one while it answers, more while its prompt is computed.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether it needs one token computed to give its next one.
    pub fn answers(&self) -> bool {
        self.pending() == 1
    }

    /// Whose keys and values its own may be: those of the same adapter, or of none.
    pub fn root(&self) -> u64 {
        self.request.adapter.as_ref().map_or(0, |adapter| adapter.serial())
    }

    /// Sorts first what goes first.
    pub fn order(&self) -> (Reverse<i32>, usize, u64) {
        (Reverse(self.request.priority), self.rank, self.turn)
    }

    /// Chooses the next token from the logits `[V]` after the last one; `room` is the longest that the sequence may
    /// become. The event, if a token was chosen, and why the answer ends, if it does.
    pub fn choose(
        &mut self,
        logits: &[f32],
        room: usize,
        scratch: &mut Scratch,
    ) -> (Option<Token>, Option<FinishReason>) {
        let stop = &self.request.stop_tokens;
        let allowed = match (&self.thinker, &mut self.guide) {
            (Some(thinker), guide) => thinker.allowed(guide.as_mut(), stop),
            (None, Some(guide)) => guide.allowed(stop).map(Some),
            (None, None) => Ok(None),
        };
        let allowed = match allowed {
            Ok(mask) => mask,
            Err(_) if self.request.constraint_may_fail => None, // and it is let go of when the token is followed
            Err(_) => return (None, Some(FinishReason::ConstraintTooHard)),
        };
        let position = self.tokens.len();
        let Some(choice) = self.sampler.choose(logits, position, allowed, self.request.logprobs, scratch) else {
            return (None, Some(FinishReason::Error));
        };
        let token = choice.token;
        let scored = logprobs_of(logits, &self.request.scored, scratch);
        self.sampler.push(token);
        self.tokens.push(token);
        self.usage.generated += 1;
        let (text, reason) = self.end_or_text(token, room);
        let (logprob, top_logprobs) = choice.logprobs.map_or((None, vec![]), |(logprob, top)| (Some(logprob), top));
        (Some(Token { id: self.id, token, text, logprob, top_logprobs, scored }), reason)
    }

    /// What a new token lets be shown, and whether the answer ends with it.
    fn end_or_text(&mut self, token: u32, room: usize) -> (String, Option<FinishReason>) {
        if self.request.stop_tokens.contains(&token) {
            return self.last_text(String::new(), FinishReason::Stop);
        }
        let mut reason = None;
        let answers = self.thinker.as_mut().is_none_or(|thinker| thinker.push(token));
        if let Some(guide) = self.guide.as_mut().filter(|_| answers) {
            if token == guide.eos() {
                return self.last_text(String::new(), FinishReason::Constraint);
            }
            match guide.push(token) {
                Ok(complete) => reason = complete.then_some(FinishReason::Constraint),
                Err(_) if self.request.constraint_may_fail => self.guide = None,
                Err(_) => reason = Some(FinishReason::ConstraintTooHard),
            }
        }
        if reason.is_none() && (self.usage.generated == self.request.max_tokens || self.tokens.len() == room) {
            reason = Some(FinishReason::Length);
        }
        match (self.text.push(token), reason) {
            (Piece::Stop(text, which), _) => (text, Some(FinishReason::StopString(which))),
            (Piece::Text(text), None) => (text, None),
            (Piece::Text(text), Some(reason)) => self.last_text(text, reason),
        }
    }

    /// The text with what is still held back; a stop string may be in it.
    fn last_text(&mut self, text: String, reason: FinishReason) -> (String, Option<FinishReason>) {
        match self.text.finish() {
            Piece::Text(rest) => (text + &rest, Some(reason)),
            Piece::Stop(rest, which) => (text + &rest, Some(FinishReason::StopString(which))),
        }
    }
}
