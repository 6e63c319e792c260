//! Drafts by the model's own MTP layer.
//!
//! The layer at position i reads the main model's state there and the token after it, and expects the one after that.
//! It has keys and values of its own in the pages, so every position whose next token is known goes through it once,
//! prompts too: before the next draft, or when a page of them has come together, which costs little more than one. To
//! draft further ahead it is applied to its own state and token; what that leaves in the pages is written over when the
//! real tokens come.

use wels_model::paged::{Chunk, concatenate};

use crate::engine::Engine;
use crate::pages::PAGE;

/// A sequence that goes through the layer.
struct MtpWork {
    /// Its place among the running.
    sequence: usize,
    /// How many tokens to draft.
    wanted: usize,
}

impl Engine {
    /// Takes the positions of some of the running through the layer, where that is due, and lets those draft that are
    /// to.
    pub(crate) fn draft_by_mtp(&mut self, sequences: Vec<usize>) {
        let answering = sequences.iter().filter(|&&sequence| self.running[sequence].answers()).count();
        let drafting =
            sequences.into_iter().map(|sequence| MtpWork { sequence, wanted: self.prepare_draft(sequence, answering) });
        let mut due: Vec<MtpWork> = drafting.collect();
        due.retain(|due| due.wanted > 0 || self.is_due(due.sequence));
        if due.is_empty() {
            return;
        }
        let pending = due.iter().flat_map(|due| &self.running[due.sequence].mtp_pending);
        let pending: Vec<_> = pending.map(|(states, rows)| (states, rows.clone())).collect();
        let mut hidden = concatenate(&self.execution, &pending);
        for ahead in 0.. {
            let inputs: Vec<Vec<u32>> = due.iter().map(|due| self.mtp_inputs(due.sequence, ahead)).collect();
            let chunks: Vec<Chunk> = due
                .iter()
                .zip(&inputs)
                .map(|(due, tokens)| {
                    let sequence = &self.running[due.sequence];
                    let past =
                        if ahead == 0 { sequence.computed - tokens.len() } else { sequence.computed + ahead - 1 };
                    let rows = usize::from(due.wanted > ahead);
                    Chunk { tokens, past, pages: sequence.lease.pages(), logits: rows, states: rows }
                })
                .collect();
            let output =
                self.loaded.model.draft(&self.loaded.params, &self.execution, &mut self.cache, 1, &chunks, hidden);
            due.iter().for_each(|due| self.running[due.sequence].mtp_pending.clear());
            due.retain(|due| due.wanted > ahead);
            let (logits, vocabulary) = (output.logits.to_host(), output.logits.cols());
            for (row, due) in due.iter().enumerate() {
                let sequence = &mut self.running[due.sequence];
                let position = sequence.tokens.len() + ahead;
                let logits = &logits[row * vocabulary..][..vocabulary];
                let drafted = sequence.sampler.choose(logits, position, None, None, &mut self.scratch);
                sequence.draft.extend(drafted.map(|choice| choice.token));
            }
            // One that found no finite logits drafts no more.
            let goes_on = |due: &MtpWork| due.wanted > ahead + 1 && self.running[due.sequence].draft.len() > ahead;
            let rows = (0..due.len()).filter(|&row| goes_on(&due[row]));
            let rows: Vec<_> = rows.map(|row| (&output.hidden, row..row + 1)).collect();
            if rows.is_empty() {
                break;
            }
            hidden = concatenate(&self.execution, &rows);
            due.retain(goes_on);
        }
    }

    /// Whether a sequence that does not draft goes through the layer.
    fn is_due(&self, sequence: usize) -> bool {
        !self.running[sequence].answers() || self.mtp_pending(sequence) >= PAGE
    }

    /// Computed tokens of a sequence that have not gone through the layer.
    pub(crate) fn mtp_pending(&self, sequence: usize) -> usize {
        self.running[sequence].mtp_pending.iter().map(|(_, rows)| rows.len()).sum()
    }

    /// How many tokens to draft for a sequence; its pages have room for what that writes.
    fn prepare_draft(&mut self, place: usize, answering: usize) -> usize {
        let sequence = &self.running[place];
        let wanted = if sequence.answers() { self.draft_len(sequence, answering) } else { 0 };
        let sequence = &mut self.running[place];
        sequence.draft.clear();
        // One page more at most: a draft is not worth somebody's prefix.
        let end = (sequence.computed + wanted).min(sequence.lease.room() + 1);
        if wanted > 1 && self.table.free() > 0 {
            self.table.grow(&mut sequence.lease, end);
        }
        wanted.min(1 + sequence.lease.room() - sequence.computed)
    }

    /// The tokens after the positions that go through the layer.
    fn mtp_inputs(&self, sequence: usize, ahead: usize) -> Vec<u32> {
        let running = &self.running[sequence];
        match ahead {
            0 => {
                let first = running.computed - self.mtp_pending(sequence);
                running.tokens[first + 1..=running.computed].to_vec()
            }
            _ => vec![running.draft[ahead - 1]],
        }
    }
}
