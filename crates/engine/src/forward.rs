//! One pass through the model, and the tokens that come of it.

use wels_model::paged::Chunk;

use crate::engine::{Engine, Speculation};
use crate::event::{Event, FinishReason};
use crate::schedule::Work;

impl Engine {
    /// Computes what was planned, chooses tokens, publishes full pages, lets go of what has ended.
    pub(crate) fn forward(&mut self, work: Vec<Work>) {
        let speculates = matches!(self.options.speculation, Speculation::Auto { .. });
        let mtp = speculates && self.loaded.model.config().mtp_depth > 0;
        let inputs: Vec<Vec<u32>> = work.iter().map(|work| self.inputs(work)).collect();
        let wanted: Vec<usize> = work.iter().map(|work| self.logits_wanted(work)).collect();
        let chunks: Vec<Chunk> = work
            .iter()
            .zip(&inputs)
            .zip(&wanted)
            .map(|((work, tokens), &logits)| {
                let sequence = &self.running[work.sequence];
                let states = if mtp { tokens.len() } else { 0 };
                Chunk { tokens, past: sequence.computed, pages: sequence.lease.pages(), logits, states }
            })
            .collect();
        let output = self.loaded.model.step(&self.loaded.params, &self.execution, &mut self.cache, &chunks);
        self.counters.steps += 1;
        self.counters.computed_tokens += inputs.iter().map(|tokens| tokens.len() as u64).sum::<u64>();

        // What sampling needs; states for MTP stay where they are.
        let (logits, vocabulary) = (output.logits.to_host(), output.logits.cols());
        let (mut row, mut state_row) = (0, 0);
        let mut ended = Vec::new();
        for ((work, tokens), wanted) in work.iter().zip(&inputs).zip(wanted) {
            let first = self.running[work.sequence].computed;
            if let Some(reason) = self.take(work, &logits[row * vocabulary..][..wanted * vocabulary]) {
                ended.push((work.sequence, reason));
            }
            let sequence = &mut self.running[work.sequence];
            if mtp {
                let rows = state_row..state_row + sequence.computed - first;
                sequence.mtp_pending.push((output.hidden.clone(), rows));
            }
            row += wanted;
            state_row += tokens.len();
        }
        if mtp {
            let goes_on = |sequence: &usize| ended.iter().all(|(ended, _)| ended != sequence);
            self.draft_by_mtp(work.iter().map(|work| work.sequence).filter(goes_on).collect());
        }
        // Not before MTP has written to the pages, which only the owner of a page may.
        for work in work.iter().filter(|_| self.options.prefix_cache) {
            let complete = self.running[work.sequence].computed - self.mtp_pending(work.sequence);
            let sequence = &mut self.running[work.sequence];
            self.table.publish(&mut sequence.lease, &sequence.tokens, complete);
        }
        for (sequence, reason) in ended.into_iter().rev() {
            let sequence = self.running.remove(sequence);
            self.finish(sequence, reason);
        }
    }

    fn inputs(&self, work: &Work) -> Vec<u32> {
        let sequence = &self.running[work.sequence];
        let known = &sequence.tokens[sequence.computed..][..work.known];
        known.iter().chain(&work.draft).copied().collect()
    }

    /// After the last known token of a sequence, and after each drafted one.
    fn logits_wanted(&self, work: &Work) -> usize {
        if self.running[work.sequence].pending() == work.known { 1 + work.draft.len() } else { 0 }
    }

    /// Chooses tokens from the rows of `logits[rows, V]`, as long as drafted ones are accepted; why the answer ends, if
    /// it does.
    fn take(&mut self, work: &Work, logits: &[f32]) -> Option<FinishReason> {
        let vocabulary = self.loaded.model.config().vocab_size;
        let rows = logits.len() / vocabulary;
        let room = self.room();
        let sequence = &mut self.running[work.sequence];
        sequence.computed += work.known;
        let mut end = None;
        let mut accepted_tokens = 0;
        for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
            let (event, reason) = sequence.choose(logits, room, &mut self.scratch);
            let Some(event) = event else {
                end = reason;
                break;
            };
            let accepted = work.draft.get(row) == Some(&event.token);
            self.counters.generated_tokens += 1;
            self.events.push(Event::Token(event));
            accepted_tokens += usize::from(accepted);
            if reason.is_some() {
                end = reason;
                break;
            }
            if !accepted {
                break;
            }
            sequence.computed += 1;
        }
        if rows > 0 {
            let drafted = work.draft.len();
            sequence.drafting.learn(drafted, accepted_tokens);
            sequence.usage.drafted += drafted;
            sequence.usage.accepted += accepted_tokens;
            self.counters.drafted_tokens += drafted as u64;
            self.counters.accepted_tokens += accepted_tokens as u64;
        }
        end
    }
}
