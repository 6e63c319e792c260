//! The scheduler: continuous batching with chunked prefill, and preemption by recomputing.
//!
//! Requests have an order: priority, then rank, then turn. The rank is how many of its owner's requests go before it,
//! so that owners get equally many places, whatever each asks for; where a request ends, its owner's later ones move
//! up, and get a new turn behind those that have had that rank for longer. So owners take turns also where there is
//! one place, and those of one owner go by age.
//!
//! Answers go on in every step, a token each; what is left of the step's tokens goes to prompts, in order. When pages
//! or places run out, the last in order gives up its own and waits again; its tokens stay, and their keys and values
//! are computed again later, to the same bits. Nothing comes to go before the first in order of its priority, so that
//! it never gives up its pages, and one request always fits: so there is always one that goes on.

use std::collections::HashMap;

use crate::engine::{Engine, Speculation};
use crate::pages::PAGE;
use crate::picture::is_place;
use crate::request::{Pooling, Request};
use crate::sequence::Sequence;
use crate::speculate::lookup;

/// Tokens, known and drafted, of all answers in a step: drafting is for times when a pass over a few more tokens costs
/// little, because it is the weights that take the time.
const SPECULATION_TOKENS: usize = 16;

/// What a running sequence has computed in a step.
pub(crate) struct Work {
    /// Its place among the running.
    pub sequence: usize,
    /// Known tokens.
    pub known: usize,
    /// Drafted tokens behind them.
    pub draft: Vec<u32>,
}

impl Engine {
    /// The rank at which a new request begins.
    pub(crate) fn rank_of_next(&self, request: &Request) -> usize {
        let live = self.running.iter().chain(&self.waiting).map(|sequence| &sequence.request);
        live.filter(|other| (other.owner, other.priority) == (request.owner, request.priority)).count()
    }

    pub(crate) fn next_turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    /// After requests have ended: their owners' later ones get the ranks that are free.
    pub(crate) fn move_up(&mut self) {
        let mut live: Vec<&mut Sequence> = self.running.iter_mut().chain(&mut self.waiting).collect();
        live.sort_by_key(|sequence| sequence.order());
        let mut counts: HashMap<(u64, i32), usize> = HashMap::new();
        for sequence in live {
            let count = counts.entry((sequence.request.owner, sequence.request.priority)).or_default();
            if sequence.rank != *count {
                sequence.rank = *count;
                self.next_turn += 1;
                sequence.turn = self.next_turn;
            }
            *count += 1;
        }
        self.running.sort_by_key(Sequence::order);
        self.waiting.sort_by_key(Sequence::order);
    }

    /// Lets requests begin: those first in order, while there is room to compute what they have.
    pub(crate) fn admit(&mut self) {
        let mut next = 0;
        while next < self.waiting.len() {
            if self.will_be_cached(&self.waiting[next]) {
                next += 1;
                continue;
            }
            // Those that come after it in order give way, and wait behind it.
            while self.running.len() == self.options.max_running || !self.reserve(next) {
                if !self.yields_to(next) {
                    return;
                }
                self.preempt_last();
            }
            let sequence = self.waiting.remove(next);
            let place = self.running.partition_point(|other| other.order() < sequence.order());
            self.running.insert(place, sequence);
        }
    }

    /// Whether the last of the running gives way to a waiting one.
    fn yields_to(&self, waiting: usize) -> bool {
        let last = self.running.last().map(Sequence::order);
        last.is_some_and(|last| self.waiting[waiting].order() < last)
    }

    /// Whether somebody before it in order is about to compute pages that this one can share: it does better to wait
    /// for them. One behind it might not be computed before all that comes between them.
    fn will_be_cached(&self, sequence: &Sequence) -> bool {
        let shareable = sequence.tokens.len() - 1;
        self.shares_prefix(sequence)
            && self.running.iter().any(|other| {
                let shares = sequence.root() == other.root();
                let same = sequence.tokens[..shareable].iter().zip(&other.tokens).take_while(|(a, b)| a == b).count();
                let pages = same / PAGE;
                shares
                    && other.order() < sequence.order()
                    && !other.answers()
                    && pages > other.computed / PAGE
                    && !self.table.has_more_than(sequence.root(), &sequence.tokens, pages - 1)
            })
    }

    /// Whether a sequence may begin with what the cache has: not if every token's state is needed.
    fn shares_prefix(&self, sequence: &Sequence) -> bool {
        self.options.prefix_cache && sequence.request.embedding != Some(Pooling::Mean)
    }

    /// Finds what the cache has of a waiting sequence, if the rest fits beside those that run.
    fn reserve(&mut self, waiting: usize) -> bool {
        let shares = self.shares_prefix(&self.waiting[waiting]);
        let sequence = &mut self.waiting[waiting];
        // The last token is computed in any case: its logits are needed.
        let known = &sequence.tokens[..sequence.tokens.len() - 1];
        let lease = if shares { self.table.find(sequence.root(), known) } else { Default::default() };
        let missing = (sequence.tokens.len() + 1).div_ceil(PAGE) - lease.pages().len();
        let spare = if self.running.is_empty() { 0 } else { self.running.len() + missing };
        if spare > self.table.available() {
            self.table.release(lease);
            return false;
        }
        sequence.computed = lease.room();
        sequence.lease = lease;
        if !sequence.begun {
            sequence.begun = true;
            sequence.usage.cached = sequence.computed;
            self.counters.prompt_tokens += sequence.usage.prompt as u64;
            self.counters.cached_tokens += sequence.computed as u64;
        }
        true
    }

    /// Divides the step, and gives every part its pages.
    pub(crate) fn plan(&mut self) -> Vec<Work> {
        let answering = self.running.iter().filter(|sequence| sequence.answers()).count();
        let mut left = self.options.max_batch_tokens.saturating_sub(answering).max(PAGE);
        let mut work = Vec::new();
        let mut next = 0;
        while next < self.running.len() {
            let sequence = &self.running[next];
            let known = if sequence.answers() { 1 } else { sequence.pending().min(left) };
            if known == 0 {
                next += 1;
                continue;
            }
            let mut draft = if sequence.answers() { self.draft(sequence, answering) } else { Vec::new() };
            let sequence = &mut self.running[next];
            let end = sequence.computed + known;
            self.table.grow(&mut sequence.lease, end);
            if sequence.lease.room() < end {
                self.preempt_last();
                continue;
            }
            if self.table.free() > 0 {
                self.table.grow(&mut sequence.lease, (end + draft.len()).min(end.next_multiple_of(PAGE) + PAGE));
            }
            draft.truncate(sequence.lease.room() - end);
            if !sequence.answers() {
                left -= known;
            }
            work.push(Work { sequence: next, known, draft });
            next += 1;
        }
        work
    }

    /// How many tokens to draft for a sequence that answers beside so many others.
    pub(crate) fn draft_len(&self, sequence: &Sequence, answering: usize) -> usize {
        let Speculation::Auto { max_draft } = self.options.speculation else { return 0 };
        let share = (SPECULATION_TOKENS / answering.max(1)).saturating_sub(1);
        // The last token of an answer is chosen, not drafted.
        let to_come = (sequence.request.max_tokens - sequence.usage.generated).min(self.room() - sequence.tokens.len());
        sequence.drafting.len(max_draft.min(share)).min(to_come.saturating_sub(1))
    }

    fn draft(&self, sequence: &Sequence, answering: usize) -> Vec<u32> {
        let wanted = self.draft_len(sequence, answering);
        let draft = match self.loaded.model.config().mtp_depth {
            0 => lookup(&sequence.tokens, wanted),
            _ => &sequence.draft[..],
        };
        // What stood behind some words before may have been a picture, which no answer goes on with.
        draft.iter().take(wanted).copied().take_while(|token| !is_place(*token)).collect()
    }

    /// The last of the running gives its pages back and waits.
    fn preempt_last(&mut self) {
        let mut sequence = self.running.pop().expect("somebody runs");
        self.table.release(std::mem::take(&mut sequence.lease));
        sequence.computed = 0;
        sequence.draft.clear();
        sequence.mtp_pending.clear();
        self.counters.preemptions += 1;
        self.wait(sequence);
    }
}
