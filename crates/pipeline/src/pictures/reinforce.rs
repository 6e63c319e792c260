//! Stages of kind `draw_rl`: pictures drawn to captions of a world, graded exactly, and learnt from by GRPO.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_data::tokenizer::Tokenizer;
use wels_model::janus::network::Sight;
use wels_model::params::Params;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::pictures::draw_flops;
use wels_runs::recipe::{AdvantageScale, DrawRl, StageSection};
use wels_scenes::{Kind, Scene, Split, World};
use wels_train::grpo::{Aggregation, Grpo, Overlong, Scale, Surrogate};
use wels_train::janus::JanusTrainer;
use wels_train::janus::policy::{self, PictureOptions, PictureReport};

use super::data::{Purpose, check_side, passes, scene, seed, world};
use super::drawer::decoded;
use super::learn::{SHOWN, write_sheet};
use super::prompts::Prompts;
use super::state::{self, JanusStart, Learner};
use crate::hyper::{of_stage, rule, stage_execution};
use crate::rank::Rank;
use crate::session::Session;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// One line of `metrics.jsonl`; the last two depend on the machine.
#[derive(Serialize)]
pub(crate) struct DrawMetrics {
    #[serde(flatten)]
    position: Position,
    reward: f64,
    /// Share of captions whose pictures all earned the same.
    dead_groups: f64,
    loss: f64,
    kl: f64,
    clipped_high: f64,
    clipped_low: f64,
    logprob_difference_max: f64,
    grad_norm: f64,
    seconds: f64,
    tokens_per_second: f64,
}

/// Does what is left of the stage.
pub(crate) fn reinforce(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection, of: &DrawRl) -> Result<()> {
    let config = state::config_of(&session.rank.run, &of.from)?;
    let at = Stage {
        name: &stage.name,
        label: "draw",
        tokenizer,
        checkpoints: &of.optimization.checkpoints,
        steps: of.steps,
        samples: true,
        flops: draw_flops(&config, of),
    };
    let Some((running, latest)) = at.open(session)? else { return Ok(()) };
    let drawing = Drawing::begin(&session.rank, tokenizer, stage, of, latest.as_ref())?;
    running.run(session, drawing)
}

/// A stage under way.
pub(crate) struct Drawing<'a> {
    learner: Learner,
    /// The weights that KL is measured from: those that the stage began with.
    reference: Option<Params>,
    prompts: Prompts<'a>,
    world: World,
    of: DrawRl,
    options: PictureOptions,
    seed: u64,
}

impl<'a> Drawing<'a> {
    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(
        rank: &Rank,
        tokenizer: &'a Tokenizer,
        stage: &StageSection,
        of: &DrawRl,
        latest: Option<&Checkpoint>,
    ) -> Result<Drawing<'a>> {
        let rule = rule(&of.optimization.optimizer);
        let JanusStart { config, state, vq, .. } = state::janus(rank, &of.from, tokenizer, latest, rule)?;
        let world = world(&of.pictures)?;
        check_side(&config, &world)?;
        let reference = match of.kl > 0.0 {
            true => Some(state::janus(rank, &of.from, tokenizer, None, rule)?.state.params),
            false => None,
        };
        let prompts = Prompts::new(tokenizer, &config)?;
        let hyper = of_stage(&of.optimization, of.steps * of.mini_batches as u64);
        let context = config.text.rope.max_positions;
        let execution = stage_execution(stage.precision, &rank.device);
        let trainer = JanusTrainer::new(config, Sight::Patches, context, state, hyper, execution);
        let run_seed = rank.run.recipe().run.seed;
        Ok(Drawing {
            learner: Learner { trainer, vq },
            reference,
            prompts,
            options: options(of, run_seed),
            seed: seed(run_seed, Purpose::Reward),
            world,
            of: of.clone(),
        })
    }
}

/// The section, as a step takes it.
fn options(of: &DrawRl, seed: u64) -> PictureOptions {
    PictureOptions {
        pictures: of.samples,
        grpo: Grpo {
            surrogate: Surrogate::Token,
            scale: match of.advantage_scale {
                AdvantageScale::Deviation => Scale::Deviation,
                AdvantageScale::SampleDeviation => Scale::SampleDeviation,
                AdvantageScale::None => Scale::None,
            },
            // Every picture has as many codes: a mean over pictures of means is the same.
            aggregation: Aggregation::TokenMean,
            clip_low: of.clip_low,
            clip_high: of.clip_high,
            kl: of.kl,
            overlong: Overlong::Keep,
        },
        mini_batches: of.mini_batches,
        micro_rows: of.optimization.micro_rows,
        seed,
    }
}

impl Training for Drawing<'_> {
    type Metrics = DrawMetrics;

    fn step(&mut self, at: Position) -> Result<(Position, DrawMetrics)> {
        let started = Instant::now();
        let Drawing { learner: Learner { trainer, vq }, prompts, world, of, options, .. } = self;
        let numbers = at.items..at.items + of.prompts as u64;
        let scenes: Vec<Scene> = numbers.map(|number| scene(world, self.seed, number)).collect();
        let texts = scenes.iter().map(|scene| prompts.draw(&scene.caption)).collect::<Result<Vec<_>>>()?;
        let execution = trainer.execution().clone();
        let reward =
            |prompt: usize, codes: &[u32]| f64::from(u8::from(passes(&scenes[prompt], decoded(vq, &execution, codes))));
        let (report, drawn) = policy::step(trainer, &texts, reward, self.reference.as_ref(), options)?;
        let codes: u64 = drawn.iter().flatten().map(|drawn| drawn.codes.len() as u64).sum();
        let alive = of.prompts - report.dead;
        let learned: usize = texts.iter().map(Vec::len).sum::<usize>() * of.samples + codes as usize;
        let position = Position {
            step: at.step + 1,
            updates: at.updates + report.updates as u64,
            tokens: at.tokens + codes,
            // Dead groups are not learnt from.
            learned_tokens: at.learned_tokens + (learned * alive / of.prompts) as u64,
            items: at.items + of.prompts as u64,
        };
        Ok((position, DrawMetrics::new(&report, of, position, codes, started.elapsed().as_secs_f64())))
    }

    fn trained(&self) -> &dyn Trained {
        &self.learner
    }

    /// What is drawn to captions that were never seen.
    fn save(&self, folder: &Path) -> Result<()> {
        let caption = |n: usize| {
            let kind = Kind::ALL[n % Kind::ALL.len()];
            self.world.scene(Split::HeldOut, kind, self.seed, (n / Kind::ALL.len()) as u64).caption
        };
        let prompts = (0..SHOWN).map(|n| self.prompts.draw(&caption(n))).collect::<Result<Vec<_>>>()?;
        write_sheet(folder, &self.learner, &prompts, self.prompts.around.pad)
    }

    fn in_words(&self, line: &DrawMetrics) -> String {
        format!(
            "{:.1}% right, {:.0}% dead, logp difference {}, {} codes/s",
            100.0 * line.reward,
            100.0 * line.dead_groups,
            line.logprob_difference_max,
            short(line.tokens_per_second)
        )
    }
}

impl DrawMetrics {
    fn new(report: &PictureReport, of: &DrawRl, position: Position, codes: u64, seconds: f64) -> DrawMetrics {
        DrawMetrics {
            position,
            reward: report.reward,
            dead_groups: report.dead as f64 / of.prompts as f64,
            loss: report.policy.loss,
            kl: report.policy.kl,
            clipped_high: report.policy.clipped_high,
            clipped_low: report.policy.clipped_low,
            logprob_difference_max: report.policy.logprob_difference_max,
            grad_norm: report.grad_norm,
            seconds,
            tokens_per_second: codes as f64 / seconds,
        }
    }
}
