//! Rollouts in an environment: the engine samples the model's turns, and between them the episodes say what comes back.
//!
//! Tokens of an answer are those that were sampled and those of the observations, in the order in which they came; no
//! text is turned into tokens twice. So the context that a token was sampled in is the context that it is learnt in.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use wels_data::tokenizer::{StreamDecoder, Tokenizer};
use wels_device::host::random::Key;
use wels_model::model::Model;
use wels_model::params::Params;
use wels_tasks::{Environment, Episode, Item, Reward, Step, TaskError};

use crate::prompter::Prompter;
use crate::rl::{Rewarded, RlError};
use crate::rollout::{Answer, Partner, Place, Question, Reply, RolloutOptions, converse};

/// Random numbers of episodes, apart from those of their answers.
const STREAM_EPISODE: u64 = 0x6570_6973;

/// Plays `options.samples` episodes of each item, and rewards them.
///
/// # Errors
/// [`RlError`] as described there.
pub(crate) fn play(
    (model, params): (&Arc<Model>, &Arc<Params>),
    environment: &dyn Environment,
    prompter: &Prompter,
    items: &[Item],
    questions: &[Question],
    options: &RolloutOptions,
    watch: &mut dyn FnMut(usize, u64),
) -> Result<Vec<Vec<Rewarded>>, RlError> {
    let mut players = Players::begin(environment, prompter, items, questions, options)?;
    let (answers, _) = converse(model, params, questions, options, &mut players, watch)?;
    players.rewarded(answers)
}

/// An episode and the turn that is being sampled in it.
struct Player<'a> {
    episode: Box<dyn Episode + 'a>,
    decoder: StreamDecoder<&'a Tokenizer>,
    /// The turn's text so far.
    text: String,
    /// Turns that are over.
    turns: usize,
    /// Whether the last turn has come to the episode already.
    stepped: bool,
    reward: Option<Reward>,
}

/// Episodes as the partner of a rollout.
pub struct Players<'a> {
    players: Vec<Vec<Player<'a>>>,
    prompter: &'a Prompter<'a>,
    options: &'a RolloutOptions,
    stops: Vec<String>,
    /// Of the longest stop, bytes.
    longest: usize,
    slow: bool,
}

impl<'a> Players<'a> {
    /// Begins all episodes.
    ///
    /// # Errors
    /// The environment's.
    pub fn begin(
        environment: &'a dyn Environment,
        prompter: &'a Prompter<'a>,
        items: &'a [Item],
        questions: &[Question],
        options: &'a RolloutOptions,
    ) -> Result<Players<'a>, TaskError> {
        let player = |item: &'a Item, seed: u64| -> Result<Player<'a>, TaskError> {
            let (episode, decoder) = (environment.begin(item, seed)?, prompter.tokenizer.stream());
            Ok(Player { episode, decoder, text: String::new(), turns: 0, stepped: false, reward: None })
        };
        let mut players = Vec::new();
        for (item, question) in items.iter().zip(questions) {
            let key = Key { seed: question.seed, stream: STREAM_EPISODE };
            let of_item = (0..options.samples).map(|sample| player(item, key.u64_at(sample as u64)));
            players.push(of_item.collect::<Result<Vec<_>, _>>()?);
        }
        let stops = environment.stops();
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Ok(Players { players, prompter, options, stops, longest, slow: environment.is_slow() })
    }

    /// The answers with their rewards; episodes that were not over are now.
    ///
    /// # Errors
    /// The environment's.
    pub fn rewarded(self, answers: Vec<Vec<Answer>>) -> Result<Vec<Vec<Rewarded>>, RlError> {
        let Players { players, prompter, options, .. } = self;
        let one = |(mut player, answer): (Player, Answer)| -> Result<Rewarded, RlError> {
            let (mut text, mut said) = (String::new(), Vec::new());
            let mut from = 0;
            for range in &answer.given {
                text += &prompter.text(&answer.tokens[from..range.start], &[])?;
                let begin = text.len();
                text += &prompter.text(&answer.tokens[range.clone()], &[])?;
                said.push(begin..text.len());
                from = range.end;
            }
            text += &prompter.text(&answer.tokens[from..], &options.stop_tokens)?;
            let reward = match player.reward.take() {
                Some(reward) => reward,
                None if player.stepped => player.episode.cut("")?,
                None => player.episode.cut(&prompter.text(&answer.tokens[answer.turn()..], &options.stop_tokens)?)?,
            };
            Ok(Rewarded { answer, text, said, reward })
        };
        let groups = players.into_iter().zip(answers);
        groups.map(|(players, answers)| players.into_iter().zip(answers).map(one).collect()).collect()
    }

    fn ended_by_token(&self, turn: &[u32]) -> bool {
        turn.last().is_some_and(|token| self.options.stop_tokens.contains(token))
    }

    /// What the episodes say to these turns. Where that takes its time, they say it at the same time.
    fn step(&mut self, turns: &[(Place, &Answer)], texts: &[String]) -> Vec<Result<Step, TaskError>> {
        let mut all: Vec<Vec<Option<&mut Player<'a>>>> =
            self.players.iter_mut().map(|players| players.iter_mut().map(Some).collect()).collect();
        let wanted = turns.iter().map(|(place, _)| all[place.prompt][place.sample].take().expect("one turn each"));
        let mut wanted: Vec<&mut Player<'a>> = wanted.collect();
        let threads = if self.slow { wels_data::threads().min(turns.len()) } else { 1 };
        if threads == 1 {
            return wanted.iter_mut().zip(texts).map(|(player, text)| player.episode.step(text)).collect();
        }
        type Job<'p, 'a> = Mutex<(&'p mut Player<'a>, Option<Result<Step, TaskError>>)>;
        let jobs: Vec<Job> = wanted.into_iter().map(|player| Mutex::new((player, None))).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(at) else { break };
                let mut job = job.lock().expect("nobody else has it");
                job.1 = Some(job.0.episode.step(&texts[at]));
            }
        };
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        let step = |job: Job| job.into_inner().expect("an episode does not panic").1.expect("every job was taken");
        jobs.into_iter().map(step).collect()
    }
}

impl Partner for Players<'_> {
    type Error = RlError;

    fn ends_turn(&mut self, place: Place, answer: &Answer) -> bool {
        let turn = &answer.tokens[answer.turn()..];
        let player = &mut self.players[place.prompt][place.sample];
        let before = player.text.len();
        // Ids beyond the tokenizer's vocabulary stand for no text.
        player.text += &player.decoder.step(*turn.last().expect("a token was added")).unwrap_or_default();
        let new = player.text.floor_char_boundary(before.saturating_sub(self.longest));
        player.stepped = false;
        self.stops.iter().any(|stop| player.text[new..].contains(stop))
            || self.ended_by_token(turn)
            || turn.len() >= self.options.turn_tokens
    }

    fn replies(&mut self, turns: &[(Place, &Answer)]) -> Result<Vec<Reply>, RlError> {
        let turn = |answer: &&Answer| answer.tokens[answer.turn()..].to_vec();
        let turns_of: Vec<Vec<u32>> = turns.iter().map(|(_, answer)| turn(answer)).collect();
        let text = |turn: &Vec<u32>| self.prompter.text(turn, &self.options.stop_tokens);
        let texts = turns_of.iter().map(text).collect::<Result<Vec<String>, _>>()?;
        // A turn that ends at its limit is one that did not end.
        let ended: Vec<bool> =
            turns_of.iter().zip(turns).map(|(turn, (place, _))| self.has_ended(turn, *place)).collect();
        let over: Vec<usize> = (0..turns.len()).filter(|at| ended[*at]).collect();
        let stepping: Vec<(Place, &Answer)> = over.iter().map(|at| turns[*at]).collect();
        let said: Vec<String> = over.iter().map(|at| texts[*at].clone()).collect();
        let mut steps = self.step(&stepping, &said).into_iter();
        let mut replies = Vec::new();
        for (at, (place, _)) in turns.iter().enumerate() {
            let by_token = self.ended_by_token(&turns_of[at]);
            let (turns_max, prompter) = (self.options.turns, self.prompter);
            let player = &mut self.players[place.prompt][place.sample];
            if !ended[at] {
                player.reward = Some(player.episode.cut(&texts[at])?);
                replies.push(Reply::Cut);
                continue;
            }
            player.stepped = true;
            player.turns += 1;
            replies.push(match steps.next().expect("a step of each turn that has ended")? {
                Step::Done(reward) => {
                    player.reward = Some(reward);
                    Reply::Nothing
                }
                Step::Observation(_) if player.turns >= turns_max => {
                    player.reward = Some(player.episode.cut("")?);
                    Reply::Cut
                }
                Step::Observation(observation) => {
                    player.decoder = prompter.tokenizer.stream();
                    player.text.clear();
                    Reply::Given(prompter.observation(&observation, by_token)?)
                }
            });
        }
        Ok(replies)
    }
}

impl Players<'_> {
    /// Whether a turn ended by what it says, and not at its limit.
    fn has_ended(&self, turn: &[u32], place: Place) -> bool {
        let text = &self.players[place.prompt][place.sample].text;
        self.ended_by_token(turn) || self.stops.iter().any(|stop| text.contains(stop))
    }
}
