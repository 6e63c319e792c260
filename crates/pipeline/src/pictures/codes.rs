//! Stages of kind `vq`: a VQ tokenizer learns to make codes of pictures and pictures of codes, or its decoder alone.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::picture::Rgb;
use wels_model::tape::Execution;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::pictures::vq_flops;
use wels_runs::plan::stages::TokenFlops;
use wels_runs::recipe::{StageSection, VqLearns, VqTraining};
use wels_runs::rundir::RunError;
use wels_train::vq::{VqHyperparameters, VqReport, VqTrainer};

use super::data::{Order, PictureSet, pixels, rows_of_pixels};
use super::drawer::decoded;
use super::sheet::{SHEET, sheet};
use super::state::{self, VqBegin, VqLearner};
use crate::hyper::{of_stage, stage_execution};
use crate::rank::Rank;
use crate::session::Session;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// Stream of the run's seed that orders pictures.
const STREAM_ORDER: u64 = 0x7671_6f72;
/// Pictures of a sheet.
const SHOWN: usize = 10;

/// One line of `metrics.jsonl`; the last two depend on the machine.
#[derive(Serialize)]
pub(crate) struct VqMetrics {
    #[serde(flatten)]
    position: Position,
    absolute: f64,
    squared: f64,
    /// Of the batch's pictures, in dB, of pixels from 0 to 255.
    psnr: f64,
    distance: f64,
    codes_used: usize,
    codes_restarted: usize,
    grad_norm: f64,
    learning_rate: f64,
    seconds: f64,
    tokens_per_second: f64,
}

/// Does what is left of the stage.
pub(crate) fn vq(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection, of: &VqTraining) -> Result<()> {
    let config = state::config_of_vq(&session.rank.run, of.from.as_deref())?;
    let at = Stage {
        name: &stage.name,
        label: "codes",
        tokenizer,
        checkpoints: &of.optimization.checkpoints,
        steps: of.steps,
        samples: false,
        flops: TokenFlops::counted(vq_flops(&config, of.learns)),
    };
    let Some((running, latest)) = at.open(session)? else { return Ok(()) };
    let learning = VqLearning::begin(&session.rank, stage, of, latest.as_ref())?;
    running.run(session, learning)
}

/// A stage under way.
pub(crate) struct VqLearning {
    learner: VqLearner,
    execution: Execution,
    pictures: PictureSet,
    order: Order,
    /// Of each picture that was looked at so far, where the decoder alone learns.
    codes: Option<Vec<Option<Vec<u32>>>>,
    batch: usize,
    micro: usize,
}

impl VqLearning {
    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(
        rank: &Rank,
        stage: &StageSection,
        of: &VqTraining,
        latest: Option<&Checkpoint>,
    ) -> Result<VqLearning> {
        let VqBegin { config, state } = state::vq(rank, of.from.as_deref(), latest)?;
        let seed = rank.run.recipe().run.seed;
        let pictures = PictureSet::open(&of.data, seed)?;
        let execution = stage_execution(stage.precision, &rank.device);
        let trainer = VqTrainer::new(&config.vq, state, hyperparameters(of, seed), execution.clone());
        Ok(VqLearning {
            order: Order::new(pictures.len(), Key { seed, stream: STREAM_ORDER }),
            codes: (of.learns == VqLearns::Decoder).then(|| vec![None; pictures.len()]),
            learner: VqLearner { trainer, config },
            execution,
            pictures,
            batch: of.batch,
            micro: of.micro_pictures,
        })
    }

    fn config(&self) -> &JanusConfig {
        &self.learner.config
    }

    /// The codes of some pictures, by an encoder that stays as it is.
    fn codes_of(&mut self, chosen: &[usize]) -> Result<Option<Vec<u32>>> {
        let Some(codes) = &mut self.codes else { return Ok(None) };
        let side = self.learner.config.vq.image_size();
        let vq = self.learner.trainer.tokenizer();
        let mut all = Vec::new();
        for &number in chosen {
            if codes[number].is_none() {
                let picture = self.pictures.picture(number)?;
                codes[number] = Some(vq.encode(&self.execution, &pixels(&picture, side)));
            }
            all.extend(codes[number].iter().flatten());
        }
        Ok(Some(all))
    }
}

/// The section, as a step takes it.
fn hyperparameters(of: &VqTraining, seed: u64) -> VqHyperparameters {
    let hyper = of_stage(&of.optimization, of.steps);
    VqHyperparameters {
        learning_rate: hyper.learning_rate,
        beta1: hyper.beta1,
        beta2: hyper.beta2,
        epsilon: hyper.epsilon,
        clip_norm: hyper.clip_norm,
        l1: of.l1 as f32,
        l2: of.l2 as f32,
        commitment: of.commitment as f32,
        dead_after: of.dead_after,
        seed,
    }
}

impl Training for VqLearning {
    type Metrics = VqMetrics;

    fn step(&mut self, at: Position) -> Result<(Position, VqMetrics)> {
        let started = Instant::now();
        let side = self.config().vq.image_size();
        let chosen: Vec<usize> = (at.items..at.items + self.batch as u64).map(|n| self.order.at(n)).collect();
        let mut batch = Vec::new();
        for &number in &chosen {
            batch.extend(rows_of_pixels(&self.pictures.picture(number)?, side));
        }
        let codes = self.codes_of(&chosen)?;
        let trainer = &mut self.learner.trainer;
        let report = match codes {
            None => trainer.step(&batch, self.micro)?,
            Some(codes) => trainer.step_decoder(&batch, &codes, self.micro)?,
        };
        let tokens = (self.batch * self.config().vq.tokens()) as u64;
        let position = Position {
            step: at.step + 1,
            updates: at.updates + 1,
            tokens: at.tokens + tokens,
            items: at.items + self.batch as u64,
            ..at
        };
        Ok((position, VqMetrics::new(&report, position, tokens, started.elapsed().as_secs_f64())))
    }

    fn trained(&self) -> &dyn Trained {
        &self.learner
    }

    fn next_tokens(&self, _at: Position) -> Option<u64> {
        Some((self.batch * self.config().vq.tokens()) as u64)
    }

    /// Pictures, and what becomes of them.
    fn save(&self, folder: &Path) -> Result<()> {
        let (vq, side) = (self.learner.trainer.tokenizer(), self.config().vq.image_size());
        let numbers = (0..self.pictures.len()).take(SHOWN);
        let shown = numbers.map(|number| self.pictures.picture(number)).collect::<Result<Vec<Rgb>>>()?;
        let planes: Vec<Vec<f32>> = shown.iter().map(|picture| pixels(picture, side)).collect();
        let again = planes.iter().map(|planes| decoded(&vq, &self.execution, &vq.encode(&self.execution, planes)));
        let before = planes.iter().map(|planes| wels_model::janus::picture::from_pixels(planes, side));
        let rows: Vec<Rgb> = before.chain(again).collect();
        let path = folder.join(SHEET);
        Ok(fs::write(&path, sheet(&rows, shown.len())).map_err(RunError::io("write", &path))?)
    }

    fn in_words(&self, line: &VqMetrics) -> String {
        let VqMetrics { psnr, codes_used, tokens_per_second, .. } = line;
        format!("PSNR {psnr:.1} dB, {codes_used} codes in use, {} codes/s", short(*tokens_per_second))
    }
}

impl VqMetrics {
    fn new(report: &VqReport, position: Position, tokens: u64, seconds: f64) -> VqMetrics {
        VqMetrics {
            position,
            absolute: report.absolute,
            squared: report.squared,
            // White and black are 2 apart.
            psnr: 10.0 * (4.0 / report.squared.max(1e-12)).log10(),
            distance: report.distance,
            codes_used: report.used,
            codes_restarted: report.restarted,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        }
    }
}
