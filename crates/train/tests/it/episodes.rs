//! Rollouts in an environment: tokens that it says are seen and never learnt, log-probabilities are the trainer's
//! across turns, nothing is computed twice, and limits end an episode.

use std::sync::Arc;

use wels_data::tokenizer::Tokenizer;
use wels_device::IGNORE;
use wels_device::host::random::Key;
use wels_tasks::task::Grade;
use wels_tasks::{Environment, Episode, Format, Item, Observation, Reason, Reward, Step, Task, TaskError};
use wels_train::episode::Players;
use wels_train::example::{Example, pack};
use wels_train::grpo::{Grpo, Surrogate};
use wels_train::rl::{Prompter, Rewarded, RlOptions, RlReport, answer, learn, sample};
use wels_train::rollout::{Question, RolloutOptions, converse};
use wels_train::trainer::Trainer;

use crate::rl::{Even, bits, options, tokenizer, trainer};

/// Says something behind every `e`, `r` and space; an episode has two to four turns by its seed. Right are episodes of
/// an even number of bytes.
struct Talk;

/// What it says.
const SAID: [&str; 3] = [" under the old bridge", "river", " and "];

impl Task for Talk {
    fn name(&self) -> &str {
        "talk"
    }

    fn len(&self) -> Option<u64> {
        Even.len()
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        Even.item(index)
    }

    fn format(&self) -> Format {
        Even.format()
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        Even.check(item, answer)
    }

    fn environment(&self) -> Option<&dyn Environment> {
        Some(self)
    }
}

impl Environment for Talk {
    fn stops(&self) -> Vec<String> {
        ["e", "r", " "].map(str::to_owned).to_vec()
    }

    fn begin<'a>(&'a self, _: &'a Item, seed: u64) -> Result<Box<dyn Episode + 'a>, TaskError> {
        Ok(Box::new(Talking { turns: 2 + seed as usize % 3, heard: Vec::new() }))
    }
}

struct Talking {
    turns: usize,
    heard: Vec<String>,
}

impl Episode for Talking {
    fn step(&mut self, turn: &str) -> Result<Step, TaskError> {
        self.heard.push(turn.to_owned());
        match self.heard.len() >= self.turns {
            true => Ok(Step::Done(self.cut("")?)),
            false => Ok(Step::Observation(Observation::Text(SAID[self.heard.len() % 3].to_owned()))),
        }
    }

    fn cut(&mut self, turn: &str) -> Result<Reward, TaskError> {
        let bytes = self.heard.concat().len() + turn.len();
        let reason = if bytes.is_multiple_of(2) { Reason::Right } else { Reason::Wrong("odd".into()) };
        let (accuracy, correct) = (f64::from(reason == Reason::Right), reason == Reason::Right);
        let grade = Grade { correct, answer: None, reason };
        Ok(Reward { accuracy, format: 1.0, language: None, fault: None, grade })
    }
}

/// Answers with one turn or more.
fn long(running: usize) -> RlOptions {
    let base = options(running);
    let rollout = RolloutOptions { max_tokens: 28, stop_tokens: vec![1], turn_tokens: 12, ..base.rollout };
    RlOptions { rollout, ..base }
}

/// Episodes of the first items, one set of answers each.
fn episodes(trainer: &Trainer, tokenizer: &Tokenizer, options: &RolloutOptions) -> Vec<(Vec<u32>, Vec<Rewarded>)> {
    let prompter = Prompter { tokenizer, template: None };
    let items: Vec<Item> = (0..3).map(|index| Talk.item(index).unwrap()).collect();
    let params = Arc::new(trainer.state.params.clone());
    let comm = &**trainer.comm();
    let seed = |n: usize| 100 + n as u64;
    let all = answer(comm, trainer.model(), &params, &Talk, &prompter, items, seed, options, &mut |_, _| {}).unwrap();
    all.into_iter().map(|group| (group.prompt, group.answers)).collect()
}

#[test]
fn what_an_environment_says_is_seen_and_not_learnt_and_the_rest_has_the_trainers_bits() {
    let (trainer, tokenizer) = (trainer(), tokenizer());
    let all = episodes(&trainer, &tokenizer, &long(16).rollout);
    for running in [1, 3] {
        assert!(episodes(&trainer, &tokenizer, &long(running).rollout) == all, "{running} at a time");
    }
    let said: Vec<Vec<u32>> = SAID.iter().map(|text| tokenizer.encode_ordinary(text).unwrap()).collect();
    let (mut turns, mut cut) = (0, 0);
    for (prompt, answers) in &all {
        for Rewarded { answer, text, said: bytes, .. } in answers {
            for (nth, range) in answer.given.iter().enumerate() {
                assert_eq!(answer.tokens[range.clone()], said[(nth + 1) % 3], "the environment's own tokens");
                assert_eq!(text[bytes[nth].clone()], *SAID[(nth + 1) % 3]);
                assert!(answer.logprobs[range.clone()].iter().all(|logp| *logp == 0.0));
            }
            let batch = pack(&[Example::episode(prompt, &answer.tokens, &answer.given)]);
            for (place, token) in answer.tokens.iter().enumerate() {
                let given = answer.given.iter().any(|range| range.contains(&place));
                assert_eq!(batch.targets[prompt.len() - 1 + place], if given { IGNORE } else { *token });
            }
            let recomputed = trainer.logprobs(&batch, 64).unwrap();
            let chosen = recomputed.iter().zip(&batch.targets).filter(|(_, target)| **target != IGNORE);
            assert!(chosen.map(|(logp, _)| *logp).eq(answer.chosen_logprobs()), "difference 0 across turns");
            assert_eq!(
                answer.chosen() + answer.given.iter().map(|range| range.len()).sum::<usize>(),
                answer.tokens.len()
            );
            turns += answer.given.len();
            cut += usize::from(answer.truncated);
        }
    }
    let answers = all.iter().map(|(_, answers)| answers.len()).sum::<usize>();
    assert!(turns > 3 && cut > 0 && cut < answers, "{turns} replies and {cut} cuts in {answers} episodes");
}

#[test]
fn no_token_is_computed_twice() {
    let (trainer, tokenizer) = (trainer(), tokenizer());
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    let items: Vec<Item> = (0..3).map(|index| Talk.item(index).unwrap()).collect();
    let question =
        |(n, item): (usize, &Item)| Question { prompt: prompter.tokens(&item.prompt).unwrap(), seed: n as u64 };
    let questions: Vec<Question> = items.iter().enumerate().map(question).collect();
    let options = RolloutOptions { samples: 1, ..long(2).rollout };
    let mut players = Players::begin(&Talk, &prompter, &items, &questions, &options).unwrap();
    let params = Arc::new(trainer.state.params.clone());
    let (answers, counters) =
        converse(trainer.model(), &params, &questions, &options, &mut players, &mut |_, _| {}).unwrap();
    assert!(answers.iter().any(|answers| !answers[0].given.is_empty()));
    // The last token of an answer goes through no model.
    let rows = questions.iter().zip(&answers).map(|(question, it)| question.prompt.len() + it[0].tokens.len() - 1);
    assert_eq!(counters.computed_tokens + counters.cached_tokens, rows.sum::<usize>() as u64);
    let sampled: usize = answers.iter().map(|it| it[0].chosen()).sum();
    let given: usize = questions.iter().map(|question| question.prompt.len()).sum::<usize>()
        + answers.iter().map(|it| it[0].tokens.len() - it[0].chosen()).sum::<usize>();
    assert_eq!((counters.generated_tokens, counters.prompt_tokens), (sampled as u64, given as u64));
}

#[test]
fn limits_end_an_episode() {
    let (trainer, tokenizer) = (trainer(), tokenizer());
    let base = long(16).rollout;
    let of = |options: RolloutOptions| -> Vec<Rewarded> {
        episodes(&trainer, &tokenizer, &options).into_iter().flat_map(|(_, answers)| answers).collect()
    };
    let one = of(RolloutOptions { turns: 1, ..base.clone() });
    assert!(one.iter().all(|it| it.answer.given.is_empty() && it.answer.truncated));
    let two = of(RolloutOptions { turns: 2, ..base.clone() });
    assert!(two.iter().all(|it| it.answer.given.len() <= 1) && two.iter().any(|it| !it.answer.truncated));
    let short = of(RolloutOptions { turn_tokens: 1, ..base.clone() });
    assert!(short.iter().any(|it| it.answer.truncated && it.answer.chosen() == 1));
    for it in of(base.clone()) {
        assert!(it.answer.tokens.len() <= base.max_tokens);
        let longest = it.answer.given.windows(2).map(|pair| pair[1].start - pair[0].end).max().unwrap_or(0);
        assert!(longest <= base.turn_tokens);
    }
    // The context is a limit too.
    let endless = RolloutOptions { max_tokens: 1000, turns: 1000, turn_tokens: 1000, ..base };
    assert!(of(endless).iter().all(|it| it.answer.tokens.len() < crate::rl::CONTEXT));
}

fn run(trainer: &mut Trainer, options: &RlOptions, steps: u64) -> Vec<RlReport> {
    let tokenizer = tokenizer();
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    let mut first = 0;
    let step = |step| {
        let rollout = sample(trainer, &Talk, &prompter, options, 5, first, &mut |_, _| {}).unwrap();
        first += rollout.items;
        learn(trainer, None, &rollout, options, Key { seed: 5, stream: step }).unwrap()
    };
    (0..steps).map(step).collect()
}

#[test]
fn steps_in_an_environment_are_functions_of_seed_and_state() {
    for surrogate in [Surrogate::Token, Surrogate::Sequence, Surrogate::Weight] {
        let base = long(16);
        let options = RlOptions { grpo: Grpo { surrogate, ..base.grpo }, mini_batches: 2, ..base };
        let (mut whole, mut again) = (trainer(), trainer());
        let reports = run(&mut whole, &options, 3);
        assert!(reports.iter().all(|report| report.logprob_difference_max == 0.0 && report.turns > 1.0));
        assert!(reports.iter().any(|report| report.updates.len() == 2 && report.observed > 0.0), "nothing was learnt");
        let rollout = RolloutOptions { running: 3, ..options.rollout.clone() };
        let other = RlOptions { rollout, micro_rows: 17, ..options.clone() };
        assert!(run(&mut again, &other, 3) == reports);
        assert!(bits(&whole) == bits(&again));
        // Sampled are the model's tokens alone; learnt from is all that they stand behind.
        let report = &reports[0];
        assert_eq!(report.sampled_tokens as f64, (report.length * 20.0).round());
        assert!(report.learned_tokens as f64 > report.policy.tokens as f64 + report.observed);
    }
}
