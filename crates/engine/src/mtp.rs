//! Guesses by the model's own MTP layer.
//!
//! The layer at position i reads the main model's state there and the token after it, and expects the one after that.
//! It has keys and values of its own in the pages, so every position whose next token is known goes through it once,
//! prompts too. To guess further ahead it is applied to its own state and guess; what that leaves in the pages is
//! written over when the real tokens come.

use wels_model::paged::Piece;
use wels_model::tensor::Tensor;

use crate::engine::Engine;

/// Positions of a sequence whose states the pass has given and whose next tokens are known.
pub(crate) struct States {
    /// Its place among the running.
    pub sequence: usize,
    /// The first position.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// Row of the first among the pass's states.
    pub row: usize,
}

impl Engine {
    /// Takes the positions through the layer, and lets the sequences that answer guess. `hidden[rows, D]` are the
    /// states of the pass.
    pub(crate) fn guess_by_mtp(&mut self, states: &[States], hidden: &Tensor) {
        if states.is_empty() {
            return;
        }
        let answering = states.iter().filter(|of| self.running[of.sequence].answers()).count();
        let wanted: Vec<usize> = states.iter().map(|of| self.prepare_guesses(of, answering)).collect();
        let rows = states.iter().flat_map(|of| of.row..of.row + of.count);
        let mut hidden = self.rows(hidden, rows);
        // Places in `states` of those that guess on.
        let mut guessing: Vec<usize> = (0..states.len()).collect();
        for ahead in 0.. {
            let inputs: Vec<Vec<u32>> = guessing.iter().map(|&at| self.mtp_inputs(&states[at], ahead)).collect();
            let pieces: Vec<Piece> = guessing
                .iter()
                .zip(&inputs)
                .map(|(&at, tokens)| {
                    let sequence = &self.running[states[at].sequence];
                    let past = if ahead == 0 { states[at].first } else { sequence.computed + ahead - 1 };
                    let rows = usize::from(wanted[at] > ahead);
                    Piece { tokens, past, pages: sequence.lease.pages(), logits: rows, states: rows }
                })
                .collect();
            let output =
                self.loaded.model.draft(&self.loaded.params, &self.execution, &mut self.cache, 1, &pieces, hidden);
            guessing.retain(|&at| wanted[at] > ahead);
            for (row, &at) in guessing.iter().enumerate() {
                let sequence = &mut self.running[states[at].sequence];
                let position = sequence.tokens.len() + ahead;
                let guess = sequence.sampler.choose(output.logits.row(row), position, None, None, &mut self.scratch);
                sequence.guesses.extend(guess.map(|choice| choice.token));
            }
            // One that found no finite logits guesses no more.
            let goes_on = |at: usize| wanted[at] > ahead + 1 && self.running[states[at].sequence].guesses.len() > ahead;
            let rows = (0..guessing.len()).filter(|&row| goes_on(guessing[row]));
            hidden = self.rows(&output.hidden, rows);
            guessing.retain(|&at| goes_on(at));
            if guessing.is_empty() {
                break;
            }
        }
    }

    /// How many tokens to guess for a sequence; its pages have room for what that writes.
    fn prepare_guesses(&mut self, of: &States, answering: usize) -> usize {
        let sequence = &self.running[of.sequence];
        let wanted = if sequence.answers() { self.guesses_wanted(sequence, answering) } else { 0 };
        let sequence = &mut self.running[of.sequence];
        sequence.guesses.clear();
        // One page more at most: a guess is not worth somebody's prefix.
        let end = (sequence.computed + wanted).min(sequence.lease.room() + 1);
        if wanted > 1 && self.table.free() > 0 {
            self.table.grow(&mut sequence.lease, end);
        }
        wanted.min(1 + sequence.lease.room() - sequence.computed)
    }

    /// The tokens after the positions that go through the layer.
    fn mtp_inputs(&self, of: &States, ahead: usize) -> Vec<u32> {
        let sequence = &self.running[of.sequence];
        match ahead {
            0 => sequence.tokens[of.first + 1..][..of.count].to_vec(),
            _ => vec![sequence.guesses[ahead - 1]],
        }
    }

    fn rows(&self, of: &Tensor, rows: impl Iterator<Item = usize>) -> Tensor {
        let rows: Vec<usize> = rows.collect();
        let mut picked = self.execution.pool.tensor(rows.len(), of.cols());
        for (to, from) in picked.chunks_exact_mut(of.cols()).zip(rows) {
            to.copy_from_slice(of.row(from));
        }
        picked
    }
}
