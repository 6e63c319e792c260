//! Where an answer's thinking ends: what constrains the answer begins there, and a budget of thinking ends it.

use crate::constraint::{Broken, Guide};
use crate::request::Thinking;

/// Follows the thinking of one answer.
pub(crate) struct Thinker {
    thinking: Thinking,
    phase: Phase,
    /// Only the end of the thinking, of all tokens.
    end_alone: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the first token, which may begin the thinking.
    Undecided,
    /// So many tokens have been thought.
    Within(usize),
    Answering,
}

impl Thinker {
    /// For a vocabulary of `vocab_size` tokens, of which both are.
    pub fn new(thinking: Thinking, vocab_size: usize) -> Thinker {
        let phase = if thinking.begun { Phase::Within(0) } else { Phase::Undecided };
        let mut end_alone = vec![0; vocab_size.div_ceil(32)];
        end_alone[thinking.end as usize / 32] |= 1 << (thinking.end % 32);
        Thinker { thinking, phase, end_alone }
    }

    /// The tokens that may come next, as [`Guide::allowed`] has them; `None` for all. What the guide allows counts once
    /// the answer has begun.
    pub fn allowed<'a>(&'a self, guide: Option<&'a mut Guide>, stop: &[u32]) -> Result<Option<&'a [u32]>, Broken> {
        match (self.phase, guide) {
            (Phase::Within(thought), _) => {
                let spent = self.thinking.budget.is_some_and(|budget| thought >= budget);
                Ok(spent.then_some(&self.end_alone))
            }
            (Phase::Undecided, Some(guide)) => guide.allowed_or(stop, self.thinking.begin).map(Some),
            (Phase::Answering, Some(guide)) => guide.allowed(stop).map(Some),
            (_, None) => Ok(None),
        }
    }

    /// Follows a token. Whether it belongs to the answer.
    pub fn push(&mut self, token: u32) -> bool {
        let (phase, answers) = match self.phase {
            Phase::Undecided if Some(token) == self.thinking.begin => (Phase::Within(0), false),
            Phase::Within(_) if token == self.thinking.end => (Phase::Answering, false),
            Phase::Within(thought) => (Phase::Within(thought + 1), false),
            Phase::Undecided | Phase::Answering => (Phase::Answering, true),
        };
        self.phase = phase;
        answers
    }
}
