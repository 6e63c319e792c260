//! Stages of kind `draw_score`: what models draw to captions that were seen and that were not, how they answer
//! questions about held-out pictures, and what their VQ tokenizers make of these, judged by a world's grader.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::network::{Network, Sight};
use wels_model::janus::picture::Rgb;
use wels_model::tape::Execution;
use wels_runs::checkpoint;
use wels_runs::files;
use wels_runs::ledger::{Entry, STAGE_DONE};
use wels_runs::plan::pictures::score_flops;
use wels_runs::recipe::{DrawScore, StageSection};
use wels_runs::report::SHEET;
use wels_runs::rundir::{RunError, write_json};
use wels_scenes::{Kind, Scene, Split, World};
use wels_tasks::statistics;
use wels_train::janus::{JanusExample, pack};
use wels_train::muon::Rule;

use super::data::{Purpose, check_side, passes, pixels, rgb, seed, world};
use super::drawer::{Choice, Drawer, decoded};
use super::prompts::Prompts;
use super::sheet::sheet;
use super::state::{self, JanusStart, parameters};
use crate::host::{DrawGraded, Event, Outcome, Share};
use crate::hyper::stage_execution;
use crate::session::{GENERATE, Session, Spending};

/// Streams of the run's seed.
const STREAM_DRAWN: u64 = 0x6472_7363;
const STREAM_QUESTIONS: u64 = 0x6472_7175;
/// Held-out pictures that a VQ tokenizer is tried on.
const RECONSTRUCTED: u64 = 600;
/// Of each kind and split on the sheet.
const SHOWN: usize = 3;
/// Rows that go through a model at a time.
const ROWS: usize = 4096;

const SPLITS: [Split; 2] = [Split::Train, Split::HeldOut];

/// What was found of a model, as the stage keeps it while it goes on to the next.
#[derive(Serialize, Deserialize)]
struct Found {
    graded: DrawGraded,
    /// One a caption that was never seen.
    verdicts: Vec<bool>,
    tokens: u64,
    flops: f64,
}

/// Does what is left of the stage, and shows the results.
pub(crate) fn score(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection, of: &DrawScore) -> Result<()> {
    let folder = session.rank.run.stage(&stage.name)?;
    let path = folder.join("scores.json");
    if !(path.exists() && session.ledger.stage_done(&stage.name).is_some()) {
        let mut all: Vec<Found> = Vec::new();
        let entered = session.entered_of_undone(&stage.name);
        for (n, model) in of.models.iter().enumerate() {
            let part = folder.join(format!("model-{n}.json"));
            let found = match part.exists() {
                true => read(&part)?,
                false => {
                    let tokens: u64 = all.iter().map(|found| found.tokens).sum();
                    let unentered = tokens.saturating_sub(entered.tokens);
                    let spent = Spending { sampled: unentered, ..Spending::default() };
                    if let Some(why) = session.why_stop(spent, Spending::default()) {
                        return Err(session.stop(why, entry(&stage.name, &all, &entered)));
                    }
                    let found = grade_model(session, tokenizer, stage, of, (n, model))?;
                    write_json(&part, &found)?;
                    found
                }
            };
            all.push(found);
        }
        let first: Vec<f64> = all[0].verdicts.iter().map(|right| f64::from(u8::from(*right))).collect();
        for found in &mut all[1..] {
            let verdicts: Vec<f64> = found.verdicts.iter().map(|right| f64::from(u8::from(*right))).collect();
            found.graded.p = statistics::difference(&first, &verdicts).map(|difference| difference.p);
        }
        let results: Vec<&DrawGraded> = all.iter().map(|found| &found.graded).collect();
        write_json(&path, &results)?;
        let files = checkpoint::records_within(&folder)?;
        session.record(Entry { event: STAGE_DONE.into(), files, ..entry(&stage.name, &all, &entered) })?;
    }
    let models: Vec<DrawGraded> = read(&path)?;
    Ok(session.host.result(Outcome::Drawn { of, models: &models })?)
}

fn read<T: for<'a> Deserialize<'a>>(path: &std::path::Path) -> Result<T> {
    let text = files::read_text(path, files::SMALL_BYTES_MAX).map_err(RunError::io("read", path))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// The ledger's line of what is not entered yet.
fn entry(stage: &str, all: &[Found], entered: &wels_runs::ledger::Totals) -> Entry {
    let (tokens, flops) = all.iter().fold((0, 0.0), |(tokens, flops), it| (tokens + it.tokens, flops + it.flops));
    Entry {
        stage: stage.into(),
        kind: GENERATE.into(),
        tokens: tokens.saturating_sub(entered.tokens),
        flops: (flops - entered.flops).max(0.0),
        ..Entry::default()
    }
}

/// A model that is graded.
struct Subject<'a> {
    network: Network,
    start: JanusStart,
    execution: Execution,
    prompts: Prompts<'a>,
    world: World,
    of: &'a DrawScore,
    run_seed: u64,
}

fn grade_model(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    of: &DrawScore,
    (n, model): (usize, &str),
) -> Result<Found> {
    let rank = &session.rank;
    let start = state::janus(rank, model, tokenizer, None, Rule::AdamW)?;
    let (config, world) = (start.config.clone(), world(&of.pictures)?);
    check_side(&config, &world).with_context(|| format!("cannot grade {model}"))?;
    let subject = Subject {
        network: Network::new(config.clone(), Sight::Patches, config.text.rope.max_positions),
        execution: stage_execution(stage.precision, &rank.device),
        prompts: Prompts::new(tokenizer, &config)?,
        run_seed: rank.run.recipe().run.seed,
        start,
        world,
        of,
    };
    let total = Some(2 * Kind::ALL.len() as u64);
    session.host.event(Event::Began { label: "draw", unit: "kinds", done: 0, total });
    let (mut seen, mut unseen, mut verdicts, mut shown) = (BTreeMap::new(), BTreeMap::new(), Vec::new(), Vec::new());
    for (done, (split, kind)) in SPLITS.into_iter().flat_map(|split| Kind::ALL.map(|kind| (split, kind))).enumerate() {
        let graded = subject.draw(split, kind)?;
        shown.extend(graded.iter().take(SHOWN).map(|(_, picture)| picture.clone()));
        let share = Share::of(graded.iter().map(|(right, _)| *right));
        // Captions of single objects are the same in both.
        if split == Split::Train {
            seen.insert(kind.tag().to_owned(), share);
        } else if kind.holds_out_captions() {
            unseen.insert(kind.tag().to_owned(), share);
            verdicts.extend(graded.iter().map(|(right, _)| *right));
        }
        let words = || format!("{model}: {}", kind.tag());
        session.host.event(Event::Reached { done: done as u64 + 1, words: &words });
    }
    let graded = DrawGraded {
        model: model.into(),
        parameters: parameters(&subject.start.state.params),
        seen,
        unseen,
        p: None,
        answers: subject.answers()?,
        ..subject.reconstructions()
    };
    let (before, after) = (graded.seen_share(), graded.unseen_share());
    let words = format!("{model}: {:.1}% of seen captions, {:.1}% of unseen ones", 100.0 * before, 100.0 * after);
    session.host.event(Event::Ended(&words));
    let path = session.rank.run.path().join(&stage.name).join(format!("{n}-{SHEET}"));
    fs::write(&path, sheet(&shown, SHOWN * 2)).map_err(RunError::io("write", &path))?;
    let sequences = if of.guidance == 1.0 { 1 } else { 2 };
    let tokens = 2 * Kind::ALL.len() as u64 * of.items * config.vq.tokens() as u64 * sequences;
    Ok(Found { graded, verdicts, tokens, flops: (tokens * score_flops(&config)) as f64 })
}

impl Subject<'_> {
    fn config(&self) -> &JanusConfig {
        &self.start.config
    }

    fn scenes(&self, split: Split, kind: Kind, count: u64) -> impl Iterator<Item = Scene> + '_ {
        let seed = seed(self.run_seed, Purpose::Score);
        (0..count).map(move |number| self.world.scene(split, kind, seed, number))
    }

    /// Pictures to captions of a kind, and whether they are right.
    fn draw(&self, split: Split, kind: Kind) -> Result<Vec<(bool, Rgb)>> {
        let scenes: Vec<Scene> = self.scenes(split, kind, self.of.items).collect();
        let prompts = scenes.iter().map(|scene| self.prompts.draw(&scene.caption)).collect::<Result<Vec<_>>>()?;
        let key = Key { seed: self.run_seed, stream: STREAM_DRAWN ^ (split as u64) << 8 ^ kind as u64 };
        let seeds: Vec<u64> = (0..self.of.items).map(|n| key.u64_at(n)).collect();
        let drawer = Drawer {
            network: &self.network,
            params: &self.start.state.params,
            execution: &self.execution,
            vq: &self.start.vq,
        };
        let (temperature, guidance) = (self.of.temperature, self.of.guidance);
        let choice = Choice { temperature, guidance, pad: self.prompts.around.pad };
        let drawn = drawer.draw(&prompts, &seeds, choice)?;
        Ok(drawn.into_iter().zip(&scenes).map(|(picture, scene)| (passes(scene, picture.clone()), picture)).collect())
    }

    /// How many questions about held-out pictures are answered, the likeliest token each time.
    fn answers(&self) -> Result<BTreeMap<String, Share>> {
        let per_kind = self.of.questions.div_ceil(Kind::ALL.len() as u64);
        let scenes = Kind::ALL.into_iter().flat_map(|kind| self.scenes(Split::HeldOut, kind, per_kind));
        let (mut questions, mut asked) = (Vec::new(), Vec::new());
        for (number, scene) in (0..).zip(scenes) {
            let key = Key { seed: self.run_seed, stream: STREAM_QUESTIONS ^ number };
            let mut of_scene = scene.questions(key.u64_at(0));
            let question = of_scene.swap_remove(key.below_at(1, of_scene.len() as u64) as usize);
            asked.push(self.prompts.ask(self.config(), &rgb(scene.picture), &question.text)?);
            questions.push(question);
        }
        let mut answers: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for (question, reply) in questions.iter().zip(self.replies(asked)?) {
            let sort = format!("{:?}", question.sort()).to_lowercase();
            answers.entry(sort).or_default().push(question.is_answered_by(&reply));
        }
        Ok(answers.into_iter().map(|(sort, right)| (sort, Share::of(right))).collect())
    }

    /// What the model says to questions about pictures, the likeliest token each time, until it ends or the context is
    /// full.
    fn replies(&self, mut asked: Vec<JanusExample>) -> Result<Vec<String>> {
        let context = self.config().text.rope.max_positions;
        let mut said: Vec<Vec<u32>> = vec![Vec::new(); asked.len()];
        let mut open: Vec<usize> = (0..asked.len()).collect();
        while !open.is_empty() {
            let batch = pack(open.iter().map(|n| &asked[*n]));
            let mut next = Vec::with_capacity(open.len());
            for sequences in batch.micro_batches(ROWS) {
                let params = &self.start.state.params;
                next.extend(self.network.next_tokens(params, &self.execution, &batch.cut(sequences)));
            }
            let mut still = Vec::new();
            for (n, token) in open.into_iter().zip(next) {
                if self.prompts.ends(token) {
                    continue;
                }
                said[n].push(token);
                asked[n].say(token);
                still.extend((asked[n].rows() < context).then_some(n));
            }
            open = still;
        }
        said.iter().map(|tokens| self.prompts.words(tokens)).collect()
    }

    /// What becomes of held-out pictures that are made codes and pictures again; all else is left as it is.
    fn reconstructions(&self) -> DrawGraded {
        let (vq, side) = (&self.start.vq, self.config().vq.image_size());
        let per_kind = RECONSTRUCTED / Kind::ALL.len() as u64;
        let (mut right, mut squares, mut numbers) = (Vec::new(), 0.0, 0);
        let mut used = vec![false; self.config().vq.codes];
        for scene in Kind::ALL.into_iter().flat_map(|kind| self.scenes(Split::HeldOut, kind, per_kind)) {
            let picture = rgb(scene.picture.clone());
            let codes = vq.encode(&self.execution, &pixels(&picture, side));
            codes.iter().for_each(|code| used[*code as usize] = true);
            let again = decoded(vq, &self.execution, &codes);
            let pairs = again.bytes.iter().zip(&picture.bytes);
            squares += pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
            numbers += picture.bytes.len();
            right.push(passes(&scene, again));
        }
        DrawGraded {
            reconstructed: Share::of(right),
            psnr: 10.0 * (255.0f64.powi(2) * numbers as f64 / squares.max(1e-9)).log10(),
            codes_used: used.iter().filter(|used| **used).count(),
            codes: used.len(),
            ..DrawGraded::default()
        }
    }
}
