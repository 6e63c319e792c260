//! Stages of kind `vq`: a VQ tokenizer learns to make codes of pictures and pictures of codes, or its decoder alone.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::janus::Vq;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::picture::Rgb;
use wels_model::tape::Execution;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::pictures::vq_flops;
use wels_runs::plan::stages::TokenFlops;
use wels_runs::recipe::{CodesOf, StageSection, VqLearns, VqTraining};
use wels_runs::report::SHEET;
use wels_runs::rundir::RunError;
use wels_train::example::shuffled as order;
use wels_train::vq::{VqHyperparameters, VqReport, VqTrainer};

use super::data::{Order, PictureSet, pixels, rows_of_pixels};
use super::drawer::decoded;
use super::patches::Clusters;
use super::sheet::sheet;
use super::state::{self, VqBegin, VqLearner};
use crate::hyper::{of_stage, stage_execution};
use crate::rank::Rank;
use crate::session::Session;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// Streams of the run's seed.
const STREAM_ORDER: u64 = 0x7671_6f72;
const STREAM_SHUFFLE: u64 = 0x7671_7368;
const STREAM_CLUSTERS: u64 = 0x7671_636c;
/// Pictures of a sheet.
const SHOWN: usize = 6;

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
    /// Share of latents that are nearest to their code, where the encoder learns.
    #[serde(skip_serializing_if = "Option::is_none")]
    codes_found: Option<f64>,
    /// Of the batch's codes, in nats.
    code_entropy: f64,
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

/// Where a step's codes come from.
enum Codes {
    Nearest,
    /// Of clusters, which the encoder learns to find.
    Clusters(Clusters),
    /// Of an encoder that stays, of each picture that was looked at so far.
    Kept(Vec<Option<Vec<u32>>>),
}

/// A stage under way.
pub(crate) struct VqLearning {
    learner: VqLearner,
    execution: Execution,
    pictures: PictureSet,
    order: Order,
    codes: Codes,
    batch: usize,
    micro: usize,
    shuffle: f64,
    seed: u64,
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
        let mut trainer = VqTrainer::new(&config.vq, state, hyperparameters(of, seed), execution.clone());
        let codes = match (of.learns, of.codes_of) {
            (VqLearns::Decoder, _) => Codes::Kept(vec![None; pictures.len()]),
            (VqLearns::All, CodesOf::Latents) => Codes::Nearest,
            (VqLearns::All, CodesOf::Patches) => Codes::Clusters(clusters(&config, &pictures, seed)?),
        };
        // Codes that lie as their patches do are found by an encoder that does next to nothing.
        if let (Codes::Clusters(clusters), None, None) = (&codes, latest, &of.from)
            && let Some(places) = clusters.places(config.vq.code_dim)
        {
            trainer.place_codes(&places);
        }
        Ok(VqLearning {
            order: Order::new(pictures.len(), Key { seed, stream: STREAM_ORDER }),
            codes,
            learner: VqLearner { trainer, config },
            execution,
            pictures,
            batch: of.batch,
            shuffle: of.shuffle,
            seed,
            micro: of.micro_pictures,
        })
    }

    fn config(&self) -> &JanusConfig {
        &self.learner.config
    }

    /// The pixels of number `n` of all pictures that come, its patches in random order if that falls to it.
    fn perhaps_shuffled(&self, pixels: Vec<f32>, n: u64) -> Vec<f32> {
        let vq = &self.config().vq;
        let key = Key { seed: self.seed, stream: STREAM_SHUFFLE };
        match key.uniform_at(n) < self.shuffle {
            true => shuffled(&pixels, vq.image_size(), vq.grid, Key { stream: key.u64_at(n), ..key }),
            false => pixels,
        }
    }

    /// The pixels of the pictures of a step, the first of them number `first` of all, with their codes where these are
    /// given.
    fn batch(&mut self, first: u64) -> Result<(Vec<f32>, Vec<u32>)> {
        let (side, grid) = (self.config().vq.image_size(), self.config().vq.grid);
        // Only to encode with, where nothing of it changes.
        let vq = matches!(self.codes, Codes::Kept(_)).then(|| self.learner.trainer.tokenizer());
        let (mut all, mut all_codes) = (Vec::new(), Vec::new());
        for n in first..first + self.batch as u64 {
            let number = self.order.at(n);
            let picture = self.pictures.picture(number)?;
            let mut rows = self.perhaps_shuffled(rows_of_pixels(&picture, side), n);
            match &mut self.codes {
                Codes::Nearest => {}
                Codes::Clusters(clusters) => all_codes.extend(clusters.codes(&bytes(&rows), side, grid)),
                Codes::Kept(codes) => {
                    let encode = |vq: &Vq| vq.encode(&self.execution, &pixels(&picture, side));
                    let codes = codes[number].get_or_insert_with(|| vq.as_ref().map(encode).unwrap_or_default());
                    all_codes.extend_from_slice(codes);
                }
            }
            all.append(&mut rows);
        }
        Ok((all, all_codes))
    }
}

/// Numbers from −1 to 1 as the bytes that they are of.
fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().map(|x| ((x + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8).collect()
}

/// Of the patches of all pictures.
fn clusters(config: &JanusConfig, pictures: &PictureSet, seed: u64) -> Result<Clusters> {
    let vq = &config.vq;
    let (side, key) = (vq.image_size(), Key { seed, stream: STREAM_CLUSTERS });
    let all = (0..pictures.len()).map(|number| Ok(bytes(&rows_of_pixels(&pictures.picture(number)?, side))));
    Clusters::of(all, (side, vq.grid), vq.codes, key)
}

/// Pixels `[side², channels]` whose patches, `grid` on a side, come in random order.
fn shuffled(pixels: &[f32], side: usize, grid: usize, key: Key) -> Vec<f32> {
    let (patch, channels) = (side / grid, pixels.len() / (side * side));
    let row = |place: usize, y: usize| ((place / grid * patch + y) * side + place % grid * patch) * channels;
    let mut out = vec![0.0; pixels.len()];
    for (to, from) in order(grid * grid, key).into_iter().enumerate() {
        for y in 0..patch {
            out[row(to, y)..][..patch * channels].copy_from_slice(&pixels[row(from, y)..][..patch * channels]);
        }
    }
    out
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
        let (batch, codes) = self.batch(at.items)?;
        let trainer = &mut self.learner.trainer;
        let report = match self.codes {
            Codes::Nearest => trainer.step(&batch, self.micro)?,
            Codes::Clusters(_) => trainer.step_towards(&batch, &codes, self.micro)?,
            Codes::Kept(_) => trainer.step_decoder(&batch, &codes, self.micro)?,
        };
        let tokens = (self.batch * self.config().vq.tokens()) as u64;
        let position = Position {
            step: at.step + 1,
            updates: at.updates + 1,
            tokens: at.tokens + tokens,
            items: at.items + self.batch as u64,
            ..at
        };
        let line = VqMetrics::new(&report, position, tokens, started.elapsed().as_secs_f64());
        let codes_found = (!matches!(self.codes, Codes::Kept(_))).then_some(report.found);
        Ok((position, VqMetrics { codes_found, ..line }))
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
        let found = line.codes_found.map_or(String::new(), |found| format!("{:.1}% found, ", 100.0 * found));
        let (entropy, rate) = (line.code_entropy, short(*tokens_per_second));
        format!("PSNR {psnr:.1} dB, {codes_used} codes in use, of {entropy:.2} nats, {found}{rate} codes/s")
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
            codes_found: None,
            code_entropy: report.entropy,
            codes_restarted: report.restarted,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_moved_whole() {
        let (side, grid) = (6, 3);
        // Each number says where it comes from: patch, row, column, channel.
        let number = |at: usize| {
            let (y, x) = (at / 2 / side, at / 2 % side);
            (((y / 2 * grid + x / 2) * 2 + y % 2) * 2 + x % 2) as f32 * 2.0 + (at % 2) as f32
        };
        let pixels: Vec<f32> = (0..2 * side * side).map(number).collect();
        let moved = shuffled(&pixels, side, grid, Key { seed: 1, stream: 2 });
        assert_ne!(moved, pixels);
        let mut places = Vec::new();
        for (at, (was, is)) in pixels.iter().zip(&moved).enumerate() {
            assert_eq!(was % 8.0, is % 8.0, "number {at}: a row, column or channel of a patch has changed");
            places.push((was / 8.0) as usize * 100 + (is / 8.0) as usize);
        }
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), grid * grid, "a patch went to two places");
    }
}
