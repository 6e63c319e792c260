//! One pass through the model, and the tokens that come of it.

use std::cell::RefCell;

use wels_device::Tensor;
use wels_kernels::par;
use wels_model::paged::{Chunk, Given};

use crate::engine::{Engine, Speculation};
use crate::event::{Event, FinishReason, Token};
use crate::picture::is_place;
use crate::sampler::Scratch;
use crate::schedule::Work;
use crate::sequence::Sequence;

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
                let states = if mtp || sequence.request.embedding.is_some() { tokens.len() } else { 0 };
                Chunk { tokens, past: sequence.computed, pages: sequence.lease.pages(), logits, states }
            })
            .collect();
        let states: Vec<usize> = chunks.iter().map(|chunk| chunk.states).collect();
        let given = given(&self.running, &work, &inputs);
        let (model, params) = (&self.loaded.model, &self.loaded.params);
        let adapters = work.iter().map(|work| self.running[work.sequence].request.adapter.clone()).collect::<Vec<_>>();
        let adapters = if adapters.iter().any(Option::is_some) { &adapters[..] } else { &[] };
        let output = model.step_adapted(params, &self.execution, &mut self.cache, &chunks, &given, adapters);
        self.counters.steps += 1;
        self.counters.computed_tokens += inputs.iter().map(|tokens| tokens.len() as u64).sum::<u64>();

        // What sampling needs; states for MTP stay where they are.
        let (logits, vocabulary) = (output.logits.to_host(), output.logits.cols());
        let mut ended = self.pool(&work, &states, &output.hidden);
        let sampled = self.sample(&work, &wanted, &logits, vocabulary);
        let mut state_row = 0;
        for ((work, states), sampled) in work.iter().zip(&states).zip(sampled) {
            self.counters.generated_tokens += sampled.tokens.len() as u64;
            self.counters.drafted_tokens += sampled.drafted as u64;
            self.counters.accepted_tokens += sampled.accepted as u64;
            self.events.extend(sampled.tokens.into_iter().map(Event::Token));
            ended.extend(sampled.end.map(|reason| (work.sequence, reason)));
            if mtp && self.running[work.sequence].request.embedding.is_none() {
                let rows = state_row..state_row + sampled.computed;
                self.running[work.sequence].mtp_pending.push((output.hidden.clone(), rows));
            }
            state_row += states;
        }
        if mtp {
            let embeds = |sequence: usize| self.running[sequence].request.embedding.is_some();
            let goes_on = |sequence: &usize| !embeds(*sequence) && ended.iter().all(|(ended, _)| ended != sequence);
            let drafting = work.iter().map(|work| work.sequence).filter(goes_on).collect();
            self.draft_by_mtp(drafting);
        }
        // Not before MTP has written to the pages, which only the owner of a page may.
        for work in work.iter().filter(|_| self.options.prefix_cache) {
            let complete = self.running[work.sequence].computed - self.mtp_pending(work.sequence);
            let sequence = &mut self.running[work.sequence];
            // MTP has written nothing of an embedding; whoever found such a page would draft from what is left there.
            if mtp && sequence.request.embedding.is_some() {
                continue;
            }
            let root = sequence.root();
            self.table.publish(&mut sequence.lease, root, &sequence.tokens, complete);
        }
        ended.sort_unstable_by_key(|(sequence, _)| *sequence);
        for (sequence, reason) in ended.into_iter().rev() {
            let sequence = self.running.remove(sequence);
            self.finish(sequence, reason);
        }
    }

    fn inputs(&self, work: &Work) -> Vec<u32> {
        let sequence = &self.running[work.sequence];
        let known = &sequence.tokens[sequence.computed..][..work.known];
        known.iter().chain(&work.draft).map(|token| if is_place(*token) { 0 } else { *token }).collect()
    }

    /// After the last known token of a sequence, and after each drafted one.
    fn logits_wanted(&self, work: &Work) -> usize {
        if self.running[work.sequence].request.embedding.is_some() {
            return 0;
        }
        if self.running[work.sequence].pending() == work.known { 1 + work.draft.len() } else { 0 }
    }

    /// Pools the states of prompts that are to be embedded; of the `states` rows of `hidden[rows, D]` each sequence has
    /// its own. Those that end with it.
    fn pool(&mut self, work: &[Work], states: &[usize], hidden: &Tensor) -> Vec<(usize, FinishReason)> {
        let embeds = |work: &Work| self.running[work.sequence].request.embedding.is_some();
        if !work.iter().any(embeds) {
            return Vec::new();
        }
        let (values, width) = (hidden.to_host(), hidden.cols());
        let mut ended = Vec::new();
        let mut row = 0;
        for (work, rows) in work.iter().zip(states) {
            let sequence = &mut self.running[work.sequence];
            if let Some(pooling) = sequence.request.embedding {
                let complete = sequence.pending() == work.known;
                sequence.pooled.add(pooling, sequence.computed, &values[row * width..][..rows * width], width);
                if complete {
                    self.events.push(Event::Embedding { id: sequence.id, values: sequence.pooled.take() });
                    ended.push((work.sequence, FinishReason::Stop));
                }
            }
            row += rows;
        }
        ended
    }

    /// Chooses the tokens of all sequences, which threads share: each has rows of `logits[rows, V]` of its own, as many
    /// as it wants.
    fn sample(&mut self, work: &[Work], wanted: &[usize], logits: &[f32], vocabulary: usize) -> Vec<Sampled> {
        let room = self.room();
        let mut sequences: Vec<Option<&mut Sequence>> = self.running.iter_mut().map(Some).collect();
        let mut rest = logits;
        let mut jobs: Vec<Job> = work
            .iter()
            .zip(wanted)
            .map(|(work, wanted)| {
                let logits = rest.split_off(..wanted * vocabulary).expect("logits of all that want some");
                let sequence = sequences[work.sequence].take().expect("one piece of work for a sequence");
                Job { sequence, work, logits, sampled: Sampled::default() }
            })
            .collect();
        par::chunks_mut(&mut jobs, 1, |_, jobs| {
            let Job { sequence, work, logits, sampled } = &mut jobs[0];
            SCRATCH.with_borrow_mut(|scratch| *sampled = sequence.take(work, logits, vocabulary, room, scratch));
        });
        jobs.into_iter().map(|job| job.sampled).collect()
    }
}

/// The features of pictures, as far as their places are among the new tokens.
fn given<'a>(running: &'a [Sequence], work: &[Work], inputs: &[Vec<u32>]) -> Vec<Given<'a>> {
    let mut given = Vec::new();
    let mut first = 0;
    for (work, tokens) in work.iter().zip(inputs) {
        let Sequence { pictures, computed, .. } = &running[work.sequence];
        for (at, features) in pictures {
            let places = (*at).max(*computed)..(at + features.rows()).min(computed + tokens.len());
            if !places.is_empty() {
                let rows = places.start - at..places.end - at;
                given.push(Given { at: first + places.start - computed, features, rows });
            }
        }
        first += tokens.len();
    }
    given
}

thread_local! {
    /// Of the thread that chooses.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Choosing the tokens of one sequence.
struct Job<'a> {
    sequence: &'a mut Sequence,
    work: &'a Work,
    logits: &'a [f32],
    sampled: Sampled,
}

/// What came of it.
#[derive(Default)]
struct Sampled {
    tokens: Vec<Token>,
    /// Why the answer ends, if it does.
    end: Option<FinishReason>,
    /// Tokens whose keys and values are in the cache for good.
    computed: usize,
    drafted: usize,
    accepted: usize,
}

impl Sequence {
    /// Chooses tokens from the rows of `logits[rows, V]`, as long as drafted ones are accepted.
    fn take(&mut self, work: &Work, logits: &[f32], vocabulary: usize, room: usize, scratch: &mut Scratch) -> Sampled {
        let mut sampled = Sampled { computed: work.known, ..Sampled::default() };
        for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
            let (token, reason) = self.choose(logits, room, scratch);
            sampled.end = reason;
            let Some(token) = token else { break };
            let accepted = work.draft.get(row) == Some(&token.token);
            sampled.tokens.push(token);
            sampled.accepted += usize::from(accepted);
            if sampled.end.is_some() || !accepted {
                break;
            }
            sampled.computed += 1;
        }
        self.computed += sampled.computed;
        if !logits.is_empty() {
            sampled.drafted = work.draft.len();
            self.drafting.learn(sampled.drafted, sampled.accepted);
            self.usage.drafted += sampled.drafted;
            self.usage.accepted += sampled.accepted;
        }
        sampled
    }
}
