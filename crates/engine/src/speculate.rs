//! Speculative decoding: how many tokens to draft, and from where without a model.
//!
//! Drafted tokens go through the model behind the tokens that are known, in the same pass. The token chosen at each
//! place is the one that would have been chosen anyway, so a drafted token that differs from it and all after it are
//! dropped: speculation changes the speed and nothing else.

/// The longest run of tokens compared when looking for a place to copy from.
const MATCH_MAX: usize = 8;
/// The shortest that counts.
const MATCH_MIN: usize = 3;
/// A drafted token must be accepted with this probability, by what was accepted so far, to be worth its pass.
const WORTH: f32 = 0.4;
/// Share of the newest drafted token in the estimate.
const RENEWAL: f32 = 0.15;
/// When drafts are not worth it, a token is tried each so many tokens.
const RETRY: u32 = 16;

/// How many tokens to draft for one sequence.
#[derive(Clone, Debug)]
pub(crate) struct DraftController {
    /// Estimated probability that a drafted token is accepted.
    right: f32,
    /// Tokens since the last draft.
    since: u32,
}

impl DraftController {
    pub fn new() -> Self {
        DraftController { right: 0.75, since: 0 }
    }

    /// How many to draft now: as long as the last of them is accepted often enough.
    pub fn len(&self, most: usize) -> usize {
        let mut chance = self.right;
        let mut len = 0;
        while len < most && chance >= WORTH {
            len += 1;
            chance *= self.right;
        }
        if len == 0 && self.since >= RETRY { most.min(1) } else { len }
    }

    /// Learns from a pass: of `drafted` tokens the first `accepted` were accepted.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.since += 1;
            return;
        }
        self.since = 0;
        // Those behind the first wrong one say nothing.
        let outcomes = std::iter::repeat_n(1.0, accepted).chain((accepted < drafted).then_some(0.0));
        self.right = outcomes.fold(self.right, |right, outcome| right + (outcome - right) * RENEWAL);
    }
}

/// Up to `count` tokens that followed, earlier in the text, the longest run of tokens with which it now ends; of equal
/// runs the latest. None if that is shorter than three tokens.
pub(crate) fn lookup(tokens: &[u32], count: usize) -> &[u32] {
    let mut best = (MATCH_MIN - 1, 0);
    for end in (MATCH_MIN..tokens.len()).rev() {
        let same = tokens[..end].iter().rev().zip(tokens.iter().rev()).take(MATCH_MAX).take_while(|(a, b)| a == b);
        let len = same.count();
        if len > best.0 {
            best = (len, end);
            if len == MATCH_MAX {
                break;
            }
        }
    }
    match best {
        (_, 0) => &[],
        (_, end) => &tokens[end..tokens.len().min(end + count)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_run_is_copied() {
        assert_eq!(lookup(&[1, 2, 3, 4, 9, 1, 2, 3], 2), [4, 9]);
        assert_eq!(lookup(&[7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 1, 2, 3], 1), [4], "the longer run");
        assert_eq!(lookup(&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1), [5], "the latest of equal ones");
        assert_eq!(lookup(&[1, 2, 9, 1, 2], 3), [0; 0], "too short");
        assert_eq!(lookup(&[5, 5, 5, 5, 5], 3), [5], "a run may overlap");
        assert_eq!(lookup(&[], 3), [0; 0]);
    }

    #[test]
    fn drafts_are_as_long_as_pays() {
        let mut drafting = DraftController::new();
        (0..50).for_each(|_| drafting.learn(4, 4));
        assert_eq!(drafting.len(8), 8);
        (0..50).for_each(|_| drafting.learn(4, 0));
        assert_eq!(drafting.len(8), 0);
        (0..RETRY).for_each(|_| drafting.learn(0, 0));
        assert_eq!((drafting.len(8), drafting.len(0)), (1, 0));
        (0..50).for_each(|_| drafting.learn(2, 1));
        assert_eq!(drafting.len(8), 1, "half of them right");
    }
}
