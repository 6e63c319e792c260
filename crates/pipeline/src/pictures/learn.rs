//! Stages of kind `janus`: pictures to draw after their captions, answers to questions about pictures, and captions as
//! text, in one batch. Codes are those of a VQ tokenizer that stays as it is; a picture's are computed once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::network::Sight;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::pictures::{janus_flops, rows_of_step};
use wels_runs::plan::stages::TokenFlops;
use wels_runs::recipe::{AnswerForm, JanusLearns, JanusTraining, StageSection};
use wels_runs::report::SHEET;
use wels_runs::rundir::RunError;
use wels_scenes::Question;
use wels_train::janus::{JanusExample, JanusReport, JanusTrainer, Weights, pack, trainer, without_captions};

use super::data::{Order, PictureSet, pixels};
use super::drawer::{Choice, Drawer};
use super::prompts::Prompts;
use super::sheet::sheet;
use super::state::{self, JanusStart, Learner};
use crate::host::Event;
use crate::hyper::{of_stage, rule, stage_execution};
use crate::rank::Rank;
use crate::refusal::refuse;
use crate::session::Session;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// Streams of the run's seed.
const STREAM_ORDER: u64 = 0x6a61_6f72;
const STREAM_QUESTIONS: u64 = 0x6a61_7175;
const STREAM_TEXTS: u64 = 0x6a61_7478;
const STREAM_DROPPED: u64 = 0x6a61_6472;

/// Pictures of a sheet, and in a row of it.
pub(super) const SHOWN: usize = 18;
pub(super) const COLUMNS: usize = 6;

/// One line of `metrics.jsonl`; the last two depend on the machine.
#[derive(Serialize)]
pub(crate) struct JanusMetrics {
    #[serde(flatten)]
    position: Position,
    /// Nats a token of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    /// Nats a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    code_loss: Option<f64>,
    grad_norm: f64,
    learning_rate: f64,
    seconds: f64,
    tokens_per_second: f64,
}

/// Does what is left of the stage.
pub(crate) fn janus(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    of: &JanusTraining,
) -> Result<()> {
    let config = state::config_of(&session.rank.run, &of.from)?;
    let at = Stage {
        name: &stage.name,
        label: "learn",
        tokenizer,
        checkpoints: &of.optimization.checkpoints,
        steps: of.steps,
        samples: false,
        flops: TokenFlops::counted(janus_flops(&config, of)),
    };
    let Some((running, latest)) = at.open(session)? else { return Ok(()) };
    let learning = JanusLearning::begin(&session.rank, tokenizer, stage, of, latest.as_ref())?;
    for note in &learning.notes {
        session.host.event(Event::Note(note));
    }
    running.run(session, learning)
}

/// A stage under way.
pub(crate) struct JanusLearning<'a> {
    learner: Learner,
    prompts: Prompts<'a>,
    pictures: PictureSet,
    order: Order,
    /// Of each picture, once it was drawn.
    codes: Vec<Option<Vec<u32>>>,
    of: JanusTraining,
    seed: u64,
    notes: Vec<String>,
}

impl<'a> JanusLearning<'a> {
    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(
        rank: &Rank,
        tokenizer: &'a Tokenizer,
        stage: &StageSection,
        of: &JanusTraining,
        latest: Option<&Checkpoint>,
    ) -> Result<JanusLearning<'a>> {
        let JanusStart { config, state, vq, notes } =
            state::janus(rank, &of.from, tokenizer, latest, rule(&of.optimization.optimizer))?;
        let seed = rank.run.recipe().run.seed;
        let (prompts, pictures) = (Prompts::new(tokenizer, &config)?, PictureSet::open(&of.data, seed)?);
        let trainer = begin_trainer(config, state, of, stage_execution(stage.precision, &rank.device));
        Ok(JanusLearning {
            order: Order::new(pictures.len(), Key { seed, stream: STREAM_ORDER }),
            codes: vec![None; pictures.len()],
            learner: Learner { trainer, vq },
            prompts,
            pictures,
            of: of.clone(),
            seed,
            notes: notes.iter().map(ToString::to_string).collect(),
        })
    }

    fn config(&self) -> &JanusConfig {
        self.learner.trainer.network().config()
    }

    /// The examples of the step behind `at`.
    fn examples(&mut self, at: Position) -> Result<Vec<JanusExample>> {
        let JanusTraining { draws, questions, texts, unconditional, .. } = self.of;
        let mut examples = (at.items..at.items + draws as u64).map(|n| self.draw(n)).collect::<Result<Vec<_>>>()?;
        let key = Key { seed: self.seed, stream: STREAM_DROPPED };
        without_captions(&mut examples, unconditional, self.prompts.around.pad, key, at.items);
        for question in 0..questions as u64 {
            let choice = Key { seed: self.seed, stream: STREAM_QUESTIONS ^ (at.step << 24) ^ question };
            let number = choice.below_at(2, self.pictures.len() as u64) as usize;
            let Some((picture, asked)) = self.pictures.questions(number, self.of.turns, choice) else { continue };
            examples.push(self.prompts.see(self.config(), &picture, &answered(asked, self.of.answers))?);
        }
        for text in 0..texts as u64 {
            let choice = Key { seed: self.seed, stream: STREAM_TEXTS ^ (at.step << 24) };
            let number = choice.below_at(text, self.pictures.len() as u64) as usize;
            examples.push(self.prompts.text(&self.pictures.caption(number))?);
        }
        let context = self.config().text.rope.max_positions;
        match examples.iter().map(JanusExample::rows).max() {
            Some(longest) if longest > context => {
                let message =
                    format!("a picture with its words has {longest} tokens, and the model's context {context}");
                let hint =
                    "fewer stage.turns, shorter captions, or max_position_embeddings in the [model] it is made of";
                Err(refuse(message, hint))
            }
            _ => Ok(examples),
        }
    }

    /// Number `n` of all pictures that are to be drawn.
    fn draw(&mut self, n: u64) -> Result<JanusExample> {
        let number = self.order.at(n);
        if self.codes[number].is_none() {
            let pixels = pixels(&self.pictures.picture(number)?, self.config().vq.image_size());
            self.codes[number] = Some(self.learner.vq.encode(self.learner.trainer.execution(), &pixels));
        }
        let codes = self.codes[number].clone().unwrap_or_default();
        Ok(JanusExample::Draw { prompt: self.prompts.draw(&self.pictures.caption(number))?, codes })
    }
}

/// Questions with their answers, as one conversation has them: what was seen is said once.
fn answered(questions: Vec<Question>, form: AnswerForm) -> Vec<(String, String)> {
    let mut said: BTreeSet<String> = BTreeSet::new();
    let answered = |question: Question| {
        let new = form == AnswerForm::Reasoned && said.insert(question.seen.clone());
        let answer = if new { question.reasoned() } else { question.answer.clone() };
        said.insert(question.answer);
        (question.text, answer)
    };
    questions.into_iter().map(answered).collect()
}

/// The trainer of a section, with what does not learn frozen.
fn begin_trainer(
    config: JanusConfig,
    state: wels_train::trainer::State,
    of: &JanusTraining,
    execution: wels_model::tape::Execution,
) -> JanusTrainer {
    let hyper = of_stage(&of.optimization, of.steps);
    let (text, context) = (config.text.clone(), config.text.rope.max_positions);
    let mut trainer = JanusTrainer::new(config, Sight::Patches, context, state, hyper, execution);
    let of_tower = |name: &str| name.starts_with("model.vision_model.");
    match of.learns {
        JanusLearns::All => {}
        JanusLearns::Adaptors => trainer.freeze(|name| of_tower(name) || trainer::is_language(&text, name)),
        JanusLearns::Language => trainer.freeze(of_tower),
    }
    trainer
}

impl Training for JanusLearning<'_> {
    type Metrics = JanusMetrics;

    fn step(&mut self, at: Position) -> Result<(Position, JanusMetrics)> {
        let started = Instant::now();
        let batch = pack(&self.examples(at)?);
        let weights = Weights { text: self.of.text_weight, codes: self.of.code_weight };
        let report = self.learner.trainer.step(&batch, self.of.optimization.micro_rows, weights)?;
        let tokens = batch.inputs.len() as u64;
        let position = Position {
            step: at.step + 1,
            updates: at.updates + 1,
            tokens: at.tokens + tokens,
            items: at.items + self.of.draws as u64,
            ..at
        };
        Ok((position, JanusMetrics::new(&report, position, tokens, started.elapsed().as_secs_f64())))
    }

    fn trained(&self) -> &dyn Trained {
        &self.learner
    }

    fn next_tokens(&self, _at: Position) -> Option<u64> {
        Some(rows_of_step(self.config(), &self.of))
    }

    /// What is drawn to the first captions.
    fn save(&self, folder: &Path) -> Result<()> {
        let numbers = (0..self.pictures.len()).take(SHOWN);
        let prompts = numbers.map(|number| self.prompts.draw(&self.pictures.caption(number)));
        write_sheet(folder, &self.learner, &prompts.collect::<Result<Vec<_>>>()?, self.prompts.around.pad)
    }

    fn in_words(&self, line: &JanusMetrics) -> String {
        let part = |loss: Option<f64>, of: &str| loss.map_or(String::new(), |loss| format!("{loss:.3} nats a {of}, "));
        let (codes, text) = (part(line.code_loss, "code"), part(line.loss, "token"));
        format!("{codes}{text}{} tok/s", short(line.tokens_per_second))
    }
}

/// Writes what a model draws to some prompts into a checkpoint's folder.
pub(super) fn write_sheet(folder: &Path, learner: &Learner, prompts: &[Vec<u32>], pad: u32) -> Result<()> {
    let Learner { trainer, vq } = learner;
    let (network, execution) = (trainer.network(), trainer.execution());
    let drawer = Drawer { network, params: &trainer.state.params, execution, vq };
    let seeds: Vec<u64> = (0..prompts.len() as u64).collect();
    let drawn = drawer.draw(prompts, &seeds, Choice { temperature: 1.0, guidance: 1.0, pad })?;
    let path = folder.join(SHEET);
    Ok(fs::write(&path, sheet(&drawn, COLUMNS)).map_err(RunError::io("write", &path))?)
}

impl JanusMetrics {
    fn new(report: &JanusReport, position: Position, tokens: u64, seconds: f64) -> JanusMetrics {
        let mean = |nll: &wels_model::model::Nll| (nll.tokens > 0).then(|| nll.mean());
        JanusMetrics {
            position,
            loss: mean(&report.text),
            code_loss: mean(&report.codes),
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        }
    }
}
